//! The run directory, in which plugin, agent and `cnictl` meet: its names, what is said on its sockets, and the notes that lie in it. An upgrade
//! meets files and peers of other versions, so a name or a member that is here stays.
//!
//! Over HTTP/1.1 on the unix socket [`SOCKET_NAME`]: `GET /v1/facts/<namespace>/<name>?uid=<uid>` is answered with [`facts::Facts`] or with 404
//! and a text; `POST /v1/report` takes a [`OperationReport`]; `GET /v1/status` is answered with [`AgentStatus`]; `GET /v1/pods` with
//! [`pods::PodsReport`], with `?fresh=1` after a full look at each pod; `POST /v1/restore` takes a [`pods::RestoreRequest`] and is answered with
//! [`pods::RestoreReport`]; `GET /v1/conflicts` is answered with [`pods::ConflictsReport`]; `POST /v1/policy/prepare` takes a
//! [`policy::PrepareRequest`], with the pod's network namespace as a descriptor, and is answered with [`policy::PrepareAnswer`] when the pod may
//! start; `POST /v1/policy/release` takes a [`policy::ReleaseRequest`] and is answered when the addresses may be given to others;
//! `GET /v1/policy/denials` is answered with [`denials::DenialsReport`], with `?after=<number>` of newer records only; `GET /v1/policy/state` with
//! [`policy::PolicyStateReport`]; `GET /v1/recent` with [`recent::RecentReport`].

mod lock;
pub mod note;
mod wire;

use std::io;
use std::path::{Path, PathBuf};

pub use lock::holder;
pub use wire::{AgentStatus, AmbientOptions, Holder, OperationReport, Outcome, Phases};
pub use wire::{denials, pods, policy, recent};

/// The agent's socket in the run directory. Its mode is 0600, and both sides look at the other's user.
pub const SOCKET_NAME: &str = "agent.sock";
/// The agent's socket in the run directory where plugins announce pods of ambient mode, upstream's included.
pub const EVENT_SOCKET_NAME: &str = "pluginevent.sock";
/// Path on the event socket to which plugins post a pod, as in the original.
pub const EVENT_PATH: &str = "/cmdadd";
/// The agent's socket in the run directory where plugins leave their log lines, as in the original.
pub const LOG_SOCKET_NAME: &str = "log.sock";
/// Path on the log socket.
pub const LOG_PATH: &str = "/log";
/// Path of the facts on the socket, before namespace and name.
pub const FACTS_PATH: &str = "/v1/facts";
/// Path of the reports on the socket.
pub const REPORT_PATH: &str = "/v1/report";

/// Path of the agent's [`AgentStatus`] on the socket.
pub const STATUS_PATH: &str = "/v1/status";
/// Path of [`pods::PodsReport`] on the socket.
pub const PODS_PATH: &str = "/v1/pods";
/// Path of [`pods::RestoreRequest`] on the socket.
pub const RESTORE_PATH: &str = "/v1/restore";
/// Path of [`policy::PrepareRequest`] on the socket.
pub const PREPARE_PATH: &str = "/v1/policy/prepare";
/// Path of [`policy::ReleaseRequest`] on the socket.
pub const RELEASE_PATH: &str = "/v1/policy/release";
/// Path of [`policy::PolicyStateReport`] on the socket.
pub const POLICY_STATE_PATH: &str = "/v1/policy/state";
/// Path of what the agent's checks of its node came to last.
pub const CHECKS_PATH: &str = "/v1/checks";
/// Path of [`pods::ConflictsReport`] on the socket.
pub const CONFLICTS_PATH: &str = "/v1/conflicts";
/// Path of [`recent::RecentReport`] on the socket.
pub const RECENT_PATH: &str = "/v1/recent";
/// Path of [`denials::DenialsReport`] on the socket.
pub const DENIALS_PATH: &str = "/v1/policy/denials";

/// Directory of last known facts in the run directory, and in the state directory: a file of [`facts::Facts`] for each pod of the node, see [`facts_file`].
pub const FACTS_DIR: &str = "facts";
/// Directory of pods that started without capture, in the run directory: a file of [`OperationReport`] for each, named by container. The plugin
/// leaves one when it cannot tell the agent; the agent takes it from there.
pub const UNCAPTURED_DIR: &str = "uncaptured";
/// Directory of the agent's own records of ambient pods in the run directory: a file for each pod that has something of ours, named by uid.
pub const AMBIENT_DIR: &str = "ambient";
/// File of the agent's own in the run directory: when runtimes called the plugin.
pub const PLUGIN_TIMES_NAME: &str = "plugin-times.json";
/// File in the run directory that the agent that works on the node holds with flock(2) as long as it lives; it has the agent's [`Holder`].
pub const LOCK_NAME: &str = "agent.lock";
/// The same of an agent that waits for its turn: the one before it leaves everything in place when it ends.
pub const NEXT_LOCK_NAME: &str = "agent.next";

/// File in the run directory in which a pod's network namespace is locked, see `netns::Lock`.
pub const LOCKS_NAME: &str = "namespaces.lock";
/// Directory of records of what was applied to pods' namespaces, in the run directory. See the crate `applied`.
pub const APPLIED_DIR: &str = "applied";
/// Directory of notes where the sandboxes of manifests' pods are, in the run directory.
pub const SANDBOXES_DIR: &str = "sandboxes";
/// Directory of notes where the sandboxes of pods are that policies may select, in the run directory.
pub const POLICED_DIR: &str = "policed";
/// File in the state directory: what is known of policies, for an ADD without the agent and for the next agent. It outlives the run directory, or
/// isolation would end with that.
pub const POLICIES_NAME: &str = "policies.snapshot";
/// Folder of settings as they were before the agent changed them.
pub const SETTINGS_DIR: &str = "settings";
/// File of the agent's own in the state directory: which start of the machine it last ran in.
pub const BOOT_NAME: &str = "boot.json";
/// The plugin's kubeconfig in the run directory; the agent writes it.
pub const KUBECONFIG: &str = "istio-cni-kubeconfig";

/// Largest report, in bytes.
pub const MAX_REPORT: usize = 64 << 10;

/// Name of the file in [`FACTS_DIR`] for a pod; `None` for text that is no Kubernetes name and could leave the directory.
pub fn facts_file(namespace: &str, name: &str) -> Option<String> {
    let is_name = |text: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        !text.is_empty() && text.len() <= 253 && !text.starts_with('.') && text.chars().all(allowed)
    };
    // Longer names than a file may have (NAME_MAX is 255 bytes) are left out: such a pod is asked for elsewhere.
    let file = format!("{namespace}_{name}.json");
    (is_name(namespace) && is_name(name) && file.len() <= 255).then_some(file)
}

/// Paths of the sockets on which an agent listens, the original's too.
pub fn sockets(run_dir: &Path) -> [PathBuf; 3] {
    [SOCKET_NAME, LOG_SOCKET_NAME, EVENT_SOCKET_NAME].map(|name| run_dir.join(name))
}

/// The `*.json` files of a directory, at most so many, in no order; none where it does not exist. Files that are being written have another name.
///
/// # Errors
/// The directory cannot be read.
pub fn json_files(dir: &Path, most: usize) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths = entries.take(most).flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect())
}

#[cfg(test)]
mod tests;
