//! Interfaces that are pairs, of which a pod has one end and the node the other; and frames that a pod's end sends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netns::{Inside, InsideHost, Netns};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, addr};

use crate::netlink::wire::{Attributes, Message, MessageWriter};
use crate::netlink::{self, NetlinkSocket, flags};
use crate::route;

/// `RTM_GETLINK` and `RTM_GETNSID` of linux/rtnetlink.h; lengths of `struct ifinfomsg` and, padded, of `struct rtgenmsg`.
const GET_LINK: u16 = 18;
const GET_NAMESPACE: u16 = 90;
const LINK_HEADER: usize = 16;
const NAMESPACE_HEADER: usize = 4;
/// `IFLA_*` of linux/if_link.h, and `RTEXT_FILTER_SKIP_STATS` of linux/rtnetlink.h.
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const OTHER_END: u16 = 5;
const MASTER: u16 = 10;
const INFO: u16 = 18;
const MASK: u16 = 29;
const OTHER_NAMESPACE: u16 = 37;
const SKIP_STATS: u32 = 1 << 3;
/// `IFLA_INFO_KIND`, `IFLA_INFO_DATA`; `IFLA_BR_NF_CALL_IPTABLES` and `IFLA_BR_NF_CALL_IP6TABLES`.
const KIND: u16 = 1;
const DATA: u16 = 2;
const BRIDGE_CALLS: [u16; 2] = [36, 37];
/// `NETNSA_NSID` and `NETNSA_FD` of linux/net_namespace.h.
const NAMESPACE_ID: u16 = 1;
const NAMESPACE_FD: u16 = 3;

/// Looks at the ends of pairs that are in the node's namespace, over a socket that stays there.
#[derive(Debug)]
pub struct NodeEnds {
    socket: NetlinkSocket,
}

/// The end of a pod's interface that is in the node's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEnd {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// The number that the pod's end has in the pod.
    pub pod_index: u32,
    /// Where the node takes frames from it that are for itself.
    pub hardware: [u8; 6],
    /// The bridge that it is a port of.
    pub bridge: Option<NodeBridge>,
}

/// A bridge that a pod's interface is a port of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeBridge {
    /// Its number.
    pub index: u32,
    /// Its name: that of the interface which packets from its ports come in by.
    pub name: String,
    /// Whether the bridge itself is set to show netfilter the packets between its ports, IPv4 and IPv6. What is set for all bridges shows them, too.
    pub calls: [bool; 2],
}

/// Hears of interfaces of the node that change.
#[derive(Debug)]
pub struct LinkWatch {
    socket: NetlinkSocket,
}

/// An interface of the node as it is by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedLink {
    /// Its number.
    pub index: u32,
    /// The number of what it is a part of, such as a bridge.
    pub master: Option<u32>,
    /// Of a bridge: as of [`NodeBridge`].
    pub calls: Option<[bool; 2]>,
}

/// An interface of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodInterface {
    /// The one of this name.
    Named(String),
    /// The one that has one of these addresses.
    With(Vec<IpAddr>),
}

/// An interface as the kernel lists it.
struct Link {
    index: u32,
    name: String,
    hardware: Option<[u8; 6]>,
    other_end: Option<u32>,
    other_namespace: Option<i32>,
    master: Option<u32>,
    is_bridge: bool,
    calls: [bool; 2],
}

/// The interfaces could not be looked at, or a frame was not sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}")]
pub struct PairError {
    operation: String,
    source: PairCause,
}

#[derive(Debug, thiserror::Error)]
enum PairCause {
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(transparent)]
    Addresses(#[from] route::Error),
    #[error(transparent)]
    Call(#[from] Errno),
}

// === impl NodeEnds ===

impl NodeEnds {
    /// # Errors
    /// No descriptor is left.
    pub fn open(_: &InsideHost<'_>) -> Result<Self, PairError> {
        let opened = NetlinkSocket::open(None);
        let socket = opened.map_err(|error| failed("ask for the node's interfaces".to_owned(), error))?;
        Ok(Self { socket: socket.staying() })
    }

    /// The node's end of an interface of the pod that the thread is in; nothing where that interface is not there or no such pair: both ends
    /// have to name each other, and the namespaces that they are in.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn of(
        &mut self,
        inside: &Inside,
        pod: &Netns,
        interface: &PodInterface,
    ) -> Result<Option<NodeEnd>, PairError> {
        let failed_to_look = |error| failed("look for the node's end of a pod's interface".to_owned(), error);
        let mut of_pod = NetlinkSocket::open(None).map_err(failed_to_look)?;
        let own = match interface {
            PodInterface::Named(name) => link(&mut of_pod, 0, Some(name)),
            PodInterface::With(addresses) => match index_with(inside, addresses)? {
                Some(index) => link(&mut of_pod, index, None),
                None => return Ok(None),
            },
        };
        let own = own.map_err(failed_to_look)?;
        let Some((own, other)) = own.and_then(|own| own.other_end.map(|other| (own, other))) else {
            return Ok(None);
        };
        let end = link(&mut self.socket, other, None).map_err(failed_to_look)?;
        let is_other = |end: &Link| end.other_end == Some(own.index) && end.other_namespace.is_some();
        let Some(end) = end.filter(is_other) else { return Ok(None) };
        // The number of the pod's namespace as this one has it, which was given at the latest when the interface was listed.
        let known = namespace(&mut self.socket, pod).map_err(failed_to_look)?;
        if end.other_namespace != known {
            return Ok(None);
        }
        let master = match end.master {
            Some(master) => link(&mut self.socket, master, None).map_err(failed_to_look)?,
            None => None,
        };
        let bridge = master.filter(|master| master.is_bridge);
        let hardware = bridge.as_ref().map_or(end.hardware, |bridge| bridge.hardware);
        Ok(hardware.map(|hardware| NodeEnd {
            name: end.name,
            index: end.index,
            pod_index: own.index,
            hardware,
            bridge: bridge.map(|bridge| NodeBridge {
                index: bridge.index,
                name: bridge.name,
                calls: bridge.calls,
            }),
        }))
    }
}

// === impl LinkWatch ===

impl LinkWatch {
    /// # Errors
    /// No descriptor is left.
    pub fn open(_: &InsideHost<'_>) -> Result<Self, PairError> {
        /// `RTMGRP_LINK` of linux/rtnetlink.h.
        const LINKS: u32 = 1;
        let opened = NetlinkSocket::keep(None, LINKS, |_, _| {});
        let socket = opened.map_err(|error| failed("hear of the node's interfaces".to_owned(), error))?;
        Ok(Self { socket })
    }

    /// To wait for: readable when an interface has changed.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The interfaces that have changed since the last call, and are there; nothing where some may have been missed. Never waits.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn heard(&mut self) -> Result<Option<Vec<ChangedLink>>, PairError> {
        /// `RTM_NEWLINK` of linux/rtnetlink.h.
        const NEW_LINK: u16 = 16;
        let heard = self.socket.hear();
        self.socket.rest();
        let heard = heard.map_err(|error| failed("hear of the node's interfaces".to_owned(), error))?;
        let changed = |link: Link| ChangedLink {
            index: link.index,
            master: link.master,
            calls: link.is_bridge.then_some(link.calls),
        };
        let links = heard.messages().filter(|message| message.kind == NEW_LINK);
        Ok((!heard.lost).then(|| links.filter_map(|message| read_link(&message)).map(changed).collect()))
    }
}

/// The name of the only interface of the namespace that has any of the addresses; nothing where there are more, or it is the loopback interface, since
/// packets for these come by others.
///
/// # Errors
/// The kernel could not be asked.
pub fn interface_with(inside: &Inside, addresses: &[IpAddr]) -> Result<Option<String>, PairError> {
    let listed = route::every_address(inside);
    let listed = listed.map_err(|error| failed("look for a pod's interface".to_owned(), error))?;
    let having = listed.iter().filter(|address| addresses.contains(&address.ip));
    let having: BTreeSet<u32> = having.map(|address| address.interface).collect();
    let Some(index) = having.first().copied().filter(|_| having.len() == 1) else { return Ok(None) };
    let failed_to_look = |error| failed("look for a pod's interface".to_owned(), error);
    let mut socket = NetlinkSocket::open(None).map_err(failed_to_look)?;
    let link = link(&mut socket, index, None).map_err(failed_to_look)?;
    Ok(link.map(|link| link.name).filter(|name| name != "lo"))
}

/// The number of the interface that has one of the addresses.
fn index_with(inside: &Inside, addresses: &[IpAddr]) -> Result<Option<u32>, PairError> {
    let listed = route::every_address(inside);
    let listed = listed.map_err(|error| failed("look for a pod's interface".to_owned(), error))?;
    Ok(listed.iter().find(|address| addresses.contains(&address.ip)).map(|address| address.interface))
}

/// One interface, by its number or its name; nothing where there is none.
fn link(socket: &mut NetlinkSocket, index: u32, name: Option<&str>) -> Result<Option<Link>, netlink::Error> {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut request = MessageWriter::with_capacity(64);
    request.message(GET_LINK, flags::REQUEST | flags::ACK, 1, &header, |w| {
        w.attribute(MASK, &SKIP_STATS.to_ne_bytes());
        name.iter().for_each(|name| w.text(NAME, name));
    });
    let mut found = None;
    match socket.get(request.bytes(), |part| found = read_link(part)) {
        Ok(()) => Ok(found),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_link(part: &Message<'_>) -> Option<Link> {
    let header = part.payload.first_chunk::<LINK_HEADER>()?;
    let attributes = part.attributes(LINK_HEADER);
    let number = |kind| attributes.find(kind).and_then(|number| number.ne32());
    let info = attributes.find(INFO).map(|info| info.nested());
    let kind = info.and_then(|info| info.find(KIND)).map(|kind| kind.text());
    let data = info.and_then(|info| info.find(DATA)).map(|data| data.nested());
    let is_set = |kind| data.and_then(|data| data.find(kind)).is_some_and(|set| set.data == [1]);
    Some(Link {
        index: u32::from_ne_bytes([header[4], header[5], header[6], header[7]]),
        name: attributes.find(NAME)?.text().into_owned(),
        hardware: attributes.find(ADDRESS).and_then(|address| address.data.try_into().ok()),
        other_end: number(OTHER_END),
        other_namespace: number(OTHER_NAMESPACE).map(u32::cast_signed),
        master: number(MASTER),
        is_bridge: kind.is_some_and(|kind| kind == "bridge"),
        calls: BRIDGE_CALLS.map(is_set),
    })
}

/// What the namespace of the socket calls another one; nothing where it has not had to do with it.
fn namespace(socket: &mut NetlinkSocket, of: &Netns) -> Result<Option<i32>, netlink::Error> {
    let descriptor = of.as_fd().as_raw_fd();
    let mut request = MessageWriter::with_capacity(64);
    request.message(GET_NAMESPACE, flags::REQUEST | flags::ACK, 1, &[0; NAMESPACE_HEADER], |w| {
        w.attribute(NAMESPACE_FD, &descriptor.to_ne_bytes());
    });
    let mut found = None;
    socket.get(request.bytes(), |part| {
        let attributes: Attributes<'_> = part.attributes(NAMESPACE_HEADER);
        found = attributes.find(NAMESPACE_ID).and_then(|id| id.ne32()).map(u32::cast_signed);
    })?;
    Ok(found.filter(|id| *id >= 0))
}

/// Sends an IPv4 packet by an interface of the pod that the thread is in, past all rules of the pod.
///
/// # Errors
/// It was not sent.
pub fn send_frame(_: &Inside, end: &NodeEnd, packet: &[u8]) -> Result<(), PairError> {
    let failed = |error: Errno| failed(format!("send a frame to {}", end.name), error);
    let (kind, socket_flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
    // Without a protocol it hears nothing.
    let socket = rustix::net::socket_with(AddressFamily::PACKET, kind, socket_flags, None).map_err(failed)?;
    let to = FrameTarget::new(end);
    rustix::net::sendto(&socket, packet, SendFlags::DONTWAIT, &to).map_err(failed)?;
    Ok(())
}

/// `struct sockaddr_ll` of linux/if_packet.h.
#[repr(C)]
struct FrameTarget {
    family: u16,
    protocol: u16,
    index: i32,
    hardware_kind: u16,
    packet_kind: u8,
    hardware_len: u8,
    hardware: [u8; 8],
}

impl FrameTarget {
    fn new(end: &NodeEnd) -> Self {
        /// `ETH_P_IP` of linux/if_ether.h.
        const IPV4: u16 = 0x0800;
        let mut hardware = [0; 8];
        hardware[..6].copy_from_slice(&end.hardware);
        Self {
            family: AddressFamily::PACKET.as_raw(),
            protocol: IPV4.to_be(),
            index: end.pod_index.cast_signed(),
            hardware_kind: 0,
            packet_kind: 0,
            hardware_len: 6,
            hardware,
        }
    }
}

// SAFETY: the pointer is to a value that lives through the call, as long as the given length, and the kernel reads it as what its family says.
#[allow(unsafe_code)]
unsafe impl addr::SocketAddrArg for FrameTarget {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const addr::SocketAddrOpaque, addr::SocketAddrLen) -> R,
    ) -> R {
        const LEN: addr::SocketAddrLen = 20;
        const { assert!(size_of::<FrameTarget>() == 20) };
        f(std::ptr::from_ref(self).cast(), LEN)
    }
}

fn failed(operation: String, source: impl Into<PairCause>) -> PairError {
    PairError { operation, source: source.into() }
}
