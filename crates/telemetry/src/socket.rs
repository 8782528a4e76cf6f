//! The node agent's log socket: all lines of one process, sent once, at its end (P-46).

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::line::push_json;

/// Name of the agent's log socket inside the run directory (section 1 of the requirements).
pub const SOCKET_NAME: &str = "log.sock";

/// Longest time that sending may take, connecting and the answer included (P-46).
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of the request body. A process writes some kilobytes; what is over this is counted, not kept.
const BODY_MAX_BYTES: usize = 1 << 20;

/// How long to wait before another try while the agent's queue of connections is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);

/// The lines collected for the agent.
pub(crate) struct SocketTee {
    path: PathBuf,
    /// The strings of the JSON array, with commas between and without brackets.
    body: Vec<u8>,
    dropped: usize,
}

// === impl SocketTee ===

impl SocketTee {
    /// Collects for the socket in `run_dir`, or nothing when no socket is there now.
    pub(crate) fn open(run_dir: &Path) -> Option<Self> {
        let path = run_dir.join(SOCKET_NAME);
        let is_socket = std::fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
        is_socket.then_some(Self { path, body: Vec::new(), dropped: 0 })
    }

    /// Adds a complete line, its newline included. Lines that no longer fit are dropped and counted.
    pub(crate) fn push(&mut self, line: &[u8]) {
        if self.body.len() + line.len() > BODY_MAX_BYTES {
            self.dropped += 1;
            return;
        }
        // Lines come from `write_line`, which writes only UTF-8.
        let Ok(text) = std::str::from_utf8(line) else { return };
        if !self.body.is_empty() {
            self.body.push(b',');
        }
        push_json(&mut self.body, text);
    }

    /// Lines that did not fit.
    pub(crate) const fn dropped(&self) -> usize {
        self.dropped
    }

    /// Sends everything in one request and waits for the first bytes of the answer, within [`SEND_TIMEOUT`].
    pub(crate) fn send(self) -> io::Result<()> {
        let deadline = Instant::now() + SEND_TIMEOUT;
        let mut request = format!(
            "POST /log HTTP/1.1\r\nHost: unix\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n[",
            self.body.len() + 2
        )
        .into_bytes();
        request.extend_from_slice(&self.body);
        request.push(b']');

        let mut stream = connect(&self.path, deadline)?;
        let mut rest = request.as_slice();
        while !rest.is_empty() {
            stream.set_write_timeout(Some(remaining(deadline)?))?;
            match stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => rest = &rest[sent..],
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        // The agent must have the request before we go: a server may stop reading when its client is gone.
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        stream.read(&mut [0; 64]).map(drop)
    }
}

/// A connection, waiting no longer than `deadline`. A blocking `connect` to a Unix socket has no time limit when the
/// listener has stopped accepting.
fn connect(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                std::thread::sleep(CONNECT_PAUSE.min(remaining(deadline)?));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests;
