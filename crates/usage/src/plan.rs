//! The rules of a pod's namespace that count.
//!
//! Each hook has two base chains, one just before the place where policies judge and one just behind it: what the first has counted and the second has
//! not was dropped between them. Behind it packets are counted by the class of the other end, in counters with names that go on when rules or members
//! of classes change, and once more where they begin a connection.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use policy::compile::{EGRESS_PRIORITY, INGRESS_PRIORITY};
use ruleset::{
    Action, Base, Chain, ChainKind, CtState, Element, Family, Hook, Key, KeyType, KnownChain, Match,
    Protocol, Rule, Ruleset, Set, Side, Table, TableKind,
};

use policy::TrafficDirection;

use crate::class::PeerClass;
use crate::direction::{BOTH, short};

/// The owner of the rules.
pub const USAGE_OWNER: &str = "istio-usage";
/// Their table: of the kinds the one whose own place is before all chains here.
pub const USAGE_TABLE: TableKind = TableKind::Raw;

const KNOWN_CHAINS: &[KnownChain] = &[KnownChain::beginning(USAGE_TABLE, "istio-usage-")];

/// ICMPv6 that connection tracking leaves alone (`noct_valid_new` of nf_conntrack_proto_icmpv6.c), which begins no connection: groups,
/// routers and neighbours.
const UNTRACKED: [u8; 9] = [130, 131, 132, 133, 134, 135, 136, 137, 143];

/// The end of names of counters of connections.
const NEW: &str = "-new";
/// The counter of everything before it is judged. The kernel lists counters as they were made, which is by name: this one before the next, so that
/// packets which pass in between are not taken for dropped ones.
const ALL: &str = "all";
/// The counter of what is left of it behind that.
const PASSED: &str = "passed";

/// A class of a pod's tenant, and which addresses are in it. Pods of a tenant share them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageClass {
    /// Which.
    pub class: PeerClass,
    /// Sorted, each once.
    pub members: Arc<[IpAddr]>,
}

/// What is counted of a pod of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsagePlan {
    /// In the order in which they are asked. What is in none is [`PeerClass::External`], which is not to be among them, nor is [`PeerClass::Denied`].
    pub classes: Vec<UsageClass>,
}

// === impl UsagePlan ===

impl UsagePlan {
    /// The rules, without the members of their sets.
    pub fn rules(&self) -> Ruleset {
        let sets = self.classes.iter().flat_map(|class| {
            FAMILIES.map(|family| Set::kept(set_name(&class.class, family), KeyType::Address(family)))
        });
        let chains = BOTH.into_iter().flat_map(|direction| self.chains(direction));
        let table = Table { kind: USAGE_TABLE, sets: sets.collect(), chains: chains.collect() };
        Ruleset { tables: vec![table], ..Self::no_rules() }
    }

    /// The owner of the rules, without any: with it they are looked for and removed.
    pub fn no_rules() -> Ruleset {
        Ruleset {
            owner: USAGE_OWNER.into(),
            known_chains: KNOWN_CHAINS.into(),
            ipv6: true,
            tables: Vec::new(),
        }
    }

    /// What is in each set, sorted by its key.
    pub fn members(&self) -> BTreeMap<String, Vec<Element>> {
        let mut found = BTreeMap::new();
        for class in &self.classes {
            for family in FAMILIES {
                let of_family =
                    class.members.iter().filter(|address| Family::of_address(**address) == family);
                let elements = of_family.map(|address| Key::Address(*address).into()).collect();
                found.insert(set_name(&class.class, family), elements);
            }
        }
        found
    }

    /// What a name of a counter stands for.
    pub(crate) fn counters(&self) -> BTreeMap<String, (TrafficDirection, CounterMeaning)> {
        let mut found = BTreeMap::new();
        let external = PeerClass::External;
        for direction in BOTH {
            let classes = self.classes.iter().map(|class| &class.class).chain([&external]);
            for class in classes {
                let name = counter(direction, &class.short());
                found.insert(format!("{name}{NEW}"), (direction, CounterMeaning::Connections(class.clone())));
                found.insert(name, (direction, CounterMeaning::Traffic(class.clone())));
            }
            found.insert(counter(direction, ALL), (direction, CounterMeaning::Attempted));
            found.insert(counter(direction, PASSED), (direction, CounterMeaning::Passed));
        }
        found
    }

    fn chains(&self, direction: TrafficDirection) -> Vec<Chain> {
        let (hook, judged) = match direction {
            TrafficDirection::Egress => (Hook::Postrouting, EGRESS_PRIORITY),
            TrafficDirection::Ingress => (Hook::Prerouting, INGRESS_PRIORITY),
        };
        let base = |priority| Some(Base { kind: ChainKind::Filter, hook, priority });
        let name = "lo".into();
        let lo = match direction {
            TrafficDirection::Egress => Match::OutInterface { name, not: false },
            TrafficDirection::Ingress => Match::InInterface { name, not: false },
        };
        let skip = |matches, why: &'static str| Rule::new(matches, Action::Return, why).uncounted();
        let inside = skip(vec![lo], "what stays in the pod is not counted");
        let chain = |end: &str| format!("istio-usage-{}{end}", short(direction));
        let to = |name: String, why: &'static str| {
            Rule::new(Vec::new(), Action::Jump(name.into()), why).uncounted()
        };
        let all = Rule::new(Vec::new(), Action::Return, "all, before it is judged")
            .counted_as(counter(direction, ALL));
        let mut behind = vec![
            inside.clone(),
            to(chain(""), "by the class of the other end").counted_as(counter(direction, PASSED)),
            skip(vec![Match::CtState(CtState::RelatedOrEstablished)], "begins no connection"),
            skip(vec![Match::CtState(CtState::Invalid)], "belongs to no connection"),
        ];
        behind.extend(UNTRACKED.map(|kind| {
            let matches = vec![Match::Protocol(Protocol::Icmpv6), Match::IcmpType { kind, code: None }];
            skip(matches, "discovery begins no connection")
        }));
        behind.push(to(chain(NEW), "connections by the class of the other end"));
        let late = format!("{}{}", hook.name(), Chain::LATE);
        vec![
            Chain { name: hook.name().into(), base: base(judged - 1), rules: vec![inside, all], leading: 0 },
            Chain { name: late.into(), base: base(judged + 1), rules: behind, leading: 0 },
            Chain { name: chain("").into(), base: None, rules: self.by_class(direction, ""), leading: 0 },
            Chain { name: chain(NEW).into(), base: None, rules: self.by_class(direction, NEW), leading: 0 },
        ]
    }

    fn by_class(&self, direction: TrafficDirection, end: &str) -> Vec<Rule> {
        let side = match direction {
            TrafficDirection::Egress => Side::Destination,
            TrafficDirection::Ingress => Side::Source,
        };
        let named = |class: &PeerClass| format!("{}{end}", counter(direction, &class.short()));
        let mut rules = Vec::new();
        for class in self.classes.iter().map(|class| &class.class) {
            for family in FAMILIES {
                let (set, keys) = (set_name(class, family).into(), KeyType::Address(family));
                let is_member = match side {
                    Side::Source => Match::SourceIn { set, keys, not: false },
                    Side::Destination => Match::DestinationIn { set, keys, not: false },
                };
                let rule = Rule::new(vec![is_member], Action::Return, class.to_string());
                rules.push(rule.counted_as(named(class)));
            }
        }
        let class = PeerClass::External;
        rules.push(Rule::new(Vec::new(), Action::Return, class.to_string()).counted_as(named(&class)));
        rules
    }
}

/// What a counter counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CounterMeaning {
    /// Everything, before it is judged.
    Attempted,
    /// What is left of that behind the place where it is judged.
    Passed,
    /// Packets of a class.
    Traffic(PeerClass),
    /// Those of them that begin a connection.
    Connections(PeerClass),
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn counter(direction: TrafficDirection, class: &str) -> String {
    format!("{}-{class}", short(direction))
}

fn set_name(class: &PeerClass, family: Family) -> String {
    let family = if family == Family::V4 { 4 } else { 6 };
    format!("usage-{}-{family}", class.short())
}
