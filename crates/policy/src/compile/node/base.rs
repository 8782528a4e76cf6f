//! What every node has: the chains that packets come to, who is isolated, and the set of the node's pods.

use std::borrow::Cow;

use ruleset::{
    Action, Backend, Base, Chain, ChainKind, CtState, Family, Hook, KeyType, MapVerdict, Match, Rule, Set,
    Side, TableKind,
};

use super::super::answer::{ChainRole, DenialAnswer, answer_chain};
use super::super::rules::regular;
use super::super::{EGRESS_PRIORITY, OWN_NODE, answers, discovery};
use super::{EgressToOwnNode, EnforcementSettings, Established};
use crate::terms::TrafficDirection;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const DIRECTIONS: [TrafficDirection; 2] = [TrafficDirection::Egress, TrafficDirection::Ingress];

/// After the hooks at which IPVS takes what is for its services (98 and 99, `ip_vs_ops` in ip_vs_core.c), so that what is seen stays on the node.
const INPUT_PRIORITY: i32 = 101;

/// The name of the map of isolated addresses that lead to such chains; in iptables, of the set of them.
pub(super) fn isolated(role: ChainRole, direction: TrafficDirection, family: Family) -> &'static str {
    match (role, direction, family) {
        (ChainRole::Decide, TrafficDirection::Egress, Family::V4) => "istio-np-egress-v4",
        (ChainRole::Decide, TrafficDirection::Egress, Family::V6) => "istio-np-egress-v6",
        (ChainRole::Decide, TrafficDirection::Ingress, Family::V4) => "istio-np-ingress-v4",
        (ChainRole::Decide, TrafficDirection::Ingress, Family::V6) => "istio-np-ingress-v6",
        (ChainRole::Answer, TrafficDirection::Egress, Family::V4) => "istio-np-answer-egress-v4",
        (ChainRole::Answer, TrafficDirection::Egress, Family::V6) => "istio-np-answer-egress-v6",
        (ChainRole::Answer, TrafficDirection::Ingress, Family::V4) => "istio-np-answer-ingress-v4",
        (ChainRole::Answer, TrafficDirection::Ingress, Family::V6) => "istio-np-answer-ingress-v6",
    }
}

/// The name of the set of addresses of the node's pods.
pub(super) fn local_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "istio-np-local-v4",
        Family::V6 => "istio-np-local-v6",
    }
}

/// In iptables, the set by which an address leads where a map would lead it.
pub(super) fn leads_by(direction: TrafficDirection, family: Family, verdict: &MapVerdict) -> String {
    match verdict.chain() {
        Some(entry) => entry_set(entry, family),
        None => closed_set(direction, family).to_owned(),
    }
}

/// The sets of both families by whose members a chain is entered.
pub(super) fn entry_sets(entry: &str) -> [Set; 2] {
    FAMILIES.map(|family| Set::kept(entry_set(entry, family), KeyType::Address(family)))
}

fn entry_set(entry: &str, family: Family) -> String {
    format!("{entry}-{}", if family == Family::V4 { 4 } else { 6 })
}

/// Addresses to which everything is denied.
fn closed_set(direction: TrafficDirection, family: Family) -> &'static str {
    match (direction, family) {
        (TrafficDirection::Egress, Family::V4) => "istio-np-egress-closed-v4",
        (TrafficDirection::Egress, Family::V6) => "istio-np-egress-closed-v6",
        (TrafficDirection::Ingress, Family::V4) => "istio-np-ingress-closed-v4",
        (TrafficDirection::Ingress, Family::V6) => "istio-np-ingress-closed-v6",
    }
}

/// The maps and the sets that are there without any policy.
pub(super) fn sets(settings: EnforcementSettings) -> impl Iterator<Item = Set> {
    let of = |name, family| Set::kept(name, KeyType::Address(family));
    let in_both = |name: fn(TrafficDirection, Family) -> &'static str| {
        let each = move |direction| FAMILIES.map(|family| of(name(direction, family), family));
        DIRECTIONS.into_iter().flat_map(each)
    };
    let deciding = |direction, family| isolated(ChainRole::Decide, direction, family);
    let answering = |direction, family| isolated(ChainRole::Answer, direction, family);
    let mut sets: Vec<Set> = in_both(deciding).collect();
    match settings.backend {
        Backend::Nftables => {
            sets.extend(in_both(answering).filter(|_| settings.answer != DenialAnswer::Never));
            sets = sets.into_iter().map(Set::to_verdicts).collect();
        }
        Backend::Iptables => {
            sets.extend(in_both(closed_set));
        }
    }
    sets.into_iter().chain(FAMILIES.map(|family| of(local_set(family), family)))
}

/// The chains that packets come to, and in iptables those that these lead to.
pub(super) fn chains(settings: EnforcementSettings) -> Vec<Chain> {
    let judges_to_node = settings.egress_to_own_node == EgressToOwnNode::Judge;
    let mut chains = match settings.backend {
        Backend::Nftables => of_nftables(settings, judges_to_node),
        Backend::Iptables => of_iptables(settings, judges_to_node),
    };
    if settings.answer != DenialAnswer::Never {
        chains.extend(match settings.backend {
            Backend::Nftables => answering_in_nftables(settings),
            Backend::Iptables => answering_in_iptables(settings),
        });
        chains.push(answer_chain(settings.backend));
    }
    chains
}

fn of_nftables(settings: EnforcementSettings, judges_to_node: bool) -> Vec<Chain> {
    let pass = &Action::Accept;
    let mut egress = never_judged(settings, pass);
    egress.extend(judged(ChainRole::Decide, TrafficDirection::Egress));
    let mut ingress = never_judged(settings, pass);
    ingress.extend([Match::LocalSocket, Match::OwnSource].into_iter().flat_map(|sent| own(&[sent], pass)));
    ingress.extend(judged(ChainRole::Decide, TrafficDirection::Ingress));
    let mut chains = vec![
        base("postrouting", Hook::Postrouting, EGRESS_PRIORITY, egress),
        base("postrouting-late", Hook::Postrouting, EGRESS_PRIORITY + 1, ingress),
    ];
    if judges_to_node {
        let to_node = |role| {
            let rules = std::iter::once(stays(pass)).chain(never_judged(settings, pass));
            rules.chain(judged(role, TrafficDirection::Egress)).collect()
        };
        let decides = to_node(ChainRole::Decide);
        if settings.answer == DenialAnswer::Never {
            chains.push(base("input", Hook::Input, INPUT_PRIORITY, decides));
        } else {
            chains.push(base("input", Hook::Input, INPUT_PRIORITY, to_node(ChainRole::Answer)));
            chains.push(base("input-late", Hook::Input, INPUT_PRIORITY + 1, decides));
        }
    }
    chains
}

/// What is forwarded comes by here before it leaves: nothing that the node's own processes have begun.
fn answering_in_nftables(settings: EnforcementSettings) -> Vec<Chain> {
    let rules = |direction| {
        let never = never_judged(settings, &Action::Accept).into_iter();
        never.chain(judged(ChainRole::Answer, direction)).collect()
    };
    let priority = TableKind::Mangle.priority(Hook::Forward);
    vec![
        base("forward", Hook::Forward, priority, rules(TrafficDirection::Egress)),
        base("forward-late", Hook::Forward, priority + 1, rules(TrafficDirection::Ingress)),
    ]
}

/// The same. What pods send to the node is not answered: no table of iptables comes there after the one that answers.
fn answering_in_iptables(settings: EnforcementSettings) -> Vec<Chain> {
    let mut rules = never_judged(settings, &Action::Return);
    rules.extend(DIRECTIONS.into_iter().flat_map(|direction| led(ChainRole::Answer, direction)));
    led_to(ChainRole::Answer, "forward", Hook::Forward, rules).into()
}

fn of_iptables(settings: EnforcementSettings, judges_to_node: bool) -> Vec<Chain> {
    let pass = &Action::Return;
    let mut leaving = never_judged(settings, pass);
    leaving.extend(led(ChainRole::Decide, TrafficDirection::Egress));
    leaving.extend(own(&[Match::LocalSocket], pass));
    // Whoever may pass packets on with the node's address, which routing lets pass in IPv6, has not begun the node's own connections.
    leaving.extend(own(&[Match::CtState(CtState::Established), Match::OwnSource], pass));
    leaving.extend(led(ChainRole::Decide, TrafficDirection::Ingress));
    let mut chains: Vec<Chain> = led_to(ChainRole::Decide, "postrouting", Hook::Postrouting, leaving).into();
    if judges_to_node {
        let mut to_node = vec![stays(pass)];
        to_node.extend(never_judged(settings, pass));
        to_node.extend(led(ChainRole::Decide, TrafficDirection::Egress));
        chains.extend(led_to(ChainRole::Decide, "input", Hook::Input, to_node));
    }
    chains
}

fn base(name: &'static str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    let base = Some(Base { kind: ChainKind::Filter, hook, priority });
    Chain { name: name.into(), base, rules, leading: 0 }
}

/// In iptables: before all rules of others.
fn led_to(role: ChainRole, name: &'static str, hook: Hook, rules: Vec<Rule>) -> [Chain; 2] {
    let entered: Cow<'static, str> = format!("{}{name}", role.beginning()).into();
    let jump = Rule::new(Vec::new(), Action::Jump(entered.clone()), "policies of the node's pods");
    let base = base(name, hook, TableKind::Mangle.priority(hook), vec![jump]);
    [Chain { leading: 1, ..base }, regular(entered, rules)]
}

fn stays(pass: &Action) -> Rule {
    let lo = Match::InInterface { name: "lo".into(), not: false };
    Rule::new(vec![lo], pass.clone(), "what stays in the node is not judged")
}

fn never_judged(settings: EnforcementSettings, pass: &Action) -> Vec<Rule> {
    let mut rules: Vec<Rule> = answers(pass).into();
    if settings.established == Established::Keep {
        let open = vec![Match::CtState(CtState::Established)];
        rules.push(Rule::new(open, pass.clone(), "a connection that is open goes on"));
    }
    rules.extend(discovery(pass));
    rules
}

/// Looks the packet's end up that is the pod.
fn judged(role: ChainRole, direction: TrafficDirection) -> impl Iterator<Item = Rule> {
    FAMILIES.into_iter().map(move |family| {
        let (map, keys) = (isolated(role, direction, family).into(), KeyType::Address(family));
        Rule::new(Vec::new(), Action::VerdictMap { map, keys, side: side(direction) }, why_judged(direction))
    })
}

/// The same in iptables.
fn led(role: ChainRole, direction: TrafficDirection) -> impl Iterator<Item = Rule> {
    FAMILIES.into_iter().map(move |family| {
        let is_isolated = end_in(direction, family, isolated(ChainRole::Decide, direction, family).into());
        let dispatch = Action::Jump(dispatch_name(role, direction).into());
        Rule::new(vec![is_isolated], dispatch, why_judged(direction))
    })
}

/// The chain that leads what is of isolated pods to the chains of their classes, which are entered by `entries`. While a pod changes from one class
/// to another it is in both, and what both allow is allowed.
pub(super) fn dispatch<'e>(
    direction: TrafficDirection,
    entries: impl Iterator<Item = &'e Cow<'static, str>>,
) -> Chain {
    let mut rules: Vec<Rule> = FAMILIES
        .map(|family| {
            let is_closed = end_in(direction, family, closed_set(direction, family).into());
            Rule::new(vec![is_closed], Action::Drop, "the rules of the pod's policies cannot be made")
        })
        .into();
    rules.extend(entries.flat_map(|entry| dispatched(direction, entry, entry)));
    regular(dispatch_name(ChainRole::Decide, direction).into(), rules)
}

/// The chain that leads it to those chains that answer. `entries` are where classes are entered, which their sets are named by, and where what answers is.
pub(super) fn answering_dispatch<'e>(
    direction: TrafficDirection,
    entries: impl Iterator<Item = (&'e Cow<'static, str>, &'e Cow<'static, str>)>,
) -> Chain {
    let rules = entries.flat_map(|(entry, answering)| dispatched(direction, entry, answering)).collect();
    regular(dispatch_name(ChainRole::Answer, direction).into(), rules)
}

fn dispatched(direction: TrafficDirection, entry: &str, to: &str) -> [Rule; 2] {
    FAMILIES.map(|family| {
        let is_its = end_in(direction, family, entry_set(entry, family).into());
        Rule::new(vec![is_its], Action::Jump(to.to_owned().into()), why_judged(direction))
    })
}

fn dispatch_name(role: ChainRole, direction: TrafficDirection) -> &'static str {
    match (role, direction) {
        (ChainRole::Decide, TrafficDirection::Egress) => "istio-np-egress",
        (ChainRole::Decide, TrafficDirection::Ingress) => "istio-np-ingress",
        (ChainRole::Answer, TrafficDirection::Egress) => "istio-nr-egress",
        (ChainRole::Answer, TrafficDirection::Ingress) => "istio-nr-ingress",
    }
}

/// The packet's end that is the pod is in a set.
fn end_in(direction: TrafficDirection, family: Family, set: Cow<'static, str>) -> Match {
    let keys = KeyType::Address(family);
    match side(direction) {
        Side::Source => Match::SourceIn { set, keys, not: false },
        Side::Destination => Match::DestinationIn { set, keys, not: false },
    }
}

fn side(direction: TrafficDirection) -> Side {
    match direction {
        TrafficDirection::Egress => Side::Source,
        TrafficDirection::Ingress => Side::Destination,
    }
}

fn why_judged(direction: TrafficDirection) -> String {
    format!("{direction} policies of pods")
}

/// The node's own processes. What a pod sends is never theirs, whatever brings it here: a node may have its pods' addresses, and a proxy on it
/// may use them.
fn own(sent: &[Match], pass: &Action) -> [Rule; 2] {
    FAMILIES.map(|family| {
        let (set, keys) = (local_set(family).into(), KeyType::Address(family));
        let mut matches = sent.to_vec();
        matches.push(Match::SourceIn { set, keys, not: true });
        Rule::new(matches, pass.clone(), OWN_NODE)
    })
}
