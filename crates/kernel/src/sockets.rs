//! Connected TCP sockets of a namespace: which there are, when they close, and how to end them.
//!
//! The kernel's interface is sock_diag (`linux/sock_diag.h`, `linux/inet_diag.h`). A socket of it stays in the namespace in which it was
//! opened, so questions need no thread there afterwards. Listing the connections of one namespace takes half a millisecond on a node with
//! 262,144 hash buckets; the connection tracking table takes tens of milliseconds to walk, and tells of the end of a connection only
//! if somebody listened when it began (`net.netfilter.nf_conntrack_events`, 2 by default).

#[cfg(test)]
pub(crate) mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netns::Inside;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, netlink};

use crate::netlink::wire::{Message, MessageWriter, Messages};
use crate::netlink::{self as exchange, FilterOperation, NetlinkSocket, flags};

/// How many connections of a family are read. Where there are more, what is open is not known.
const MOST: usize = 256 << 10;
/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY`.
pub(crate) const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `INET_DIAG_REQ_BYTECODE`, an attribute of a request.
const BYTECODE: u16 = 1;
/// `INET_DIAG_MARK`, an attribute of an answer.
pub(crate) const MARK: u16 = 15;
/// Length of `struct inet_diag_sockid` and, before it in an answer, of family, state, timer and retransmissions.
pub(crate) const ID: usize = 48;
pub(crate) const BEFORE_ID: usize = 4;
/// Length of `struct inet_diag_msg`.
pub(crate) const ANSWER: usize = 72;
/// `AF_INET` and `AF_INET6`: a socket that takes connections of both families is of the second.
pub(crate) const FAMILIES: [u8; 2] = [2, 10];
const TCP: u8 = 6;
/// All states of `net/tcp_states.h` but `TIME_WAIT` (6), `CLOSE` (7) and `LISTEN` (10): a process, or the kernel for one that has closed,
/// has something to say or to hear still.
const CONNECTED: u32 = 0x1fff & !(1 << 6 | 1 << 7 | 1 << 10 | 1);
pub(crate) const LISTENING: u32 = 1 << 10;
/// `SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY`, as bits of the groups.
const CLOSED: u32 = 1 << 0 | 1 << 2;
/// More than one such message.
const EVENT_BUFFER: usize = 8 * 1024;

/// A question about sockets, or an order to end one, that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} TCP connections of the namespace")]
pub struct Error {
    pub(crate) operation: &'static str,
    pub(crate) source: exchange::Error,
}

/// One end of a TCP connection that is in the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpConnection {
    /// Address and port on this side; an IPv4 address is one even if the socket takes both families.
    pub local: SocketAddr,
    /// On the other.
    pub peer: SocketAddr,
    /// The mark of the socket.
    pub mark: u32,
    family: u8,
    id: [u8; ID],
}

/// Names a socket for as long as the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cookie(u64);

/// Asks about the sockets of one namespace.
#[derive(Debug)]
pub struct Sockets(NetlinkSocket);

/// Hears of sockets of one namespace that close, without a thread: readable when one has.
#[derive(Debug)]
pub struct Closings(OwnedFd);

/// What [`Closings::read`] heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// These sockets closed; none if nothing is to be read.
    Closed(Vec<Cookie>),
    /// There were more than the kernel keeps: look again.
    Missed,
}

// === impl Error ===

impl Error {
    /// Whether the kernel has no such interface, or does not end sockets (`CONFIG_INET_DIAG`, `CONFIG_INET_DIAG_DESTROY`).
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self.source.errno(),
            Some(Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::NOENT | Errno::INVAL)
        )
    }
}

// === impl TcpConnection ===

impl TcpConnection {
    /// Its name.
    #[must_use]
    pub fn cookie(&self) -> Cookie {
        cookie(&self.id)
    }

    fn read(message: &Message<'_>) -> Option<Self> {
        let header = message.payload.get(..ANSWER)?;
        let family = header[0];
        let id: [u8; ID] = header.get(BEFORE_ID..BEFORE_ID + ID)?.try_into().ok()?;
        let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
        // `struct inet_diag_sockid`: two ports, two addresses of 16 bytes, the interface, the cookie.
        let (local, peer) = (address(family, &id[4..20])?, address(family, &id[20..36])?);
        let mark = message.attributes(ANSWER).find(MARK).and_then(|a| a.ne32()).unwrap_or(0);
        Some(Self {
            local: SocketAddr::new(local, port(0)),
            peer: SocketAddr::new(peer, port(2)),
            mark,
            family,
            id,
        })
    }
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    if family == FAMILIES[0] {
        return Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into());
    }
    Some(IpAddr::from(Ipv6Addr::from(*bytes.first_chunk::<16>()?)).to_canonical())
}

fn cookie(id: &[u8; ID]) -> Cookie {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&id[ID - 8..]);
    Cookie(u64::from_ne_bytes(bytes))
}

// === impl Sockets ===

impl Sockets {
    /// For the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel has no such interface, or no descriptor is left.
    pub fn open(_: &Inside) -> Result<Self, Error> {
        let socket = NetlinkSocket::open(Some(netlink::SOCK_DIAG));
        socket.map(Self).map_err(|source| Error { operation: "ask for the", source })
    }

    /// The connections whose port on this side is in the range.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub fn list(&mut self, ports: RangeInclusive<u16>) -> Result<Vec<TcpConnection>, Error> {
        self.list_in(CONNECTED, ports)
    }

    fn list_in(&mut self, states: u32, ports: RangeInclusive<u16>) -> Result<Vec<TcpConnection>, Error> {
        dump_in(&mut self.0, (states, ports), (MOST, "connections"), TcpConnection::read)
            .map_err(|source| Error { operation: "list the", source })
    }

    /// Those of the ports on which a socket of either family listens.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub fn listening(&mut self, ports: &[u16]) -> Result<Vec<u16>, Error> {
        let (Some(first), Some(last)) = (ports.iter().min(), ports.iter().max()) else {
            return Ok(Vec::new());
        };
        let sockets = self.list_in(LISTENING, *first..=*last)?;
        let listens = |port: &u16| sockets.iter().any(|socket| socket.local.port() == *port);
        Ok(ports.iter().copied().filter(listens).collect())
    }

    /// Ends a connection: the process that has it gets an error, and the peer a reset. `false` if it had ended already.
    ///
    /// # Errors
    /// The kernel does not do that, see [`Error::is_unsupported`].
    pub fn destroy(&mut self, connection: &TcpConnection) -> Result<bool, Error> {
        let mut writer = MessageWriter::default();
        let header = request(connection.family, u32::MAX, &connection.id);
        writer.message(DESTROY, flags::REQUEST | flags::ACK, 1, &header, |_| {});
        match self.0.order(writer.bytes()) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::STALE)) => Ok(false),
            Err(source) => Err(Error { operation: "end", source }),
        }
    }
}

/// What `read` makes of the TCP sockets of both families that are in one of the states and have such a port on this side; of so many of a family at
/// most.
pub(crate) fn dump_in<T>(
    socket: &mut NetlinkSocket,
    (states, ports): (u32, RangeInclusive<u16>),
    most: (usize, &'static str),
    read: impl Fn(&Message<'_>) -> Option<T>,
) -> Result<Vec<T>, exchange::Error> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let mut writer = MessageWriter::default();
        let header = request(family, states, &[0; ID]);
        writer.message(BY_FAMILY, flags::REQUEST | flags::DUMP, 1, &header, |w| {
            if *ports.start() > 0 || *ports.end() < u16::MAX {
                w.attribute(BYTECODE, &bytecode(&ports));
            }
        });
        let mut found = Vec::new();
        socket.dump_most(writer.bytes(), most, |message| match message {
            Some(message) => found.extend(read(message)),
            None => found.clear(),
        })?;
        all.append(&mut found);
    }
    Ok(all)
}

/// `struct inet_diag_req_v2`.
pub(crate) fn request(family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut header = vec![family, TCP, 0, 0];
    header.extend_from_slice(&states.to_ne_bytes());
    header.extend_from_slice(id);
    header
}

/// A program of `struct inet_diag_bc_op`: not below the first port, not above the last. A port stands in the place of an operation of its
/// own; a jump behind the end says no.
fn bytecode(ports: &RangeInclusive<u16>) -> Vec<u8> {
    const NOP: u8 = 0;
    const SOURCE_GE: u8 = 2;
    const SOURCE_LE: u8 = 3;
    let operations =
        [(SOURCE_GE, 8, 20), (NOP, 0, *ports.start()), (SOURCE_LE, 8, 12), (NOP, 0, *ports.end())];
    let bytes = operations.iter().flat_map(|(code, yes, no)| {
        let [low, high] = no.to_ne_bytes();
        [*code, *yes, low, high]
    });
    bytes.collect()
}

// === impl Closings ===

impl Closings {
    /// Hears of sockets of the calling thread's namespace, from now on, whose port on this side is in the range.
    ///
    /// # Errors
    /// The kernel has no such interface, or no descriptor is left.
    pub fn open(_: &Inside, ports: &RangeInclusive<u16>) -> Result<Self, Error> {
        let failed = |e: Errno| Error {
            operation: "listen for the end of",
            source: exchange::Error::Socket(e.into()),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(netlink::SOCK_DIAG),
        )
        .map_err(failed)?;
        only_ports(&fd, ports);
        rustix::net::bind(&fd, &netlink::SocketAddrNetlink::new(0, CLOSED)).map_err(failed)?;
        Ok(Self(fd))
    }

    /// What has closed since the last call. Never waits.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn read(&mut self) -> Result<Heard, Error> {
        let (mut closed, mut buffer) = (Vec::new(), [0; EVENT_BUFFER]);
        loop {
            let received = rustix::io::retry_on_intr(|| {
                rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT)
            });
            let length = match received {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => return Ok(Heard::Closed(closed)),
                Err(Errno::NOBUFS) => return Ok(Heard::Missed),
                Err(e) => {
                    let source = exchange::Error::Receive(e.into());
                    return Err(Error { operation: "hear of the end of", source });
                }
            };
            let messages = Messages::new(&buffer[..length]);
            let ids = messages.filter(|message| message.kind == BY_FAMILY).filter_map(|message| {
                message.payload.get(BEFORE_ID..BEFORE_ID + ID)?.try_into().ok().map(|id| cookie(&id))
            });
            closed.extend(ids);
        }
    }
}

impl AsFd for Closings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lets the kernel keep messages about these ports only: every socket of a namespace that closes makes one.
fn only_ports(fd: &OwnedFd, ports: &RangeInclusive<u16>) {
    const LOAD_HALF: u16 = 0x28;
    const JUMP_GE: u16 = 0x35;
    const JUMP_GT: u16 = 0x25;
    const RETURN: u16 = 0x06;
    let port_at = u32::try_from(exchange::HEADER + BEFORE_ID).unwrap_or(0);
    let operation = |code, yes, no, value| FilterOperation { code, yes, no, value };
    exchange::attach_filter(
        fd,
        &[
            operation(LOAD_HALF, 0, 0, port_at),
            operation(JUMP_GE, 0, 2, (*ports.start()).into()),
            operation(JUMP_GT, 1, 0, (*ports.end()).into()),
            operation(RETURN, 0, 0, u32::MAX),
            operation(RETURN, 0, 0, 0),
        ],
    );
}
