//! What the samples mean, written a second time: predicates over the samples themselves.

use std::net::IpAddr;

use ipnet::IpNet;

use super::sample::{
    Labels, NODES, SampleFlow, SamplePeer, SamplePod, SamplePolicy, SamplePort, SampleRule, SampleTerm,
    SampleWorld,
};
use crate::FlowRoute;

/// Whether the source may reach the destination, and whether the destination may be reached.
pub(crate) fn allowed(world: &SampleWorld, flow: &SampleFlow) -> [bool; 2] {
    let (source, destination) = (owner(world, flow.source), owner(world, flow.destination));
    if let (Some(one), Some(other)) = (source, destination)
        && std::ptr::eq(one, other)
        && flow.route != FlowRoute::Service
    {
        return [true, true];
    }
    let may = |pod: Option<&SamplePod>, egress: bool| {
        let Some(pod) = pod else { return true };
        if !egress
            && source.is_none()
            && NODES.iter().any(|(n, all)| *n == pod.node && all.contains(&flow.source))
        {
            return true;
        }
        let isolating: Vec<&SamplePolicy> = world
            .policies
            .iter()
            .filter(|policy| isolates(policy, egress) && is_subject(policy, pod))
            .collect();
        let opens = |real: bool| {
            isolating.iter().any(|policy| {
                let rules = if egress { &policy.egress } else { &policy.ingress };
                let effective = is_direction(policy, egress)
                    && policy.subjects.iter().all(|term| holds(term, &pod.labels).is_some());
                effective && rules.iter().any(|rule| rule_opens(world, policy, rule, flow, egress, real))
            })
        };
        // Those that are only tried out allow, and deny nothing.
        isolating.iter().all(|policy| policy.tried_out)
            || opens(true)
            || (flow.route == FlowRoute::Tunnel && opens(false))
    };
    [may(source, true), may(destination, false)]
}

/// Who has an address.
fn owner<'a>(world: &'a SampleWorld, address: &str) -> Option<&'a SamplePod> {
    let live = |pod: &&SamplePod| !pod.host_network && !["Succeeded", "Failed"].contains(&pod.phase);
    let claims = world.pods.iter().filter(|pod| pod.addresses.contains(&address)).filter(live);
    let claims: Vec<&SamplePod> = claims.collect();
    let staying = claims.iter().rfind(|pod| !pod.deleting);
    staying.or_else(|| claims.last()).copied()
}

/// Whether the direction is among the types as an API server would fill them in.
fn is_direction(policy: &SamplePolicy, egress: bool) -> bool {
    match (policy.types.is_empty(), egress) {
        (true, true) => !policy.egress.is_empty(),
        (true, false) => true,
        (false, true) => policy.types.contains(&"Egress"),
        (false, false) => policy.types.contains(&"Ingress"),
    }
}

fn isolates(policy: &SamplePolicy, egress: bool) -> bool {
    let odd_type = policy.types.iter().any(|name| !["Ingress", "Egress"].contains(name));
    let odd_subjects = policy.subjects.iter().any(|term| holds(term, &Labels::new()).is_none());
    is_direction(policy, egress) || odd_type || odd_subjects
}

/// By the requirements that an API server would take.
fn is_subject(policy: &SamplePolicy, pod: &SamplePod) -> bool {
    policy.namespace == pod.namespace
        && policy.subjects.iter().all(|term| holds(term, &pod.labels) != Some(false))
}

/// Nothing if an API server would not take it.
fn holds(term: &SampleTerm, labels: &Labels) -> Option<bool> {
    let value = labels.get(term.key);
    let listed = value.is_some_and(|value| term.values.contains(value));
    match (term.operator, term.values.is_empty()) {
        ("" | "In", false) => Some(listed),
        ("NotIn", false) => Some(!listed),
        ("Exists", true) => Some(value.is_some()),
        ("DoesNotExist", true) => Some(value.is_none()),
        _ => None,
    }
}

fn all_hold(terms: &[SampleTerm], labels: &Labels) -> bool {
    terms.iter().all(|term| holds(term, labels).is_some())
        && terms.iter().all(|term| holds(term, labels) == Some(true))
}

/// `real`: for the port of the flow; else for the tunnel, by a rule that names its port.
fn rule_opens(
    world: &SampleWorld,
    policy: &SamplePolicy,
    rule: &SampleRule,
    flow: &SampleFlow,
    egress: bool,
    real: bool,
) -> bool {
    let peer = if egress { flow.destination } else { flow.source };
    let is_peer = rule.peers.is_empty() || rule.peers.iter().any(|entry| is_peer(world, policy, entry, peer));
    let is_port = match real {
        true => rule.ports.is_empty() || rule.ports.iter().any(|port| is_port(world, port, flow)),
        false => rule.ports.iter().any(|port| {
            (port.protocol, port.number, port.end.unwrap_or(15008)) == ("TCP", Some(15008), 15008)
        }),
    };
    is_peer && is_port
}

fn is_peer(world: &SampleWorld, policy: &SamplePolicy, entry: &SamplePeer, address: &str) -> bool {
    let pod = owner(world, address);
    match (&entry.pods, &entry.namespaces, &entry.block) {
        (Some(pods), None, None) => {
            pod.is_some_and(|pod| pod.namespace == policy.namespace && all_hold(pods, &pod.labels))
        }
        (pods, Some(namespaces), None) => pod.is_some_and(|pod| {
            let labels = world.namespaces.get(pod.namespace);
            let in_namespace = labels.is_some_and(|labels| all_hold(namespaces, labels));
            in_namespace && pods.as_ref().is_none_or(|pods| all_hold(pods, &pod.labels))
        }),
        (None, None, Some((net, except))) => is_in_block(net, except, address),
        _ => false,
    }
}

fn is_in_block(net: &str, except: &[&str], address: &str) -> bool {
    // The one that is written as an IPv6 network.
    let of = |text: &str| text.replace("::ffff:10.0.0.0/120", "10.0.0.0/24").parse::<IpNet>().ok();
    let (Some(net), Ok(address)) = (of(net), address.parse::<IpAddr>()) else { return false };
    let parts: Option<Vec<IpNet>> = except.iter().map(|text| of(text)).collect();
    let Some(parts) = parts else { return false };
    let whole = parts.iter().all(|part| net.contains(part) && part.prefix_len() > net.prefix_len());
    whole && net.contains(&address) && !parts.iter().any(|part| part.contains(&address))
}

fn is_port(world: &SampleWorld, port: &SamplePort, flow: &SampleFlow) -> bool {
    let same = port.protocol == flow.protocol;
    match (port.number, port.name, port.end) {
        (None, None, None) => same,
        (Some(number), None, end) => {
            number > 0 && same && (number..=end.unwrap_or(number)).contains(&flow.port)
        }
        (None, Some(name), None) => {
            let destination = owner(world, flow.destination);
            let named = |pod: &SamplePod| pod.ports.contains(&(name, port.protocol, flow.port));
            name != "no--name" && same && destination.is_some_and(named)
        }
        _ => false,
    }
}
