//! What can go wrong with a namespace.

use std::io;
use std::path::PathBuf;

use crate::NetnsId;

/// An operation on a network namespace that failed. The message names the namespace and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path could not be opened as a network namespace. Runtimes and people look for the wording of the first half.
    #[error("failed to open netns {path:?}: {cause}")]
    Open {
        /// The path as given.
        path: PathBuf,
        /// Why. It is part of the message, so it is not repeated as the error's source.
        cause: OpenCause,
    },
    /// No thread could be made to enter the namespace with: out of memory, or a limit on threads.
    #[error(
        "cannot start a thread to enter netns {path:?} (check the process and cgroup limits on threads and memory)"
    )]
    Thread {
        /// The namespace.
        path: PathBuf,
        /// From `clone(2)`.
        source: io::Error,
    },
    /// `setns(2)` was refused, mostly because the caller is not privileged.
    #[error("cannot enter netns {path:?} (this needs CAP_SYS_ADMIN: run as root)")]
    Join {
        /// The namespace.
        path: PathBuf,
        /// From `setns(2)`.
        source: io::Error,
    },
    /// `unshare(2)` was refused, mostly because the caller is not privileged.
    #[error("cannot make a network namespace (this needs CAP_SYS_ADMIN: run as root)")]
    Make(#[source] io::Error),
    /// The thread's namespace could not be read; most often `/proc` is not mounted, or the kernel is older than `/proc/thread-self`.
    #[error(
        "cannot tell which network namespace this thread is in from {proc:?} (this needs Linux 3.17 or later, and /proc mounted)"
    )]
    WhereAmI {
        /// The file asked.
        proc: &'static str,
        /// From `stat(2)`.
        source: io::Error,
    },
    /// The thread is in another namespace than it has just joined. Nothing is done rather than in the wrong place.
    #[error("entered netns {path:?} but this thread is in {found} instead of {expected}; nothing was done")]
    Elsewhere {
        /// The namespace asked for.
        path: PathBuf,
        /// Its identity.
        expected: NetnsId,
        /// Where the thread is.
        found: NetnsId,
    },
}

/// Why a path could not be opened as a network namespace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenCause {
    /// There is no such file: the pod is gone, or the runtime handed over a wrong path.
    #[error("it does not exist (is the pod already gone? the runtime passes this path in CNI_NETNS)")]
    Missing,
    /// The file may not be read.
    #[error("permission denied (run as root)")]
    Denied,
    /// It exists but is no namespace: a regular file, a directory, another file of `/proc`, or a `/run/netns` file
    /// whose mount is gone.
    #[error(
        "it is not a namespace but a file on {filesystem} (expected a path like /run/netns/<name> that is still mounted, \
         or /proc/<pid>/ns/net)"
    )]
    NotANamespace {
        /// Name or magic number of the file system that the file is on.
        filesystem: String,
    },
    /// It is a namespace of another kind, as `/proc/<pid>/ns/mnt`.
    #[error("it is a {kind} namespace, not a network namespace (expected a path like /proc/<pid>/ns/net)")]
    OtherKind {
        /// The kind as `lsns(8)` names it.
        kind: &'static str,
    },
    /// Any other answer of the kernel.
    #[error("{0}")]
    Io(io::Error),
}

impl Error {
    /// Whether the path names nothing at all. DEL treats this as success: a namespace that is gone needs no cleanup.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Open { cause: OpenCause::Missing, .. })
    }
}
