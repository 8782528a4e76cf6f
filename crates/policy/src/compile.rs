//! The policies of one pod as rules in its own network namespace, for both backends; and those of all pods in the node's (`node`).
//!
//! Each direction is a base chain that lets pass what is never judged, then a chain for each section. A section's chain accepts, drops, or returns to
//! the next one. Sets that follow pods are kept by whoever applies the index's effects; blocks are part of the rules.

mod answer;
mod blocks;
mod conditions;
mod entry;
mod interface;
mod left;
mod log;
mod node;
mod parts;
mod rules;
#[cfg(test)]
pub(crate) mod tests;
mod tunnel;

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::slice;
use std::sync::Arc;

use ipnet::IpNet;
use ruleset::{
    Action, Backend, Base, Chain, ChainKind, CtState, Family, Hook, Key, KeyType, KnownChain, Match,
    Protocol, Rule, Ruleset, Set, Table, TableKind,
};

use crate::index::{NamedRoom, PeerSet, PodClasses, PolicyClass, PolicyIndex};
use crate::terms::{Section, TrafficDirection};
use answer::{ANSWERING, ChainRole, answer_chain};
pub use answer::{DenialAnswer, iptables_answers, no_iptables_answers};
pub use entry::{ENTRY_CHAIN, ENTRY_TABLE, EntryInterface, EntryProbe, NodeEntry};
pub use interface::ClusterInterface;
pub use left::{LeftOut, LeftOutReason};
pub use log::{
    ANSWERED_PREFIX, AUDIT_PREFIX, LOG_GROUP, LOG_PREFIX, LogMark, LoggedFate, is_denying_chain, log_number,
    log_number_text,
};
pub use node::{
    CompiledNode, EgressToOwnNode, EnforcementSettings, Established, NodeMembers, NodeRules, compile_node,
};
use rules::Compiler;

/// The owner of the rules.
pub const POLICY_OWNER: &str = "istio-policy";

/// Where what comes to a pod is judged in its namespace by nf_tables: before the chains that change a packet's destination there, and after connection
/// tracking.
pub const INGRESS_PRIORITY: i32 = -160;
/// The same of what leaves it: before source addresses are changed.
pub const EGRESS_PRIORITY: i32 = 95;

/// Why the own node passes.
pub(crate) const OWN_NODE: &str = "the pod's own node reaches it, as kubelet's probes do";

pub(crate) const KNOWN_CHAINS: &[KnownChain] = &[
    KnownChain::beginning(TableKind::Mangle, "istio-np-"),
    KnownChain::beginning(TableKind::Mangle, ANSWERING),
];

/// The most rules of the policies of a direction that a packet meets, and the most that there are of them.
const MAX_CLASS_RULES: usize = 2 * NamedRoom::MOST;
/// The most prefixes that the blocks of a direction's policies become.
const MAX_CLASS_PREFIXES: usize = 65_536;

/// The set of the own node's addresses.
const NODE: [&str; 2] = ["istio-np-node-v4", "istio-np-node-v6"];

/// Rules of a pod, and what is to be kept in their sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledPod {
    /// The rules.
    pub rules: Ruleset,
    /// The sets that follow pods.
    pub kept: Vec<KeptSet>,
    /// The sets of addresses of Services, for what [`crate::service_verdicts`] says of the pod's egress class.
    pub services: Vec<ServiceSet>,
    /// What the policies say and the rules do not.
    pub left_out: Vec<LeftOut>,
}

/// A set that follows pods: its name, the family of its members, and what it means.
pub type KeptSet = (String, Family, Arc<PeerSet>);

/// A set of addresses and ports of Services: its name, the family of its members, and whether they are allowed or denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSet {
    /// In the kernel.
    pub name: String,
    /// Of its members.
    pub family: Family,
    /// Whether what is in it is allowed.
    pub allowed: bool,
}

/// What a pod's rules have beside the policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodPoint<'a> {
    /// The own node's addresses.
    pub node: &'a [IpAddr],
    /// Whether the pod's packets still go to addresses of Services, so that sets have to say which of these are allowed.
    pub services: bool,
    /// Where the pod is in ambient mode: the addresses from which the own node's probes seem to come, by TCP.
    pub enrolled: Option<&'a [IpAddr]>,
    /// Of such a pod only what is inside the tunnel is judged: the node's rules judge the rest, and the tunnel itself.
    pub inner: bool,
    /// Which denied packets are answered. In iptables none is: it answers only where a sidecar's ports are not the application's any more.
    pub answer: DenialAnswer,
    /// Whether the kernel answers where packets arrive: since Linux 5.9.
    pub answers_arriving: bool,
}

/// The rules for a pod in its own network namespace.
pub fn compile_pod(
    index: &PolicyIndex,
    classes: &PodClasses,
    point: &PodPoint<'_>,
    backend: Backend,
) -> CompiledPod {
    // In iptables the rules of other owners stand in the same chains, and capture what is allowed: it returns to them.
    let returns = backend == Backend::Iptables && classes.iter().all(|class| can_return(class));
    let services = classes.egress.as_ref().filter(|_| point.services).map(|class| service_sets(class));
    let services = services.unwrap_or_default();
    let mut deciding = Compiler::new(index);
    if returns {
        deciding = deciding.returning();
    }
    let mut answering = Compiler::new(index).answering(point.answer);
    let mut chains = PodChains::default();
    for direction in [TrafficDirection::Egress, TrafficDirection::Ingress] {
        let Some(class) = classes.of_direction(direction) else { continue };
        let can_answer =
            backend == Backend::Nftables && (direction == TrafficDirection::Egress || point.answers_arriving);
        let is_answered = can_answer && point.answer.is_of(class, index);
        let of = PodClass { class, point, backend, returns, services: &services, is_answered };
        of.chains(&mut deciding, &mut chains);
        if is_answered {
            of.chains(&mut answering, &mut chains);
        }
    }
    if !chains.attached.is_empty() && chains.regular.iter().any(|chain| chain.name.starts_with(ANSWERING)) {
        chains.regular.push(answer_chain(backend));
    }
    // What answers looks into the same sets, and lacks the same.
    let (mut sets, kept, left_out) = deciding.finish();
    if classes.ingress.is_some() {
        sets.extend(node_sets(point.node));
    }
    sets.extend(services.iter().map(|set| Set::kept(set.name.clone(), KeyType::Endpoint(set.family))));
    let chains = [chains.attached, chains.regular].concat();
    let tables =
        if chains.is_empty() { Vec::new() } else { vec![Table { kind: TableKind::Mangle, sets, chains }] };
    let rules = Ruleset { owner: POLICY_OWNER.into(), known_chains: KNOWN_CHAINS.into(), ipv6: true, tables };
    CompiledPod { rules, kept, services, left_out }
}

/// The chains of a pod.
#[derive(Default)]
struct PodChains {
    /// Those that packets come to, with what these lead to in iptables.
    attached: Vec<Chain>,
    regular: Vec<Chain>,
}

/// A class of a pod.
struct PodClass<'a> {
    class: &'a PolicyClass,
    point: &'a PodPoint<'a>,
    backend: Backend,
    returns: bool,
    services: &'a [ServiceSet],
    /// Whether chains that answer come before those that decide.
    is_answered: bool,
}

impl PodClass<'_> {
    /// The chains of one role.
    fn chains(&self, compiler: &mut Compiler<'_>, chains: &mut PodChains) {
        let (class, point, role) = (self.class, self.point, compiler.role());
        let (direction, pass) = (class.direction, compiler.pass());
        let (sections, apart) = compiler.class(class);
        let tunnel = point.enrolled.map(|_| compiler.tunnel(class));
        let denied = compiler.denial(point.answer == DenialAnswer::Always).0;
        let of_services = self.services.iter().map(|set| service_rule(set, &pass, &denied));
        let known = chains.attached.len();
        let is_late = self.is_answered && role == ChainRole::Decide;
        // Beside the node's rules what the application asks for is judged where it is known what it asks for.
        let asks = direction == TrafficDirection::Egress && (point.services || !point.inner);
        if let Some(tunnel) = tunnel.as_ref().filter(|_| asks) {
            let tcp = Match::Protocol(Protocol::Tcp);
            let mut asked = tunnel::not_asked(&pass);
            asked.extend(of_services.clone());
            asked.extend(tunnel::section_jumps(
                (class, role),
                &sections,
                Some((&tunnel.opening, &tcp)),
                slice::from_ref(&tcp),
            ));
            chains.attached.extend(attached(tunnel::output(self.backend), asked, is_late, self.returns));
        }
        let answers_leaving = role == ChainRole::Answer && direction == TrafficDirection::Egress;
        if answers_leaving && point.enrolled.is_none() {
            let mut rules = not_leaving(&pass);
            rules.extend(of_services);
            rules.extend(tunnel::section_jumps((class, role), &sections, None, &[]));
            chains.attached.extend(attached(answering_output(), rules, false, false));
        } else if !answers_leaving && (direction == TrafficDirection::Ingress || !point.inner) {
            let mut rules = not_judged(direction, point, &pass);
            if let Some(tunnel) = tunnel.as_ref().filter(|_| !point.inner) {
                rules.extend(tunnel.jumps(&[tunnel::tunnelled(direction)]));
            }
            rules.extend(of_services.filter(|_| direction == TrafficDirection::Egress));
            let lo = Match::InInterface { name: "lo".into(), not: false };
            let opening = tunnel.as_ref().filter(|_| direction == TrafficDirection::Ingress);
            let opening = opening.map(|tunnel| (&*tunnel.opening, &lo));
            rules.extend(tunnel::section_jumps((class, role), &sections, opening, &[]));
            let is_late = is_late && direction == TrafficDirection::Ingress;
            chains.attached.extend(attached(base(direction, self.backend), rules, is_late, self.returns));
        }
        if role == ChainRole::Decide || chains.attached.len() > known {
            chains.regular.extend(sections.into_iter().chain(apart));
            let outer = tunnel.into_iter().filter(|_| !point.inner).flat_map(|tunnel| tunnel.outer);
            chains.regular.extend(outer);
        }
    }
}

/// Where what leaves a pod is answered: the kernel does not do so where it is judged, after all translations.
fn answering_output() -> Base {
    let priority = TableKind::Filter.priority(Hook::Output) + 1;
    Base { kind: ChainKind::Filter, hook: Hook::Output, priority }
}

/// What is not judged there. What was redirected to the pod itself still seems to leave by the interface that it was routed to first.
fn not_leaving(pass: &Action) -> Vec<Rule> {
    let mut rules = never_judged(TrafficDirection::Egress, pass);
    let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let nets = own.into_iter().zip([8, 128]).filter_map(|(own, length)| IpNet::new(own, length).ok());
    rules.extend(nets.map(|net| {
        let matches = vec![Match::Destination { net: net.trunc(), not: false }];
        Rule::new(matches, pass.clone(), "what stays in the pod is not judged")
    }));
    rules
}

fn node_sets(node: &[IpAddr]) -> impl Iterator<Item = Set> + '_ {
    [Family::V4, Family::V6].into_iter().zip(NODE).map(|(family, name)| {
        let addresses = node.iter().filter(move |address| Family::of_address(**address) == family);
        Set::fixed(name, KeyType::Address(family), addresses.map(|address| Key::Address(*address)))
    })
}

/// The sets of Services' addresses for the pods of a class; what is denied comes first.
fn service_sets(class: &PolicyClass) -> Vec<ServiceSet> {
    let set = |(letter, allowed)| {
        [(Family::V4, 4), (Family::V6, 6)].map(|(family, number)| ServiceSet {
            name: format!("istio-np-{:016x}-{letter}{number}", class.hash()),
            family,
            allowed,
        })
    };
    [('d', false), ('s', true)].into_iter().flat_map(set).collect()
}

/// Before rules that look at addresses: that of a Service is no pod's.
fn service_rule(set: &ServiceSet, pass: &Action, denied: &Action) -> Rule {
    let (action, why) = if set.allowed {
        (pass, "all endpoints of the Service are allowed")
    } else {
        (denied, "endpoints of the Service are not allowed")
    };
    let keys = KeyType::Endpoint(set.family);
    let matches = vec![Match::DestinationIn { set: set.name.clone().into(), keys, not: false }];
    Rule::new(matches, action.clone(), why)
}

/// The chain of a hook; where what is allowed returns, rules stand in one that it leads to.
fn attached(base: Base, rules: Vec<Rule>, is_late: bool, returns: bool) -> Vec<Chain> {
    let (name, priority) = match is_late {
        true => (format!("{}{}", base.hook.name(), Chain::LATE).into(), base.priority + 1),
        false => (base.hook.name().into(), base.priority),
    };
    let base = Base { priority, ..base };
    let chain = |rules: Vec<Rule>| {
        // What goes on after this is allowed.
        Chain { name, base: Some(base), leading: rules.len(), rules }
    };
    if !returns {
        return vec![chain(rules)];
    }
    let name: Cow<'static, str> = format!("istio-np-{}", base.hook.name()).into();
    let jump = Rule::new(Vec::new(), Action::Jump(name.clone()), "policies of the pod");
    vec![chain(vec![jump]), Chain { name, base: None, rules, leading: 0 }]
}

/// What no policy of a pod judges at its point.
fn not_judged(direction: TrafficDirection, point: &PodPoint<'_>, pass: &Action) -> Vec<Rule> {
    let mut rules = never_judged(direction, pass);
    if direction == TrafficDirection::Egress {
        return rules;
    }
    if point.enrolled.is_some() {
        // The first of them: what ztunnel brings to the application goes this way, too.
        rules[0].matches.push(tunnel::ztunnels(true));
    }
    if point.inner {
        rules.insert(0, Rule::new(vec![tunnel::tunnelled(direction)], pass.clone(), "the node judges it"));
    }
    rules.extend([Family::V4, Family::V6].into_iter().zip(NODE).map(|(family, set)| {
        let own = Match::SourceIn { set: set.into(), keys: KeyType::Address(family), not: false };
        Rule::new(vec![own], pass.clone(), OWN_NODE)
    }));
    rules.extend(point.enrolled.into_iter().flatten().map(|address| {
        let source = Match::Source { net: IpNet::from(*address), not: false };
        Rule::new(vec![source, Match::Protocol(Protocol::Tcp)], pass.clone(), OWN_NODE)
    }));
    rules
}

/// Whether what a class allows can return to where the class was asked: it would return from a section to the next one otherwise.
fn can_return(class: &PolicyClass) -> bool {
    class.policies.iter().all(|policy| matches!(policy.section, Section::Tenant | Section::NetworkPolicy))
}

/// Where the rules of a direction are attached.
pub(crate) fn base(direction: TrafficDirection, backend: Backend) -> Base {
    let (hook, priority) = match direction {
        TrafficDirection::Egress => (Hook::Postrouting, EGRESS_PRIORITY),
        TrafficDirection::Ingress => (Hook::Prerouting, INGRESS_PRIORITY),
    };
    let priority = match backend {
        Backend::Nftables => priority,
        Backend::Iptables => TableKind::Mangle.priority(hook),
    };
    Base { kind: ChainKind::Filter, hook, priority }
}

/// What no policy judges. `pass` lets it go on.
pub(crate) fn never_judged(direction: TrafficDirection, pass: &Action) -> Vec<Rule> {
    let name = "lo".into();
    let lo = match direction {
        TrafficDirection::Egress => Match::OutInterface { name, not: false },
        TrafficDirection::Ingress => Match::InInterface { name, not: false },
    };
    let mut rules = vec![Rule::new(vec![lo], pass.clone(), "what stays in the pod is not judged")];
    rules.extend(answers(pass));
    rules.extend(discovery(pass));
    rules
}

/// What an allowed connection brings about.
fn answers(pass: &Action) -> [Rule; 2] {
    let passing = |matches, why: &'static str| Rule::new(matches, pass.clone(), why);
    [
        passing(vec![Match::CtState(CtState::Related)], "belongs to an allowed connection"),
        passing(
            vec![Match::CtState(CtState::Established), Match::Reply],
            "answers of an allowed connection are allowed",
        ),
    ]
}

/// Router and neighbour discovery.
fn discovery(pass: &Action) -> impl Iterator<Item = Rule> {
    (133..=137).map(|kind| {
        let matches = vec![Match::Protocol(Protocol::Icmpv6), Match::IcmpType { kind, code: None }];
        Rule::new(matches, pass.clone(), "neighbours and routers are found without policies")
    })
}

/// The name of a class's chain, where it has one for all of its sections.
fn class_name(class: &PolicyClass, role: ChainRole) -> String {
    format!("{}{:016x}", role.beginning(), class.hash())
}

/// The name of a section's chain. It says what the class means, so that chains of several classes stand beside one another.
fn chain_name(class: &PolicyClass, section: Section, role: ChainRole) -> Cow<'static, str> {
    let section = match section {
        Section::Admin => "a",
        Section::Tenant => "t",
        Section::NetworkPolicy => "n",
        Section::Baseline => "b",
    };
    format!("{}-{section}", class_name(class, role)).into()
}

/// The name of a chain of a rule, by its number among those of its class.
fn rule_chain_name(class: &PolicyClass, number: usize, role: ChainRole) -> Cow<'static, str> {
    // Each has at least two rules that a packet may meet, so that three digits are enough.
    const { assert!(MAX_CLASS_RULES / 2 < 36 * 36 * 36) };
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    let digit = |of: u32| char::from_digit(number / of % 36, 36).unwrap_or('0');
    format!("{}{}{}{}", class_name(class, role), digit(36 * 36), digit(36), digit(1)).into()
}
