//! Who changed what is ours: the kernel tells the thread and its name, and procfs the rest while it lives.

use std::path::Path;

use ::verification::Culprit;
use kernel::watch::RulesetCommit;
use netns::NetnsId;
use netns::find::{ProcessPlace, place};

/// The longest name of a program that is kept: whoever makes one chooses it.
const MAX_NAME: usize = 128;

/// The writer of a transaction in a pod's namespace; `names` knows the pods of this node by uid.
pub(super) fn culprit(
    commit: &RulesetCommit,
    proc_root: &Path,
    own: (&str, NetnsId),
    names: &dyn Fn(&str) -> Option<String>,
) -> Culprit {
    if commit.pid == 0 {
        return Culprit::unknown();
    }
    let ProcessPlace { executable, pod, container, netns } = place(proc_root, commit.pid);
    Culprit {
        pid: Some(commit.pid),
        command: printable(&commit.command),
        executable: executable.map(|path| printable(&path.to_string_lossy())),
        container,
        in_the_pod: pod.as_deref() == Some(own.0) && netns == Some(own.1),
        pod: pod.map(|uid| names(&uid).unwrap_or(uid)),
    }
}

/// The same in the node's own namespace, where no writer is a pod's own.
pub(crate) fn node_writer(
    commit: &RulesetCommit,
    proc_root: &Path,
    names: &dyn Fn(&str) -> Option<String>,
) -> Culprit {
    let nowhere = NetnsId { dev: 0, ino: 0 };
    culprit(commit, proc_root, ("", nowhere), names)
}

/// Without what would confuse a line of the log, or a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}
