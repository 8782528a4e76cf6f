//! The proxy of one pod: it carries connections as ztunnel does, with a line of text in the place of HTTP/2 and without encryption.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns::Netns;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{ip_original_dst, set_socket_reuseaddr, set_socket_reuseport};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with};

use crate::{HBONE, INBOUND, OUTBOUND};

/// Mark of every socket of ztunnel's in a pod.
const MARK: u32 = 0x539;
/// How often an accepting thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(2);
/// Longest line that opens a tunnel: an address and a port.
const LONGEST_HEADER: usize = 64;

/// A pod's proxy. Dropping it cuts its connections.
pub(super) struct Proxy {
    closing: Arc<AtomicBool>,
    acceptors: Vec<JoinHandle<()>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

/// Where a connection of the pod came in.
#[derive(Clone, Copy)]
enum Way {
    Outbound,
    Inbound,
    Tunnel,
}

// === impl Proxy ===

impl Proxy {
    pub(super) fn start(namespace: &OwnedFd) -> Result<Self> {
        let netns = Arc::new(Netns::open(format!("/proc/self/fd/{}", namespace.as_raw_fd()))?);
        let ways = [(OUTBOUND, Way::Outbound), (INBOUND, Way::Inbound), (HBONE, Way::Tunnel)];
        let mut listeners = Vec::new();
        for (port, way) in ways {
            listeners.push((netns.enter(|_| listener(port))??, way));
        }
        let (closing, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let acceptors = listeners.into_iter().map(|(listener, way)| {
            let (netns, closing, open) = (netns.clone(), closing.clone(), open.clone());
            std::thread::spawn(move || accept(&listener, way, &netns, &closing, &open))
        });
        Ok(Self { closing: closing.clone(), acceptors: acceptors.collect(), open: open.clone() })
    }

    /// Closes what listens; connections go on.
    pub(super) fn close(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        for acceptor in self.acceptors.drain(..) {
            let _ = acceptor.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.close();
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // Ended already, most often.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Two ztunnels can listen at once during a rolling restart.
fn listener(port: u16) -> Result<TcpListener> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_reuseport(&socket, true)?;
    setsockopt(&socket, sockopt::Mark, &MARK)?;
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    listen(&socket, 128)?;
    Ok(socket.into())
}

fn accept(
    listener: &TcpListener,
    way: Way,
    netns: &Arc<Netns>,
    closing: &AtomicBool,
    open: &Arc<Mutex<Vec<TcpStream>>>,
) {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                let (netns, open) = (netns.clone(), open.clone());
                std::thread::spawn(move || drop(carry(stream, peer, way, &netns, &open)));
            }
            // Only when nobody waits any more, so that none who has connected is turned away.
            Err(_) if closing.load(Ordering::SeqCst) => return,
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Finds where a connection is to go and carries it there until it ends.
fn carry(
    mut stream: TcpStream,
    peer: SocketAddr,
    way: Way,
    netns: &Netns,
    open: &Mutex<Vec<TcpStream>>,
) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let other = match way {
        Way::Outbound => {
            let to = SocketAddr::V4(ip_original_dst(&stream)?);
            match dial(netns, SocketAddr::new(to.ip(), HBONE), None) {
                Ok(mut tunnel) => {
                    tunnel.write_all(format!("{to}\n").as_bytes())?;
                    tunnel
                }
                // Not in the mesh.
                Err(_) => dial(netns, to, None)?,
            }
        }
        Way::Inbound => dial(netns, SocketAddr::V4(ip_original_dst(&stream)?), Some(peer.ip()))?,
        Way::Tunnel => dial(netns, header(&mut stream)?, Some(peer.ip()))?,
    };
    other.set_nodelay(true)?;
    let mut both = open.lock().unwrap_or_else(PoisonError::into_inner);
    both.extend([stream.try_clone()?, other.try_clone()?]);
    drop(both);
    let (back_from, back_to) = (other.try_clone()?, stream.try_clone()?);
    let back = std::thread::spawn(move || copy(back_from, back_to));
    copy(stream, other);
    back.join().map_err(|_| anyhow::anyhow!("a thread panicked"))
}

/// The line that opens a tunnel. Not a byte more is read.
fn header(stream: &mut TcpStream) -> Result<SocketAddr> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        match byte[0] {
            b'\n' => break,
            other => line.push(other),
        }
        ensure!(line.len() <= LONGEST_HEADER, "a tunnel begins with {line:?}");
    }
    let line = String::from_utf8(line)?;
    line.parse().with_context(|| format!("a tunnel to {line:?}"))
}

/// Connects from inside the pod, by the client's address where the application is to see that.
fn dial(netns: &Netns, to: SocketAddr, client: Option<IpAddr>) -> Result<TcpStream> {
    netns.enter(|_| -> Result<TcpStream> {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        setsockopt(&socket, sockopt::Mark, &MARK)?;
        if let Some(client) = client {
            setsockopt(&socket, sockopt::IpTransparent, &true)?;
            bind(&socket, &SocketAddr::new(client, 0))?;
        }
        connect(&socket, &to).with_context(|| format!("connect {to}"))?;
        Ok(socket.into())
    })?
}

/// One direction. The end of one is the end of the other.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
