//! Netlink: one request, one answer, no waiting.
//!
//! The kernel handles a netlink request inside `send(2)`, so every answer is in the socket when `send` returns and nothing here
//! ever waits for the kernel: a missing answer is an error, not a hang.

mod dump;
mod events;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod wire;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use dump::DUMP_TRIES;
use events::HeardEvents;
pub(crate) use events::{FilterOperation, UnreadEvents, attach_filter, is_port_of_ours};
use wire::{Attributes, Message, Messages};

/// Flags of a message, `linux/netlink.h`.
pub(crate) mod flags {
    pub(crate) const REQUEST: u16 = 0x01;
    pub(crate) const ACK: u16 = 0x04;
    pub(crate) const DUMP_INTR: u16 = 0x10;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
    /// In an answer: the request is not repeated in it.
    pub(crate) const CAPPED: u16 = 0x100;
    /// In an answer: attributes follow.
    pub(crate) const ACK_TLVS: u16 = 0x200;
}

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

const NLMSG_ERROR: u16 = 2;
/// `NLMSGERR_ATTR_MSG`.
const ERROR_TEXT: u16 = 1;
/// The kernel fills at most this much of a dump at a time (`netlink_recvmsg` never makes an answer larger).
const RECEIVE_BUFFER: usize = 32 * 1024;
/// Requests from here on need a larger send buffer than the usual `net.core.wmem_default` of 208 KiB surely gives, as the kernel
/// counts its own bookkeeping too.
const BIG_REQUEST: usize = 64 * 1024;

/// A netlink exchange that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel has no such netlink family, or no file descriptor was left.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The request was not taken at all.
    #[error("cannot send {bytes} bytes to the kernel over netlink")]
    Send {
        /// Length of the request.
        bytes: usize,
        /// From `send(2)`.
        source: io::Error,
    },
    /// The answer could not be fetched.
    #[error("cannot receive the kernel's netlink answer")]
    Receive(#[source] io::Error),
    /// The kernel answered with an error number.
    #[error("the kernel refused it{}", .text.as_ref().map(|t| format!(", saying \"{t}\"")).unwrap_or_default())]
    Refused {
        /// The kernel's own words, when it gave any.
        text: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// The kernel took the request and did not answer; or the answer cannot be understood.
    #[error(
        "the kernel gave no usable netlink answer (a bug in this program, or a security filter on the socket)"
    )]
    NoAnswer,
    /// Somebody has put more there than is read.
    #[error(
        "there are more than {most} {what}, so not all of them are read (what else works in this namespace?)"
    )]
    TooMany {
        /// How many are read.
        most: usize,
        /// Of what.
        what: &'static str,
    },
    /// Somebody changed the same thing during each of five tries to list it.
    #[error(
        "the list was disturbed by changes {DUMP_TRIES} times in a row (what else changes this namespace?)"
    )]
    Disturbed,
}

/// A netlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct NetlinkSocket {
    fd: OwnedFd,
    protocol: Option<Protocol>,
    /// Empty between two questions to a kept socket.
    buffer: Vec<u8>,
    /// Of a socket that is kept: the events that it hears beside the answers.
    events: Option<HeardEvents>,
    /// It is used by threads of other namespaces, so that none can take its place.
    stays: bool,
}

/// What the kernel said about a message of ours.
#[derive(Debug)]
pub(crate) struct NetlinkAnswer {
    /// The sequence number of the message.
    pub(crate) sequence: u32,
    /// `Ok` is an acknowledgement.
    pub(crate) result: Result<(), Error>,
}

// === impl Error ===

impl Error {
    /// The error number that the kernel gave, from whichever step.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Socket(source)
            | Self::Send { source, .. }
            | Self::Receive(source)
            | Self::Refused { source, .. } => Errno::from_io_error(source),
            Self::NoAnswer | Self::TooMany { .. } | Self::Disturbed => None,
        }
    }
}

// === impl NetlinkSocket ===

impl NetlinkSocket {
    /// Opens a socket of a netlink protocol; `None` is `NETLINK_ROUTE`.
    pub(crate) fn open(protocol: Option<Protocol>) -> Result<Self, Error> {
        Ok(Self {
            fd: open(protocol)?,
            protocol,
            buffer: vec![0; RECEIVE_BUFFER],
            events: None,
            stays: false,
        })
    }

    /// Over a socket that is open: in tests the other end of it takes the kernel's part.
    #[cfg(test)]
    pub(crate) fn over(fd: OwnedFd) -> Self {
        Self { fd, protocol: None, buffer: vec![0; RECEIVE_BUFFER], events: None, stays: false }
    }

    pub(crate) fn netfilter() -> Result<Self, Error> {
        Self::open(Some(netlink::NETFILTER))
    }

    /// To be used by threads of other namespaces.
    pub(crate) fn staying(self) -> Self {
        Self { stays: true, ..self }
    }

    /// Sends messages and returns every answer to them, in the kernel's order.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> Result<Vec<NetlinkAnswer>, Error> {
        self.send(request)?;
        let mut answers = Vec::new();
        while let Some(length) = self.receive()? {
            for message in Messages::new(&self.buffer[..length]) {
                if message.kind == NLMSG_ERROR {
                    answers.push(NetlinkAnswer { sequence: message.sequence, result: error_of(&message) });
                }
            }
        }
        Ok(answers)
    }

    /// Sends one message with [`flags::ACK`].
    pub(crate) fn order(&mut self, request: &[u8]) -> Result<(), Error> {
        self.exchange(request)?.into_iter().next().map_or(Err(Error::NoAnswer), |answer| answer.result)
    }

    /// Sends one message with [`flags::ACK`] and hands what comes before the acknowledgement to `take`.
    pub(crate) fn get(&mut self, request: &[u8], mut take: impl FnMut(&Message<'_>)) -> Result<(), Error> {
        self.send(request)?;
        let mut result = Err(Error::NoAnswer);
        while let Some(length) = self.receive()? {
            for message in Messages::new(&self.buffer[..length]) {
                match message.kind {
                    NLMSG_ERROR => result = error_of(&message),
                    _ => take(&message),
                }
            }
        }
        result
    }

    fn send(&mut self, request: &[u8]) -> Result<(), Error> {
        self.make_room(RECEIVE_BUFFER);
        self.drain()?;
        self.send_in(request)
    }

    fn send_in(&mut self, request: &[u8]) -> Result<(), Error> {
        self.note_unread(true);
        if request.len() >= BIG_REQUEST {
            // Without the right to do this the send below says EMSGSIZE, if the buffer is indeed too small.
            let _ = sockopt::set_socket_send_buffer_size_force(&self.fd, request.len() * 2);
        }
        // A change in the kernel is never interrupted half-way: EINTR can only come before it.
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, request, SendFlags::empty()));
        match sent {
            Ok(_) => Ok(()),
            Err(e) => Err(Error::Send { bytes: request.len(), source: e.into() }),
        }
    }

    /// The length of the next answer, `None` when there is none. Events on the way are put aside.
    fn receive(&mut self) -> Result<Option<usize>, Error> {
        let flags = RecvFlags::DONTWAIT;
        loop {
            match rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut self.buffer[..], flags)) {
                Ok((length, _)) => {
                    let datagram = &self.buffer[..length];
                    if !self.events.as_mut().is_some_and(|events| events.put_aside(datagram)) {
                        return Ok(Some(length));
                    }
                }
                Err(Errno::AGAIN) => {
                    self.answered();
                    return Ok(None);
                }
                Err(e) => match &mut self.events {
                    Some(events) if e == Errno::NOBUFS => events.lose(),
                    _ => return Err(Error::Receive(e.into())),
                },
            }
        }
    }

    fn make_room(&mut self, bytes: usize) {
        if self.buffer.len() < bytes {
            self.buffer = vec![0; bytes];
        }
    }
}

fn open(protocol: Option<Protocol>) -> Result<OwnedFd, Error> {
    let fd = open_unbound(protocol)?;
    // Who hears of a transaction is told by which socket it was sent.
    if protocol == Some(netlink::NETFILTER) {
        events::bind_to_port_of_ours(&fd)?;
    }
    Ok(fd)
}

fn open_unbound(protocol: Option<Protocol>) -> Result<OwnedFd, Error> {
    let flags = SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
        .map_err(|e| Error::Socket(e.into()))?;
    explain_errors(&fd);
    Ok(fd)
}

/// Asks the kernel to add words to its error numbers, and not to repeat the request.
#[allow(unsafe_code)]
fn explain_errors(fd: &OwnedFd) {
    use std::ffi::{c_int, c_void};
    /// `linux/netlink.h`, `bits/socket.h`.
    const SOL_NETLINK: c_int = 270;
    const NETLINK_CAP_ACK: c_int = 10;
    const NETLINK_EXT_ACK: c_int = 11;
    unsafe extern "C" {
        // rustix has no netlink options. Every libc declares it so; socklen_t is 32 bits on all of them.
        fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: u32) -> c_int;
    }
    let on: c_int = 1;
    for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK] {
        // SAFETY: the descriptor is open, and the kernel reads four bytes from a value that lives through the call. A kernel
        // without the option refuses it, which costs us nothing but words.
        unsafe { setsockopt(fd.as_raw_fd(), SOL_NETLINK, option, (&raw const on).cast(), 4) };
    }
}

/// The content of an `NLMSG_ERROR`: `struct nlmsgerr`, then attributes.
fn error_of(message: &Message<'_>) -> Result<(), Error> {
    let Some((code, rest)) = message.payload.split_first_chunk::<4>() else {
        return Err(Error::NoAnswer);
    };
    let code = i32::from_ne_bytes(*code);
    if code == 0 {
        return Ok(());
    }
    let echoed = match rest.first_chunk::<4>() {
        Some(length) if message.flags & flags::CAPPED == 0 => u32::from_ne_bytes(*length) as usize,
        _ => HEADER,
    };
    let attributes = (message.flags & flags::ACK_TLVS != 0).then(|| rest.get(echoed..)).flatten();
    Err(refused(code, attributes.unwrap_or_default()))
}

fn refused(code: i32, attributes: &[u8]) -> Error {
    let text = Attributes::new(attributes).find(ERROR_TEXT).map(|a| a.text().into_owned());
    Error::Refused { text, source: io::Error::from_raw_os_error(code.saturating_neg()) }
}
