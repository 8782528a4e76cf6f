//! What rules are made of: conditions and actions.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Family;

/// The mask under which a whole mark is compared or set.
pub const ALL_BITS: u32 = u32::MAX;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Port numbers to compare with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// One port.
    One(u16),
    /// Any of these; sorted, without duplicates, not empty.
    AnyOf(Vec<u16>),
}

/// Connection tracking states, any of which matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CtState {
    /// Belongs to no connection that could be.
    Invalid,
    /// A known connection, or one that a known connection announced.
    RelatedOrEstablished,
}

/// One condition. `not` inverts it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the operands of the condition that the variant names")]
pub enum Match {
    /// The interface that the packet came in by.
    InInterface { name: Cow<'static, str>, not: bool },
    /// The interface that the packet leaves by.
    OutInterface { name: Cow<'static, str>, not: bool },
    /// The transport protocol.
    Protocol(Protocol),
    /// The source address is in the prefix. Host bits are ignored.
    Source { net: IpNet, not: bool },
    /// The destination address is in the prefix. Host bits are ignored.
    Destination { net: IpNet, not: bool },
    /// The source address is in a named set of the table.
    SourceIn { set: Cow<'static, str>, family: Family, not: bool },
    /// The destination address is in a named set of the table.
    DestinationIn { set: Cow<'static, str>, family: Family, not: bool },
    /// The packet has the header of its transport protocol, as all have but the later parts of a fragmented one. A match of a port
    /// says it too, so it stands in rules without any. Only iptables has it by itself; nf_tables tests nothing.
    WholeHeader,
    /// The source port; a [`Match::Protocol`] comes before it.
    SourcePort { ports: Ports, not: bool },
    /// The destination port; a [`Match::Protocol`] comes before it.
    DestinationPort { ports: Ports, not: bool },
    /// The user that owns the sending socket. Of a packet without a socket (one of the kernel's own) the inverted form holds in
    /// iptables and does not in nf_tables.
    Uid { uid: u32, not: bool },
    /// The group that owns the sending socket.
    Gid { gid: u32, not: bool },
    /// A socket of this namespace sent the packet, which was not merely passed on. Of the kernel's own sockets, which no file
    /// belongs to, this holds in iptables and does not in nf_tables.
    LocalSocket,
    /// The packet's mark under a mask; the mark has no bits outside of it.
    Mark { mark: u32, mask: u32, not: bool },
    /// The connection's mark under a mask; the mark has no bits outside of it.
    CtMark { mark: u32, mask: u32, not: bool },
    /// The connection's state.
    CtState(CtState),
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the operands of the action that the variant names")]
pub enum Action {
    /// Ends this table's part of the packet path.
    Accept,
    /// Ends the packet.
    Drop,
    /// Back to the calling chain.
    Return,
    /// On in another chain of the table.
    Jump(Cow<'static, str>),
    /// To a port of this namespace; the connection remembers where it wanted to go.
    Redirect { port: u16 },
    /// To a transparent socket on the port, addresses unchanged, packet marked for the local route.
    Tproxy { port: u16, mark: u32 },
    /// From another source address; the connection remembers where it came from.
    Snat { to: IpAddr },
    /// Sets the packet's mark and goes on.
    SetMark(u32),
    /// Sets those bits of the connection's mark that are in the mask, and goes on; the mark has no bits outside of it.
    SetCtMark { mark: u32, mask: u32 },
    /// Copies the packet's mark to the connection and goes on.
    SaveMark,
    /// Copies the connection's mark to the packet and goes on.
    RestoreMark,
    /// Sets the conntrack zone and goes on.
    SetZone(u16),
}

// === impl Match ===

impl Match {
    /// The family that the match restricts the rule to.
    pub fn family(&self) -> Option<Family> {
        match self {
            Self::Source { net, .. } | Self::Destination { net, .. } => Some(Family::of(net)),
            Self::SourceIn { family, .. } | Self::DestinationIn { family, .. } => Some(*family),
            _ => None,
        }
    }
}

impl Ports {
    /// Whether the port is among them.
    pub fn contains(&self, port: u16) -> bool {
        match self {
            Self::One(one) => *one == port,
            Self::AnyOf(ports) => ports.contains(&port),
        }
    }

    /// As a slice.
    pub fn as_slice(&self) -> &[u16] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::AnyOf(ports) => ports,
        }
    }
}

impl Protocol {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}
