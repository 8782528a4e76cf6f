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
/// The steps run in order. The rules come last: until then nothing captures a packet, and the routing that the rules rely on is
/// in place when they start to work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The interface that the ruleset was planned for.
    pub backend: Backend,
    /// Steps in order of execution.
    pub steps: Vec<Step>,
}

/// One idempotent step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The namespace's loopback interface has this IPv6 address with prefix length 128.
    EnsureLoopbackAddress(std::net::Ipv6Addr),
    /// Packets with the mark are routed by the table.
    EnsureRule {
        /// Family.
        family: Family,
        /// Mark, without bits outside of the mask.
        mark: u32,
        /// The bits of the packet's mark that are compared.
        mask: u32,
        /// Routing table.
        table: u32,
        /// Fixed, so that repeating the step finds its own rule instead of adding another.
        priority: u32,
    },
    /// Every destination in the routing table is local (`local default dev lo`). In a family that is switched off on that interface
    /// the kernel takes no such route, and no packet could ask for it: then there is nothing to do.
    EnsureLocalRoute {
        /// Family.
        family: Family,
        /// Routing table.
        table: u32,
    },
    /// The owner's tables hold exactly this.
    Replace(Ruleset),
}

/// A change of the kernel's rules that happens wholly or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transaction<'a> {
    /// Into a namespace that has none of the owner's tables.
    Add(&'a Ruleset),
    /// Instead of what the owner's tables hold now, also those that the new ruleset no longer has.
    Replace(&'a Ruleset),
    /// Remove the owner's tables of these kinds.
    Delete {
        /// Owner, see [`Ruleset::owner`].
        owner: &'a str,
        /// Tables.
        tables: &'a [TableKind],
    },
}

impl Plan {
    /// The ruleset of the plan.
    pub fn ruleset(&self) -> Option<&Ruleset> {
        self.steps
            .iter()
            .find_map(|step| if let Step::Replace(ruleset) = step { Some(ruleset) } else { None })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}
