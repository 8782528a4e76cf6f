//! Named sets and verdict maps: what rules look packets up in.
//!
//! A set's content is part of the plan ([`Content::Fixed`]), or it is kept by somebody who changes it by [`SetDelta`]s while the rules stay as they
//! are ([`Content::Kept`]). iptables has the sets as ipsets; verdict maps are of nf_tables alone. The same meaning in iptables is a set for
//! each chain, and for each set a rule that matches it and jumps to the chain.

mod coverage;
mod delta;
mod interface;
mod members;

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::rule::{Family, Protocol};

pub use coverage::{Coverage, CoverageError};
pub use delta::SetDelta;
pub use interface::{ArrivalKey, InterfaceName};
pub use members::{Contents, KeptMembers, Members, NoMembers};

/// A named set of a table, or a verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name. Unique in the namespace, because ipsets belong to no table; at most [`Set::MAX_NAME`] bytes for the same reason.
    pub name: Cow<'static, str>,
    /// What its keys are.
    pub keys: KeyType,
    /// A set or a map.
    pub kind: SetKind,
    /// Who says what is in it.
    pub content: Content,
    /// Whether each element has a comment of its own. ipset has to know that when the set is made.
    pub commented: bool,
    /// The comment of the set itself, which only nf_tables has; may be empty.
    pub comment: Cow<'static, str>,
}

/// What a set's keys are. Plain addresses and prefixes never share a set: deletes from a mixed one are slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyType {
    /// Addresses.
    Address(Family),
    /// Prefixes. A packet's address is looked for in all of them.
    Prefix(Family),
    /// Address, transport protocol and port together.
    Endpoint(Family),
    /// The interface that packets of the family come in by, on whichever side they are looked up. Only nf_tables has it, and verdict maps are where
    /// it is used.
    Arrival(Family),
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// An address.
    Address(IpAddr),
    /// A prefix without host bits.
    Prefix(IpNet),
    /// An address with protocol and port.
    Endpoint(TransportAddress),
    /// An interface, for packets of a family.
    Arrival(ArrivalKey),
}

/// Where packets go to, or come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransportAddress {
    /// Address.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// Whether keys lead to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SetKind {
    /// They do not: a key is in the set or it is not.
    #[default]
    Plain,
    /// Each leads to a verdict.
    VerdictMap,
}

/// Who says what is in a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The plan does, and it is compared.
    Fixed(Vec<Element>),
    /// The plan makes the set and says nothing of its members, which stay when the plan is loaded again.
    Kept,
}

/// A member of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// What is looked up.
    pub key: Key,
    /// Where it leads to, in a verdict map.
    pub verdict: Option<MapVerdict>,
    /// For people, or whose it is; may be empty. Prefixes have none, because those that overlap become one.
    pub comment: String,
}

/// Where a key of a verdict map leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MapVerdict {
    /// Ends this table's part of the packet path.
    Accept,
    /// Ends the packet.
    Drop,
    /// On in another chain of the table, and back.
    Jump(Cow<'static, str>),
    /// On in another chain of the table, and back to where this chain was called from.
    Goto(Cow<'static, str>),
}

/// Which end of a packet is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Its source.
    Source,
    /// Its destination.
    Destination,
}

// === impl Set ===

impl Set {
    /// The longest name in bytes: `IPSET_MAXNAMELEN` of linux/netfilter/ipset/ip_set.h less its end.
    pub const MAX_NAME: usize = 31;

    /// A set whose content is part of the plan.
    pub fn fixed(
        name: impl Into<Cow<'static, str>>,
        keys: KeyType,
        members: impl IntoIterator<Item = Key>,
    ) -> Self {
        let elements = members.into_iter().map(Element::from).collect();
        Self { content: Content::Fixed(elements), ..Self::kept(name, keys) }
    }

    /// A set whose members are kept by somebody else.
    pub fn kept(name: impl Into<Cow<'static, str>>, keys: KeyType) -> Self {
        Self {
            name: name.into(),
            keys,
            kind: SetKind::Plain,
            content: Content::Kept,
            commented: false,
            comment: "".into(),
        }
    }

    /// The same as a map to verdicts.
    #[must_use]
    pub fn to_verdicts(self) -> Self {
        Self { kind: SetKind::VerdictMap, ..self }
    }

    /// Family of the addresses.
    pub fn family(&self) -> Family {
        self.keys.family()
    }

    /// Whether its members are kept by somebody else, see [`Content::Kept`].
    pub fn is_kept(&self) -> bool {
        self.content == Content::Kept
    }

    /// Whether its keys lead to verdicts.
    pub fn is_map(&self) -> bool {
        self.kind == SetKind::VerdictMap
    }

    /// What the plan says is in it; nothing of a kept one.
    pub fn fixed_elements(&self) -> &[Element] {
        match &self.content {
            Content::Fixed(elements) => elements,
            Content::Kept => &[],
        }
    }

    /// What the plan says is in the set, as the kernel gets it: prefixes are merged; nothing of a kept one.
    pub fn planned_elements(&self) -> Vec<Element> {
        match self.keys {
            KeyType::Prefix(_) => {
                self.merged_prefixes().into_iter().map(|net| Key::Prefix(net).into()).collect()
            }
            _ => self.fixed_elements().to_vec(),
        }
    }

    /// The prefixes of a fixed set of prefixes as the kernel gets them: merged as by [`Coverage`], in order.
    pub fn merged_prefixes(&self) -> Vec<IpNet> {
        let nets = self.fixed_elements().iter().filter_map(|element| match element.key {
            Key::Prefix(net) => Some(net),
            _ => None,
        });
        coverage::merged(nets, self.family())
    }
}

impl KeyType {
    /// Family of the addresses.
    pub fn family(self) -> Family {
        match self {
            Self::Address(family) | Self::Prefix(family) | Self::Endpoint(family) | Self::Arrival(family) => {
                family
            }
        }
    }

    /// Whether such a key may be a member.
    pub fn takes(self, key: &Key) -> bool {
        key.key_type() == self
    }
}

// === impl Key ===

impl Key {
    /// The address that it is about; nothing where it is about more than one, or none.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Endpoint(endpoint) => Some(endpoint.address),
            Self::Prefix(_) | Self::Arrival(_) => None,
        }
    }

    /// The type of sets that have it as a member.
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Address(address) => KeyType::Address(Family::of_address(*address)),
            Self::Prefix(net) => KeyType::Prefix(Family::of(net)),
            Self::Endpoint(endpoint) => KeyType::Endpoint(Family::of_address(endpoint.address)),
            Self::Arrival(key) => key.key_type(),
        }
    }
}

impl From<IpAddr> for Key {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

impl From<IpNet> for Key {
    fn from(net: IpNet) -> Self {
        Self::Prefix(net.trunc())
    }
}

impl From<TransportAddress> for Key {
    fn from(endpoint: TransportAddress) -> Self {
        Self::Endpoint(endpoint)
    }
}

impl From<Key> for Element {
    fn from(key: Key) -> Self {
        Self { key, verdict: None, comment: String::new() }
    }
}

impl MapVerdict {
    /// The chain that it leads to.
    pub fn chain(&self) -> Option<&Cow<'static, str>> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop => None,
        }
    }
}
