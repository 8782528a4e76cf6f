//! What a change of objects would change of verdicts, between pods that live before and after it.
//!
//! Pods that no policy can tell apart are looked at as one: those of one namespace with the same labels and named ports, whose addresses are in the
//! same blocks. Ports are looked at where a rule begins or ends to mean them.

mod alike;
mod points;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use facts::networkpolicy::PolicyProtocol;

use crate::flow::{FlowRoute, PolicyFlow, Traffic};
use crate::terms::{PolicyName, TrafficDirection};
use crate::verdict::FlowVerdict;
use crate::{PlainPod, PlainWorld, PolicyWorld as _, World as _, verdict};
use alike::{AlikePods, alike_pods};

/// Most connections that are judged, each before and after.
pub const MAX_PREVIEWED: usize = 2_000_000;

/// What a change comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyPreview {
    /// Policies that are new, other than before, or gone.
    pub policies: Vec<PolicyName>,
    /// Pods that are isolated after it and not before, by direction; or the other way round.
    pub isolation: Vec<IsolationChange>,
    /// Connections between pods whose verdict is another one.
    pub verdicts: Vec<VerdictChange>,
    /// Connections that were judged.
    pub judged: usize,
}

/// A pod that becomes isolated in a direction, or is not any more. Connections with the outside are affected, too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct IsolationChange {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// In which direction.
    pub direction: TrafficDirection,
    /// Whether it is isolated after the change.
    pub isolated: bool,
}

/// Connections between pods of two kinds whose verdict is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictChange {
    /// Where they come from: pods that are alike, with the addresses in question.
    pub sources: Vec<(String, IpAddr)>,
    /// Where they go to.
    pub destinations: Vec<(String, IpAddr)>,
    /// What they carry.
    pub traffic: TrafficRange,
    /// Whether they are allowed after the change; before it is the other way round.
    pub allowed: bool,
    /// The verdict after it, on one of them.
    pub verdict: FlowVerdict,
}

/// What connections carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrafficRange {
    /// A protocol, from a port to a port, both included.
    Ports(PolicyProtocol, u16, u16),
    /// What has no ports.
    Portless,
}

/// There is too much to judge.
#[derive(Debug, thiserror::Error)]
#[error(
    "at least {0} connections would have to be judged, and {MAX_PREVIEWED} are the most; take fewer objects, or ask about single ones by explain"
)]
pub struct TooManyFlows(usize);

/// Compares the verdicts of two clusters.
///
/// # Errors
/// There are too many.
pub fn preview(before: &PlainWorld, after: &PlainWorld) -> Result<PolicyPreview, TooManyFlows> {
    let mut found = PolicyPreview { policies: changed(before, after), ..PolicyPreview::default() };
    isolation(before, after, &mut found.isolation);
    let pods = alike_pods(before, after);
    let mut work = Vec::new();
    let mut count: usize = 0;
    for source in &pods {
        for destination in pods.iter().filter(|other| other.is_v6 == source.is_v6) {
            if !source.can_change(TrafficDirection::Egress)
                && !destination.can_change(TrafficDirection::Ingress)
            {
                continue;
            }
            let points = points::of(source, destination, before);
            count += points.len();
            if count > MAX_PREVIEWED {
                return Err(TooManyFlows(count));
            }
            work.push((source, destination, points));
        }
    }
    found.judged = count;
    for (source, destination, points) in work {
        compare([before, after], source, destination, &points, &mut found.verdicts);
    }
    Ok(found)
}

/// The policies that are not the same in both.
fn changed(before: &PlainWorld, after: &PlainWorld) -> Vec<PolicyName> {
    let names: BTreeSet<&PolicyName> =
        before.policies().chain(after.policies()).map(|policy| &policy.name).collect();
    let differs = |name: &&&PolicyName| before.policy(name) != after.policy(name);
    names.iter().filter(differs).map(|name| (*name).clone()).collect()
}

fn isolation(before: &PlainWorld, after: &PlainWorld, found: &mut Vec<IsolationChange>) {
    let isolates = |world: &PlainWorld, pod: &PlainPod, direction| {
        let selecting = world.policies().filter(|policy| policy.direction(direction).isolates(&policy.name));
        selecting.into_iter().any(|policy| world.selects(&policy.subjects, &pod))
    };
    for pod in after.live_pods().filter(|pod| !pod.is_nameless()) {
        let Some(old) = before.pod(&pod.namespace, &pod.name).filter(|old| old.facts.is_live()) else {
            continue;
        };
        for direction in [TrafficDirection::Ingress, TrafficDirection::Egress] {
            let (was, is) = (isolates(before, old, direction), isolates(after, pod, direction));
            if was != is {
                found.push(IsolationChange { pod: pod.to_string(), direction, isolated: is });
            }
        }
    }
}

/// Judges what two kinds of pods say to each other before and after, and joins ranges of ports that follow one another.
fn compare(
    worlds: [&PlainWorld; 2],
    source: &AlikePods<'_>,
    destination: &AlikePods<'_>,
    points: &[TrafficRange],
    found: &mut Vec<VerdictChange>,
) {
    let Some((from, to)) = source.pair_with(destination) else { return };
    let mut last: Option<VerdictChange> = None;
    for range in points {
        let flow =
            PolicyFlow { source: from, destination: to, traffic: range.sample(), route: FlowRoute::Direct };
        let [was, is] = worlds.map(|world| verdict(world, &flow));
        if was.is_allowed() == is.is_allowed() {
            found.extend(last.take());
            continue;
        }
        match &mut last {
            Some(change) if change.allowed == is.is_allowed() && change.traffic.is_before(range) => {
                change.traffic = change.traffic.with(range);
            }
            _ => {
                found.extend(last.replace(VerdictChange {
                    sources: source.named(),
                    destinations: destination.named(),
                    traffic: *range,
                    allowed: is.is_allowed(),
                    verdict: is,
                }));
            }
        }
    }
    found.extend(last);
}

// === impl PolicyPreview ===

impl PolicyPreview {
    /// Whether a connection's verdict is another one, and which; nothing where it stays as it is.
    pub fn predicts(&self, flow: &PolicyFlow) -> Option<bool> {
        let pod = |ends: &[(String, IpAddr)], address| {
            ends.iter().find(|(_, one)| *one == address).map(|(pod, _)| pod.clone())
        };
        let change = self.verdicts.iter().find(|change| {
            let ends = pod(&change.sources, flow.source).zip(pod(&change.destinations, flow.destination));
            // What a pod says to itself is no policy's affair, also where one that is alike would be affected.
            ends.is_some_and(|(from, to)| from != to) && change.traffic.contains(flow.traffic)
        });
        change.map(|change| change.allowed)
    }
}

// === impl TrafficRange ===

impl TrafficRange {
    fn sample(&self) -> Traffic {
        match *self {
            Self::Ports(protocol, first, _) => Traffic::Port(protocol, first),
            Self::Portless => Traffic::Portless,
        }
    }

    fn contains(&self, traffic: Traffic) -> bool {
        match (*self, traffic) {
            (Self::Ports(protocol, first, last), Traffic::Port(of, port)) => {
                protocol == of && (first..=last).contains(&port)
            }
            (Self::Portless, Traffic::Portless) => true,
            _ => false,
        }
    }

    /// Whether another range follows this one without a gap.
    fn is_before(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Ports(one, _, last), Self::Ports(other, first, _)) => {
                one == other && u32::from(*last) + 1 == u32::from(*first)
            }
            _ => false,
        }
    }

    fn with(&self, next: &Self) -> Self {
        match (*self, *next) {
            (Self::Ports(protocol, first, _), Self::Ports(_, _, last)) => Self::Ports(protocol, first, last),
            (one, _) => one,
        }
    }
}

/// `TCP 80`, `TCP 8000-8080`, `TCP` for all ports, or `without ports`.
impl fmt::Display for TrafficRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(protocol, 1, u16::MAX) => f.write_str(protocol.name()),
            Self::Ports(protocol, first, last) if first == last => {
                write!(f, "{} {first}", protocol.name())
            }
            Self::Ports(protocol, first, last) => write!(f, "{} {first}-{last}", protocol.name()),
            Self::Portless => f.write_str("without ports"),
        }
    }
}
