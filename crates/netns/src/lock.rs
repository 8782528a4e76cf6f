//! One user of a namespace at a time, across processes.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rundir::LOCKS_NAME;
use rustix::fs::OFlags;

use crate::{NetnsId, sys};

/// The first pause between two tries; a netlink transaction takes about this long.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// A namespace's lock. It is free when every descriptor of it is closed, in this process and in those that inherited one; the kernel does
/// that for processes that die.
///
/// The lock is one byte of a file that only root can open, at the offset of the namespace's inode number: nobody else can take it, all paths
/// of a namespace and all containers with the run directory share it, and nothing is left behind. `flock(2)` on the namespace's own file
/// would not do: whoever can open that for reading can hold it, each process of the pod among them.
#[derive(Debug)]
#[must_use = "the namespace is unlocked when this is dropped"]
pub struct Lock {
    file: OwnedFd,
}

/// Why a namespace cannot be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The file cannot be opened, made, or locked.
    #[error("cannot lock network namespaces in {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// From `open(2)` or `fcntl(2)`.
        cause: io::Error,
    },
    /// Others could hold a lock in it.
    #[error("{} is not a file of root's alone, so network namespaces are not locked in it; remove it", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

impl Lock {
    /// Locks a namespace in the file of this run directory, which is made where it is missing. Tries at once, then waits at most about
    /// `timeout`; `None` if another one holds it still. The lock is not recursive: a second call waits too, in the same process as well.
    ///
    /// # Errors
    /// [`LockError::File`], or [`LockError::Foreign`] for a file in which others could keep the caller waiting.
    pub fn take(run_dir: &Path, netns: NetnsId, timeout: Duration) -> Result<Option<Self>, LockError> {
        let path = run_dir.join(LOCKS_NAME);
        let failed = |cause| LockError::File { path: path.clone(), cause };
        // The lock belongs to an open file description, so each holder opens one of its own.
        let file = open(run_dir, &path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let owner = metadata.uid();
        let is_roots = owner == 0 || owner == rustix::process::geteuid().as_raw();
        if !metadata.is_file() || !is_roots || metadata.mode() & 0o077 != 0 {
            return Err(LockError::Foreign { path });
        }
        let file = OwnedFd::from(file);
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if sys::lock_byte(&file, netns.ino).map_err(failed)? {
                return Ok(Some(Self { file }));
            }
            let waited = start.elapsed();
            if waited >= timeout {
                return Ok(None);
            }
            std::thread::sleep(pause.min(timeout - waited));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A descriptor for a process that goes on with the work: the lock is held until that one is closed, too.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(run_dir: &Path, path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    options.open(path).or_else(|error| {
        if error.kind() != ErrorKind::NotFound {
            return Err(error);
        }
        DirBuilder::new().recursive(true).mode(0o755).create(run_dir)?;
        options.open(path)
    })
}
