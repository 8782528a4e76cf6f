//! Many attempts at once: what is allowed answers in a moment, and what is denied costs one wait for all.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{IpTransparent, Mark};
use ruleset::Protocol;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, ipproto, recv, send,
    socket_with, sockopt,
};
use testkit::TestNetns;

use crate::lab::as_user;
use crate::raw::Shot;

/// How long what is expected may take; a connection is asked for again after a second.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long nothing may come of what is not expected, once what is expected is there.
const SILENCE: Duration = Duration::from_millis(20);

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Sender {
    /// The user and group that own the socket.
    pub user: u32,
    /// The mark of its packets.
    pub mark: u32,
}

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'n> {
    /// Where the sender is.
    pub namespace: &'n TestNetns,
    /// Who sends.
    pub sender: Sender,
    /// With what; that of the address's family stands for ICMP.
    pub protocol: Protocol,
    /// From which address.
    pub from: IpAddr,
    /// To where; the port of a protocol without ports is 0.
    pub to: SocketAddr,
    /// Whether it should get there.
    pub expected: bool,
}

/// An attempt on its way.
struct Flight {
    socket: OwnedFd,
    protocol: Protocol,
    reached: Option<bool>,
}

/// Makes all attempts, and says which got there. What is answered with a refusal did not.
///
/// # Errors
/// One cannot even be tried.
pub fn fire(attempts: &[Attempt<'_>]) -> Result<Vec<bool>> {
    let mut flights = Vec::new();
    for chunk in attempts
        .chunk_by(|one, other| std::ptr::eq(one.namespace, other.namespace) && one.sender == other.sender)
    {
        let Some(first) = chunk.first() else { continue };
        let mut started = first.namespace.enter(|_| {
            as_user(first.sender.user, || chunk.iter().map(start).collect::<Result<Vec<Flight>>>())
        })??;
        flights.append(&mut started);
    }
    let begin = Instant::now();
    let missing = |flights: &[Flight]| {
        attempts.iter().zip(flights).any(|(attempt, flight)| attempt.expected && flight.reached.is_none())
    };
    while missing(&flights) && begin.elapsed() < PATIENCE {
        look(&mut flights, Duration::from_millis(100))?;
    }
    let quiet = Instant::now();
    while let Some(left) = SILENCE.checked_sub(quiet.elapsed()).filter(|left| !left.is_zero()) {
        look(&mut flights, left)?;
    }
    Ok(flights.into_iter().map(|flight| flight.reached == Some(true)).collect())
}

fn start(attempt: &Attempt<'_>) -> Result<Flight> {
    let Attempt { sender, protocol, from, to, .. } = *attempt;
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Icmp => (SocketType::DGRAM, ipproto::ICMP),
        Protocol::Icmpv6 => (SocketType::DGRAM, ipproto::ICMPV6),
        Protocol::Sctp => (SocketType::RAW, ipproto::SCTP),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(number))
        .with_context(|| format!("open a socket for {attempt:?}"))?;
    if sender.mark != 0 {
        setsockopt(&socket, Mark, &sender.mark)?;
    }
    if protocol == Protocol::Tcp {
        // A reset at the end: no connection waits in the kernel, and none is found again.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    }
    if sender.mark != 0 {
        // ztunnel has its clients' addresses.
        match from {
            IpAddr::V4(_) => setsockopt(&socket, IpTransparent, &true)?,
            IpAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, true)?,
        }
    }
    bind(&socket, &SocketAddr::new(from, 0)).with_context(|| format!("bind a socket to {from}"))?;
    let port = if matches!(protocol, Protocol::Tcp | Protocol::Udp) { to.port() } else { 0 };
    let mut reached = None;
    match connect(&socket, &SocketAddr::new(to.ip(), port)) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(Errno::CONNREFUSED | Errno::PERM | Errno::ACCESS) => reached = Some(false),
        Err(error) => bail!("{attempt:?}: {error}"),
    }
    let shot = Shot { protocol, from: SocketAddr::new(from, 40_000), to, icmp: (0, 0) };
    let data: Vec<u8> = match protocol {
        Protocol::Tcp => Vec::new(),
        Protocol::Udp => b"probe".to_vec(),
        // An echo request; the kernel fills in the rest.
        Protocol::Icmp => vec![8, 0, 0, 0, 0, 0, 0, 1],
        Protocol::Icmpv6 => vec![128, 0, 0, 0, 0, 0, 0, 1],
        Protocol::Sctp => shot.payload(),
    };
    if !data.is_empty() {
        match send(&socket, &data, SendFlags::empty()) {
            // What a rule on the way out drops is told to the sender.
            Ok(_) | Err(Errno::PERM) => {}
            Err(error) => bail!("send {attempt:?}: {error}"),
        }
    }
    Ok(Flight { socket, protocol, reached })
}

/// Waits for something to happen, and notes what happened.
fn look(flights: &mut [Flight], wait: Duration) -> Result<()> {
    let mut open: Vec<&mut Flight> = flights.iter_mut().filter(|flight| flight.reached.is_none()).collect();
    let wanted = |flight: &Flight| {
        if flight.protocol == Protocol::Tcp { PollFlags::OUT } else { PollFlags::IN }
    };
    let ready: Vec<bool> = {
        let mut asked: Vec<PollFd<'_>> =
            open.iter().map(|flight| PollFd::new(&flight.socket, wanted(flight))).collect();
        poll(&mut asked, Some(&Timespec::try_from(wait)?))?;
        asked.iter().map(|one| !one.revents().is_empty()).collect()
    };
    for (flight, _) in open.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
        flight.reached = outcome(flight)?;
    }
    Ok(())
}

/// Whether the destination was reached, once that is known.
fn outcome(flight: &Flight) -> Result<Option<bool>> {
    match sockopt::socket_error(&flight.socket)? {
        // There is no SCTP in the kernel, and the destination says so.
        Err(Errno::NOPROTOOPT) if flight.protocol == Protocol::Sctp => return Ok(Some(true)),
        Err(_) => return Ok(Some(false)),
        Ok(()) if flight.protocol == Protocol::Tcp => return Ok(Some(true)),
        Ok(()) => {}
    }
    let mut answer = [0; 2048];
    match recv(&flight.socket, &mut answer[..], RecvFlags::empty()) {
        // Nobody answers with SCTP.
        Ok(_) if flight.protocol == Protocol::Sctp => Ok(None),
        Ok(_) => Ok(Some(true)),
        Err(Errno::AGAIN) => Ok(None),
        Err(Errno::NOPROTOOPT) if flight.protocol == Protocol::Sctp => Ok(Some(true)),
        Err(_) => Ok(Some(false)),
    }
}
