//! One user of a namespace at a time, across processes.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::{Error, Netns, sys};

/// The first pause between two tries; a netlink transaction takes about this long.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// The namespace's lock; released on drop, and by the kernel when the process dies.
///
/// Only users of [`Netns::lock`] respect it, with one exception to know: `iptables` with `XTABLES_LOCKFILE` set to the
/// namespace's own path takes the same lock, so a holder of this lock that starts it so would wait for itself.
#[derive(Debug)]
#[must_use = "the namespace is unlocked when this is dropped"]
pub struct Lock {
    file: OwnedFd,
}

impl Netns {
    /// Takes the namespace's advisory lock, `flock(2)` on the namespace file itself: the inode is the namespace, so
    /// all paths of it share one lock and no lock file is left behind.
    ///
    /// Tries at once, then waits at most about `timeout`. The lock is not recursive: a second call while the first
    /// result is held waits too, in the same process as well. As a process inside the namespace can open the same
    /// file, it can hold the lock; always give a timeout that the caller can afford.
    ///
    /// # Errors
    /// [`Error::Locked`] after the timeout, [`Error::Lock`] when the kernel refuses.
    pub fn lock(&self, timeout: Duration) -> Result<Lock, Error> {
        let failed = |source| Error::Lock { path: self.path.clone(), id: self.id, source };
        // The lock belongs to an open file description, so each holder needs one of its own.
        let file = sys::reopen(&self.fd).map_err(failed)?;
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { file }),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(e) => return Err(failed(io::Error::from(e))),
            }
            let waited = start.elapsed();
            if waited >= timeout {
                return Err(Error::Locked { path: self.path.clone(), id: self.id, waited });
            }
            std::thread::sleep(pause.min(timeout - waited));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child between fork and exec shares the open file description for a moment.
        // Unlocking a file that is locked cannot fail, and there would be nothing better to do than close it.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}
