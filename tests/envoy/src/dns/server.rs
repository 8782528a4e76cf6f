//! Servers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use rustix::net::sockopt::{
    Timeout, set_ip_freebind, set_ipv6_freebind, set_socket_reuseaddr, set_socket_timeout,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use testkit::{Families, TestNetns};

use super::{
    PATIENCE, PROXY_ADDRESS, PROXY_SUFFIX, REAL_ADDRESS, Transport, exchange, message, read_framed,
    write_framed,
};
use crate::user::User;

/// Where the proxy's resolver listens, on the loopback addresses as Istio's agent does.
const PROXY_PORT: u16 = 15053;
/// Where every server listens.
const DNS_PORT: u16 = 53;
/// How often a waiting thread looks whether it should end.
const TICK: Duration = Duration::from_millis(20);
/// How long the sockets of a server that has ended may be held by others.
const FREED_WITHIN: Duration = Duration::from_secs(5);

/// A question that reached a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// How it came.
    pub transport: Transport,
    /// From whom.
    pub from: SocketAddr,
    /// The name it asks for.
    pub name: String,
}

/// A running server, UDP and TCP; it ends when dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Who answers names that are not the proxy's own; none at the real server.
    upstream: Option<SocketAddr>,
    queries: Mutex<Vec<Query>>,
    stop: AtomicBool,
}

impl Server {
    /// The real server: at port 53 of these addresses, which need be on no interface of the namespace.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn real(namespace: &TestNetns, addresses: &[IpAddr]) -> Result<Self> {
        let addresses: Vec<_> = addresses.iter().map(|ip| SocketAddr::new(*ip, DNS_PORT)).collect();
        Self::start(namespace, User::ROOT, &addresses, None)
    }

    /// The proxy's resolver, as `user`. It answers its own names and asks `upstream` for all others.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn proxy(pod: &TestNetns, user: User, families: Families, upstream: SocketAddr) -> Result<Self> {
        let v4 = families.v4().then_some(Ipv4Addr::LOCALHOST.into());
        let v6 = families.v6().then_some(Ipv6Addr::LOCALHOST.into());
        let addresses: Vec<_> =
            [v4, v6].into_iter().flatten().map(|ip| SocketAddr::new(ip, PROXY_PORT)).collect();
        Self::start(pod, user, &addresses, Some(upstream))
    }

    fn start(
        namespace: &TestNetns,
        user: User,
        addresses: &[SocketAddr],
        upstream: Option<SocketAddr>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared { upstream, queries: Mutex::default(), stop: AtomicBool::new(false) });
        // Threads have the user and the namespace of the thread that starts them.
        let threads = namespace.enter(|_| -> Result<Vec<JoinHandle<()>>> {
            user.enter()?;
            let mut threads = Vec::new();
            for &address in addresses {
                // A program that another test is just starting has a copy of the server's sockets before this one until it runs.
                let what = format!("DNS is served at {address}");
                let (udp, tcp) = testkit::eventually(&what, FREED_WITHIN, || Ok(sockets(address)?))?;
                let (for_udp, for_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
                threads.push(std::thread::spawn(move || for_udp.serve(|s| s.serve_datagram(&udp))));
                threads.push(std::thread::spawn(move || for_tcp.serve(|s| s.serve_connection(&tcp))));
            }
            Ok(threads)
        })??;
        Ok(Self { shared, threads })
    }

    /// The questions since the start or the last call, oldest first.
    #[must_use]
    pub fn take_queries(&self) -> Vec<Query> {
        std::mem::take(&mut *self.shared.queries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // If it panicked, its message is on stderr and the test has noticed missing replies.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, one: impl Fn(&Self) -> io::Result<()>) {
        while !self.stop.load(Ordering::Relaxed) {
            match one(self) {
                Err(e) if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    // The client waits in vain and says so; this says why.
                    eprintln!("dns server: {e}");
                }
                _ => {}
            }
        }
    }

    fn serve_datagram(&self, socket: &UdpSocket) -> io::Result<()> {
        let mut query = [0; message::LONGEST];
        let (length, from) = socket.recv_from(&mut query)?;
        let reply = self.reply(Transport::Udp, from, &query[..length])?;
        socket.send_to(&reply, from)?;
        Ok(())
    }

    fn serve_connection(&self, listener: &TcpListener) -> io::Result<()> {
        let (mut stream, from): (TcpStream, SocketAddr) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let query = read_framed(&mut stream)?;
        let reply = self.reply(Transport::Tcp, from, &query)?;
        write_framed(&mut stream, &reply)
    }

    fn reply(&self, transport: Transport, from: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let malformed = || io::Error::other("a message that is no question");
        let name = message::name(query).ok_or_else(malformed)?;
        let own = name.ends_with(PROXY_SUFFIX);
        let record = Query { transport, from, name };
        self.queries.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        let address = match self.upstream {
            None => REAL_ADDRESS,
            Some(_) if own => PROXY_ADDRESS,
            Some(upstream) => return Ok(exchange(transport, upstream, 0, query)?.0),
        };
        message::reply(query, address).ok_or_else(malformed)
    }
}

/// Each is bound to the one address, so that it also answers from there; both wake up every [`TICK`].
fn sockets(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let bound = |kind| -> io::Result<OwnedFd> {
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        if address.is_ipv4() {
            set_ip_freebind(&socket, true)?;
        } else {
            set_ipv6_freebind(&socket, true)?;
        }
        set_socket_reuseaddr(&socket, true)?;
        // On a listening socket this bounds accept.
        set_socket_timeout(&socket, Timeout::Recv, Some(TICK))?;
        bind(&socket, &address)?;
        Ok(socket)
    };
    let (udp, tcp) = (bound(SocketType::DGRAM)?, bound(SocketType::STREAM)?);
    listen(&tcp, 16)?;
    Ok((udp.into(), tcp.into()))
}
