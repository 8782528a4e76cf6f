//! Whose packets they were, and which policies deny them.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use facts::networkpolicy::PolicyProtocol;
use policy::compile::{LoggedFate, log_number};
use policy::index::{PolicyClass, PolicyEffect, PolicyIndex};
use policy::tenancy::TENANT_LABEL;
use policy::terms::{PolicyName, PolicyTerms, Section};
use policy::{
    FlowRoute, Ground, Judgement, PolicyFlow, PolicyPod as _, Traffic, TrafficDirection, World as _,
    judgement, nearest_miss,
};
use rundir::denials::{
    DENIAL_SCHEMA, DenialEnd, DenialRecord, DeniedConnection, DeniedIcmp, DenyingPolicies, NearRule,
    POLICY_VIOLATION, POLICY_WOULD_DENY,
};
use telemetry::time_text;

use super::batch::{DenialBatch, DeniedFlow, FlowTally};
use crate::world::ClusterWorld;

/// Classes by the numbers that their rules log; also those that are gone, for a while, because what a rule logged is read later.
#[derive(Debug, Default)]
pub(crate) struct LoggedClasses {
    /// And whether it was gone already when that was looked at last.
    known: HashMap<u64, (Arc<PolicyClass>, bool)>,
}

// === impl LoggedClasses ===

impl LoggedClasses {
    /// Pods have got these classes.
    pub(crate) fn note(&mut self, effects: &[PolicyEffect]) {
        for effect in effects {
            if let PolicyEffect::PodChanges { classes, .. } = effect {
                classes.iter().for_each(|class| self.add(class));
            }
        }
    }

    /// All that an index has.
    pub(crate) fn note_all(&mut self, index: &PolicyIndex) {
        index.classes().for_each(|class| self.add(class));
    }

    fn add(&mut self, class: &Arc<PolicyClass>) {
        self.known.insert(log_number(class), (class.clone(), false));
    }

    /// Forgets those that were gone already the last time. To be called once a minute.
    pub(crate) fn sweep(&mut self, index: &PolicyIndex) {
        let there: BTreeSet<&Arc<PolicyClass>> = index.classes().collect();
        self.known.retain(|_, (class, was_gone)| {
            let is_gone = !there.contains(class);
            !(std::mem::replace(was_gone, is_gone) && is_gone)
        });
    }

    fn find(&self, number: u64) -> Option<&Arc<PolicyClass>> {
        self.known.get(&number).map(|(class, _)| class)
    }
}

/// The records of a batch, without what the book adds.
pub(crate) fn join(
    batch: &DenialBatch,
    world: &ClusterWorld<'_>,
    own_node: &str,
    (index, classes): (&PolicyIndex, &LoggedClasses),
) -> Vec<DenialRecord> {
    let record = |(flow, tally): (&DeniedFlow, &FlowTally)| {
        let class = flow.mark.and_then(|mark| classes.find(mark.class));
        let fate = flow.mark.map_or(LoggedFate::Dropped, |mark| mark.fate);
        let (kind, verdict) = match fate {
            LoggedFate::Passed => (POLICY_WOULD_DENY, "AUDIT"),
            LoggedFate::Answered => (POLICY_VIOLATION, "REJECTED"),
            LoggedFate::Dropped => (POLICY_VIOLATION, "DROPPED"),
        };
        let end = |address, port| end(batch, world, own_node, address, port);
        let egress =
            class.map_or(TrafficDirection::Ingress, |class| class.direction) == TrafficDirection::Egress;
        DenialRecord {
            time: time_text(tally.first),
            end_time: time_text(tally.last),
            kind: kind.to_owned(),
            verdict: verdict.to_owned(),
            allowed: fate == LoggedFate::Passed,
            traffic_direction: if egress { "EGRESS" } else { "INGRESS" }.to_owned(),
            reporter: if egress { "src" } else { "dst" }.to_owned(),
            connection: DeniedConnection {
                source: Some(end(flow.source, tally.source_port)),
                destination: Some(end(flow.destination, flow.port)),
                protocol: protocol_name(flow.protocol),
                icmp: flow.icmp.map(|(kind, code)| DeniedIcmp { kind, code }),
                tcp_flags: tally.tcp_flags.clone(),
            },
            policy: DenyingPolicies {
                id: flow.mark.map(|mark| mark.text()).unwrap_or_default(),
                ..class.map_or_else(unknown, |class| policies(class, flow, world, index))
            },
            packets: tally.packets,
            netns: batch.place,
            node: own_node.to_owned(),
            point: batch.point.name().to_owned(),
            schema: DENIAL_SCHEMA.to_owned(),
            ..DenialRecord::default()
        }
    };
    batch.flows.iter().map(record).collect()
}

fn end(
    batch: &DenialBatch,
    world: &ClusterWorld<'_>,
    own_node: &str,
    address: IpAddr,
    port: Option<u16>,
) -> DenialEnd {
    let end = DenialEnd { ip: Some(address), port, ..DenialEnd::default() };
    if let Some(pod) = world.pod_at(address) {
        let (namespace, pod_name) = (pod.namespace().to_owned(), pod.name().to_owned());
        let tenant = world.namespace_labels(&namespace).and_then(|labels| labels.get(TENANT_LABEL));
        let tenant = tenant.unwrap_or_default().to_owned();
        let (node, kind) = (pod.node().to_owned(), "pod".to_owned());
        return DenialEnd { tenant, namespace, pod_name, node, kind, ..end };
    }
    match batch.node.contains(&address) {
        true => DenialEnd { node: own_node.to_owned(), kind: "node".to_owned(), ..end },
        false => DenialEnd { kind: "external".to_owned(), ..end },
    }
}

fn policies(
    class: &PolicyClass,
    flow: &DeniedFlow,
    world: &ClusterWorld<'_>,
    index: &PolicyIndex,
) -> DenyingPolicies {
    let traffic = match (named(flow.protocol), flow.port) {
        (Some(protocol), Some(port)) => Traffic::Port(protocol, port),
        _ => Traffic::Portless,
    };
    // Where it has changed since, which of them it was is not known any more.
    let tried: Vec<&PolicyTerms> = index.tried_out(class).collect();
    let only = flow.mark.is_some_and(|mark| mark.is_tried_out() && !tried.is_empty()).then_some(tried);
    let selecting: Vec<&PolicyName> = match &only {
        Some(tried) => tried.iter().map(|terms| &terms.name).collect(),
        None => class.policies.iter().collect(),
    };
    let terms: Vec<&PolicyTerms> =
        selecting.iter().filter_map(|name| index.terms(name)).map(|terms| &**terms).collect();
    let (source, destination) = (flow.source, flow.destination);
    let judged = PolicyFlow { source, destination, traffic, route: FlowRoute::Direct };
    let Judgement { ground, audited, .. } = judgement(world, class.direction, &terms, &judged);
    let rule = match &ground {
        Ground::Denied(rule) => Some(rule),
        // What would have denied it has not.
        _ if flow.mark.is_some_and(|mark| mark.is_tried_out()) => audited.as_ref(),
        _ => None,
    };
    let miss = nearest_miss(world, class.direction, terms.into_iter(), (source, destination, traffic));
    let is_tenants = match &ground {
        Ground::Denied(rule) => rule.policy.section == Section::Tenant,
        Ground::NoRuleMatched => false,
        _ => selecting.first().is_some_and(|name| name.section == Section::Tenant),
    };
    DenyingPolicies {
        kind: if is_tenants { "NetworkTenant" } else { "NetworkPolicy" }.to_owned(),
        tier: if is_tenants { "tenant" } else { "np" }.to_owned(),
        default: !is_tenants,
        rule: rule.map(|rule| rule.name.to_string()).unwrap_or_default(),
        selecting: selecting.into_iter().map(ToString::to_string).collect(),
        nearest_miss: miss.map(|miss| NearRule {
            policy: miss.policy.to_string(),
            rule: miss.rule,
            missed: miss.missed.name().to_owned(),
        }),
        ..DenyingPolicies::default()
    }
}

/// Of a rule that is not known: of another program, or of an agent before.
fn unknown() -> DenyingPolicies {
    DenyingPolicies { kind: "unknown".to_owned(), ..DenyingPolicies::default() }
}

fn named(protocol: u8) -> Option<PolicyProtocol> {
    match protocol {
        6 => Some(PolicyProtocol::Tcp),
        17 => Some(PolicyProtocol::Udp),
        132 => Some(PolicyProtocol::Sctp),
        _ => None,
    }
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "ICMP".to_owned(),
        58 => "ICMPv6".to_owned(),
        other => named(other).map_or_else(|| other.to_string(), |known| known.name().to_owned()),
    }
}
