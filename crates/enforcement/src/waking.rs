//! A thread that wakes a task when a descriptor has something to be read.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use tokio::sync::Notify;

/// How often the thread looks whether it still has to wait, in seconds.
const LOOKS_FOR_END: i64 = 10;

/// The thread ends when this is gone.
pub struct Waker {
    _is_open: Arc<()>,
}

// === impl Waker ===

impl Waker {
    /// Tells whenever something comes to one of the descriptors. Each event is told once; who is told reads it.
    ///
    /// # Errors
    /// The system gave no thread or no descriptor.
    pub fn start(name: &str, descriptors: &[BorrowedFd<'_>], told: Arc<Notify>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        for descriptor in descriptors {
            epoll::add(&epoll, descriptor, epoll::EventData::new_u64(0), flags)?;
        }
        let is_open = Arc::new(());
        let watched = Arc::downgrade(&is_open);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || tell(&epoll, &watched, &told))?;
        Ok(Self { _is_open: is_open })
    }
}

fn tell(epoll: &OwnedFd, watched: &Weak<()>, told: &Notify) {
    let timeout = Timespec { tv_sec: LOOKS_FOR_END, tv_nsec: 0 };
    let mut events = Vec::with_capacity(1);
    while watched.strong_count() > 0 {
        events.clear();
        match epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => told.notify_one(),
            // It is open for as long as this runs.
            Err(_) => return,
        }
    }
}
