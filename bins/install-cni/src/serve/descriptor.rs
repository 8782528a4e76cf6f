//! Descriptors that come with the bytes of a unix stream (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, recvmsg, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// Bytes that are received at once.
const PART: usize = 4 << 10;

/// A descriptor that a peer has opened. Nothing is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Descriptor(pub(crate) Arc<OwnedFd>);

/// The last descriptor that came.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken(Arc<Mutex<Option<Descriptor>>>);

/// A stream that keeps what comes along, of several in one message the first.
pub(super) struct Receiving {
    stream: Arc<UnixStream>,
    taken: Taken,
}

/// Who is at the other end of a connection. It does not keep the connection open.
#[derive(Debug, Clone)]
pub(crate) struct Peer(Arc<UnixStream>);

// === impl Peer ===

impl Peer {
    /// Whether nobody is there any more to take an answer. HTTP tells that of no connection that ends with its answer.
    pub(crate) fn has_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&*self.0, PollFlags::empty())];
        let over = PollFlags::HUP | PollFlags::ERR;
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && polled[0].revents().intersects(over)
    }
}

// === impl Taken ===

impl Taken {
    /// Takes it away.
    pub(super) fn take(&self) -> Option<Descriptor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, descriptor: OwnedFd) {
        let descriptor = Descriptor(Arc::new(descriptor));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(descriptor);
    }
}

// === impl Receiving ===

impl Receiving {
    pub(super) fn new(stream: UnixStream) -> (Self, Taken, Peer) {
        let (taken, stream) = (Taken::default(), Arc::new(stream));
        (Self { stream: stream.clone(), taken: taken.clone() }, taken, Peer(stream))
    }

    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let socket = self.stream.as_fd();
        let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            // What is dropped is closed.
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
                && let Some(first) = descriptors.next()
            {
                self.taken.put(first);
            }
        }
        Ok(received.bytes)
    }
}

impl AsyncRead for Receiving {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; PART];
        let len = bytes.len().min(buf.remaining());
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_io(Interest::READABLE, || self.receive(&mut bytes[..len])) {
                Ok(count) => {
                    buf.put_slice(&bytes[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Receiving {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// Nothing is held back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&*self.stream, Shutdown::Write).map_err(io::Error::from))
    }
}

impl Drop for Receiving {
    /// The connection ends with this, whoever still asks for its other end.
    fn drop(&mut self) {
        let _ = shutdown(&*self.stream, Shutdown::Both);
    }
}
