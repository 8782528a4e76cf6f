//! The guard: rules that isolate a pod in its own network namespace while the rules of its policies are not there yet.
//!
//! It has the owner and the table of the rules by which a pod is judged in its own namespace, so that these take its place in one transaction. What
//! passes goes on to the rules of other owners in both backends: the exceptions stand in a chain of their own and return from it.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use facts::networkpolicy::Isolation;
use ipnet::IpNet;
use ruleset::{Action, Backend, Chain, Match, Protocol, Rule, Ruleset, Table, TableKind};

use crate::compile::{KNOWN_CHAINS, OWN_NODE, POLICY_OWNER, base, never_judged};
use crate::terms::TrafficDirection;

/// The most addresses of the own node that pass, each of which is a rule. A node tells some.
pub const MAX_NODE_ADDRESSES: usize = 64;

/// Who reaches a guarded pod.
#[derive(Debug, Clone, Copy, Default)]
pub struct Admitted<'a> {
    /// The own node's addresses.
    pub node: &'a [IpAddr],
    /// Addresses from which the own node's probes seem to come, by TCP.
    pub probes: &'a [IpAddr],
}

/// Rules that isolate a pod in these directions: answers, what stays in the pod, discovery and the own node pass, nothing else. None in no
/// direction.
pub fn plan_guard(isolation: Isolation, admitted: Admitted<'_>, backend: Backend) -> Ruleset {
    let mut chains = Vec::new();
    if isolation.egress {
        let rules = never_judged(TrafficDirection::Egress, &Action::Return);
        chains.extend(guarded(TrafficDirection::Egress, rules, backend));
    }
    if isolation.ingress {
        let mut rules = never_judged(TrafficDirection::Ingress, &Action::Return);
        let source = |address: &IpAddr| Match::Source { net: IpNet::from(*address), not: false };
        let own = |matches| Rule::new(matches, Action::Return, OWN_NODE);
        rules.extend(admitted.node.iter().take(MAX_NODE_ADDRESSES).map(|address| own(vec![source(address)])));
        let probe = |address| own(vec![source(address), Match::Protocol(Protocol::Tcp)]);
        rules.extend(admitted.probes.iter().map(probe));
        chains.extend(guarded(TrafficDirection::Ingress, rules, backend));
    }
    let tables = match chains.is_empty() {
        true => Vec::new(),
        false => vec![Table { kind: TableKind::Mangle, sets: Vec::new(), chains }],
    };
    Ruleset { tables, ..no_rules() }
}

/// The owner of the guard and of a pod's own rules, without any: with it both are looked for and removed.
pub fn no_rules() -> Ruleset {
    Ruleset { owner: POLICY_OWNER.into(), known_chains: KNOWN_CHAINS.into(), ipv6: true, tables: Vec::new() }
}

/// The chain of a hook and the one that it leads to.
fn guarded(direction: TrafficDirection, mut rules: Vec<Rule>, backend: Backend) -> [Chain; 2] {
    let base = base(direction, backend);
    let name = match direction {
        TrafficDirection::Egress => "istio-np-guard-out",
        TrafficDirection::Ingress => "istio-np-guard-in",
    };
    rules.push(Rule::new(Vec::new(), Action::Drop, "the pod's policies are not in force yet"));
    let jump = Rule::new(Vec::new(), Action::Jump(name.into()), "policies isolate the pod");
    [
        // Before the rules of others in iptables, as all of a pod's own rules.
        Chain { name: base.hook.name().into(), base: Some(base), rules: vec![jump], leading: 1 },
        Chain { name: name.into(), base: None, rules, leading: 0 },
    ]
}
