//! Plans: what a namespace should have, as a value.

use std::fmt;

use crate::rule::{Family, Ruleset, TableKind};

/// Which kernel interface holds the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// nf_tables over netlink.
    Nftables,
    /// iptables and ip6tables, legacy or nft variant.
    Iptables,
}

/// What one network namespace should have of ours.
///
/// The routing comes first: until the rules are there nothing captures a packet, and what the rules rely on is in place when they
/// start to work. Then all layers come at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The interface that the layers were planned for.
    pub backend: Backend,
    /// Routing in order of execution.
    pub routing: Vec<Routing>,
    /// Rulesets of different owners. Where two have a base chain at the same hook with the same priority, the chain of the earlier layer
    /// comes first.
    pub layers: Vec<Ruleset>,
}

/// One part of a plan's routing. Putting it in place again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routing {
    /// The namespace's loopback interface has this IPv6 address with prefix length 128.
    LoopbackAddress(std::net::Ipv6Addr),
    /// Packets with the mark are routed by the table.
    Rule {
        /// Family.
        family: Family,
        /// Mark, without bits outside of the mask.
        mark: u32,
        /// The bits of the packet's mark that are compared.
        mask: u32,
        /// Routing table.
        table: u32,
        /// Fixed, so that repeating it finds its own rule instead of adding another.
        priority: u32,
    },
    /// Every destination in the routing table is local (`local default dev lo`). In a family that is switched off on that interface
    /// the kernel takes no such route, and no packet could ask for it: then there is nothing to do.
    LocalRoute {
        /// Family.
        family: Family,
        /// Routing table.
        table: u32,
    },
}

// === impl Plan ===

impl Plan {
    /// One layer, without routing.
    #[must_use]
    pub fn of_layer(backend: Backend, layer: Ruleset) -> Self {
        Self { backend, routing: Vec::new(), layers: vec![layer] }
    }
}

impl fmt::Display for Routing {
    /// As the ip program takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = |family: &Family| if *family == Family::V4 { "ip" } else { "ip -6" };
        match self {
            Self::LoopbackAddress(address) => write!(f, "ip address {address}/128 dev lo"),
            Self::Rule { family, mark, mask, table, priority } => {
                let ip = ip(family);
                write!(f, "{ip} rule priority {priority} fwmark {mark:#x}/{mask:#x} lookup {table}")
            }
            Self::LocalRoute { family, table } => {
                write!(f, "{} route local default dev lo table {table}", ip(family))
            }
        }
    }
}

/// A change of the kernel's rules that happens wholly or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transaction<'a> {
    /// Into a namespace that has no table of the layers' owners.
    Add(&'a [Ruleset]),
    /// Instead of what the owners' tables hold now.
    Replace(&'a [Ruleset]),
    /// Remove the owner's tables of these kinds.
    Delete {
        /// Owner, see [`Ruleset::owner`].
        owner: &'a str,
        /// Tables.
        tables: &'a [TableKind],
    },
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}
