//! What every node has: the chains that packets come to, the maps and the set of the node's pods.

use ruleset::{Action, Base, Chain, ChainKind, CtState, Family, Hook, KeyType, Match, Rule, Set, Side};

use super::super::{EGRESS_PRIORITY, OWN_NODE, answers, discovery};
use super::{EgressToOwnNode, EnforcementSettings, Established};
use crate::terms::TrafficDirection;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// After the hooks at which IPVS takes what is for its services (98 and 99, `ip_vs_ops` in ip_vs_core.c), so that what is seen stays on the node.
const INPUT_PRIORITY: i32 = 101;

/// The name of a map of addresses.
pub(super) fn map(direction: TrafficDirection, family: Family) -> &'static str {
    match (direction, family) {
        (TrafficDirection::Egress, Family::V4) => "istio-np-egress-v4",
        (TrafficDirection::Egress, Family::V6) => "istio-np-egress-v6",
        (TrafficDirection::Ingress, Family::V4) => "istio-np-ingress-v4",
        (TrafficDirection::Ingress, Family::V6) => "istio-np-ingress-v6",
    }
}

/// The name of the set of addresses of the node's pods.
pub(super) fn local_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "istio-np-local-v4",
        Family::V6 => "istio-np-local-v6",
    }
}

/// The maps and the sets that are there without any policy.
pub(super) fn sets() -> impl Iterator<Item = Set> {
    let of = |name, family| Set::kept(name, KeyType::Address(family));
    let maps = [TrafficDirection::Egress, TrafficDirection::Ingress]
        .into_iter()
        .flat_map(move |direction| FAMILIES.map(|family| of(map(direction, family), family).to_verdicts()));
    maps.chain(FAMILIES.map(|family| of(local_set(family), family)))
}

pub(super) fn chains(settings: EnforcementSettings) -> Vec<Chain> {
    let mut egress = never_judged(settings);
    egress.extend(judged(TrafficDirection::Egress));
    let mut ingress = never_judged(settings);
    ingress.extend(own_node());
    ingress.extend(judged(TrafficDirection::Ingress));
    let mut chains = vec![
        base("postrouting", Hook::Postrouting, EGRESS_PRIORITY, egress),
        base("postrouting-late", Hook::Postrouting, EGRESS_PRIORITY + 1, ingress),
    ];
    if settings.egress_to_own_node == EgressToOwnNode::Judge {
        let lo = Match::InInterface { name: "lo".into(), not: false };
        let mut to_node = vec![Rule::new(vec![lo], Action::Accept, "what stays in the node is not judged")];
        to_node.extend(never_judged(settings));
        to_node.extend(judged(TrafficDirection::Egress));
        chains.push(base("input", Hook::Input, INPUT_PRIORITY, to_node));
    }
    chains
}

fn base(name: &'static str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    let base = Some(Base { kind: ChainKind::Filter, hook, priority });
    Chain { name: name.into(), base, rules, leading: 0 }
}

fn never_judged(settings: EnforcementSettings) -> Vec<Rule> {
    let mut rules: Vec<Rule> = answers(&Action::Accept).into();
    if settings.established == Established::Keep {
        let open = vec![Match::CtState(CtState::Established)];
        rules.push(Rule::new(open, Action::Accept, "a connection that is open goes on"));
    }
    rules.extend(discovery(&Action::Accept));
    rules
}

/// Looks the packet's end up that is the pod.
fn judged(direction: TrafficDirection) -> impl Iterator<Item = Rule> {
    FAMILIES.into_iter().map(move |family| {
        let side = match direction {
            TrafficDirection::Egress => Side::Source,
            TrafficDirection::Ingress => Side::Destination,
        };
        let (map, keys) = (map(direction, family).into(), KeyType::Address(family));
        Rule::new(Vec::new(), Action::VerdictMap { map, keys, side }, format!("{direction} policies of pods"))
    })
}

/// The node's own processes. What a pod sends is never theirs, whatever brings it here: a node may have its pods' addresses, and a proxy on it
/// may use them.
fn own_node() -> impl Iterator<Item = Rule> {
    let accept = |sent: Match| {
        FAMILIES.map(|family| {
            let keys = KeyType::Address(family);
            let pods = Match::SourceIn { set: local_set(family).into(), keys, not: true };
            Rule::new(vec![sent.clone(), pods], Action::Accept, OWN_NODE)
        })
    };
    accept(Match::LocalSocket).into_iter().chain(accept(Match::OwnSource))
}
