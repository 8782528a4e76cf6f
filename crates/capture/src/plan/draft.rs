//! Rules as planning finds them, sorted into chains.

use std::collections::HashMap;

use ruleset::{Action, Base, ChainKind, Hook, KnownChain, Rule, Ruleset, Table, TableKind};

use super::OWNER;

/// A chain of sidecar rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct DraftChain {
    pub(super) table: TableKind,
    pub(super) name: &'static str,
}

/// The tables in the order in which they are written, each with its chains.
pub(super) const CHAINS: &[(TableKind, &[&str])] = &[
    (
        TableKind::Nat,
        &[
            "prerouting",
            "output",
            "istio-inbound",
            "istio-redirect",
            "istio-in-redirect",
            "istio-output",
            "istio-output-dns",
        ],
    ),
    (
        TableKind::Mangle,
        &["prerouting", "output", "istio-divert", "istio-tproxy", "istio-inbound", "istio-drop"],
    ),
    (TableKind::Raw, &["prerouting", "output", "istio-inbound", "istio-output-dns"]),
];

/// The regular ones among [`CHAINS`].
const KNOWN_CHAINS: &[KnownChain] = &[
    KnownChain::named(TableKind::Nat, "istio-inbound"),
    KnownChain::named(TableKind::Nat, "istio-redirect"),
    KnownChain::named(TableKind::Nat, "istio-in-redirect"),
    KnownChain::named(TableKind::Nat, "istio-output"),
    KnownChain::named(TableKind::Nat, "istio-output-dns"),
    KnownChain::named(TableKind::Mangle, "istio-divert"),
    KnownChain::named(TableKind::Mangle, "istio-tproxy"),
    KnownChain::named(TableKind::Mangle, "istio-inbound"),
    KnownChain::named(TableKind::Mangle, "istio-drop"),
    KnownChain::named(TableKind::Raw, "istio-inbound"),
    KnownChain::named(TableKind::Raw, "istio-output-dns"),
];

impl DraftChain {
    pub(super) const NAT_PREROUTING: Self = Self::prerouting(TableKind::Nat);
    pub(super) const NAT_INBOUND: Self = Self::inbound(TableKind::Nat);
    pub(super) const NAT_REDIRECT: Self = Self::new(TableKind::Nat, "istio-redirect");
    pub(super) const NAT_IN_REDIRECT: Self = Self::new(TableKind::Nat, "istio-in-redirect");
    pub(super) const NAT_OUTPUT: Self = Self::new(TableKind::Nat, "istio-output");
    pub(super) const NAT_DNS: Self = Self::new(TableKind::Nat, "istio-output-dns");
    pub(super) const MANGLE_PREROUTING: Self = Self::prerouting(TableKind::Mangle);
    pub(super) const MANGLE_OUTPUT: Self = Self::output(TableKind::Mangle);
    pub(super) const MANGLE_DIVERT: Self = Self::new(TableKind::Mangle, "istio-divert");
    pub(super) const MANGLE_TPROXY: Self = Self::new(TableKind::Mangle, "istio-tproxy");
    pub(super) const MANGLE_INBOUND: Self = Self::inbound(TableKind::Mangle);
    pub(super) const MANGLE_DROP: Self = Self::new(TableKind::Mangle, "istio-drop");
    pub(super) const RAW_PREROUTING: Self = Self::prerouting(TableKind::Raw);
    pub(super) const RAW_OUTPUT: Self = Self::output(TableKind::Raw);
    pub(super) const RAW_INBOUND: Self = Self::inbound(TableKind::Raw);
    pub(super) const RAW_DNS: Self = Self::new(TableKind::Raw, "istio-output-dns");

    const fn new(table: TableKind, name: &'static str) -> Self {
        Self { table, name }
    }

    pub(super) const fn prerouting(table: TableKind) -> Self {
        Self::new(table, "prerouting")
    }

    pub(super) const fn output(table: TableKind) -> Self {
        Self::new(table, "output")
    }

    pub(super) const fn inbound(table: TableKind) -> Self {
        Self::new(table, "istio-inbound")
    }

    fn base(self) -> Option<Base> {
        let hook = match self.name {
            "prerouting" => Hook::Prerouting,
            "output" => Hook::Output,
            _ => return None,
        };
        let kind = match (self.table, hook) {
            (TableKind::Nat, _) => ChainKind::Nat,
            // A mark that is set here must lead to another route.
            (TableKind::Mangle, Hook::Output) => ChainKind::Route,
            _ => ChainKind::Filter,
        };
        Some(Base { kind, hook, priority: self.table.priority(hook) })
    }
}

/// The rules of each chain so far.
pub(super) struct Draft {
    chains: HashMap<DraftChain, Content>,
}

#[derive(Default)]
struct Content {
    /// Rules put before all others, the foremost last.
    first: Vec<Rule>,
    rest: Vec<Rule>,
}

impl Draft {
    pub(super) fn new() -> Self {
        Self { chains: HashMap::new() }
    }

    /// After the rules so far.
    pub(super) fn add(&mut self, chain: DraftChain, rule: Rule) {
        self.chains.entry(chain).or_default().rest.push(rule);
    }

    /// Before all rules so far.
    pub(super) fn insert_first(&mut self, chain: DraftChain, rule: Rule) {
        self.chains.entry(chain).or_default().first.push(rule);
    }

    pub(super) fn finish(mut self, ipv6: bool) -> Ruleset {
        let tables = CHAINS.iter().filter_map(|&(kind, names)| {
            let chains: Vec<ruleset::Chain> = names
                .iter()
                .map(|&name| {
                    let chain = DraftChain::new(kind, name);
                    let Content { mut first, mut rest } = self.chains.remove(&chain).unwrap_or_default();
                    let leading = first.len();
                    first.reverse();
                    first.append(&mut rest);
                    ruleset::Chain { name: name.into(), base: chain.base(), rules: first, leading }
                })
                .collect();
            let used: Vec<bool> = chains.iter().map(|chain| is_used(&chains, chain)).collect();
            let chains: Vec<_> =
                chains.into_iter().zip(used).filter_map(|(chain, used)| used.then_some(chain)).collect();
            (!chains.is_empty()).then_some(Table { kind, sets: Vec::new(), chains })
        });
        Ruleset { owner: OWNER.into(), known_chains: KNOWN_CHAINS.into(), ipv6, tables: tables.collect() }
    }
}

fn is_used(chains: &[ruleset::Chain], chain: &ruleset::Chain) -> bool {
    let jump = Action::Jump(chain.name.clone());
    !chain.rules.is_empty() || chains.iter().flat_map(|c| &c.rules).any(|rule| rule.action == jump)
}
