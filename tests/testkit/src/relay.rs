//! What a ztunnel does with the connections of a pod, as far as rules are concerned: takes those that were redirected and passes them on.
//!
//! It listens in the pod's namespace. A connection to the port for inbound goes on to where it was for, with the client's address as its
//! source; one to the port for outbound goes on with the pod's. Sockets of the relay have ztunnel's mark.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use netns::Netns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, SocketType, accept_with, connect, listen};

use crate::namespace::TestNetns;
use crate::probe::sockets;

/// ztunnel's port for what comes to the pod.
const INBOUND: u16 = 15006;
/// ztunnel's port for what the pod sends.
const OUTBOUND: u16 = 15001;
/// ztunnel's port for tunnels. Nobody here makes one.
const HBONE: u16 = 15008;
/// The mark of ztunnel's own packets.
const MARK: u32 = 0x539;
/// How long either side of a connection may be silent.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the thread that accepts looks whether it is to end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How long connections that are open may take at the end.
const DRAIN: Duration = Duration::from_secs(3);

/// A connection that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    /// Which port it came to.
    pub port: u16,
    /// Who connected.
    pub client: SocketAddr,
    /// Where to, before the redirect.
    pub to: SocketAddr,
    /// When it was taken.
    pub at: Instant,
}

/// A running relay. When dropped it stops and waits for what is open.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    netns: Netns,
    stop: AtomicBool,
    relayed: Mutex<Vec<Relayed>>,
    failures: Mutex<Vec<String>>,
}

// === impl Relay ===

impl Relay {
    /// Listens inside `namespace`; connections are taken when this returns.
    ///
    /// # Errors
    /// When a port is in use.
    pub fn start(namespace: &TestNetns) -> Result<Self> {
        let netns = Netns::open(namespace.path())?;
        let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
        let mut listeners = Vec::new();
        for port in [INBOUND, OUTBOUND, HBONE] {
            for address in any.map(|ip| SocketAddr::new(ip, port)) {
                let opened = netns.enter(|_| open(address))?;
                listeners.push((port, opened.with_context(|| format!("listen on {address}"))?));
            }
        }
        let stop = AtomicBool::new(false);
        let shared = Arc::new(Shared { netns, stop, relayed: Mutex::default(), failures: Mutex::default() });
        let worker = shared.clone();
        let thread =
            std::thread::Builder::new().name("relay".to_owned()).spawn(move || worker.accept(&listeners))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes no new connections from soon on; those that are open go on.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }

    /// Connections so far, in the order in which they came.
    #[must_use]
    pub fn relayed(&self) -> Vec<Relayed> {
        self.shared.relayed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it could not pass on.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // If it panicked, its message is on stderr and connections have failed.
            let _ = thread.join();
        }
    }
}

// === impl Shared ===

impl Shared {
    fn accept(self: Arc<Self>, listeners: &[(u16, OwnedFd)]) {
        let mut open: Vec<JoinHandle<()>> = Vec::new();
        // One more look after the stop: what a listener holds already was redirected before.
        let mut last = false;
        while !last {
            last = self.stop.load(Ordering::SeqCst);
            let mut waits: Vec<_> =
                listeners.iter().map(|(_, socket)| PollFd::new(socket, PollFlags::IN)).collect();
            let limit = if last { Timespec::default() } else { LOOK };
            if poll(&mut waits, Some(&limit)).is_err() {
                continue;
            }
            for (port, socket) in listeners {
                while let Ok(client) = accept_with(socket, SocketFlags::CLOEXEC) {
                    let (port, shared) = (*port, self.clone());
                    open.push(std::thread::spawn(move || shared.serve(port, &client.into())));
                }
            }
            open.retain(|thread| !thread.is_finished());
        }
        let start = Instant::now();
        while start.elapsed() < DRAIN && open.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn serve(&self, port: u16, client: &TcpStream) {
        if let Err(error) = self.pass_on(port, client) {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.push(format!("relay on port {port}: {error:#}"));
        }
    }

    fn pass_on(&self, port: u16, client: &TcpStream) -> Result<()> {
        let (peer, local) = (client.peer_addr()?, client.local_addr()?);
        let to = sockets::original_dst(client.as_fd(), local)?.context("nobody knows where it was for")?;
        let relayed = Relayed { port, client: peer, to, at: Instant::now() };
        self.relayed.lock().unwrap_or_else(PoisonError::into_inner).push(relayed);
        let source = (port == INBOUND).then_some(SocketAddr::new(peer.ip(), 0));
        let server = self.netns.enter(|_| dial(to, source))?.with_context(|| format!("connect to {to}"))?;
        for stream in [client, &server] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| copy(client, &server));
            copy(&server, client);
        });
        Ok(())
    }
}

fn open(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = sockets::new_socket(address, SocketType::STREAM, SocketFlags::NONBLOCK)?;
    sockets::bind_anywhere(&socket, address)?;
    listen(&socket, 128)?;
    Ok(socket)
}

fn dial(to: SocketAddr, source: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = sockets::new_socket(to, SocketType::STREAM, SocketFlags::empty())?;
    sockets::set_mark(&socket, MARK)?;
    sockets::set_patience(&socket, PATIENCE)?;
    if let Some(source) = source {
        sockets::set_transparent(&socket, to)?;
        sockets::bind_anywhere(&socket, source)?;
    }
    connect(&socket, &to)?;
    Ok(socket.into())
}

/// Copies until one side ends or the other takes no more, and passes the end on.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
