//! One agent works on a node at a time. It holds a lock in the run directory as long as it lives: the kernel frees it with the process, however
//! that ends. An agent that comes second says who is there, touches nothing, and begins when the first has ended.
//!
//! Who waits holds a second lock, by which the first knows at its end that another agent follows, and leaves everything in place.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rundir::{Holder, LOCK_NAME, LOCKS_NAME, NEXT_LOCK_NAME};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use trusted::Links;

use crate::health::HealthPart;
use crate::run::{Agent, ProcessEnd};
use serve::UnixSocket;

/// How often the lock is tried.
const POLL: Duration = Duration::from_millis(50);
/// How long the end of an agent before this one may take before it is news that there is one.
const GRACE: Duration = Duration::from_secs(1);
/// How long an agent at its end looks whether the one that waits ends as well.
const BOTH_END: Duration = Duration::from_secs(1);
/// How long an agent of before may take to say its version.
const ANSWER: Duration = Duration::from_millis(200);
/// `reason` of the event about this agent's own pod.
pub(crate) const OTHER_AGENT: &str = "AnotherAgentOnNode";

/// The right to work on the node.
pub(crate) struct NodeLock {
    dir: PathBuf,
    /// Absent where the file system has no locks: then nobody can be told apart.
    _file: Option<File>,
}

// === impl Agent ===

impl Agent {
    /// Waits until no other agent works on this node; `None` when this one is told to end before.
    pub(crate) async fn take_node(self: &Arc<Self>, end: &mut ProcessEnd) -> Option<NodeLock> {
        let dir = self.config.run_dir.clone();
        let (mut next, began, mut told) = (None::<File>, Instant::now(), String::new());
        loop {
            match try_lock(&dir, LOCK_NAME) {
                Ok(Some(file)) => {
                    if let Err(error) = write_holder(&dir.join(LOCK_NAME), &self.holder()) {
                        self.log.warn("the name of this agent is not in its lock file", &[("error", &error)]);
                    }
                    if !told.is_empty() {
                        let waited = began.elapsed().as_secs();
                        self.log.info("the other agent has ended; this one begins", &[("waited_s", &waited)]);
                    }
                    self.health.ready(HealthPart::NodeLock);
                    self.tell_of_one_without_lock();
                    return Some(NodeLock { dir, _file: Some(file) });
                }
                Ok(None) => {}
                // What is wrong with the directory is told by what needs it more.
                Err(error) => {
                    let text =
                        "other agents on this node would not be noticed: the run directory cannot be locked";
                    self.log.warn(text, &[("path", &dir.display()), ("error", &error)]);
                    self.health.ready(HealthPart::NodeLock);
                    return Some(NodeLock { dir, _file: None });
                }
            }
            if next.is_none() {
                next = try_lock(&dir, NEXT_LOCK_NAME).ok().flatten();
                // Without its name it is waited for all the same.
                let _ = next.as_ref().map(|_| write_holder(&dir.join(NEXT_LOCK_NAME), &self.holder()));
            }
            let text = format!(
                "another agent works on this node: {}; this one waits until it ends. Remove one of the two DaemonSets",
                read_holder(&dir, LOCK_NAME)
            );
            self.health.pending(HealthPart::NodeLock, &text);
            if began.elapsed() >= GRACE && text != told {
                self.log.error(&text, &[("path", &dir.join(LOCK_NAME).display())]);
                let (agent, message) = (self.clone(), text.clone());
                tokio::spawn(async move { agent.events.warn_own(OTHER_AGENT, &message).await });
                told = text;
            }
            tokio::select! {
                signal = end.told() => {
                    self.log.info("ending; another agent works on this node, and nothing is touched", &[("signal", &signal)]);
                    return None;
                }
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    fn holder(&self) -> Holder {
        Holder {
            namespace: self.config.pod.namespace.clone(),
            pod: self.config.pod.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
        }
    }

    /// Agents of the original, and ours of before, hold no lock. One of them that still listens is told of, and its sockets are replaced.
    fn tell_of_one_without_lock(self: &Arc<Self>) {
        let dir = &self.config.run_dir;
        let Some(path) = rundir::sockets(dir).into_iter().find(|path| UnixSocket::is_served(path)) else {
            return;
        };
        let agent = self.clone();
        // It may not answer at all, and nothing of this agent waits for that.
        let status = podsource::AgentSource::new(dir, env!("CARGO_PKG_VERSION")).status(ANSWER);
        let who = status.map_or_else(
            |_| "it may be one of the original's".to_owned(),
            |status| format!("version {}, process {}", status.version, status.pid),
        );
        let text = format!(
            "another agent listens on {} ({who}); it holds no lock, so this one takes its place. If it does not end, remove its DaemonSet",
            path.display()
        );
        agent.log.error(&text, &[("path", &path.display())]);
        tokio::spawn(async move { agent.events.warn_own(OTHER_AGENT, &text).await });
    }
}

// === impl NodeLock ===

impl NodeLock {
    /// The agent that waits for the end of this one, if there is one that does not end as well.
    pub(crate) async fn next(&self) -> Option<Holder> {
        let began = Instant::now();
        while began.elapsed() < BOTH_END {
            if !is_locked(&self.dir, NEXT_LOCK_NAME) {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
        Some(read_holder(&self.dir, NEXT_LOCK_NAME))
    }

    /// Removes the files, as the last thing that this agent does on a node that is to have none.
    pub(crate) fn remove(self) {
        for name in [LOCKS_NAME, NEXT_LOCK_NAME, LOCK_NAME] {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
    }
}

/// Takes the lock, unless another process has it. Made anew where it was removed in between: what counts is the file that others find.
fn try_lock(dir: &Path, name: &str) -> io::Result<Option<File>> {
    DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    let path = dir.join(name);
    loop {
        // Held by a descriptor that only reads: one that writes would keep the file system from being made read-only.
        let file = match trusted::open(&path, Links::Refused) {
            Err(error) if error.is_not_found() => {
                match open_file(&path, OpenOptions::new().write(true).create_new(true)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => continue,
                }
            }
            file => file?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let (held, there) = (file.metadata()?, std::fs::symlink_metadata(&path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
            return Ok(Some(file));
        }
    }
}

/// Whether a process holds the lock. Looks without making a file.
fn is_locked(dir: &Path, name: &str) -> bool {
    rundir::holder(dir, name).is_ok_and(|holder| holder.is_some())
}

fn open_file(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.mode(0o600).custom_flags(flags.bits().cast_signed()).open(path)
}

fn write_holder(path: &Path, holder: &Holder) -> io::Result<()> {
    let mut file = open_file(path, OpenOptions::new().write(true).truncate(true))?;
    file.write_all(serde_json::to_string(holder)?.as_bytes())
}

/// Who says to hold it: what is not understood names nobody.
fn read_holder(dir: &Path, name: &str) -> Holder {
    rundir::holder(dir, name).ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_ends_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let first = try_lock(&run, LOCK_NAME).unwrap().unwrap();
        assert!(is_locked(&run, LOCK_NAME) && try_lock(&run, LOCK_NAME).unwrap().is_none());
        assert!(!is_locked(&run, NEXT_LOCK_NAME) && !run.join(NEXT_LOCK_NAME).exists());
        drop(first);
        assert!(!is_locked(&run, LOCK_NAME) && try_lock(&run, LOCK_NAME).unwrap().is_some());
    }

    #[test]
    fn a_file_that_was_removed_locks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let _removed = try_lock(dir.path(), LOCK_NAME).unwrap().unwrap();
        std::fs::remove_file(dir.path().join(LOCK_NAME)).unwrap();
        assert!(try_lock(dir.path(), LOCK_NAME).unwrap().is_some());
    }

    #[test]
    fn a_link_is_not_followed_and_a_directory_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join(LOCK_NAME)).unwrap();
        try_lock(dir.path(), LOCK_NAME).unwrap_err();
        assert!(!dir.path().join("elsewhere").exists());
        std::fs::create_dir(dir.path().join(NEXT_LOCK_NAME)).unwrap();
        try_lock(dir.path(), NEXT_LOCK_NAME).unwrap_err();
    }

    #[test]
    fn who_holds_it_is_read_with_care() {
        let dir = tempfile::tempdir().unwrap();
        let holder = Holder { namespace: "a".into(), pod: "b".into(), version: "1".into(), pid: 7 };
        let _held = try_lock(dir.path(), LOCK_NAME).unwrap().unwrap();
        write_holder(&dir.path().join(LOCK_NAME), &holder).unwrap();
        assert_eq!(read_holder(dir.path(), LOCK_NAME), holder);
        let text = |text: &[u8]| {
            std::fs::write(dir.path().join(LOCK_NAME), text).unwrap();
            read_holder(dir.path(), LOCK_NAME).to_string()
        };
        let nobody = "an agent without a name in its lock file";
        assert_eq!(text(b"{\"pid\": 9, \"version\": \"2\", \"more\": []}"), "process 9, version 2");
        for broken in [&b""[..], b"\xff", b"[", b"{\"pid\": \"x\"}", &[b'{'; 9000]] {
            assert_eq!(text(broken), nobody);
        }
    }
}
