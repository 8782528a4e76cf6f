//! Tables, chains, rules, matches, actions.

use std::borrow::Cow;
use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The families whose packets a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Families {
    /// Packets of both families.
    #[default]
    Both,
    /// Packets of one family only.
    Only(Family),
}

/// The four tables of iptables, of which nf_tables knows only the hooks and priorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableKind {
    /// Packet filter.
    Filter,
    /// Marks, TPROXY.
    Mangle,
    /// Address translation; sees only the first packet of a connection.
    Nat,
    /// Before connection tracking.
    Raw,
}

/// Where in the kernel's packet path a base chain sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Arrived, not yet routed.
    Prerouting,
    /// For this namespace.
    Input,
    /// Passing through.
    Forward,
    /// Sent from this namespace.
    Output,
    /// About to leave.
    Postrouting,
}

/// What a base chain may do, as nf_tables names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// Any verdict.
    Filter,
    /// Address translation.
    Nat,
    /// Routes the packet again when a rule changed its mark.
    Route,
}

/// How a base chain is attached to the packet path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base {
    /// Kind.
    pub kind: ChainKind,
    /// Hook.
    pub hook: Hook,
    /// Lower runs earlier. iptables has these fixed; [`TableKind::priority`] gives them.
    pub priority: i32,
}

/// All rules of one owner in one network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// Prefix of the nf_tables table names: owner `istio-proxy` has `istio-proxy-nat`.
    pub owner: Cow<'static, str>,
    /// Whether IPv6 packets are handled at all.
    pub ipv6: bool,
    /// Tables in the order in which they are written.
    pub tables: Vec<Table>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Which.
    pub kind: TableKind,
    /// Named sets that its rules look up.
    pub sets: Vec<Set>,
    /// Chains in the order in which they are written.
    pub chains: Vec<Chain>,
}

/// A named set of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name, unique in its table.
    pub name: Cow<'static, str>,
    /// Content. Intervals must not overlap (nf_tables refuses a batch with overlapping elements).
    pub elements: SetElements,
}

/// What a named set holds. Plain addresses and prefixes never share a set: deletes from a mixed one are slow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetElements {
    /// IPv4 prefixes.
    V4(Vec<Ipv4Net>),
    /// IPv6 prefixes.
    V6(Vec<Ipv6Net>),
}

/// One chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name in lower case with hyphens, as nf_tables has it; iptables shows `istio-output` as `ISTIO_OUTPUT` and a base chain by
    /// the name of its hook.
    pub name: Cow<'static, str>,
    /// Present on a base chain.
    pub base: Option<Base>,
    /// Rules in the order in which packets meet them.
    pub rules: Vec<Rule>,
    /// How many of the first rules must also precede the rules that others have in the same chain. Only iptables shares its base
    /// chains; in nf_tables ours are our own.
    pub leading: usize,
}

/// One rule: all matches must hold, then the action happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Families it applies to.
    pub families: Families,
    /// Conditions, in the order in which nf_tables tests them.
    pub matches: Vec<Match>,
    /// What happens.
    pub action: Action,
    /// The reason, for people: shown by `cnictl explain` and as the comment of the nf_tables rule.
    pub why: Cow<'static, str>,
}

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
    /// The source port; a [`Match::Protocol`] comes before it.
    SourcePort { ports: Ports, not: bool },
    /// The destination port; a [`Match::Protocol`] comes before it.
    DestinationPort { ports: Ports, not: bool },
    /// The user that owns the sending socket. Of a packet without a socket (one of the kernel's own) the inverted form holds in
    /// iptables and does not in nf_tables.
    Uid { uid: u32, not: bool },
    /// The group that owns the sending socket.
    Gid { gid: u32, not: bool },
    /// The packet's mark.
    Mark { mark: u32, not: bool },
    /// The connection's mark.
    CtMark { mark: u32, not: bool },
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
    /// Sets the packet's mark and goes on.
    SetMark(u32),
    /// Copies the packet's mark to the connection and goes on.
    SaveMark,
    /// Copies the connection's mark to the packet and goes on.
    RestoreMark,
    /// Sets the conntrack zone and goes on.
    SetZone(u16),
}

// === impl Family ===

impl Family {
    /// The family of a prefix.
    pub fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

impl Families {
    /// Whether a packet of `family` is looked at.
    pub fn contains(self, family: Family) -> bool {
        match self {
            Self::Both => true,
            Self::Only(only) => only == family,
        }
    }
}

// === impl TableKind ===

impl TableKind {
    /// Lower-case name, as iptables has it and as nf_tables names end.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Raw => "raw",
        }
    }

    /// The priority that iptables gives the table at the hooks where we use it (`enum nf_ip_hook_priorities` in
    /// linux/netfilter_ipv4.h; nat is -100 before routing and on output, the only hooks of ours).
    pub fn priority(self) -> i32 {
        match self {
            Self::Raw => -300,
            Self::Mangle => -150,
            Self::Nat => -100,
            Self::Filter => 0,
        }
    }
}

impl Hook {
    /// Lower-case name as nf_tables has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

// === impl Ruleset ===

impl Ruleset {
    /// The nf_tables name of a table of this owner.
    pub fn nft_table(&self, kind: TableKind) -> String {
        format!("{}-{}", self.owner, kind.name())
    }

    /// The table of a kind.
    pub fn table(&self, kind: TableKind) -> Option<&Table> {
        self.tables.iter().find(|table| table.kind == kind)
    }

    /// The families that the ruleset handles.
    pub fn families(&self) -> &'static [Family] {
        if self.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] }
    }
}

impl Table {
    /// The chain of a name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }
}

impl Rule {
    /// A rule for the families that its address matches allow.
    pub fn new(matches: Vec<Match>, action: Action, why: impl Into<Cow<'static, str>>) -> Self {
        let families = matches.iter().find_map(Match::family).map_or(Families::Both, Families::Only);
        Self { families, matches, action, why: why.into() }
    }

    /// The protocol that the rule asks for.
    pub fn protocol(&self) -> Option<Protocol> {
        self.matches
            .iter()
            .find_map(|m| if let Match::Protocol(protocol) = m { Some(*protocol) } else { None })
    }
}

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

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
