//! Several runs of iptables-restore that happen all or not at all.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netns::Lock;
use ruleset::{Family, TableKind};

use super::child::{self, Surroundings};
use super::error::{Error, Failure, ProgramFailure};
use super::private::{self, PrivateView};
use super::probe::Present;
use super::program::Variant;
use super::saved::Saved;

/// How long a legacy program waits for the lock where it could not be given one of its own, as in the original.
const LOCK_WAIT: &str = "--wait=30";

/// The runs in order, with everything that is needed to do them and to take them back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IptablesJob {
    /// The longest that one run may take.
    pub(super) timeout: Duration,
    /// The PATH of the programs.
    pub(super) path: String,
    /// Whether the rules are the node's own, see [`super::Iptables::on_the_node`].
    pub(super) node: bool,
    pub(super) runs: Vec<ProgramRun>,
}

/// One run: the tables of one family and variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProgramRun {
    pub(super) save: PathBuf,
    pub(super) restore: PathBuf,
    pub(super) family: Family,
    pub(super) variant: Variant,
    /// Whether the variant had no table before, so that nobody has shown that the kernel has it.
    pub(super) unproven: bool,
    pub(super) tables: Vec<TableStep>,
}

/// One table, which is one commit in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableStep {
    pub(super) kind: TableKind,
    /// Text for iptables-restore.
    pub(super) forward: String,
    /// Text that takes `forward` back.
    pub(super) backward: String,
    /// [`Saved::content`] before; absent where that was not listed, as no chain of ours was there.
    pub(super) before: Option<Vec<String>>,
}

/// What came of a job.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct JobReport {
    /// For the log.
    pub(super) warnings: Vec<String>,
    /// The number of the run that failed, and how.
    pub(super) failure: Option<(usize, Failure)>,
}

impl IptablesJob {
    /// Whether the programs would come to files of the host that must not slow them down. What the node itself has is changed as
    /// everybody else changes it.
    pub(super) fn hides_files(&self) -> bool {
        !self.node && (self.locks() || self.runs.iter().any(ProgramRun::looks_users_up))
    }

    fn locks(&self) -> bool {
        self.runs.iter().any(|run| run.variant == Variant::Legacy)
    }

    /// Does the job on the calling thread. That must be one to throw away if the job [hides files](Self::hides_files): its mount
    /// namespace changes then.
    pub(super) fn execute(&self, lock: Option<OwnedFd>) -> JobReport {
        // Asked for while /proc is as it was.
        let user_namespace = private::foreign_user_namespace();
        // A mount namespace is a copy of all the mounts that the process sees, which on a full node are hundreds.
        let view =
            if self.hides_files() { private::hide_host_files(self.locks()) } else { PrivateView::default() };
        let around = Surroundings {
            environment: environment(&self.path, &view, self.node),
            user_namespace,
            lock,
            timeout: self.timeout,
        };
        let mut failure = None;
        for (number, run) in self.runs.iter().enumerate() {
            let text: String = run.tables.iter().map(|table| table.forward.as_str()).collect();
            if let Err(mut error) = run.restore(&text, &around, view.own_lock) {
                // The last first, as always when something is taken back.
                for done in self.runs[..=number].iter().rev() {
                    error.left.extend(done.take_back(&around, view.own_lock).err().map(|e| e.to_string()));
                }
                failure = Some((number, error));
                break;
            }
        }
        JobReport { warnings: view.warnings, failure }
    }
}

/// For a caller whose own thread goes on. A new one is in the namespaces of the one that makes it; what it changes about its own ends with
/// it.
pub(super) fn on_a_thread(job: &IptablesJob, lock: Option<&Lock>) -> Result<JobReport, Error> {
    let failed = |e: std::io::Error| Error::Supervisor { cause: e.to_string() };
    let lock = share(lock)?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("iptables".to_owned())
            .spawn_scoped(scope, || job.execute(lock))
            .map_err(failed)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

pub(super) fn share(lock: Option<&Lock>) -> Result<Option<OwnedFd>, Error> {
    let shared = lock.map(Lock::share).transpose();
    shared.map_err(|e| Error::Supervisor { cause: e.to_string() })
}

impl ProgramRun {
    /// Whether a rule names a user or a group, which iptables looks up even if it is a number.
    fn looks_users_up(&self) -> bool {
        let of = |text: &str| text.contains("--uid-owner ") || text.contains("--gid-owner ");
        self.tables.iter().any(|table| of(&table.forward) || of(&table.backward))
    }

    fn restore(&self, text: &str, around: &Surroundings, own_lock: bool) -> Result<(), Failure> {
        restore((&self.restore, self.variant), text, around, own_lock)
    }

    /// Takes back those tables that are not as they were. What iptables-restore had done when it failed, only the kernel knows.
    fn take_back(&self, around: &Surroundings, own_lock: bool) -> Result<(), Failure> {
        let kinds: Vec<TableKind> = self.tables.iter().map(|table| table.kind).collect();
        let now = match child::run(&self.save, &save_arguments(&kinds), None, around) {
            Ok(now) => now,
            // What made iptables-restore fail, as a kernel without this variant, makes iptables-save fail too.
            Err((ProgramFailure::Exit(_), _)) if self.changed_nothing() => return Ok(()),
            Err((cause, said)) => {
                return Err(Failure { program: self.save.clone(), cause, said, left: Vec::new() });
            }
        };
        let now = Saved::parse(&now);
        let changed = self.tables.iter().rev().filter(|table| table.is_changed(&now));
        let text: String = changed.map(|table| table.backward.as_str()).collect();
        if text.is_empty() { Ok(()) } else { self.restore(&text, around, own_lock) }
    }

    /// Whether the variant had nothing before and has nothing now, as far as that is known without a program.
    fn changed_nothing(&self) -> bool {
        self.unproven
            && self.tables.iter().all(|table| table.before.as_ref().is_none_or(Vec::is_empty))
            && Present::ask(self.family).is_ok_and(|present| !present.has(self.variant))
    }
}

impl TableStep {
    /// Whether the table is not as it was. One that was not listed had no chain of ours, so any that is there now is new.
    fn is_changed(&self, now: &Saved) -> bool {
        let Some(before) = &self.before else {
            let chains = now.table(self.kind).map_or(&[][..], |table| &table.chains);
            let mut made = self.forward.lines().filter_map(|line| line.strip_prefix("-N "));
            return made.any(|made| chains.iter().any(|chain| chain == made));
        };
        now.content(self.kind) != *before
    }
}

/// One run of an iptables-restore.
pub(super) fn restore(
    (program, variant): (&Path, Variant),
    text: &str,
    around: &Surroundings,
    own_lock: bool,
) -> Result<(), Failure> {
    let mut arguments = vec!["--noflush"];
    if variant == Variant::Legacy && !own_lock {
        arguments.push(LOCK_WAIT);
    }
    child::run(program, &arguments, Some(text), around).map(drop).map_err(|(cause, said)| Failure {
        program: program.to_owned(),
        cause,
        said,
        left: Vec::new(),
    })
}

/// What makes iptables-save print these tables: all tables of a namespace are read by one run, one alone by itself, as that is the
/// case of the node, whose other tables are others' and may be large.
pub(super) fn save_arguments(kinds: &[TableKind]) -> Vec<&'static str> {
    match kinds {
        [one] => vec!["-t", one.name()],
        _ => Vec::new(),
    }
}

/// Everything that the programs get. Since 1.8.6 iptables takes the path of its lock from the environment; the mount over the
/// usual path serves the older ones, and the two name the same file. Where nothing can be mounted, as in an init container, the lock is the
/// memory file that takes the program's messages: no other process has that one.
fn environment(path: &str, view: &PrivateView, node: bool) -> Vec<(String, String)> {
    let lock = match (view.own_lock, node) {
        (true, _) => Some("/run/xtables.lock"),
        (false, false) => Some("/proc/self/fd/2"),
        (false, true) => None,
    };
    let lock = lock.map(|lock| ("XTABLES_LOCKFILE".to_owned(), lock.to_owned()));
    [("PATH".to_owned(), path.to_owned())].into_iter().chain(lock).collect()
}
