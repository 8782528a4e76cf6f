//! Waiting until something on the node changes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchDescriptor, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::config::is_original;
use crate::file;

/// Room for many events, each a name of at most 255 bytes and a header.
const BUFFER_BYTES: usize = 16 * 1024;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// A file of interest was created, written, renamed or removed, or a watched directory is gone.
    Changed,
    /// Somebody in this process wants attention.
    Called,
    /// Nothing happened.
    TimedOut,
}

/// Watches of directories, not of what is below them. What happened before they were made is not seen.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: Inotify,
    watched: Vec<(WatchDescriptor, Option<BTreeSet<OsString>>)>,
    missing: bool,
}

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { inotify: Inotify::init()?, watched: Vec::new(), missing: false })
    }

    /// Watches a directory: the `names` in it, or all. One that does not exist is only [noted](Self::is_missing).
    pub(crate) fn add(&mut self, directory: &Path, names: Option<BTreeSet<OsString>>) -> io::Result<()> {
        // Changes of mode alone are none. A name that goes away by a rename is gone as by removal.
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        match self.inotify.watches().add(directory, mask) {
            Ok(descriptor) => self.watched.push((descriptor, names)),
            Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                self.missing = true;
            }
            Err(cause) => return Err(cause),
        }
        Ok(())
    }

    /// Whether a directory could not be watched because it is not there.
    pub(crate) fn is_missing(&self) -> bool {
        self.missing
    }

    /// Whether something has changed since the watches were made.
    pub(crate) fn has_changed(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let events = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => return Err(cause),
            };
            for event in events {
                // No name: the directory itself, or events were lost. A directory can be watched twice, with other names.
                let Some(name) = event.name else { return Ok(true) };
                if file::is_temp(name) || is_original(name) {
                    continue;
                }
                let of_interest = |(descriptor, names): &(WatchDescriptor, Option<BTreeSet<OsString>>)| {
                    *descriptor == event.wd && names.as_ref().is_none_or(|names| names.contains(name))
                };
                if self.watched.iter().any(of_interest) {
                    return Ok(true);
                }
            }
        }
    }

    /// Waits for a change, for `call` to become readable, or for the time.
    pub(crate) fn wait(&mut self, call: &OwnedFd, timeout: Option<Duration>) -> io::Result<Wake> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if self.has_changed()? {
                return Ok(Wake::Changed);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let fds = &mut [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(call, PollFlags::IN)];
            if poll(fds, left)? == 0 {
                return Ok(Wake::TimedOut);
            }
            if fds[1].revents().contains(PollFlags::IN) {
                return Ok(Wake::Called);
            }
        }
    }
}

/// Waits for `call` to become readable; false if the time is over first.
pub(crate) fn wait_for_call(call: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    let fds = &mut [PollFd::new(call, PollFlags::IN)];
    Ok(poll(fds, Some(deadline.saturating_duration_since(Instant::now())))? > 0)
}

/// An interruption by a signal counts as readiness: the waiting code looks again.
fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout
        .map(|timeout| Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
    match rustix::event::poll(fds, timeout.as_ref()) {
        Err(Errno::INTR) => Ok(fds.len()),
        ready => Ok(ready?),
    }
}

/// Directories with the names of interest in each.
pub(crate) type WatchedPlaces = Vec<(PathBuf, Option<BTreeSet<OsString>>)>;
