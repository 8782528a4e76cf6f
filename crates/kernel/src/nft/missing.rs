//! The parts of nf_tables that a kernel may lack, and what helps.

use std::fmt;

use rustix::system::uname;

/// A release of Linux: major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32);

/// A part of the kernel that rules need.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelPart {
    /// What it is, and the option that it is built with.
    name: &'static str,
    /// The module that brings it; some parts are in no module.
    module: Option<&'static str>,
    /// The first release of Linux that has it.
    since: Release,
}

/// A part that a kernel lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingPart {
    part: &'static KernelPart,
    /// Of the running kernel, where its name has one.
    kernel: Option<Release>,
}

pub(super) const NETFILTER: &KernelPart =
    &part("netfilter netlink (CONFIG_NETFILTER_NETLINK)", Some("nfnetlink"), (2, 6));
pub(super) const NF_TABLES: &KernelPart = &part("nf_tables (CONFIG_NF_TABLES)", Some("nf_tables"), (3, 13));
pub(super) const BATCHES: &KernelPart = &part("nf_tables transactions (CONFIG_NF_TABLES)", None, (3, 13));
pub(super) const INET: &KernelPart =
    &part("nf_tables tables for both families (CONFIG_NF_TABLES_INET)", None, (3, 14));
pub(super) const ROUTE: &KernelPart =
    &part("nf_tables route chains for both families (CONFIG_NF_TABLES_INET)", None, (5, 2));
pub(super) const NAT: &KernelPart =
    &part("nf_tables nat for both families (CONFIG_NFT_NAT)", Some("nft_chain_nat"), (5, 2));
pub(super) const REDIRECT: &KernelPart =
    &part("nf_tables redirect for both families (CONFIG_NFT_REDIR)", Some("nft_redir"), (5, 2));
pub(super) const TPROXY: &KernelPart =
    &part("nf_tables tproxy (CONFIG_NFT_TPROXY)", Some("nft_tproxy"), (4, 19));
pub(super) const CONNTRACK: &KernelPart =
    &part("nf_tables connection tracking (CONFIG_NFT_CT)", Some("nft_ct"), (3, 13));
pub(super) const FIB: &KernelPart = &part(
    "nf_tables look-ups of addresses for both families (CONFIG_NFT_FIB_INET)",
    Some("nft_fib_inet"),
    (4, 10),
);
pub(super) const REJECT: &KernelPart =
    &part("nf_tables reject for both families (CONFIG_NFT_REJECT_INET)", Some("nft_reject_inet"), (3, 14));
pub(super) const LOG: &KernelPart = &part(
    "nf_tables log to a group, with a limit (CONFIG_NFT_LOG, CONFIG_NETFILTER_NETLINK_LOG, CONFIG_NFT_LIMIT)",
    Some("nft_log, nfnetlink_log or nft_limit"),
    (3, 13),
);
/// Part of nf_tables itself since 6.1.
pub(super) const NAMED_COUNTER: &KernelPart =
    &part("nf_tables counters by name (CONFIG_NFT_OBJREF)", Some("nft_objref"), (4, 10));
/// Part of nf_tables itself since 5.17.
pub(super) const COUNTER: &KernelPart =
    &part("nf_tables counters (CONFIG_NFT_COUNTER)", Some("nft_counter"), (3, 13));
/// Part of nf_tables itself since 5.4.
pub(super) const SETS: &KernelPart =
    &part("nf_tables sets (CONFIG_NF_TABLES_SET)", Some("nf_tables_set"), (3, 13));

/// With it, tables that a program keeps for itself.
pub(super) const TRACE: &KernelPart =
    &part("nf_tables tables that end with their program (CONFIG_NF_TABLES)", None, (5, 12));

const fn part(name: &'static str, module: Option<&'static str>, (major, minor): (u32, u32)) -> KernelPart {
    KernelPart { name, module, since: Release(major, minor) }
}

// === impl Release ===

impl Release {
    /// That of the running kernel.
    fn running() -> Option<Self> {
        Self::parse(&uname().release().to_string_lossy())
    }

    /// From the text of `uname -r`, such as `5.15.0-91-generic`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Some(Self(major, minor)),
            _ => None,
        }
    }
}

/// Whether the running kernel takes a reject where packets arrive.
#[must_use]
pub fn rejects_arriving() -> bool {
    Release::running().is_none_or(takes_arriving_rejects)
}

pub(super) fn takes_arriving_rejects(release: Release) -> bool {
    release >= Release(5, 9)
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}.{}", self.0, self.1)
    }
}

// === impl MissingPart ===

impl MissingPart {
    /// The running kernel lacks this part.
    pub(super) fn here(part: &'static KernelPart) -> Self {
        Self { part, kernel: Release::running() }
    }

    /// As if the running kernel had this release.
    #[cfg(test)]
    pub(super) fn on(self, kernel: Option<Release>) -> Self {
        Self { kernel, ..self }
    }
}

impl MissingPart {
    /// What is missing.
    pub(crate) fn name(&self) -> &'static str {
        self.part.name
    }

    /// What helps. A module is named only where it can help: not on a kernel that is older than the part. A distribution may have brought a
    /// part to an older kernel; then the kernel has loaded its module itself.
    pub(crate) fn advice(&self) -> String {
        let KernelPart { module, since, .. } = self.part;
        match (self.kernel, module) {
            (Some(kernel), _) if kernel < *since => format!("it came with {since}; this is {kernel}"),
            (_, Some(module)) => format!("load the module {module}"),
            (_, None) => "it is in no module: another kernel has to be started".to_owned(),
        }
    }
}

impl fmt::Display for MissingPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.name(), self.advice())
    }
}
