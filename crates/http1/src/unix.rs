//! Connections to unix sockets.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::{Connection, Deadline};

/// How long to wait before another try while the listener's queue is full.
const PAUSE: Duration = Duration::from_millis(2);

/// A connection that stands before the deadline. A blocking `connect` to a unix socket knows no limit when the listener has stopped
/// accepting.
///
/// # Errors
/// The system's: nothing there, nobody listening, a path of more than 107 bytes; or [`io::ErrorKind::TimedOut`].
pub fn connect(path: &Path, deadline: Deadline) -> io::Result<Connection<UnixStream>> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                let left = deadline.left().ok_or(io::ErrorKind::TimedOut)?;
                std::thread::sleep(PAUSE.min(left));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(Connection::new(stream, deadline))
}

/// The user of the process that listens, as it was when it began to.
///
/// # Errors
/// The system's.
pub fn peer_uid(connection: &Connection<UnixStream>) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(connection.socket())?.uid.as_raw())
}
