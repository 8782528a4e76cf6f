//! Tables, chains, rules.

mod parts;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::set::Set;

pub use parts::{ALL_BITS, Action, Counting, CtState, Limit, Match, Ports, Protocol, RejectWith};

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

impl ChainKind {
    /// As nf_tables names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
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
    /// The regular chains that rules of this owner may have in any setting. In iptables, where tables are shared, these are the
    /// owner's too when they are not planned: what an earlier plan left is found by them.
    pub known_chains: Cow<'static, [KnownChain]>,
    /// Whether IPv6 packets are handled at all.
    pub ipv6: bool,
    /// Tables in the order in which they are written.
    pub tables: Vec<Table>,
}

/// A regular chain that an owner may have, or all those whose names begin alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownChain {
    /// Table.
    pub table: TableKind,
    /// The name as in [`Chain::name`], or its beginning.
    pub name: Cow<'static, str>,
    /// Whether `name` is only the beginning: names that come from data are not known beforehand.
    pub beginning: bool,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Which.
    pub kind: TableKind,
    /// Named sets and verdict maps that its rules look packets up in.
    pub sets: Vec<Set>,
    /// Chains in the order in which they are written.
    pub chains: Vec<Chain>,
}

/// One chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name in lower case with hyphens, as nf_tables has it; [`crate::iptables::chain_name`] is what iptables shows. A base chain is named by its
    /// hook; for one that comes after the translations of others see [`Chain::is_late`].
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
    /// Where the packets that match are counted.
    pub counting: Counting,
    /// The reason, for people: shown by `cnictl explain` and as the comment of the nf_tables rule.
    pub why: Cow<'static, str>,
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

    /// The family of an address.
    pub fn of_address(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
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

    /// Whether packets of some family are looked at by both.
    pub fn overlap(self, other: Self) -> bool {
        [Family::V4, Family::V6].into_iter().any(|family| self.contains(family) && other.contains(family))
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

    /// The nf_tables name of the table of this kind that an owner has.
    pub fn nft_table(self, owner: &str) -> String {
        format!("{owner}-{}", self.name())
    }

    /// The priority that iptables gives the table at a hook (`enum nf_ip_hook_priorities` in linux/netfilter_ipv4.h): nat changes
    /// destinations early and sources late.
    pub fn priority(self, hook: Hook) -> i32 {
        match (self, hook) {
            (Self::Raw, _) => -300,
            (Self::Mangle, _) => -150,
            (Self::Nat, Hook::Input | Hook::Postrouting) => 100,
            (Self::Nat, _) => -100,
            (Self::Filter, _) => 0,
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

// === impl Chain ===

impl Chain {
    /// What the name of a base chain ends with that comes after the other chains of ours and of others at its hook.
    pub const LATE: &'static str = "-late";

    /// Whether the chain comes after others at its hook: in nf_tables by its priority. In iptables its rules are the last of the built-in chain, and
    /// a rule of others behind them is a difference.
    pub fn is_late(&self) -> bool {
        let of_hook = |base: Base| self.name.strip_prefix(base.hook.name()) == Some(Self::LATE);
        self.base.is_some_and(of_hook)
    }
}

// === impl Ruleset ===

impl Ruleset {
    /// The nf_tables name of a table of this owner.
    pub fn nft_table(&self, kind: TableKind) -> String {
        kind.nft_table(&self.owner)
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

impl KnownChain {
    /// The chain of a name.
    pub const fn named(table: TableKind, name: &'static str) -> Self {
        Self { table, name: Cow::Borrowed(name), beginning: false }
    }

    /// Every chain whose name begins so.
    pub const fn beginning(table: TableKind, name: &'static str) -> Self {
        Self { table, name: Cow::Borrowed(name), beginning: true }
    }
}

impl Table {
    /// The names under which its rules count, each once, in order.
    pub fn counters(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for rule in self.chains.iter().flat_map(|chain| &chain.rules) {
            if let Counting::Named(name) = &rule.counting
                && let Err(at) = names.binary_search(&name.as_ref())
            {
                names.insert(at, name);
            }
        }
        names
    }

    /// The chain of a name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// The chains that a rule may lead to, as far as the plan says: what a kept verdict map leads to is not in it.
    pub fn targets<'t>(&'t self, rule: &'t Rule) -> Vec<&'t Cow<'static, str>> {
        match &rule.action {
            Action::Jump(target) => vec![target],
            Action::VerdictMap { map, .. } => {
                let maps = self.sets.iter().filter(|set| set.name == *map);
                let elements = maps.flat_map(Set::fixed_elements);
                elements.filter_map(|element| element.verdict.as_ref()?.chain()).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Rule {
    /// A rule for the families that its address matches allow. A verdict map is not counted: the counter would stand before the map and
    /// count also what is not in it.
    pub fn new(matches: Vec<Match>, action: Action, why: impl Into<Cow<'static, str>>) -> Self {
        let family = matches.iter().find_map(Match::family).or_else(|| action.family());
        let families = family.map_or(Families::Both, Families::Only);
        let counting = if action.family().is_none() { Counting::Rule } else { Counting::Off };
        Self { families, matches, action, counting, why: why.into() }
    }

    /// Whether the rule says of itself which family it is for, so that a backend need not be told.
    pub fn names_family(&self) -> bool {
        self.action.family().is_some() || self.matches.iter().any(Match::implies_family)
    }

    /// The same rule, not counted.
    #[must_use]
    pub fn uncounted(self) -> Self {
        Self { counting: Counting::Off, ..self }
    }

    /// The same rule, counted under a name.
    #[must_use]
    pub fn counted_as(self, name: impl Into<Cow<'static, str>>) -> Self {
        Self { counting: Counting::Named(name.into()), ..self }
    }

    /// The protocol that the rule asks for.
    pub fn protocol(&self) -> Option<Protocol> {
        self.matches
            .iter()
            .find_map(|m| if let Match::Protocol(protocol) = m { Some(*protocol) } else { None })
    }
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
