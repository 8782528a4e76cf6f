//! What is on the node's wires.

use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use testkit::TestNetns;

/// `ETH_P_ALL` of linux/if_ether.h, in network byte order as packet(7) wants it.
const EVERY_PROTOCOL: u32 = 0x0003_u16.to_be() as u32;
/// Longest Ethernet header (14 bytes) with the options-free part of IPv4's: what precedes the ports.
const ETHERNET: usize = 14;
/// Frames kept; a test has some thousands.
const MOST: usize = 200_000;

/// Takes every frame that passes the node's interfaces until it is dropped.
pub struct Sniffer {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

// === impl Sniffer ===

impl Sniffer {
    /// Begins; what passes from here on is seen.
    ///
    /// # Errors
    /// When not root.
    pub fn start(host: &TestNetns) -> Result<Self> {
        let socket = host.enter(|_| -> Result<OwnedFd> {
            let protocol = NonZero::new(EVERY_PROTOCOL).map(Protocol::from_raw);
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
                .context("a packet socket")?;
            set_socket_recv_buffer_size(&socket, 8 << 20)?;
            set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(50)))?;
            Ok(socket)
        })??;
        let (frames, ending) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (to, end) = (frames.clone(), ending.clone());
        let thread = std::thread::spawn(move || {
            let mut frame = vec![0_u8; 1 << 16];
            while !end.load(Ordering::SeqCst) {
                let Ok((read, _)) = recv(&socket, frame.as_mut_slice(), RecvFlags::empty()) else { continue };
                let mut frames = to.lock().unwrap_or_else(PoisonError::into_inner);
                if frames.len() < MOST {
                    frames.push(frame[..read].to_vec());
                }
            }
        });
        Ok(Self { frames, ending, thread: Some(thread) })
    }

    /// Whether any frame so far has these bytes.
    pub fn has_seen(&self, bytes: &[u8]) -> bool {
        self.count(|frame| frame.windows(bytes.len()).any(|window| window == bytes)) > 0
    }

    /// TCP frames with data so far that go to or come from a port.
    pub fn with_data(&self, port: u16) -> usize {
        self.count(|frame| tcp(frame).is_some_and(|(ports, data)| data > 0 && ports.contains(&port)))
    }

    fn count(&self, is: impl Fn(&[u8]) -> bool) -> usize {
        // What was sent by now is in the socket's buffer by now.
        std::thread::sleep(Duration::from_millis(100));
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().filter(|frame| is(frame)).count()
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Ports and length of the data of a TCP segment in IPv4 (RFC 791, RFC 9293).
fn tcp(frame: &[u8]) -> Option<([u16; 2], usize)> {
    let ip = frame.get(ETHERNET..)?;
    if frame[12..14] != [0x08, 0x00] || *ip.get(9)? != 6 {
        return None;
    }
    let header = usize::from(ip[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let segment = ip.get(header..)?;
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    let offset = usize::from(*segment.get(12)? >> 4) * 4;
    Some(([port(0)?, port(2)?], total.saturating_sub(header + offset)))
}
