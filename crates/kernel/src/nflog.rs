//! Packets that rules have logged (nfnetlink_log): who wants them binds a socket to a group of a namespace.
//!
//! The kernel tells a socket of the namespace in which the packet was logged, and no other; such a socket stays there when its thread has left. Packets
//! come in batches, so that a flood costs a reader little, and what finds no room is lost and counted.

mod header;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netns::Inside;
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};

use crate::netlink::wire::{Message, MessageWriter, Messages};
use crate::netlink::{Error, NetlinkSocket, flags};
pub use header::{LoggedHeader, LoggedIcmp, TcpFlags};
#[cfg(test)]
pub(crate) use tests::read as read_packets;

/// `NFNL_SUBSYS_ULOG` as the upper byte of a message's type, with `NFULNL_MSG_PACKET` and `NFULNL_MSG_CONFIG`.
const PACKET: u16 = 4 << 8;
const CONFIG: u16 = 4 << 8 | 1;
/// Length of `struct nfgenmsg`: family, version, resource.
const HEADER: usize = 4;
/// `NFULA_CFG_*` of `linux/netfilter/nfnetlink_log.h`.
const COMMAND: u16 = 1;
const MODE: u16 = 2;
const BATCH_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const BATCH: u16 = 5;
const FLAGS: u16 = 6;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const NUMBERED: u16 = 1;
/// `NFULA_*` of a packet.
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const SEQUENCE: u16 = 12;

/// Bytes of a packet that are told: the headers of network and transport, and nothing of an application.
const COPIED: u32 = 128;
/// Packets in a batch, and how long one waits for others.
const MOST_IN_BATCH: u32 = 64;
const WAIT: Duration = Duration::from_millis(200);
/// Bytes of a batch in the kernel, which holds [`MOST_IN_BATCH`] packets, and of the buffer here.
const BATCH_SIZE: u32 = 16 << 10;
const BUFFER: usize = 32 << 10;
/// Half of what the kernel holds for a socket until it is read.
const KERNEL_BUFFER: usize = 512 << 10;
/// Batches that are read at a time: with them the buffer of the kernel is empty.
const MOST_BATCHES: usize = 128;

/// A socket that gets what is logged to a group of one namespace.
#[derive(Debug)]
pub struct PacketLog {
    socket: NetlinkSocket,
    /// The number of the packet that comes next.
    next: Option<u32>,
}

/// A packet as it was logged.
#[derive(Debug)]
pub struct LoggedPacket<'a> {
    /// What the rule says of itself.
    pub prefix: Cow<'a, str>,
    /// Its beginning, from the header of the network on.
    pub packet: &'a [u8],
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogRead {
    /// Packets that were logged and not told: there was no room for them.
    pub lost: u64,
    /// Whether there may be more.
    pub has_more: bool,
}

// === impl PacketLog ===

impl PacketLog {
    /// Listens to a group of a namespace from now on.
    ///
    /// # Errors
    /// Another socket has the group (`EBUSY`), the kernel has no nfnetlink_log, or no descriptor is left.
    pub fn open(_: &Inside, group: u16) -> Result<Self, Error> {
        let mut socket = NetlinkSocket::netfilter()?;
        if sockopt::set_socket_recv_buffer_size_force(socket.as_fd(), KERNEL_BUFFER).is_err() {
            // Less room without the right to more.
            let _ = sockopt::set_socket_recv_buffer_size(socket.as_fd(), KERNEL_BUFFER);
        }
        let mut writer = MessageWriter::default();
        let [first, second] = group.to_be_bytes();
        let hundredths = u32::try_from(WAIT.as_millis() / 10).unwrap_or(u32::MAX);
        writer.message(CONFIG, flags::REQUEST | flags::ACK, 1, &[0, 0, first, second], |w| {
            w.attribute(COMMAND, &[BIND]);
            let [b0, b1, b2, b3] = COPIED.to_be_bytes();
            w.attribute(MODE, &[b0, b1, b2, b3, COPY_PACKET, 0]);
            w.be32(BATCH_BYTES, BATCH_SIZE);
            w.be32(TIMEOUT, hundredths);
            w.be32(BATCH, MOST_IN_BATCH);
            w.attribute(FLAGS, &NUMBERED.to_be_bytes());
        });
        socket.order(writer.bytes())?;
        Ok(Self { socket, next: None })
    }

    /// Hands what was logged since the last call to `take`, over a buffer of [`Self::buffer`]; never waits.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn read(
        &mut self,
        buffer: &mut [u8],
        mut take: impl FnMut(LoggedPacket<'_>),
    ) -> Result<LogRead, Error> {
        let mut read = LogRead { has_more: true, ..LogRead::default() };
        for _ in 0..MOST_BATCHES {
            let received = rustix::io::retry_on_intr(|| {
                rustix::net::recv(self.socket.as_fd(), &mut *buffer, RecvFlags::DONTWAIT)
            });
            match received {
                Ok((length, _)) => self.take(&buffer[..length], &mut read, &mut take),
                Err(Errno::AGAIN) => {
                    read.has_more = false;
                    break;
                }
                // How many it were is told by the number of the next one.
                Err(Errno::NOBUFS) => {}
                Err(e) => return Err(Error::Receive(e.into())),
            }
        }
        Ok(read)
    }

    /// What [`Self::read`] reads into. Sockets that are read one after the other share it.
    #[must_use]
    pub fn buffer() -> Vec<u8> {
        vec![0; BUFFER]
    }

    fn take(&mut self, datagram: &[u8], read: &mut LogRead, take: &mut impl FnMut(LoggedPacket<'_>)) {
        for message in Messages::new(datagram).filter(|message| message.kind == PACKET) {
            let attributes = message.attributes(HEADER);
            if let Some(number) = attributes.find(SEQUENCE).and_then(|a| a.be32()) {
                let expected = self.next.replace(number.wrapping_add(1));
                read.lost += u64::from(expected.map_or(0, |expected| number.wrapping_sub(expected)));
            }
            if let Some(packet) = LoggedPacket::read(&message) {
                take(packet);
            }
        }
    }
}

impl AsFd for PacketLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

// === impl LoggedPacket ===

impl<'a> LoggedPacket<'a> {
    fn read(message: &Message<'a>) -> Option<Self> {
        let attributes = message.attributes(HEADER);
        let prefix = attributes.find(PREFIX).map(|a| a.text()).unwrap_or_default();
        Some(Self { prefix, packet: attributes.find(PAYLOAD)?.data })
    }
}
