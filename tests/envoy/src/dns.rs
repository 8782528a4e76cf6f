//! The proxy's resolver, a server that it asks, and clients of both.
//!
//! The messages are real DNS with one question for an IPv4 address. A [`Server`] is either the real server of the outside
//! world or the proxy's resolver; the addresses that they answer say which one did.

mod message;
mod server;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
use testkit::TestNetns;

use crate::user::User;

pub use server::{Query, Server};

/// What the real server answers to every question.
pub const REAL_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// What the proxy's resolver answers itself, to questions for names that end in [`PROXY_SUFFIX`].
pub const PROXY_ADDRESS: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 1);
/// Names that only the proxy knows.
pub const PROXY_SUFFIX: &str = ".mesh";

/// How long any one step may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram each way.
    Udp,
    /// A connection.
    Tcp,
}

/// One question.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Where it is asked from.
    pub from: &'a TestNetns,
    /// Who asks.
    pub user: User,
    /// How.
    pub transport: Transport,
    /// Whom.
    pub server: SocketAddr,
    /// The name asked for.
    pub name: &'a str,
    /// Source port; 0 leaves it to the kernel.
    pub source_port: u16,
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The address that the name has.
    pub address: Ipv4Addr,
    /// Where the reply came from, as the client's socket sees it.
    pub from: SocketAddr,
}

impl Question<'_> {
    /// Asks it.
    ///
    /// # Errors
    /// When no reply comes in time, or it is no reply to this question.
    pub fn ask(&self) -> Result<Reply> {
        let Self { user, transport, server, name, .. } = *self;
        self.from.enter(|_| {
            user.enter()?;
            let query = message::query(name);
            let (reply, from) = exchange(transport, server, self.source_port, &query)
                .with_context(|| format!("no reply to {name} from {server} over {transport:?} as {user}"))?;
            let address = message::answer(&reply, &query).context("a reply to another question")?;
            Ok(Reply { address, from })
        })?
    }
}

/// Sends a message and returns the reply and where it came from.
fn exchange(
    transport: Transport,
    server: SocketAddr,
    port: u16,
    query: &[u8],
) -> io::Result<(Vec<u8>, SocketAddr)> {
    let kind = if transport == Transport::Udp { SocketType::DGRAM } else { SocketType::STREAM };
    let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    // A source port may be used again at once.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    for timeout in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE))?;
    }
    bind(&socket, &SocketAddr::new(unspecified(server), port))?;
    match transport {
        // Not connected: the kernel would hide a reply that comes from elsewhere.
        Transport::Udp => {
            let socket = UdpSocket::from(socket);
            socket.send_to(query, server)?;
            let mut reply = vec![0; message::LONGEST];
            let (length, from) = socket.recv_from(&mut reply)?;
            reply.truncate(length);
            Ok((reply, from))
        }
        Transport::Tcp => {
            connect(&socket, &server)?;
            let mut stream = TcpStream::from(socket);
            write_framed(&mut stream, query)?;
            let reply = read_framed(&mut stream)?;
            Ok((reply, stream.peer_addr()?))
        }
    }
}

fn unspecified(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Over TCP each message follows its length in two bytes.
fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}
