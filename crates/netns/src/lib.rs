//! Network namespaces: open one by its path, tell which one it is, enter it, lock it.
//!
//! This is the only crate that calls `setns(2)`. A thread that has joined another namespace is never used again for
//! anything else: [`Netns::enter`] makes a thread for one closure and throws it away, so no error path can leave a
//! caller in the wrong namespace.
//!
//! [`Inside`] is the proof handed to that closure. Code that changes a pod's network takes `&Inside` as an argument and
//! so cannot be called outside of the namespace it is meant for:
//!
//! ```no_run
//! # fn main() -> Result<(), netns::Error> {
//! let pod = netns::Netns::open("/run/netns/cni-1234")?;
//! let here = pod.enter(|inside| inside.id())?;
//! assert_eq!(here, pod.id());
//! # Ok(())
//! # }
//! ```
//!
//! A closure cannot smuggle the proof out to another thread:
//!
//! ```compile_fail,E0277
//! let pod = netns::Netns::open("/run/netns/cni-1234").unwrap();
//! pod.enter(|inside| std::thread::scope(|s| { s.spawn(|| inside.id()); }));
//! ```

mod error;
pub mod find;
mod host;
mod inside;
mod lock;
mod sys;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub use error::{Error, OpenCause};
pub use host::{Host, InsideHost};
pub use inside::Inside;
pub use lock::{Lock, LockError};

/// Where the kernel shows the network namespace of the thread that asks.
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// Which namespace it is. Two handles with equal ids are the same namespace, whatever paths they were opened by.
///
/// The kernel gives the number of a namespace that is gone to a later one, so compare only while a [`Netns`] of it is
/// held open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// Device number of nsfs, as in `stat(2)`.
    pub dev: u64,
    /// Inode number; it is the number in `net:[4026531840]`.
    pub ino: u64,
}

/// An open network namespace. It stays alive while this is held, even when its processes and its file are gone.
///
/// Equality compares the namespaces, not the paths.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    path: PathBuf,
    id: NetnsId,
}

// === impl NetnsId ===

impl std::fmt::Display for NetnsId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

// === impl Netns ===

impl Netns {
    /// Opens the namespace that `path` stands for: a bind mount (`/run/netns/x`) or a link (`/proc/7/ns/net`).
    ///
    /// # Errors
    /// [`Error::Open`] when the path does not exist, cannot be read, is no namespace or is one of another kind.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        sys::open_namespace(path)
            .map(|(fd, id)| Self { fd, path: path.to_owned(), id })
            .map_err(|cause| Error::Open { path: path.to_owned(), cause })
    }

    /// The namespace behind a descriptor from elsewhere, of which nothing is believed. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Open`] when it is no namespace or one of another kind.
    pub fn from_descriptor(fd: OwnedFd, path: PathBuf) -> Result<Self, Error> {
        match sys::identify(&fd) {
            Ok(id) => Ok(Self { fd, path, id }),
            Err(cause) => Err(Error::Open { path, cause }),
        }
    }

    /// The namespace that the calling thread is in. For a program that has entered none this is the host's.
    ///
    /// # Errors
    /// [`Error::WhereAmI`] when `/proc` is not mounted, or the kernel is older than Linux 3.17; [`Error::Open`] when it is not readable.
    pub fn current() -> Result<Self, Error> {
        Self::open(OF_THIS_THREAD).map_err(|error| match error.is_missing() {
            true => Error::WhereAmI { proc: OF_THIS_THREAD, source: std::io::ErrorKind::NotFound.into() },
            false => error,
        })
    }

    /// A new namespace without a name, which lives as long as what holds it. Its loopback interface is down.
    ///
    /// # Errors
    /// [`Error::Thread`]; or [`Error::Make`], most often without root.
    pub fn unnamed() -> Result<Self, Error> {
        let path = PathBuf::from(OF_THIS_THREAD);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    sys::move_to_new().map_err(Error::Make).and_then(|()| Self::current())
                })
                .map_err(|source| Error::Thread { path, source })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Which namespace it is.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// The path it was opened by, for messages. It may meanwhile be gone or stand for something else.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path that it was opened by leads to it still. Its number is nobody else's while it is open. Where this is false, [`Netns::open`] says
    /// why.
    #[must_use]
    pub fn is_at_its_path(&self) -> bool {
        sys::id_at(&self.path).is_ok_and(|id| id == self.id)
    }

    /// Runs `f` inside the namespace, on a thread of its own that ends with `f`, and returns what `f` returned.
    ///
    /// The file system stays the caller's. A process that `f` spawns starts inside the namespace. A panic in `f` goes
    /// on in the caller, as if `f` had been called directly.
    ///
    /// # Errors
    /// [`Error::Thread`], [`Error::Join`] (most often: not root) or [`Error::Elsewhere`]; `f` has not run then.
    pub fn enter<R: Send>(&self, f: impl FnOnce(&Inside) -> R + Send) -> Result<R, Error> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || Inside::join(self).map(|inside| f(&inside)))
                .map_err(|source| Error::Thread { path: self.path.clone(), source })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Netns {}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
