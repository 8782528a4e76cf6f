//! A connection on which no operation waits beyond a deadline.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::Error;

/// When an exchange started and when it must have ended.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    start: Instant,
    end: Instant,
}

impl Deadline {
    /// From now until that moment.
    pub fn at(end: Instant) -> Self {
        Self { start: Instant::now(), end }
    }

    /// From now, that long.
    pub fn within(time: Duration) -> Self {
        Self::at(Instant::now() + time)
    }

    /// What is left; nothing when it has passed.
    pub fn left(self) -> Option<Duration> {
        self.end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// The error of having waited for this too long.
    pub fn timed_out(self, stage: &'static str) -> Error {
        Error::TimedOut { stage, after: self.start.elapsed() }
    }
}

/// A stream whose waits can be limited.
pub trait Socket: Read + Write {
    /// Longest wait of a read.
    ///
    /// # Errors
    /// The system's.
    fn limit_read(&self, limit: Duration) -> io::Result<()>;

    /// Longest wait of a write.
    ///
    /// # Errors
    /// The system's.
    fn limit_write(&self, limit: Duration) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn limit_read(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }

    fn limit_write(&self, limit: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(limit))
    }
}

impl Socket for UnixStream {
    fn limit_read(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }

    fn limit_write(&self, limit: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(limit))
    }
}

/// The wait of a write after the deadline: a process that did not run for a while still hands over what the other side can take.
pub(crate) const LAST_TRY: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub struct Connection<S> {
    socket: S,
    deadline: Deadline,
}

impl<S> Connection<S> {
    /// A connection that stands already.
    pub fn new(socket: S, deadline: Deadline) -> Self {
        Self { socket, deadline }
    }

    /// What it runs over.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// Its deadline.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    pub(crate) fn left(&self) -> io::Result<Duration> {
        self.deadline.left().ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

impl<S: Socket> Read for Connection<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.limit_read(self.left()?)?;
        self.socket.read(buffer)
    }
}

impl<S: Socket> Write for Connection<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.limit_write(self.left().unwrap_or(LAST_TRY))?;
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}
