//! Sockets that are kept: they hear what happens in their namespace, and are asked as any other.
//!
//! An answer names the port of the socket that asked, an event the port of the socket by which somebody changed something, or 0. No two sockets of a
//! namespace and protocol have the same port, so that tells the two apart.

use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{Protocol, RecvFlags, sockopt};

use super::wire::{Message, Messages};
use super::{Error, HEADER, NetlinkSocket, open_unbound};

/// Half of what the kernel holds for a kept socket until it is read; it doubles the number. What does not fit is lost, and known to be.
const KERNEL_BUFFER: usize = 16 * 1024;
/// Bytes of events that are put aside while an answer is read.
const MOST_PUT_ASIDE: usize = 16 * 1024;
/// An event, or the answer to a short question, is smaller; of a larger event only that it came is of interest.
const SMALL_BUFFER: usize = 2 * 1024;
/// How often a question is asked whose answer finds no room.
const TRIES: usize = 3;
/// Events that are read at a time.
const MOST_EVENTS: usize = 256;
/// Bytes of the rest of an answer that are read away. Beyond, the socket is of no use.
const MOST_DRAINED: usize = 8 << 20;
/// Ports of the netfilter sockets of this process: so many numbers from a random one on, with the top bit. The kernel gives a socket its process's id
/// for a port, which has no top bit; and where that is taken, because the process has two, the next one downward of the numbers below -4096
/// (`netlink_autobind`), which may be one of these.
const PORTS: u32 = 4096;
const TOP_BIT: u32 = 1 << 31;

/// What a kept socket has heard.
#[derive(Debug)]
pub(super) struct HeardEvents {
    port: u32,
    heard: UnreadEvents,
    /// A part of the last answer may not be read yet.
    unread: bool,
}

/// Events that were not read yet.
#[derive(Debug, Default)]
pub(crate) struct UnreadEvents {
    bytes: Vec<u8>,
    /// There were more than fit.
    pub(crate) lost: bool,
}

impl UnreadEvents {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn messages(&self) -> Messages<'_> {
        Messages::new(&self.bytes)
    }
}

impl HeardEvents {
    /// Whether it was an event.
    pub(super) fn put_aside(&mut self, datagram: &[u8]) -> bool {
        let port = datagram.get(HEADER - 4..HEADER).and_then(|port| port.try_into().ok());
        if port.map(u32::from_ne_bytes) == Some(self.port) {
            return false;
        }
        match self.heard.bytes.len() + datagram.len() <= MOST_PUT_ASIDE {
            // Messages start at multiples of four.
            true => {
                self.heard.bytes.extend_from_slice(datagram);
                self.heard.bytes.resize(self.heard.bytes.len().next_multiple_of(4), 0);
            }
            false => self.heard.lost = true,
        }
        true
    }

    pub(super) fn lose(&mut self) {
        self.heard.lost = true;
    }
}

impl NetlinkSocket {
    /// A socket to keep, which belongs to the groups whose bits are set. `filter` attaches a socket filter, given the socket's port, before anything
    /// is heard.
    pub(crate) fn keep(
        protocol: Option<Protocol>,
        groups: u32,
        filter: impl FnOnce(&OwnedFd, u32),
    ) -> Result<Self, Error> {
        let failed = |e: Errno| Error::Socket(e.into());
        let fd = open_unbound(protocol)?;
        sockopt::set_socket_recv_buffer_size(&fd, KERNEL_BUFFER).map_err(failed)?;
        let port = bind_to_port_of_ours(&fd)?;
        filter(&fd, port);
        rustix::net::bind(&fd, &SocketAddrNetlink::new(port, groups)).map_err(failed)?;
        let events = Some(HeardEvents { port, heard: UnreadEvents::default(), unread: false });
        Ok(Self { fd, protocol, buffer: Vec::new(), events, stays: true })
    }

    /// As if it were kept: all that comes are events.
    #[cfg(test)]
    pub(crate) fn hearing(self) -> Self {
        let events = Some(HeardEvents { port: u32::MAX, heard: UnreadEvents::default(), unread: false });
        Self { events, ..self }
    }

    /// What has happened since the last call; never waits. If there is more, the socket stays readable.
    pub(crate) fn hear(&mut self) -> Result<UnreadEvents, Error> {
        self.make_room(SMALL_BUFFER);
        for _ in 0..MOST_EVENTS {
            let received = rustix::io::retry_on_intr(|| {
                rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT)
            });
            let Some(events) = &mut self.events else { break };
            match received {
                // An answer here is one that nobody waits for any more.
                Ok((length, _)) => _ = events.put_aside(&self.buffer[..length]),
                Err(Errno::AGAIN) => break,
                Err(Errno::NOBUFS) => events.lose(),
                Err(e) => return Err(Error::Receive(e.into())),
            }
        }
        Ok(self.events.as_mut().map(|events| std::mem::take(&mut events.heard)).unwrap_or_default())
    }

    /// Sends a message that has one message for an answer, and nothing else.
    pub(crate) fn ask<T>(
        &mut self,
        request: &[u8],
        read: impl FnOnce(&Message<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        self.make_room(SMALL_BUFFER);
        let mut received = None;
        for _ in 0..TRIES {
            self.drain()?;
            self.send_in(request)?;
            received = self.receive()?;
            // Events that came meanwhile may have left no room for the answer; they are read now.
            if received.is_some() {
                break;
            }
        }
        self.answered();
        let message = received.and_then(|length| Messages::new(&self.buffer[..length]).next());
        let message = message.ok_or(Error::NoAnswer)?;
        match message.kind {
            super::NLMSG_ERROR => super::error_of(&message).and(Err(Error::NoAnswer)),
            _ => read(&message).ok_or(Error::NoAnswer),
        }
    }

    /// What the last request asked for has been read.
    pub(super) fn answered(&mut self) {
        self.note_unread(false);
    }

    pub(super) fn note_unread(&mut self, unread: bool) {
        if let Some(events) = &mut self.events {
            events.unread = unread;
        }
    }

    /// Reads the rest of the last answer away.
    pub(super) fn drain(&mut self) -> Result<(), Error> {
        let has_unread = self.events.as_ref().map_or(self.stays, |events| events.unread);
        if !has_unread {
            return Ok(());
        }
        let mut drained = 0;
        while let Some(length) = self.receive()? {
            drained += length;
            if drained > MOST_DRAINED {
                return Err(Error::TooMany { most: MOST_DRAINED, what: "bytes of rules or routes" });
            }
        }
        Ok(())
    }

    /// Gives the memory for answers back, until the next question.
    pub(crate) fn rest(&mut self) {
        self.buffer = Vec::new();
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Gives a socket a port by which [`is_port_of_ours`] knows it.
pub(super) fn bind_to_port_of_ours(fd: &OwnedFd) -> Result<u32, Error> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..PORTS {
        let port = first_port() + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        match rustix::net::bind(fd, &SocketAddrNetlink::new(port, 0)) {
            Ok(()) => return Ok(port),
            // An older socket of ours that is open in this namespace.
            Err(Errno::ADDRINUSE) => {}
            Err(e) => return Err(Error::Socket(e.into())),
        }
    }
    Err(Error::Socket(Errno::ADDRINUSE.into()))
}

/// Whether a netfilter socket with this port is one of this process. Somebody else has such a port if he asks for that number, or by a chance of about
/// one in half a million, where the kernel chooses one with the top bit.
pub(crate) fn is_port_of_ours(port: u32) -> bool {
    (first_port()..first_port() + PORTS).contains(&port)
}

fn first_port() -> u32 {
    static FIRST: OnceLock<u32> = OnceLock::new();
    *FIRST.get_or_init(|| {
        // The keys of the standard library's hash are random.
        let random = RandomState::new().hash_one(()) as u32;
        TOP_BIT | (random & (TOP_BIT - 1) & !(PORTS - 1))
    })
}

/// One operation of a classic BPF program, `struct sock_filter` of `linux/filter.h`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct FilterOperation {
    pub(crate) code: u16,
    /// How many operations are passed over if the condition holds, or does not.
    pub(crate) yes: u8,
    pub(crate) no: u8,
    pub(crate) value: u32,
}

/// Lets the kernel keep only messages for which the program returns something else than 0. Without it there are more messages and no other
/// difference.
#[allow(unsafe_code)]
pub(crate) fn attach_filter(fd: &impl AsFd, operations: &[FilterOperation]) {
    use std::ffi::{c_int, c_void};
    /// `asm-generic/socket.h`.
    const SOL_SOCKET: c_int = 1;
    const SO_ATTACH_FILTER: c_int = 26;
    /// `struct sock_fprog` of `linux/filter.h`.
    #[repr(C)]
    struct Program {
        length: u16,
        operations: *const FilterOperation,
    }
    unsafe extern "C" {
        fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: u32) -> c_int;
    }
    // Programs here have a few operations.
    let program = Program { length: operations.len() as u16, operations: operations.as_ptr() };
    let length = u32::try_from(size_of::<Program>()).unwrap_or(0);
    // SAFETY: the descriptor is open; the kernel copies the program and its operations, which live through the call.
    unsafe {
        setsockopt(fd.as_fd().as_raw_fd(), SOL_SOCKET, SO_ATTACH_FILTER, (&raw const program).cast(), length)
    };
}
