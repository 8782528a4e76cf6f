//! Descriptors that come with the bytes of a unix stream (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, recvmsg, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// Bytes that are received at once.
const PART: usize = 4 << 10;

/// A descriptor that a peer has opened. Nothing is known of it.
#[derive(Debug, Clone)]
pub struct Descriptor(pub Arc<OwnedFd>);

/// The last descriptor that came.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken(Arc<Mutex<Option<Descriptor>>>);

/// A stream that keeps what comes along, of several in one message the first.
pub(super) struct Receiving {
    stream: Arc<UnixStream>,
    taken: Taken,
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
    pub(super) fn new(stream: Arc<UnixStream>) -> (Self, Taken) {
        let taken = Taken::default();
        (Self { stream, taken: taken.clone() }, taken)
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
