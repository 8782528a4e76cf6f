//! Tries with a real connection whether the redirection works.
//!
//! A connection to 127.0.0.6, which nothing listens on, must come out at one of the proxy's ports here, with the first
//! destination still known. This exercises the rule for the proxy's own calls to its pod, so it has to run as the proxy's user or
//! group; it needs no privileges. One thread, one connection at a time, one a second.

use std::fmt;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use capture::Settings;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::config::Probe;

/// What the client connects to: the address from which the proxy reaches its application, at which nothing listens.
const TARGET_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
/// The same for IPv6; the program that loads the rules adds it to the loopback interface.
const TARGET_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));
/// Time between two connections.
const PAUSE: Duration = Duration::from_secs(1);
/// Connections that one listener keeps waiting; there is one client.
const BACKLOG: i32 = 16;

/// A check that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validated {
    /// Where the connection was meant to go.
    pub(crate) target: SocketAddr,
    /// Where it came out.
    pub(crate) listener: SocketAddr,
}

/// The redirection does not work, or nothing can be said about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Both of the proxy's ports are taken.
    #[error("validation failed: cannot listen on {first} or {second}; does a proxy run in this pod already?")]
    NoListener {
        /// Proxy port.
        first: SocketAddr,
        /// Capture port.
        second: SocketAddr,
        /// Why the second one failed.
        source: io::Error,
    },
    /// Waiting failed.
    #[error("validation failed: cannot wait for connections")]
    Poll(#[source] io::Error),
    /// Nothing came.
    #[error(
        "validation failed: this pod's traffic is not redirected to its proxy. Connections to {target} did not come out at a \
         port of the proxy within {} ms ({seen}). The pod was probably started before the node's CNI plugin was ready: delete \
         it, so that it is started anew (the CNI repair controller does so where it is enabled)", .timeout.as_millis()
    )]
    Timeout {
        /// Where the connections were meant to go.
        target: SocketAddr,
        /// How long it took.
        timeout: Duration,
        /// What happened instead.
        seen: SeenConnections,
    },
}

/// What the client and the listeners saw, for people.
#[derive(Debug, Default)]
pub(crate) struct SeenConnections {
    attempts: u32,
    error: Option<Errno>,
    stray: Option<(SocketAddr, io::Result<SocketAddr>)>,
}

struct Client {
    source: SocketAddr,
    target: SocketAddr,
    /// The attempt under way. An earlier one is closed by the next.
    socket: Option<OwnedFd>,
}

/// Reasons why a validation cannot succeed whatever the rules are.
pub(crate) fn doubts(settings: &Settings, ipv6: bool, uid: u32, gid: u32) -> Vec<String> {
    let mut doubts = Vec::new();
    if !settings.proxy_uids.contains(&uid) && !settings.proxy_gids.contains(&gid) {
        doubts.push(format!(
            "the validation runs as user {uid} and group {gid}, and neither is the proxy's ({:?}, {:?}): its connection is that \
             of an application and is not redirected",
            settings.proxy_uids, settings.proxy_gids
        ));
    }
    if !ipv6 && settings.loopback_v4.contains(&Ipv4Addr::new(127, 0, 0, 6)) {
        doubts.push(format!(
            "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR {} has {TARGET_V4} in it, so connections to that are not redirected",
            settings.loopback_v4
        ));
    }
    doubts
}

/// Connects until a connection comes out at the proxy's port or the capture port.
///
/// # Errors
/// None did in time.
pub(crate) fn run(settings: &Settings, ipv6: bool, probe: Probe) -> Result<Validated, Error> {
    let (loopback, target) = if ipv6 {
        (IpAddr::V6(Ipv6Addr::LOCALHOST), TARGET_V6)
    } else {
        (IpAddr::V4(Ipv4Addr::LOCALHOST), TARGET_V4)
    };
    let listeners = listen(
        SocketAddr::new(loopback, settings.proxy_port),
        SocketAddr::new(loopback, settings.capture_port),
    )?;
    let target = SocketAddr::new(target, probe.port);
    let mut client = Client { source: SocketAddr::new(loopback, 0), target, socket: None };
    let mut seen = SeenConnections::default();
    let deadline = Instant::now() + probe.timeout;
    let mut next = Instant::now();
    while Instant::now() < deadline {
        if next <= Instant::now() {
            seen.error = client.connect().err().or(seen.error);
            seen.attempts += 1;
            next += PAUSE;
        }
        wait(&listeners, next.min(deadline))?;
        for (listener, address) in &listeners {
            if let Some(original) = take(listener) {
                if original.as_ref().is_ok_and(|original| original.port() == probe.port) {
                    return Ok(Validated { target, listener: *address });
                }
                seen.stray = Some((*address, original));
            }
        }
    }
    seen.error = client.take_error().or(seen.error);
    Err(Error::Timeout { target, timeout: probe.timeout, seen })
}

/// One of them is enough: which one a connection comes out at depends on the rules.
fn listen(first: SocketAddr, second: SocketAddr) -> Result<Vec<(TcpListener, SocketAddr)>, Error> {
    let mut listeners = Vec::new();
    let mut failure = None;
    for address in [first, second] {
        match listener(address) {
            Ok(listener) => listeners.push((listener, address)),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(source) if listeners.is_empty() => {
            Err(Error::NoListener { first, second, source: source.into() })
        }
        _ => Ok(listeners),
    }
}

fn listener(address: SocketAddr) -> Result<TcpListener, Errno> {
    let socket = socket(address)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

fn socket(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn wait(listeners: &[(TcpListener, SocketAddr)], until: Instant) -> Result<(), Error> {
    let mut polled: Vec<PollFd<'_>> =
        listeners.iter().map(|(listener, _)| PollFd::new(listener, PollFlags::IN)).collect();
    let rest = until.saturating_duration_since(Instant::now());
    // A time of more seconds than fit is as good as none.
    let rest = Timespec::try_from(rest).ok();
    match poll(&mut polled, rest.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(Error::Poll(error.into())),
    }
}

/// A connection's first destination, if there is a connection. The client may read its port.
fn take(listener: &TcpListener) -> Option<io::Result<SocketAddr>> {
    let (mut stream, peer) = listener.accept().ok()?;
    let original = original_destination(&stream, peer);
    if let Ok(original) = original {
        // Only for people that look with a client of their own.
        let _ = stream.write_all(original.port().to_string().as_bytes());
    }
    Some(original.map_err(io::Error::from))
}

fn original_destination(stream: &TcpStream, peer: SocketAddr) -> Result<SocketAddr, Errno> {
    if peer.is_ipv6() {
        sockopt::ipv6_original_dst(stream).map(SocketAddr::V6)
    } else {
        sockopt::ip_original_dst(stream).map(SocketAddr::V4)
    }
}

// === impl Client ===

impl Client {
    /// Starts an attempt; an error is that of this start or of the attempt before.
    fn connect(&mut self) -> Result<(), Errno> {
        let before = self.take_error();
        let socket = socket(self.target)?;
        rustix::net::bind(&socket, &self.source)?;
        match rustix::net::connect(&socket, &self.target) {
            Ok(()) | Err(Errno::INPROGRESS) => self.socket = Some(socket),
            Err(error) => return Err(error),
        }
        before.map_or(Ok(()), Err)
    }

    /// The error of the attempt under way, if it has failed.
    fn take_error(&mut self) -> Option<Errno> {
        sockopt::socket_error(self.socket.take()?).ok()?.err()
    }
}

// === impl SeenConnections ===

impl fmt::Display for SeenConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} attempts", self.attempts)?;
        match self.error {
            Some(error) => write!(f, ", the last error was: {}", io::Error::from(error))?,
            None if self.stray.is_none() => write!(f, ", no connection was answered")?,
            None => {}
        }
        match &self.stray {
            Some((listener, Ok(original))) => {
                write!(f, "; {listener} got a connection that was for {original}")
            }
            Some((listener, Err(_))) => write!(f, "; {listener} got a connection that was not redirected"),
            None => Ok(()),
        }
    }
}
