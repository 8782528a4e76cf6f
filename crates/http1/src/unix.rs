//! Connections to unix sockets.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use crate::{Connection, Deadline, Socket};

/// A connection on which a descriptor goes along with the first bytes. A peer that reads bytes only never sees it: the kernel closes it.
#[derive(Debug)]
pub struct Passing<'a> {
    connection: Connection<UnixStream>,
    descriptor: Option<BorrowedFd<'a>>,
}

/// A connection that stands before the deadline. Where the listener has stopped accepting, connecting waits as long as sending may (unix(7)
/// does not say so; `unix_stream_connect` in the kernel's `net/unix/af_unix.c` does).
///
/// # Errors
/// The system's: nothing there, nobody listening, a path of more than 107 bytes; or [`io::ErrorKind::TimedOut`].
pub fn connect(path: &Path, deadline: Deadline) -> io::Result<Connection<UnixStream>> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    loop {
        let left = deadline.left().ok_or(io::ErrorKind::TimedOut)?;
        set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(Connection::new(UnixStream::from(socket), deadline)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The user of the process that listens, as it was when it began to.
///
/// # Errors
/// The system's.
pub fn peer_uid(connection: &Connection<UnixStream>) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    // `struct ucred` is 12 bytes on every architecture.
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // rustix cannot be asked: a process in a pid namespace that is not seen from here has the number 0, which its type does not hold.
    // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes to a value that lives through the call.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::getsockopt(
            connection.socket().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}

// === impl Passing ===

impl<'a> Passing<'a> {
    /// Nothing is sent yet.
    pub fn new(connection: Connection<UnixStream>, descriptor: BorrowedFd<'a>) -> Self {
        Self { connection, descriptor: Some(descriptor) }
    }
}

impl Read for Passing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.connection.read(buffer)
    }
}

impl Write for Passing<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let Some(descriptor) = self.descriptor else { return self.connection.write(buffer) };
        let socket = self.connection.socket();
        socket.limit_write(self.connection.left()?)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = rustix::net::sendmsg(socket, &[IoSlice::new(buffer)], &mut control, SendFlags::NOSIGNAL)?;
        self.descriptor = None;
        Ok(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connection.flush()
    }
}
