//! Packets, as far as rules can tell them apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::rule::{Family, Hook, Protocol};

/// A packet and what the kernel knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source address; gives the family.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// The interface that it came in by; empty when it was sent here.
    pub in_interface: String,
    /// The interface that it leaves by; empty when it arrived.
    pub out_interface: String,
    /// Whether the destination is an address of the interface that it came in by.
    pub own_destination: bool,
    /// Whether the source is an address of the namespace.
    pub own_source: bool,
    /// Owner of the sending socket, when it was sent here by a process.
    pub owner: Option<Owner>,
    /// Packet mark.
    pub mark: u32,
    /// Mark of its connection.
    pub ct_mark: u32,
    /// Connection tracking state.
    pub state: State,
    /// Whether it answers the packet that began its connection.
    pub reply: bool,
    /// Where its connection's first packet wanted to go, if that is not where this one goes.
    pub original: Option<SocketAddr>,
    /// Type and code of an ICMP or ICMPv6 message, which has no ports.
    pub icmp: (u8, u8),
    /// Whether a transparent socket takes the packet where a TPROXY rule leads it.
    pub listening: bool,
}

/// The ids that own a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Connection tracking state of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The first packet of a connection.
    New,
    /// A later one.
    Established,
    /// First packet of a connection that another one announced; the nat tables see it as they see [`State::New`], and no others.
    Related,
    /// Fits no connection.
    Invalid,
}

impl Packet {
    /// The first packet of a connection that nothing else is known of: no interface, no owner and no mark. By whichever interface it came, its
    /// destination is an address of that. A transparent socket takes it where a rule
    /// leads it to one.
    pub fn new(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source: source.ip(),
            destination: destination.ip(),
            protocol,
            source_port: source.port(),
            destination_port: destination.port(),
            in_interface: String::new(),
            out_interface: String::new(),
            own_destination: true,
            own_source: false,
            owner: None,
            mark: 0,
            ct_mark: 0,
            state: State::New,
            reply: false,
            original: None,
            icmp: (0, 0),
            listening: true,
        }
    }

    /// Family of the addresses.
    pub fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// As it is after a redirect at a hook: what was sent here goes to the loopback address, and what arrived to the first address of its
    /// interface (`nf_nat_redirect.c`), which is taken to be the one that it came for.
    #[must_use]
    pub fn redirected(&self, hook: Hook, port: u16) -> Self {
        let loopback: IpAddr = match self.family() {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let destination = if hook == Hook::Output { loopback } else { self.destination };
        let original = self.original.or(Some((self.destination, self.destination_port).into()));
        Self { destination, destination_port: port, original, ..self.clone() }
    }

    /// Where the first packet of its connection wanted to go.
    pub(super) fn original(&self) -> SocketAddr {
        self.original.unwrap_or_else(|| (self.destination, self.destination_port).into())
    }
}
