//! Listeners on many ports, served by one thread.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, SocketType, accept_with, getsockname, listen, shutdown};

use super::{Arrival, datagram, sockets};
use crate::namespace::TestNetns;

/// How long an HTTP listener waits for a request, and any listener for a client that does not read.
const PATIENCE: Duration = Duration::from_secs(1);

/// What to listen on, and how to answer.
#[derive(Debug, Clone, Copy)]
pub struct Listener {
    at: At,
    answers: Answers,
    transparent: bool,
}

#[derive(Debug, Clone, Copy)]
enum At {
    /// All addresses of both families, or of IPv4 in a namespace without IPv6.
    Port(u16),
    Address(SocketAddr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Tcp,
    Http,
    Udp,
}

/// One connection or datagram that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it came in.
    pub arrival: Arrival,
    /// Whether it was a datagram.
    pub udp: bool,
    /// The datagram's data or the HTTP request's head; empty for a plain connection.
    pub data: Vec<u8>,
}

/// Running listeners; they close when this is dropped.
#[derive(Debug)]
pub struct Listeners {
    addresses: Vec<SocketAddr>,
    records: Arc<Mutex<Vec<Record>>>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

struct Open {
    socket: OwnedFd,
    port: u16,
    answers: Answers,
}

// === impl Listener ===

impl Listener {
    const fn new(at: At, answers: Answers) -> Self {
        Self { at, answers, transparent: false }
    }

    /// Connections to a port of any address, IPv4 and IPv6.
    #[must_use]
    pub const fn tcp(port: u16) -> Self {
        Self::new(At::Port(port), Answers::Tcp)
    }

    /// Connections to one address. Port 0 takes a free one; see [`Listeners::addresses`].
    #[must_use]
    pub const fn tcp_at(address: SocketAddr) -> Self {
        Self::new(At::Address(address), Answers::Tcp)
    }

    /// Datagrams to a port of any address, IPv4 and IPv6.
    #[must_use]
    pub const fn udp(port: u16) -> Self {
        Self::new(At::Port(port), Answers::Udp)
    }

    /// Datagrams to one address.
    #[must_use]
    pub const fn udp_at(address: SocketAddr) -> Self {
        Self::new(At::Address(address), Answers::Udp)
    }

    /// Waits for the head of an HTTP request and answers 200, then closes; the body is the [`Arrival`] as text, which
    /// [`Arrival::from_text`] reads.
    #[must_use]
    pub const fn http(port: u16) -> Self {
        Self::new(At::Port(port), Answers::Http)
    }

    /// Takes packets for foreign addresses too, as TPROXY delivers them.
    #[must_use]
    pub const fn transparent(mut self) -> Self {
        self.transparent = true;
        self
    }

    fn open(&self) -> io::Result<Vec<Open>> {
        let port = match self.at {
            At::Address(address) => return Ok(vec![self.open_at(address)?]),
            At::Port(port) => port,
        };
        let v4 = self.open_at((Ipv4Addr::UNSPECIFIED, port).into())?;
        match self.open_at((Ipv6Addr::UNSPECIFIED, port).into()) {
            Ok(v6) => Ok(vec![v4, v6]),
            Err(e) if no_ipv6(&e) => Ok(vec![v4]),
            Err(e) => Err(e),
        }
    }

    fn open_at(&self, address: SocketAddr) -> io::Result<Open> {
        let kind = if self.answers == Answers::Udp { SocketType::DGRAM } else { SocketType::STREAM };
        let socket = sockets::new_socket(address, kind, SocketFlags::NONBLOCK)?;
        if self.transparent {
            sockets::set_transparent(&socket, address)?;
        }
        sockets::bind_anywhere(&socket, address)?;
        if self.answers == Answers::Udp {
            datagram::want_local_address(&socket, address.is_ipv4())?;
        } else {
            listen(&socket, 128)?;
        }
        let port = SocketAddr::try_from(getsockname(&socket)?)?.port();
        Ok(Open { socket, port, answers: self.answers })
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

// === impl Listeners ===

impl Listeners {
    /// Opens the listeners inside `namespace`; they take connections when this returns.
    ///
    /// # Errors
    /// When an address is in use or not allowed.
    pub fn start(namespace: &TestNetns, listeners: impl IntoIterator<Item = Listener>) -> Result<Self> {
        let listeners: Vec<_> = listeners.into_iter().collect();
        let opened = namespace.enter(|_| {
            let each = listeners
                .iter()
                .map(|l| l.open().with_context(|| format!("cannot listen: {l:?}")))
                .collect::<Result<Vec<_>>>()?;
            Ok::<Vec<Open>, anyhow::Error>(each.into_iter().flatten().collect())
        })??;
        let addresses = opened
            .iter()
            .map(|o| Ok(getsockname(&o.socket)?.try_into()?))
            .collect::<io::Result<Vec<SocketAddr>>>()?;
        let records = Arc::default();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        // A socket stays in the namespace it was made in, so the thread that serves it need not be there.
        let thread = std::thread::Builder::new().name("listeners".to_owned()).spawn({
            let (records, stop) = (Arc::clone(&records), Arc::clone(&stop));
            move || {
                serve(&opened, &stop, &records);
                close(&opened);
            }
        })?;
        Ok(Self { addresses, records, stop, thread: Some(thread) })
    }

    /// The addresses listened on, in order; a listener by port has two if the namespace has IPv6.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// All that came in since the start or the last call, oldest first.
    #[must_use]
    pub fn take_records(&self) -> Vec<Record> {
        std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // Eight bytes in host order are what an eventfd takes; it cannot fail while the counter is 0.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // If it panicked, its message is on stderr and the test has noticed missing answers.
            let _ = thread.join();
        }
    }
}

fn serve(all: &[Open], stop: &OwnedFd, records: &Arc<Mutex<Vec<Record>>>) {
    loop {
        let mut waits: Vec<_> = all.iter().map(|open| PollFd::new(&open.socket, PollFlags::IN)).collect();
        waits.push(PollFd::new(stop, PollFlags::IN));
        if let Err(e) = poll(&mut waits, None)
            && e != Errno::INTR
        {
            eprintln!("testkit listeners stop: cannot poll: {e}");
            return;
        }
        let ready: Vec<bool> = waits.iter().map(|w| !w.revents().is_empty()).collect();
        if ready.last() == Some(&true) {
            return;
        }
        for (open, _) in all.iter().zip(&ready).filter(|(_, ready)| **ready) {
            // A client that is already gone again is no fault of the listener; the client reports its side.
            let _ = serve_one(open, records);
        }
    }
}

/// Ends listening at once. A descriptor may live on for a moment in a process that another thread is just starting.
fn close(all: &[Open]) {
    for open in all.iter().filter(|open| open.answers != Answers::Udp) {
        // A listening socket can always be shut down.
        let _ = shutdown(&open.socket, Shutdown::Both);
    }
}

fn serve_one(open: &Open, records: &Arc<Mutex<Vec<Record>>>) -> io::Result<()> {
    if open.answers == Answers::Udp {
        let datagram = datagram::receive(&open.socket)?;
        let local = SocketAddr::from((datagram.to, open.port));
        let arrival =
            Arrival { listener_port: open.port, local, original_dst: None, peer: plain(datagram.from) };
        keep(records, Record { arrival, udp: true, data: datagram.data.clone() });
        return datagram::answer(&open.socket, &datagram, arrival.to_text().as_bytes());
    }
    let mut stream = TcpStream::from(accept_with(&open.socket, SocketFlags::CLOEXEC)?);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let local = plain(stream.local_addr()?);
    let original_dst = sockets::original_dst(stream.as_fd(), local)?.map(plain);
    let arrival = Arrival { listener_port: open.port, local, original_dst, peer: plain(stream.peer_addr()?) };
    if open.answers == Answers::Http {
        let records = Arc::clone(records);
        // A thread of its own, as a client may be slow with its request.
        std::thread::spawn(move || serve_http(stream, arrival, &records));
        return Ok(());
    }
    keep(records, Record { arrival, udp: false, data: Vec::new() });
    stream.write_all(arrival.to_text().as_bytes())
}

fn serve_http(mut stream: TcpStream, arrival: Arrival, records: &Mutex<Vec<Record>>) -> io::Result<()> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < 64 * 1024 {
        match stream.read(&mut part)? {
            0 => break,
            n => head.extend_from_slice(&part[..n]),
        }
    }
    keep(records, Record { arrival, udp: false, data: head });
    let body = arrival.to_text();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n\
         {body}"
    )
}

fn keep(records: &Mutex<Vec<Record>>, record: Record) {
    records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
}

/// Without flow label and interface number, so that addresses compare.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => (ip, address.port()).into(),
        IpAddr::V6(ip) => (ip, address.port()).into(),
    }
}
