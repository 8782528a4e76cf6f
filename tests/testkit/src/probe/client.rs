//! The client's side of a probe.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SocketFlags, SocketType, connect, recv};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{Arrival, Outcome, sockets};
use crate::namespace::TestNetns;

/// How long a flow waits for each step when nothing else is said.
pub const USUAL_PATIENCE: Duration = Duration::from_secs(1);

/// Attempts from one namespace as one user; each call is one connection or datagram.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    from: &'a TestNetns,
    uid: u32,
    gid: u32,
    source: Option<SocketAddr>,
    mark: u32,
    patience: Duration,
}

impl<'a> Flow<'a> {
    /// As root, from an address that the kernel chooses, with [`USUAL_PATIENCE`].
    #[must_use]
    pub fn from(namespace: &'a TestNetns) -> Self {
        Self { from: namespace, uid: 0, gid: 0, source: None, mark: 0, patience: USUAL_PATIENCE }
    }

    /// The user and group that own the socket, as the kernel's owner matches see them.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// The source address; it need not be on an interface. Port 0 leaves the port to the kernel.
    #[must_use]
    pub fn source(mut self, source: SocketAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// The mark of the socket's packets, as ztunnel sets one. Such a socket is transparent too: answers to a foreign source reach
    /// it wherever routing delivers them locally.
    #[must_use]
    pub fn mark(mut self, mark: u32) -> Self {
        self.mark = mark;
        self
    }

    /// How long connecting and each answer may take. A dropped packet costs this much, so tests that expect many drops
    /// take less, but not below 100 ms, which a busy machine needs.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Connects and reads the listener's answer.
    ///
    /// # Errors
    /// When the namespace, user or source address cannot be taken; a failed connection is an [`Outcome`].
    pub fn tcp(&self, dst: SocketAddr) -> Result<Outcome> {
        self.inside(dst, SocketType::STREAM, |socket| {
            let text = match connect_to(&socket, dst) {
                Ok(()) => read_line(&TcpStream::from(socket)),
                Err(e) => return outcome_of(&e.into()),
            };
            match text {
                Ok(text) => Arrival::from_text(&text).map_or(Outcome::Silent, Outcome::Reached),
                Err(e) if is_timeout(&e) => Outcome::Silent,
                Err(e) => outcome_of(&e),
            }
        })
    }

    /// Sends one datagram and reads the listener's answer.
    ///
    /// # Errors
    /// As [`Flow::tcp`].
    pub fn udp(&self, dst: SocketAddr) -> Result<Outcome> {
        self.inside(dst, SocketType::DGRAM, |socket| {
            let exchange = || -> io::Result<Outcome> {
                connect_to(&socket, dst)?;
                let socket = UdpSocket::from(socket);
                socket.send(b"probe")?;
                let mut buffer = [0; 2048];
                let (length, _) = retry_on_intr(|| recv(&socket, &mut buffer, RecvFlags::empty()))?;
                Ok(Arrival::from_text(&buffer[..length]).map_or(Outcome::Silent, Outcome::Reached))
            };
            exchange().unwrap_or_else(|e| outcome_of(&e))
        })
    }

    /// Connects, sends `request`, and reads until the other side closes: for real servers.
    ///
    /// # Errors
    /// When any of it fails or takes too long.
    pub fn exchange(&self, dst: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
        let answer = self.inside(dst, SocketType::STREAM, |socket| -> io::Result<Vec<u8>> {
            connect_to(&socket, dst)?;
            let mut stream = TcpStream::from(socket);
            stream.write_all(request)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        })?;
        answer.with_context(|| format!("cannot exchange a message with {dst}"))
    }

    /// Makes the socket as the user, then hands it to `f`, all on one thread that is thrown away.
    fn inside<R: Send>(
        &self,
        dst: SocketAddr,
        kind: SocketType,
        f: impl FnOnce(OwnedFd) -> R + Send,
    ) -> Result<R> {
        self.from.enter(|_| {
            become_user(self.uid, self.gid)
                .with_context(|| format!("cannot become user {} and group {}", self.uid, self.gid))?;
            let socket = sockets::new_socket(dst, kind, SocketFlags::empty())?;
            if self.mark != 0 {
                sockets::set_mark(&socket, self.mark).context("cannot mark the socket")?;
                sockets::set_transparent(&socket, dst).context("cannot make the socket transparent")?;
            }
            if let Some(source) = self.source {
                sockets::bind_anywhere(&socket, source)
                    .with_context(|| format!("cannot bind to {source}"))?;
            }
            sockets::set_patience(&socket, self.patience)?;
            Ok(f(socket))
        })?
    }
}

/// Changes the calling thread only: these are the bare system calls, not the C library's for the whole process.
fn become_user(uid: u32, gid: u32) -> rustix::io::Result<()> {
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Connects within the time that the socket allows for sending. The kernel goes on with an interrupted connection when it is asked again; it
/// interrupts calls with a time limit for more than signals, such as a freeze of the whole machine.
fn connect_to(socket: &OwnedFd, dst: SocketAddr) -> rustix::io::Result<()> {
    match retry_on_intr(|| connect(socket, &dst)) {
        // What Linux answers when SO_SNDTIMEO is over, and when it is over for a connection that was interrupted.
        Err(Errno::INPROGRESS | Errno::ALREADY) => Err(Errno::TIMEDOUT),
        other => other,
    }
}

fn read_line(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut part = [0; 512];
    while !text.contains(&b'\n') && text.len() < 4096 {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(&part[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(text)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn outcome_of(error: &io::Error) -> Outcome {
    if is_timeout(error) {
        return Outcome::TimedOut;
    }
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) => Outcome::Refused,
        errno => Outcome::Failed(errno.unwrap_or(Errno::IO)),
    }
}
