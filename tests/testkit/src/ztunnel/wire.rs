//! Packets and protobuf, written apart from the agent's side so that the two check each other.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::Request;

/// Size of ztunnel's buffer.
pub const MAX_PACKET: usize = 1024;
/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: u64 = 0x6e73_6673;

/// A connection.
pub(super) struct Socket(OwnedFd);

/// What was received.
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    /// Something of it is missing.
    pub(super) truncated: bool,
}

impl Socket {
    pub(super) fn connect(address: &Path) -> Result<Self> {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let unix = match address.to_str().and_then(|text| text.strip_prefix('@')) {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
            None => SocketAddrUnix::new(address)?,
        };
        rustix::net::connect(&socket, &unix).with_context(|| format!("connect {}", address.display()))?;
        Ok(Self(socket))
    }

    pub(super) fn send(&self, packet: &[u8]) -> io::Result<()> {
        let mut control = SendAncillaryBuffer::default();
        rustix::net::sendmsg(&self.0, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Whether there is something to read, the end included.
    pub(super) fn is_readable(&self, limit: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&limit)) {
            Err(rustix::io::Errno::INTR) => Ok(false),
            ready => Ok(ready? > 0),
        }
    }

    /// Whether what there is to read is the end.
    pub(super) fn is_ended(&self) -> io::Result<bool> {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.0, &mut byte, flags) {
            Ok((_, len)) => Ok(len == 0),
            Err(rustix::io::Errno::CONNRESET) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// A packet; nothing at the end.
    pub(super) fn receive(&self) -> io::Result<Option<Packet>> {
        let mut bytes = [0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = rustix::net::recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let truncated = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        Ok((received.bytes > 0).then(|| Packet { bytes: bytes[..received.bytes].to_vec(), fds, truncated }))
    }
}

/// Device and inode, if it is a namespace.
pub(super) fn namespace(fd: BorrowedFd<'_>) -> Result<(u64, u64), String> {
    let system = rustix::fs::fstatfs(fd).map_err(|error| format!("statfs of the descriptor: {error}"))?;
    if u64::try_from(system.f_type) != Ok(NSFS) {
        return Err(format!("the descriptor is of file system {:#x}, not a namespace", system.f_type));
    }
    let stat = rustix::fs::fstat(fd).map_err(|error| format!("stat of the descriptor: {error}"))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// An answer without an error.
pub fn ack() -> Vec<u8> {
    vec![0x0a, 0x00]
}

/// An answer with one.
pub fn nack(error: &str) -> Vec<u8> {
    let inner = bytes_field(1, error.as_bytes());
    bytes_field(1, &inner)
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
    out
}

/// Fields of a message, all of which are of type 2 in what the agent says.
fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, &[u8])>, String> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        if key & 7 != 2 {
            return Err(format!("a field of wire type {}", key & 7));
        }
        let len = usize::try_from(varint(&mut bytes)?).map_err(|error| error.to_string())?;
        let (value, rest) = bytes.split_at_checked(len).ok_or("a field that is longer than the packet")?;
        found.push((key >> 3, value));
        bytes = rest;
    }
    Ok(found)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or("a number that is cut off")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number of more than 64 bits".to_owned())
}

fn text(fields: &[(u64, &[u8])], number: u64) -> Result<String, String> {
    let value = fields.iter().find(|(found, _)| *found == number).map_or(&[][..], |(_, value)| value);
    String::from_utf8(value.to_vec()).map_err(|error| error.to_string())
}

/// What the agent said.
pub(super) fn request(packet: &[u8]) -> Result<Request, String> {
    let outer = fields(packet)?;
    let [(number, value)] = outer[..] else { return Err(format!("a request with {} payloads", outer.len())) };
    let inner = fields(value)?;
    match number {
        1 => {
            let info = inner.iter().find(|(number, _)| *number == 2).ok_or("an Add without workload_info")?;
            let info = fields(info.1)?;
            Ok(Request::Add {
                uid: text(&inner, 1)?,
                name: text(&info, 1)?,
                namespace: text(&info, 2)?,
                service_account: text(&info, 3)?,
            })
        }
        2 => Ok(Request::Del(text(&inner, 2)?)),
        3 => Ok(Request::SnapshotSent),
        5 => Ok(Request::Keep(text(&inner, 1)?)),
        other => Err(format!("payload {other}")),
    }
}
