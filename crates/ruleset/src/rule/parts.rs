//! What rules are made of: conditions and actions.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Family;
use crate::set::{KeyType, Side};

/// The mask under which a whole mark is compared or set.
pub const ALL_BITS: u32 = u32::MAX;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, whether or not the kernel speaks it.
    Sctp,
    /// ICMP, of IPv4 only.
    Icmp,
    /// ICMPv6, of IPv6 only.
    Icmpv6,
}

/// Port numbers to compare with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// One port.
    One(u16),
    /// Any of these; sorted, without duplicates, not empty.
    AnyOf(Vec<u16>),
    /// From one to another, both included; neither one port nor all of them.
    Range(u16, u16),
}

/// Connection tracking states, any of which matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CtState {
    /// Belongs to no connection that could be.
    Invalid,
    /// A known connection, or one that a known connection announced.
    RelatedOrEstablished,
    /// What a known connection announced: an error about it, or the first packet of another.
    Related,
    /// A known connection, in either direction.
    Established,
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
    /// The destination is an address of the interface that the packet came in by; only where packets arrive.
    OwnDestination,
    /// The source is an address of this namespace, and the packet was sent here and did not come in by an interface. Of what is passed on from such
    /// an address, which routing refuses unless it is told otherwise, it holds in iptables and does not in nf_tables.
    OwnSource,
    /// The source is in a named set of the table, which has keys of this type.
    SourceIn { set: Cow<'static, str>, keys: KeyType, not: bool },
    /// The destination is in a named set of the table, which has keys of this type.
    DestinationIn { set: Cow<'static, str>, keys: KeyType, not: bool },
    /// The packet has the header of its transport protocol, as all have but the later parts of a fragmented one. A match of a port
    /// says it too, so it stands in rules without any. Only iptables has it by itself; nf_tables tests nothing.
    WholeHeader,
    /// The source port; a [`Match::Protocol`] comes before it.
    SourcePort { ports: Ports, not: bool },
    /// The destination port; a [`Match::Protocol`] comes before it.
    DestinationPort { ports: Ports, not: bool },
    /// The type of an ICMP message, and its code where one is given; a [`Match::Protocol`] of ICMP or ICMPv6 comes before it.
    IcmpType { kind: u8, code: Option<u8> },
    /// Where the connection's first packet wanted to go, before any rule redirected it, is in the prefix. Without a connection this
    /// does not hold, nor do its opposite and the next two.
    OriginalDestination { net: IpNet, not: bool },
    /// The port to which the connection's first packet wanted to go, one or a range; a [`Match::Protocol`] comes before it.
    OriginalPort { ports: Ports, not: bool },
    /// The packet answers the one that began its connection.
    Reply,
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
    /// Ends the packet and tells its sender; only in the filter table, where packets come in, pass or are sent.
    Reject(RejectWith),
    /// Hands a copy to whoever listens on the group, and goes on.
    Log {
        /// Of nfnetlink_log.
        group: u16,
        /// Tells the reader which rule it was. Letters, digits and `:._/-`, at most [`Action::PREFIX_MAX`] bytes.
        prefix: Cow<'static, str>,
        /// What is above it is neither logged nor counted.
        limit: Option<Limit>,
    },
    /// Back to the calling chain.
    Return,
    /// On in another chain of the table.
    Jump(Cow<'static, str>),
    /// What a verdict map of the table says of that side of the packet. Of what is not in the map the rule says nothing.
    VerdictMap { map: Cow<'static, str>, keys: KeyType, side: Side },
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

/// How the sender of a rejected packet is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectWith {
    /// As of a port where nobody listens; needs TCP.
    TcpReset,
    /// The port is unreachable, by ICMP or ICMPv6.
    PortUnreachable,
    /// It is prohibited, by ICMP or ICMPv6.
    AdminProhibited,
}

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Packets a second in the long run.
    pub per_second: u32,
    /// Packets at once; iptables takes at most 10,000.
    pub burst: u32,
}

/// Where packets that match a rule are counted. iptables always counts them for the rule, too.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Counting {
    /// For the rule.
    #[default]
    Rule,
    /// Nowhere.
    Off,
    /// For all rules of the table that name it. nf_tables has an object of that name; iptables shows the name as the rule's comment, so that
    /// the counts of the rules with it add up to the same.
    Named(Cow<'static, str>),
}

// === impl Action ===

impl Action {
    /// The longest prefix that each variant of iptables takes (`struct xt_nflog_info`).
    pub const PREFIX_MAX: usize = 63;

    /// The family that the action restricts the rule to.
    pub fn family(&self) -> Option<Family> {
        match self {
            Self::VerdictMap { keys, .. } => Some(keys.family()),
            _ => None,
        }
    }
}

// === impl RejectWith ===

impl RejectWith {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::TcpReset, Self::PortUnreachable, Self::AdminProhibited];

    /// As iptables says it in a family.
    pub fn iptables_name(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::TcpReset, _) => "tcp-reset",
            (Self::PortUnreachable, Family::V4) => "icmp-port-unreachable",
            (Self::PortUnreachable, Family::V6) => "icmp6-port-unreachable",
            (Self::AdminProhibited, Family::V4) => "icmp-admin-prohibited",
            (Self::AdminProhibited, Family::V6) => "icmp6-adm-prohibited",
        }
    }
}

// === impl Match ===

impl Match {
    /// The family that the match restricts the rule to.
    pub fn family(&self) -> Option<Family> {
        match self {
            Self::Source { net, .. }
            | Self::Destination { net, .. }
            | Self::OriginalDestination { net, .. } => Some(Family::of(net)),
            Self::SourceIn { keys, .. } | Self::DestinationIn { keys, .. } => Some(keys.family()),
            Self::Protocol(Protocol::Icmp) => Some(Family::V4),
            Self::Protocol(Protocol::Icmpv6) => Some(Family::V6),
            _ => None,
        }
    }

    /// Whether connection tracking answers it.
    pub fn asks_connection(&self) -> bool {
        matches!(
            self,
            Self::CtMark { .. }
                | Self::CtState(_)
                | Self::Reply
                | Self::OriginalDestination { .. }
                | Self::OriginalPort { .. }
        )
    }

    /// Whether packets of other families fail the match by themselves in nf_tables. A protocol is a number, which any family may have.
    pub fn implies_family(&self) -> bool {
        self.family().is_some() && !matches!(self, Self::Protocol(_))
    }
}

impl Ports {
    /// Whether the port is among them.
    pub fn contains(&self, port: u16) -> bool {
        match self {
            Self::One(one) => *one == port,
            Self::AnyOf(ports) => ports.contains(&port),
            Self::Range(first, last) => (*first..=*last).contains(&port),
        }
    }
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp, Self::Icmpv6];

    /// The lower-case name that both backends know.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// IANA protocol number.
    pub fn number(self) -> u8 {
        self.row().1
    }

    /// Whether its header begins with the ports.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }

    fn row(self) -> (&'static str, u8) {
        match self {
            Self::Tcp => ("tcp", 6),
            Self::Udp => ("udp", 17),
            Self::Sctp => ("sctp", 132),
            Self::Icmp => ("icmp", 1),
            Self::Icmpv6 => ("ipv6-icmp", 58),
        }
    }
}

impl CtState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Invalid, Self::RelatedOrEstablished, Self::Related, Self::Established];

    /// The lower-case name that nf_tables has; that of iptables is the same in capitals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::RelatedOrEstablished => "related,established",
            Self::Related => "related",
            Self::Established => "established",
        }
    }
}
