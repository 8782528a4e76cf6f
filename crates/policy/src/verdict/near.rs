//! Which rule comes nearest to allow what is denied.

use std::fmt;
use std::net::IpAddr;

use super::End;
use crate::flow::Traffic;
use crate::terms::{PolicyName, PolicyTerms, RuleAction, Section, TrafficDirection};
use crate::world::World;

/// A rule that would allow a connection if one thing were otherwise, or two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleMiss {
    /// Its policy.
    pub policy: PolicyName,
    /// In which direction of it.
    pub direction: TrafficDirection,
    /// Its place among the rules of that direction, from 0.
    pub rule: usize,
    /// What does not match.
    pub missed: MissedPart,
}

/// What of a rule does not match, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MissedPart {
    /// Its ports.
    Port,
    /// Its peers.
    Peer,
    /// Both.
    Both,
}

/// The rule among those of NetworkPolicies that comes nearest to allow a connection, the first of several; nothing where they have no rule. The
/// policies select the pod at the end that `direction` says.
pub fn nearest_miss<'t, W: World>(
    world: &W,
    direction: TrafficDirection,
    policies: impl Iterator<Item = &'t PolicyTerms>,
    connection: (IpAddr, IpAddr, Traffic),
) -> Option<RuleMiss> {
    rule_misses(world, direction, policies, connection).into_iter().min_by_key(|miss| miss.missed)
}

/// All rules of these NetworkPolicies that would allow a connection and do not, in order.
pub fn rule_misses<'t, W: World>(
    world: &W,
    direction: TrafficDirection,
    policies: impl Iterator<Item = &'t PolicyTerms>,
    (source, destination, traffic): (IpAddr, IpAddr, Traffic),
) -> Vec<RuleMiss> {
    let peer = match direction {
        TrafficDirection::Egress => destination,
        TrafficDirection::Ingress => source,
    };
    let (peer_pod, asked) = (world.pod_at(peer), world.pod_at(destination));
    let end =
        End { own: None, world, direction, peer, peer_pod: peer_pod.as_ref(), destination: asked.as_ref() };
    let isolating = policies.filter(|policy| policy.name.section == Section::NetworkPolicy);
    let rules = isolating.flat_map(|policy| {
        let rules = policy.direction(direction).rules.iter().enumerate();
        rules.map(move |(number, rule)| (&policy.name, number, rule))
    });
    let missed =
        rules.filter(|(.., rule)| rule.action == RuleAction::Accept).filter_map(|(policy, rule, terms)| {
            let missed = match (end.peer(&terms.peers), end.port(&terms.ports, traffic)) {
                (Some(_), None) => MissedPart::Port,
                (None, Some(_)) => MissedPart::Peer,
                (None, None) => MissedPart::Both,
                // It is allowed by now.
                (Some(_), Some(_)) => return None,
            };
            Some(RuleMiss { policy: policy.clone(), direction, rule, missed })
        });
    missed.collect()
}

impl MissedPart {
    /// A word for programs and people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Peer => "peer",
            Self::Both => "peer and port",
        }
    }
}

/// `x/p ingress[0], by its port`
impl fmt::Display for RuleMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, direction, rule, missed } = self;
        write!(f, "{policy} {direction}[{rule}], by its {}", missed.name())
    }
}
