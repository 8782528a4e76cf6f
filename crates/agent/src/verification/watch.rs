//! Many kept sockets, waited for at once, on one thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kernel::watch::KeptSockets;
use rustix::event::epoll;
use rustix::io::Errno;
use tokio::sync::mpsc;

/// Events that are taken at once; the others come with the next call.
const AT_ONCE: usize = 64;
/// Events that are not taken yet, before the thread waits for whoever takes them.
const QUEUED: usize = 1024;

/// The sockets of all pods. One that is closed is no longer among them.
pub(crate) struct NetnsWatch(Arc<OwnedFd>);

impl NetnsWatch {
    /// Gives the numbers of sockets that have something to read as well.
    pub(crate) fn start() -> io::Result<(Self, mpsc::Receiver<u64>)> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let (sender, receiver) = mpsc::channel(QUEUED);
        let waited = epoll.clone();
        let wait = move || wait(&waited, &sender);
        std::thread::Builder::new().name("watch".to_owned()).spawn(wait)?;
        Ok((Self(epoll), receiver))
    }

    /// Waits for these sockets, too. What comes is told once, by the number.
    pub(crate) fn add(&self, kept: &KeptSockets, number: u64) -> io::Result<()> {
        kept.descriptors().into_iter().try_for_each(|descriptor| self.wait_for(descriptor, number))
    }

    /// As [`Self::add`], for one socket.
    pub(crate) fn wait_for(&self, descriptor: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(self.0.as_fd(), descriptor, epoll::EventData::new_u64(number), flags)?)
    }
}

/// Waits until nobody takes what comes.
fn wait(epoll: &OwnedFd, sender: &mpsc::Sender<u64>) {
    let mut events = Vec::with_capacity(AT_ONCE);
    loop {
        events.clear();
        match epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            // It is open for as long as this runs.
            Err(_) => return,
        }
        let mut numbers: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
        numbers.dedup();
        if numbers.into_iter().any(|number| sender.blocking_send(number).is_err()) {
            return;
        }
    }
}
