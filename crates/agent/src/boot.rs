//! Which start of the machine this is, and whether the agent before this one lived in an earlier one. Namespaces, rules and what is in memory do
//! not outlive a start of the machine; the state directory does.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rundir::BOOT_NAME;
use serde::{Deserialize, Serialize};
use trusted::Links;

/// The kernel's number of this start of the machine, random(4). Namespaces do not outlive it, and their inode numbers come again.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Largest file that is read, in bytes.
const MAX_FILE: usize = 4 << 10;

/// Tells this start of the machine from all others; empty where the kernel does not say.
pub(crate) fn id() -> String {
    std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

/// What the state directory says about starts of the machine.
#[derive(Debug)]
pub(crate) struct BootJournal {
    dir: PathBuf,
    /// Read when it is first needed: by then the agent before has written its last word.
    state: OnceLock<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    id: String,
    kept: Kept,
    has_rebooted: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// The start of the machine in which an agent ran last.
    boot: String,
    /// The start of the machine whose pods the kept facts are of; empty where no agent has said so.
    facts: String,
    /// Restarts of the machine that agents have noticed.
    reboots: u64,
}

// === impl BootJournal ===

impl BootJournal {
    /// Reads nothing yet.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.to_owned(), state: OnceLock::new() }
    }

    /// Notes for the next agent that one has run in this start of the machine.
    ///
    /// # Errors
    /// The file cannot be written: the next agent takes this start for a later one.
    pub(crate) fn begin(&self) -> io::Result<()> {
        self.write(&self.state().kept)
    }

    /// Whether the machine has started again since an agent ran last.
    pub(crate) fn has_rebooted(&self) -> bool {
        self.state().has_rebooted
    }

    /// Restarts of the machine that agents of this node have noticed.
    pub(crate) fn reboots(&self) -> u64 {
        self.state().kept.reboots
    }

    /// Whether the kept facts are of pods that run: not those of pods that an earlier start of the machine had.
    pub(crate) fn has_facts(&self) -> bool {
        let state = self.state();
        state.kept.facts.is_empty() || state.kept.facts == state.id
    }

    /// The pods of this start of the machine are known from now on, and kept.
    ///
    /// # Errors
    /// The file cannot be written: an agent without an API server will not use them.
    pub(crate) fn facts_are_known(&self) -> io::Result<()> {
        let mut state = self.state();
        state.kept.facts = state.id.clone();
        self.write(&state.kept)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.state.get_or_init(|| Mutex::new(State::new(id(), read(&self.dir.join(BOOT_NAME)))));
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Not synced: a reboot in good order writes it, and after a crash the one before says the same.
    fn write(&self, kept: &Kept) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        // kubelet makes it for everybody to read.
        std::fs::set_permissions(&self.dir, Permissions::from_mode(0o700))?;
        let path = self.dir.join(BOOT_NAME);
        trusted::replace(&path, &path.with_extension("unfinished"), &serde_json::to_vec(kept)?)
    }
}

// === impl State ===

impl State {
    fn new(id: String, mut kept: Kept) -> Self {
        // Before the first agent there is nothing to compare with, and a kernel that does not say tells nothing.
        let has_rebooted = !kept.boot.is_empty() && !id.is_empty() && kept.boot != id;
        kept.reboots += u64::from(has_rebooted);
        kept.boot.clone_from(&id);
        Self { id, kept, has_rebooted }
    }
}

/// What an earlier agent kept. A file that cannot be used is as good as none.
fn read(path: &Path) -> Kept {
    let text = trusted::read(path, Links::Refused, MAX_FILE).ok();
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(boot: &str, facts: &str, reboots: u64) -> Kept {
        Kept { boot: boot.to_owned(), facts: facts.to_owned(), reboots }
    }

    #[test]
    fn a_restart_of_the_machine_is_another_id_than_the_kept_one() {
        for (id, before, has_rebooted) in [
            ("two", kept("one", "one", 4), true),
            ("one", kept("one", "one", 4), false),
            ("one", Kept::default(), false),
            ("", kept("one", "one", 4), false),
        ] {
            let state = State::new(id.to_owned(), before.clone());
            assert_eq!(state.has_rebooted, has_rebooted, "{id} after {before:?}");
            assert_eq!(state.kept.reboots, before.reboots + u64::from(has_rebooted));
            assert_eq!(state.kept.boot, id);
        }
    }

    /// Agent after agent, as their files say it.
    #[test]
    fn facts_count_in_the_start_of_the_machine_that_they_are_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = BootJournal::new(&path);
        first.begin().unwrap();
        assert!(first.has_facts(), "those of an agent that kept no such file");
        first.facts_are_known().unwrap();
        let next = BootJournal::new(&path);
        assert!(next.has_facts() && !next.has_rebooted());
        assert_eq!(read(&path.join(BOOT_NAME)), kept(&id(), &id(), 0));

        let after = BootJournal::new(&path);
        after.write(&kept("an-earlier-one", "an-earlier-one", 1)).unwrap();
        after.begin().unwrap();
        assert!(after.has_rebooted() && !after.has_facts());
        assert_eq!(after.reboots(), 2);
        let again = BootJournal::new(&path);
        assert!(!again.has_rebooted() && !again.has_facts(), "the pods are still not known");
        again.facts_are_known().unwrap();
        assert!(BootJournal::new(&path).has_facts());
    }
}
