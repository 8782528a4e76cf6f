//! Socket options that rustix does not have.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use rustix::io::Errno;
use rustix::net::sockopt::{
    Timeout, ip_original_dst, ipv6_original_dst, set_ip_freebind, set_ipv6_freebind, set_ipv6_v6only,
    set_socket_reuseaddr, set_socket_timeout,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

/// A socket of the family of `address`; IPv6 sockets are for IPv6 only.
pub(crate) fn new_socket(address: SocketAddr, kind: SocketType, flags: SocketFlags) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | flags, None)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

/// Binds, also to an address that is not on any interface of the namespace.
pub(crate) fn bind_anywhere(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv4() {
        set_ip_freebind(socket, true)?;
    } else {
        set_ipv6_freebind(socket, true)?;
    }
    set_socket_reuseaddr(socket, true)?;
    Ok(bind(socket, &address)?)
}

/// Bounds connecting, sending and receiving.
pub(crate) fn set_patience(socket: &OwnedFd, patience: Duration) -> io::Result<()> {
    set_socket_timeout(socket, Timeout::Send, Some(patience))?;
    Ok(set_socket_timeout(socket, Timeout::Recv, Some(patience))?)
}

/// `SO_MARK`.
pub(crate) fn set_mark(socket: &OwnedFd, mark: u32) -> io::Result<()> {
    Ok(nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::Mark, &mark)?)
}

/// `IP_TRANSPARENT` or `IPV6_TRANSPARENT`: take packets for foreign addresses, as TPROXY hands them over.
pub(crate) fn set_transparent(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let (level, option) = if address.is_ipv4() {
        (libc::SOL_IP, libc::IP_TRANSPARENT)
    } else {
        (libc::SOL_IPV6, libc::IPV6_TRANSPARENT)
    };
    let one: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to an int that lives during the call, and the length is that of an int.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const one).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `SO_ORIGINAL_DST` or `IP6T_SO_ORIGINAL_DST`; none where the connection is not tracked.
pub(crate) fn original_dst(socket: impl AsFd, local: SocketAddr) -> io::Result<Option<SocketAddr>> {
    let asked = if local.is_ipv4() {
        ip_original_dst(socket).map(SocketAddr::V4)
    } else {
        ipv6_original_dst(socket).map(SocketAddr::V6)
    };
    match asked {
        Ok(address) => Ok(Some(address)),
        // No entry of this connection; or no connection tracking in the kernel.
        Err(Errno::NOENT | Errno::NOPROTOOPT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
