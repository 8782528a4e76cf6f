//! Other threads' hold on the loop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cni::conflist::PluginEntry;
use rustix::event::EventfdFlags;

/// Stops the loop and changes its options. Clones are the same hold.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Readable while there is something new.
    call: OwnedFd,
    wanted: Mutex<Wanted>,
}

#[derive(Debug, Default)]
struct Wanted {
    is_stopped: bool,
    entry: Option<PluginEntry>,
}

impl Handle {
    pub(super) fn new() -> io::Result<Self> {
        let call = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared { call, wanted: Mutex::default() })))
    }

    /// Ends [`crate::Installer::run`] as soon as it is between two steps.
    pub fn stop(&self) {
        self.wanted().is_stopped = true;
        self.call();
    }

    /// Other options for the plugin, written without a restart.
    pub fn update(&self, entry: PluginEntry) {
        self.wanted().entry = Some(entry);
        self.call();
    }

    fn call(&self) {
        // A full counter is readable already.
        let _ = rustix::io::write(&self.0.call, &1u64.to_ne_bytes());
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.wanted().is_stopped
    }

    /// The newest options that were not taken yet.
    pub(super) fn take_update(&self) -> Option<PluginEntry> {
        // first the counter: what comes after is a new call
        let _ = rustix::io::read(&self.0.call, &mut [0u8; 8]);
        self.wanted().entry.take()
    }

    pub(super) fn readable(&self) -> &OwnedFd {
        &self.0.call
    }

    /// Waits for a call.
    pub(super) fn wait(&self, timeout: Duration) {
        if crate::watch::wait_for_call(&self.0.call, timeout).is_err() {
            std::thread::sleep(timeout);
        }
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
