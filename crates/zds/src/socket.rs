//! How packets are carried: a unix socket of type SEQPACKET.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::unix::AsyncFd;

use crate::message::MAX_PACKET;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// Longest path of a unix socket in bytes (unix(7), `sun_path` without the final zero).
const MAX_PATH: usize = 107;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// There is no address.
    #[error("listen for ztunnel: the address is empty; set ztunnel-uds-address")]
    Empty,
    /// It is longer than the kernel takes.
    #[error(
        "listen for ztunnel on {address}: the path is longer than {MAX_PATH} bytes; choose a shorter ztunnel-uds-address"
    )]
    TooLong {
        /// The address.
        address: String,
    },
    /// Something that is no socket is there.
    #[error("listen for ztunnel on {address}: a file that is no socket is there; remove it")]
    Taken {
        /// The address.
        address: String,
    },
    /// The system refused.
    #[error(
        "listen for ztunnel on {address}: {operation}: {cause}; check that the directory exists and can be written"
    )]
    System {
        /// The address.
        address: String,
        /// What was attempted.
        operation: &'static str,
        /// The system's words.
        cause: io::Error,
    },
}

/// A socket that listens. Dropped, it removes its file, unless another process has put its own there meanwhile.
pub(crate) struct Bound {
    fd: AsyncFd<OwnedFd>,
    /// Absent for an abstract address.
    file: Option<(PathBuf, u64)>,
}

/// A connection.
pub(crate) struct Packets(AsyncFd<OwnedFd>);

/// What was received.
pub(crate) enum Received {
    /// A whole packet.
    Packet(Vec<u8>),
    /// The peer is gone; an empty packet looks the same.
    End,
    /// It is longer than allowed, or descriptors came along, which are closed.
    Invalid(&'static str),
}

// === impl Bound ===

impl Bound {
    /// Listens, whether or not a socket of an earlier process is there: the new one takes its place in one step, so that no ztunnel finds
    /// nothing. An address that begins with `@` is an abstract one.
    pub(crate) fn new(address: &str) -> Result<Self, BindError> {
        let refused =
            |operation, cause: io::Error| BindError::System { address: address.into(), operation, cause };
        if address.is_empty() {
            return Err(BindError::Empty);
        }
        if let Some(name) = address.strip_prefix('@') {
            let unix = SocketAddrUnix::new_abstract_name(name.as_bytes())
                .map_err(|_| BindError::TooLong { address: address.into() })?;
            let socket = listen(&unix).map_err(|cause| refused("bind", cause))?;
            let fd = watch(socket).map_err(|cause| refused("watch", cause))?;
            return Ok(Self { fd, file: None });
        }
        let path = Path::new(address);
        let temporary = PathBuf::from(format!("{address}.new"));
        if temporary.as_os_str().len() > MAX_PATH {
            return Err(BindError::TooLong { address: address.into() });
        }
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        if std::fs::symlink_metadata(path).is_ok_and(|there| !there.file_type().is_socket()) {
            return Err(BindError::Taken { address: address.into() });
        }
        let _ = std::fs::remove_file(&temporary);
        let unix =
            SocketAddrUnix::new(&temporary).map_err(|_| BindError::TooLong { address: address.into() })?;
        let socket = listen(&unix).map_err(|cause| refused("bind", cause))?;
        let inode =
            std::fs::symlink_metadata(&temporary).map_err(|cause| refused("look at it", cause))?.ino();
        std::fs::rename(&temporary, path).map_err(|cause| refused("put it in place", cause))?;
        let fd = watch(socket).map_err(|cause| refused("watch", cause))?;
        Ok(Self { fd, file: Some((path.to_owned(), inode)) })
    }

    /// The next connection, and the user at its other end.
    pub(crate) async fn accept(&self) -> io::Result<(Packets, u32)> {
        loop {
            let mut ready = self.fd.readable().await?;
            let accepted = ready.try_io(|fd| {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                Ok(rustix::net::accept_with(fd.get_ref(), flags)?)
            });
            let Ok(accepted) = accepted else { continue };
            let socket = accepted?;
            let peer = peer_uid(socket.as_fd())?;
            return Ok((Packets(watch(socket)?), peer));
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        use std::os::unix::fs::MetadataExt;
        let Some((path, inode)) = &self.file else { return };
        if std::fs::symlink_metadata(path).is_ok_and(|there| there.ino() == *inode) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The user at the other end. rustix cannot be asked: a peer in another pid namespace, as in another pod, has the process id 0, which its
/// type does not hold.
fn peer_uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    // `struct ucred` is 12 bytes on every architecture.
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes to a value that lives through the call.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}

fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor belongs to the value that is handed over, stays open until that is dropped, and is never replaced.
    #[allow(unsafe_code)]
    let watched = unsafe { AsyncFd::register(socket) };
    Ok(watched?)
}

fn listen(address: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

// === impl Packets ===

impl Packets {
    /// Sends a packet, with a descriptor if there is one.
    pub(crate) async fn send(&self, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            let sent = ready.try_io(|fd| send(fd.get_ref().as_fd(), packet, descriptor));
            if let Ok(sent) = sent {
                return sent;
            }
        }
    }

    /// Waits for a packet.
    pub(crate) async fn receive(&self) -> io::Result<Received> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(received) = ready.try_io(|fd| receive(fd.get_ref().as_fd())) {
                return received;
            }
        }
    }
}

fn send(socket: BorrowedFd<'_>, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|fd| [fd]);
    if let Some(descriptors) = &descriptors {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut bytes = [0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    // Descriptors are closed when what holds them is dropped.
    let stowaways = control.drain().count();
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Received::Invalid("a packet of more than 1024 bytes"));
    }
    if stowaways > 0 || received.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Received::Invalid("a packet with descriptors"));
    }
    match received.bytes {
        0 => Ok(Received::End),
        len => Ok(Received::Packet(bytes[..len].to_vec())),
    }
}
