//! What in policies is probably not meant, by the objects of a cluster.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use facts::networkpolicy::PolicyProtocol;

use crate::compiled::indexed;
use crate::index::{PolicyClass, classes_in};
use crate::services::{MixedService, service_verdicts};
use crate::terms::{PolicyName, PolicyTerms, TrafficDirection};
use crate::world::World as _;
use crate::{PlainPod, PlainWorld, PolicyWorld as _};

/// Something about a policy that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyFinding {
    /// The policy; of findings about several that select the same pods the first.
    pub policy: PolicyName,
    /// Where in it, by the names of fields; empty for all of it.
    pub place: String,
    /// What kind of thing it is.
    pub kind: FindingKind,
    /// For people.
    pub text: String,
}

/// Kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// An entry that an API server would refuse.
    RefusedEntry,
    /// A port's name that no pod has which could be meant.
    UnresolvedName,
    /// A rule names the port of ambient mode's tunnel, and opens every port in it.
    TunnelOpened,
    /// Pods may reach some endpoints of a Service and not others.
    MixedService,
    /// Pods are isolated in what they may reach, and cannot ask for names.
    EgressWithoutDns,
    /// Addresses in a block are those of pods, or of Services.
    BlockCoversPods,
    /// Kubelet's probes reach a pod only because its own node always does.
    ProbeByNode,
    /// A policy selects no pod.
    SelectsNothing,
    /// A peer means no pod.
    PeerMeansNothing,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingSeverity {
    /// Something is allowed or denied that was probably not meant to be.
    Warning,
    /// Worth knowing.
    Note,
}

/// Looks at all policies of a cluster.
#[must_use]
pub fn lint(world: &PlainWorld) -> Vec<PolicyFinding> {
    let mut found = Vec::new();
    for policy in world.policies() {
        refused(world, policy, &mut found);
        let subjects: Vec<&PlainPod> =
            world.live_pods().filter(|pod| world.selects(&policy.subjects, pod)).collect();
        if subjects.is_empty() {
            let text = format!("it selects no pod: no live pod is one of {}", policy.subjects);
            found.push(PolicyFinding::of(policy, String::new(), FindingKind::SelectsNothing, text));
        }
        for direction in [TrafficDirection::Ingress, TrafficDirection::Egress] {
            rules::lint(world, policy, direction, &subjects, &mut found);
        }
    }
    classes(world, &mut found);
    found.sort();
    found.dedup();
    found
}

fn refused(world: &PlainWorld, policy: &PolicyTerms, found: &mut Vec<PolicyFinding>) {
    let Some(refused) = world.refused(&policy.name) else { return };
    let finding = |place: String, text: String| PolicyFinding {
        policy: policy.name.clone(),
        place,
        kind: FindingKind::RefusedEntry,
        text,
    };
    found.extend(
        refused
            .first
            .iter()
            .map(|entry| finding(entry.place.clone(), format!("an API server refuses it: {}", entry.reason))),
    );
    let more = refused.count - refused.first.len();
    if more > 0 {
        found.push(finding(String::new(), format!("{more} more entries are refused")));
    }
}

/// What policies that select the same pods come to together.
fn classes(world: &PlainWorld, found: &mut Vec<PolicyFinding>) {
    let mut egress: BTreeMap<PolicyClass, Vec<&PlainPod>> = BTreeMap::new();
    for pod in world.live_pods().filter(|pod| !pod.is_nameless()) {
        let classes = classes_in(world, &pod);
        if let Some(class) = &classes.egress {
            egress.entry((**class).clone()).or_default().push(pod);
        }
        if let Some(class) = &classes.ingress {
            probes(world, pod, class, found);
        }
    }
    for (class, pods) in &egress {
        let terms = || world.policies().filter(|policy| class.policies.contains(&policy.name));
        if !terms().any(|policy| asks_names(world, policy)) {
            let text = format!(
                "pods such as {} may not ask for names: no egress rule allows UDP 53",
                pods.first().map(ToString::to_string).unwrap_or_default()
            );
            found.push(PolicyFinding::of_class(class, FindingKind::EgressWithoutDns, text));
        }
    }
    mixed(world, egress.keys(), found);
}

/// Whether an egress rule of a policy lets through what asks for names.
fn asks_names(world: &PlainWorld, policy: &PolicyTerms) -> bool {
    policy.egress.rules.iter().any(|rule| rules::allows(world, rule, PolicyProtocol::Udp, 53))
}

fn mixed<'a>(
    world: &PlainWorld,
    classes: impl Iterator<Item = &'a PolicyClass>,
    found: &mut Vec<PolicyFinding>,
) {
    if world.pod_nodes().is_empty() {
        return;
    }
    let classes: Vec<&PolicyClass> = classes.collect();
    // Which node asks is no matter for what pods may reach.
    let index = indexed(world, "");
    for class in classes {
        for MixedService { namespace, name, protocol, port } in service_verdicts(world, &index, class).mixed {
            let text = format!(
                "some endpoints of Service {namespace}/{name} port {} {port} are allowed and some are not; in pods' own namespaces the Service is denied",
                protocol.name()
            );
            found.push(PolicyFinding::of_class(class, FindingKind::MixedService, text));
        }
    }
}

/// Ports on which kubelet asks how a pod is, and that no rule opens for anybody who could be a node.
fn probes(world: &PlainWorld, pod: &PlainPod, class: &PolicyClass, found: &mut Vec<PolicyFinding>) {
    let terms = || world.policies().filter(|policy| class.policies.contains(&policy.name));
    let node = world.node(&pod.facts.node).unwrap_or_default();
    for port in world.probes(pod) {
        let opens = |policy: &PolicyTerms| {
            policy.ingress.rules.iter().any(|rule| rules::opens_to_node(rule, pod, node, port))
        };
        if !terms().any(opens) {
            let text = format!(
                "kubelet's probe of {pod} on port {port} is let in as what comes from the own node, which other network plugins may not do"
            );
            found.push(PolicyFinding::of_class(class, FindingKind::ProbeByNode, text));
        }
    }
}

// === impl PolicyFinding ===

impl PolicyFinding {
    fn of(policy: &PolicyTerms, place: String, kind: FindingKind, text: String) -> Self {
        Self { policy: policy.name.clone(), place, kind, text }
    }

    fn of_class(class: &PolicyClass, kind: FindingKind, text: String) -> Self {
        // A class is never without a policy.
        let first = class.policies.first().cloned();
        let unnamed =
            || PolicyName { section: crate::Section::NetworkPolicy, namespace: "".into(), name: "".into() };
        let others = class.policies.len().saturating_sub(1);
        let text = if others == 0 { text } else { format!("{text} (with {others} more that select it)") };
        Self { policy: first.unwrap_or_else(unnamed), place: String::new(), kind, text }
    }
}

// === impl FindingKind ===

impl FindingKind {
    /// How much it matters.
    pub fn severity(self) -> FindingSeverity {
        match self {
            Self::RefusedEntry
            | Self::UnresolvedName
            | Self::TunnelOpened
            | Self::MixedService
            | Self::EgressWithoutDns => FindingSeverity::Warning,
            Self::BlockCoversPods | Self::ProbeByNode | Self::SelectsNothing | Self::PeerMeansNothing => {
                FindingSeverity::Note
            }
        }
    }

    /// A word for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::RefusedEntry => "refused-entry",
            Self::UnresolvedName => "unresolved-name",
            Self::TunnelOpened => "tunnel-opened",
            Self::MixedService => "mixed-service",
            Self::EgressWithoutDns => "egress-without-dns",
            Self::BlockCoversPods => "block-covers-pods",
            Self::ProbeByNode => "probe-by-node",
            Self::SelectsNothing => "selects-nothing",
            Self::PeerMeansNothing => "peer-means-nothing",
        }
    }
}

impl FindingSeverity {
    /// A word for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl fmt::Display for PolicyFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, place, kind, text } = self;
        let place = if place.is_empty() { String::new() } else { format!(" {place}") };
        write!(f, "{policy}{place}: {}: {text}", kind.name())
    }
}
