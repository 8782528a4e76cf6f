//! Datagrams together with the local address they were sent to, so that the answer comes from there.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
};

/// One datagram.
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: IpAddr,
    pub(crate) data: Vec<u8>,
}

/// Asks the kernel to tell the local address of each datagram.
pub(crate) fn want_local_address(socket: &OwnedFd, v4: bool) -> io::Result<()> {
    if v4 {
        setsockopt(socket, Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(socket, Ipv6RecvPacketInfo, &true)?;
    }
    Ok(())
}

/// Receives one datagram.
pub(crate) fn receive(socket: &OwnedFd) -> io::Result<Datagram> {
    let mut buffer = [0; 2048];
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_fd().as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let from = message.address.as_ref().and_then(socket_addr);
    let to = message.cmsgs()?.find_map(|part| match part {
        // The address is in network order, so its bytes in memory are the address.
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr))),
        _ => None,
    });
    let length = message.bytes;
    let (Some(from), Some(to)) = (from, to) else {
        return Err(io::Error::other("a datagram came without its addresses"));
    };
    Ok(Datagram { from, to, data: buffer[..length].to_vec() })
}

/// Sends `answer` back, from the address that `datagram` was sent to.
pub(crate) fn answer(socket: &OwnedFd, datagram: &Datagram, answer: &[u8]) -> io::Result<()> {
    let data = [IoSlice::new(answer)];
    let to = SockaddrStorage::from(datagram.from);
    let fd = socket.as_raw_fd();
    match datagram.to {
        IpAddr::V4(ip) => {
            let source = libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: source,
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let part = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(fd, &data, &part, MsgFlags::empty(), Some(&to))?;
        }
        IpAddr::V6(ip) => {
            let info =
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 };
            let part = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(fd, &data, &part, MsgFlags::empty(), Some(&to))?;
        }
    }
    Ok(())
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
}
