//! The ways to load a plan, and rulesets whose rules look packets up.

use std::net::IpAddr;
use std::process::Command;

use kernel::nft::Nftables;
use kernel::sets::{ElementCounts, Sets};
use kernel::{Change, Choice, Kernel};
use netns::Host;
use ruleset::{
    Action, Base, Chain, ChainKind, Element, Family, Hook, Key, KeyType, MapVerdict, Match, Plan, Protocol,
    Rule, Ruleset, Set, SetDelta, Side, Table, TableKind, TransportAddress,
};
use testkit::TestNetns;

pub(crate) use crate::way::Way;

/// The chain of [`ruleset`] that has the rules.
const RULES: &str = "istio-deltas-rules";

/// The nf_tables table of [`ruleset`].
pub(crate) const TABLE: &str = "inet istio-deltas-filter";

impl Way {
    /// The sets of a ruleset, opened as in a pod or as on the node.
    pub(crate) fn open(self, ns: &TestNetns, ruleset: &Ruleset, node: bool) -> Sets {
        if node {
            let host = Host::open(ns.path()).unwrap();
            return host.enter(|inside| Sets::open_host(inside, self.backend(), ruleset)).unwrap().unwrap();
        }
        ns.enter(|inside| Sets::open(inside, self.backend(), ruleset)).unwrap().unwrap()
    }

    /// Makes ipsets, then loads the rules.
    pub(crate) fn load(self, ns: &TestNetns, ruleset: &Ruleset) -> (Sets, Change) {
        ruleset::check(ruleset).unwrap();
        let mut sets = self.open(ns, ruleset, false);
        sets.prepare().unwrap();
        let plan = Plan { backend: self.backend(), routing: vec![], layers: vec![ruleset.clone()] };
        let iptables = self.iptables();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        let apply =
            |inside: &netns::Inside| kernel.apply(inside, Choice::Only(plan.backend), |_| plan.clone());
        let applied = ns.enter(apply).unwrap().unwrap();
        (sets, applied.rules)
    }

    /// All rules with their counters, and in nf_tables with their handles, which a rule that is loaded again does not keep.
    pub(crate) fn rules(self, ns: &TestNetns) -> Vec<String> {
        let text = match self {
            Self::Nft => sh(ns, &format!("nft -a list table {TABLE}")),
            Self::Iptables(variant) => sh(
                ns,
                &format!("iptables-{variant}-save -c -t filter; ip6tables-{variant}-save -c -t filter"),
            ),
        };
        let is_rule = |line: &&str| line.contains("counter packets") || line.contains("] -A");
        text.lines().filter(is_rule).map(|line| line.trim().to_owned()).collect()
    }
}

pub(crate) fn sh(ns: &TestNetns, line: &str) -> String {
    ns.run(Command::new("sh").args(["-ec", line])).unwrap()
}

/// A filter table with these sets, and with these rules for what comes in.
pub(crate) fn ruleset(sets: Vec<Set>, rules: Vec<Rule>, chains: Vec<Chain>) -> Ruleset {
    let base = Base { kind: ChainKind::Filter, hook: Hook::Input, priority: 0 };
    let jump = Rule::new(vec![], Action::Jump(RULES.into()), "everything");
    let input = Chain { name: "input".into(), base: Some(base), rules: vec![jump], leading: 0 };
    let chains = [regular(RULES, rules), input].into_iter().chain(chains).collect();
    Ruleset {
        owner: "istio-deltas".into(),
        known_chains: vec![ruleset::KnownChain::beginning(TableKind::Filter, "istio-deltas-")].into(),
        ipv6: true,
        tables: vec![Table { kind: TableKind::Filter, sets, chains }],
    }
}

pub(crate) fn regular(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base: None, rules, leading: 0 }
}

/// A rule that drops what is in a set.
pub(crate) fn dropped(set: &Set, side: Side) -> Rule {
    let (name, keys) = (set.name.clone(), set.keys);
    let look_up = match side {
        Side::Source => Match::SourceIn { set: name, keys, not: false },
        Side::Destination => Match::DestinationIn { set: name, keys, not: false },
    };
    Rule::new(vec![look_up], Action::Drop, "in the set")
}

/// Kept sets with keys of every type, for both families.
pub(crate) fn every_kind() -> Vec<Set> {
    let of = |family, end: &str| {
        [
            Set { commented: true, ..Set::kept(format!("istio-np-a{end}"), KeyType::Address(family)) },
            Set::kept(format!("istio-np-n{end}"), KeyType::Prefix(family)),
            Set::kept(format!("istio-np-p{end}"), KeyType::Endpoint(family)),
        ]
    };
    of(Family::V4, "4").into_iter().chain(of(Family::V6, "6")).collect()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn address(text: &str) -> Key {
    ip(text).into()
}

pub(crate) fn net(text: &str) -> Key {
    text.parse::<ipnet::IpNet>().unwrap().into()
}

pub(crate) fn endpoint(address: IpAddr, protocol: Protocol, port: u16) -> Key {
    TransportAddress { address, protocol, port }.into()
}

pub(crate) fn leads(key: Key, verdict: MapVerdict) -> Element {
    Element { verdict: Some(verdict), ..key.into() }
}

pub(crate) fn delta(
    add: impl IntoIterator<Item = Element>,
    remove: impl IntoIterator<Item = Key>,
) -> SetDelta {
    let mut delta = SetDelta::default();
    remove.into_iter().for_each(|key| delta.remove(key));
    add.into_iter().for_each(|element| delta.add(element));
    delta
}

/// What changed.
pub(crate) fn change(sets: &mut Sets, set: &str, delta: &SetDelta) -> ElementCounts {
    sets.change(&[(set, delta)]).unwrap()
}

/// The keys of a set in order.
pub(crate) fn keys(sets: &mut Sets, set: &str) -> Vec<Key> {
    let mut keys: Vec<Key> = sets.list(set).unwrap().into_iter().map(|element| element.key).collect();
    keys.sort();
    keys
}
