//! The verdict on a connection, from the objects themselves.
//!
//! It does not look at how rules are written for a kernel, so that it can say what they should do.

mod near;
#[cfg(test)]
mod tests;
mod told;

use std::net::IpAddr;

use facts::networkpolicy::{Entries, PolicyProtocol, Port};

use crate::flow::{FlowRoute, PolicyFlow, TUNNEL_PORT, Traffic};
use crate::terms::{
    PeerTerm, PodTerm, PolicyName, PolicyTerms, RuleAction, RuleTerms, Section, TrafficDirection,
};
use crate::world::{PolicyPod, PolicyWorld, World};
pub use near::{MissedPart, RuleMiss, nearest_miss, rule_misses};

/// The verdict on both ends of a connection. It needs both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowVerdict {
    /// Of what the source may reach.
    pub egress: Judgement,
    /// Of who may reach the destination.
    pub ingress: Judgement,
}

/// The verdict on one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The policies that select the pod in this direction, in the order in which they are judged; nothing where they are not asked.
    pub selecting: Vec<PolicyName>,
    /// What decides.
    pub ground: Ground,
    /// The rule that would deny it, of a policy that is only tried out.
    pub audited: Option<RuleRef>,
    /// The rules that handed it on to the next section, such as those of tenants.
    pub handed_on: Vec<RuleRef>,
    /// NetworkPolicies that are only tried out: they would isolate the pod, and none of their rules allows it.
    pub tried_out: Vec<PolicyName>,
}

/// Why a direction is allowed or denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ground {
    /// There is no live pod with a network of its own at this end.
    NotAPod,
    /// A pod to itself.
    Loopback,
    /// From the node that the pod runs on.
    OwnNode,
    /// No policy selects the pod in this direction.
    NotIsolated,
    /// Policies select it, none of them isolates it, and no rule decides.
    Undecided,
    /// A rule accepts it. Where the order of rules has no meaning, the others follow that would accept it.
    Accepted(Vec<RuleRef>),
    /// A rule opens the tunnel by its own port, and so every port in it.
    TunnelOpened(Vec<RuleRef>),
    /// A rule denies it.
    Denied(RuleRef),
    /// The pod is isolated, and no rule matches.
    NoRuleMatched,
}

/// A rule, and what of it matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleRef {
    /// Its policy.
    pub policy: PolicyName,
    /// In which direction of it.
    pub direction: TrafficDirection,
    /// Its place among the rules of that direction, from 0.
    pub rule: usize,
    /// How the policy calls it; empty where rules have no names.
    pub name: Box<str>,
    /// The first of its peers that matched; nothing where it means any.
    pub peer: Option<usize>,
    /// The first of its ports that matched; nothing where it means any.
    pub port: Option<usize>,
}

/// One end of a connection as the policies of its pod see it.
struct End<'w, 'p, W: World> {
    world: &'w W,
    direction: TrafficDirection,
    /// The other end.
    peer: IpAddr,
    peer_pod: Option<&'p W::Pod<'w>>,
    /// This end: the policies' pod; nothing where none of them is about some of its pods only.
    own: Option<(IpAddr, &'p W::Pod<'w>)>,
    /// Whose ports are asked for.
    destination: Option<&'p W::Pod<'w>>,
}

/// What a section of a class comes to.
enum Outcome {
    Decided(Ground),
    /// The next section decides.
    Next,
    /// The same, because a rule says so.
    HandedOn(RuleRef),
    /// The same, and a rule would have denied it.
    WouldDeny(RuleRef),
}

/// The pods at both ends of a connection.
struct FlowEnds<'w, W: World> {
    world: &'w W,
    flow: PolicyFlow,
    source: Option<W::Pod<'w>>,
    destination: Option<W::Pod<'w>>,
}

/// Judges a connection.
pub fn verdict<W: PolicyWorld>(world: &W, flow: &PolicyFlow) -> FlowVerdict {
    let ends = FlowEnds::new(world, flow);
    FlowVerdict {
        egress: ends.judge(TrafficDirection::Egress),
        ingress: ends.judge(TrafficDirection::Ingress),
    }
}

/// Whether the egress policies that select a pod, in the order in which they are judged, let it reach an address.
pub(crate) fn may_reach<W: World>(world: &W, class: &[&PolicyTerms], peer: IpAddr, traffic: Traffic) -> bool {
    let pod = world.pod_at(peer);
    let (direction, peer_pod) = (TrafficDirection::Egress, pod.as_ref());
    let end = End { world, direction, peer, peer_pod, own: None, destination: peer_pod };
    end.decide(class, traffic).is_allowed()
}

/// What policies say of a connection at the end of a pod that they select, in the order in which they are judged. What is not said of it is that it
/// goes through a tunnel, or comes from the pod's own node.
pub fn judgement<W: World>(
    world: &W,
    direction: TrafficDirection,
    class: &[&PolicyTerms],
    flow: &PolicyFlow,
) -> Judgement {
    let [source, destination] = [flow.source, flow.destination].map(|address| world.pod_at(address));
    let (own, peer) = match direction {
        TrafficDirection::Egress => ((flow.source, &source), (flow.destination, &destination)),
        TrafficDirection::Ingress => ((flow.destination, &destination), (flow.source, &source)),
    };
    let end = End {
        world,
        direction,
        peer: peer.0,
        peer_pod: peer.1.as_ref(),
        own: own.1.as_ref().map(|pod| (own.0, pod)),
        destination: destination.as_ref(),
    };
    end.decide(class, flow.traffic)
}

/// Whether they deny it, as [`judgement`] says.
pub fn denies<W: World>(
    world: &W,
    direction: TrafficDirection,
    class: &[&PolicyTerms],
    flow: &PolicyFlow,
) -> bool {
    !judgement(world, direction, class, flow).is_allowed()
}

fn is_same(one: &impl PolicyPod, other: &impl PolicyPod) -> bool {
    (one.namespace(), one.name()) == (other.namespace(), other.name())
}

// === impl FlowVerdict ===

impl FlowVerdict {
    /// Whether both ends allow it.
    pub fn is_allowed(&self) -> bool {
        self.egress.is_allowed() && self.ingress.is_allowed()
    }
}

impl Judgement {
    /// Whether this end allows it.
    pub fn is_allowed(&self) -> bool {
        !matches!(self.ground, Ground::Denied(_) | Ground::NoRuleMatched)
    }
}

impl From<Ground> for Judgement {
    fn from(ground: Ground) -> Self {
        Self { selecting: Vec::new(), ground, audited: None, handed_on: Vec::new(), tried_out: Vec::new() }
    }
}

// === impl FlowEnds ===

impl<'w, W: PolicyWorld> FlowEnds<'w, W> {
    fn new(world: &'w W, flow: &PolicyFlow) -> Self {
        let [source, destination] = [flow.source, flow.destination].map(|address| world.pod_at(address));
        Self { world, flow: *flow, source, destination }
    }

    fn judge(&self, direction: TrafficDirection) -> Judgement {
        match self.end(direction) {
            Err(ground) => ground.into(),
            Ok((end, pod)) => end.judge(pod, &self.flow),
        }
    }

    /// The end whose policies are asked, or why they are not.
    fn end(&self, direction: TrafficDirection) -> Result<(End<'w, '_, W>, &W::Pod<'w>), Ground> {
        let Self { world, flow, source, destination } = self;
        let is_loopback = match (source, destination) {
            (Some(one), Some(other)) => is_same(one, other) && flow.route != FlowRoute::Service,
            _ => false,
        };
        if is_loopback {
            return Err(Ground::Loopback);
        }
        let (pod, own, peer, peer_pod) = match direction {
            TrafficDirection::Egress => (source, flow.source, flow.destination, destination.as_ref()),
            TrafficDirection::Ingress => (destination, flow.destination, flow.source, source.as_ref()),
        };
        let pod = pod.as_ref().ok_or(Ground::NotAPod)?;
        let comes_in = direction == TrafficDirection::Ingress;
        if comes_in && source.is_none() && world.is_own_node(pod, flow.source) {
            return Err(Ground::OwnNode);
        }
        let (own, destination) = (Some((own, pod)), destination.as_ref());
        Ok((End { world, direction, peer, peer_pod, own, destination }, pod))
    }
}

// === impl End ===

impl<'w, W: PolicyWorld> End<'w, '_, W> {
    fn judge(&self, pod: &W::Pod<'w>, flow: &PolicyFlow) -> Judgement {
        let class = self.class_of(pod);
        let selecting = class.iter().map(|policy| policy.name.clone()).collect();
        if class.is_empty() {
            return Ground::NotIsolated.into();
        }
        let decided = self.decide(&class, flow.traffic);
        let ground = match decided.ground {
            Ground::NoRuleMatched if flow.route == FlowRoute::Tunnel => {
                self.tunnel(&class).unwrap_or(Ground::NoRuleMatched)
            }
            real => real,
        };
        let tried_out = self.tried_out(&class, &ground);
        Judgement { selecting, ground, tried_out, ..decided }
    }

    /// The NetworkPolicies that would isolate the pod if they were not only tried out, where that decides.
    fn tried_out(&self, class: &[&PolicyTerms], ground: &Ground) -> Vec<PolicyName> {
        let is_before = |rule: &RuleRef| rule.policy.section <= Section::NetworkPolicy;
        if matches!(ground, Ground::NoRuleMatched) || ground.rules().first().is_some_and(is_before) {
            return Vec::new();
        }
        let of_np = class.iter().filter(|policy| policy.name.section == Section::NetworkPolicy);
        of_np.map(|policy| policy.name.clone()).collect()
    }

    /// The policies that select a pod in this direction, in the order in which they are judged.
    fn class_of(&self, pod: &W::Pod<'w>) -> Vec<&'w PolicyTerms> {
        let policies = self.world.policies().filter(|policy| policy.direction(self.direction).applies);
        let mut class: Vec<&PolicyTerms> =
            policies.filter(|policy| self.world.selects(&policy.subjects, pod)).collect();
        class.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        class
    }
}

impl<'w, W: World> End<'w, '_, W> {
    /// What decides, and what was asked before.
    fn decide(&self, class: &[&PolicyTerms], traffic: Traffic) -> Judgement {
        let mut judgement = Judgement::from(Ground::Undecided);
        for section in class.chunk_by(|one, other| one.name.section == other.name.section) {
            match self.section(section, traffic) {
                Outcome::Decided(ground) => return Judgement { ground, ..judgement },
                Outcome::Next => {}
                Outcome::HandedOn(rule) => judgement.handed_on.push(rule),
                Outcome::WouldDeny(rule) => judgement.audited = judgement.audited.or(Some(rule)),
            }
        }
        judgement
    }

    fn section(&self, policies: &[&PolicyTerms], traffic: Traffic) -> Outcome {
        let is_np = policies.iter().any(|policy| policy.name.section == Section::NetworkPolicy);
        let isolates = policies.iter().any(|policy| policy.direction(self.direction).isolates(&policy.name));
        let mut matching = self.matching(policies, |ports| self.port(ports, traffic));
        match matching.next() {
            Some((first, RuleAction::Accept)) => {
                let others = matching.filter(|_| is_np).map(|(rule, _)| rule);
                Outcome::Decided(Ground::Accepted(std::iter::once(first).chain(others).collect()))
            }
            Some((first, RuleAction::Deny | RuleAction::Reject)) => Outcome::Decided(Ground::Denied(first)),
            None if isolates => Outcome::Decided(Ground::NoRuleMatched),
            Some((rule, RuleAction::Audit)) => Outcome::WouldDeny(rule),
            Some((rule, RuleAction::Next)) => Outcome::HandedOn(rule),
            None => Outcome::Next,
        }
    }

    /// The rules that name the port of the tunnel itself: no range, and not all ports. They mean the tunnel, with all that is in it, as network
    /// plugins do that cannot look into it.
    fn tunnel(&self, class: &[&PolicyTerms]) -> Option<Ground> {
        let policies: Vec<&PolicyTerms> =
            class.iter().copied().filter(|policy| policy.name.section == Section::NetworkPolicy).collect();
        let named = Port::Range(PolicyProtocol::Tcp, (TUNNEL_PORT, TUNNEL_PORT));
        let port = |ports: &Entries<Port>| match ports {
            Entries::Any => None,
            Entries::Of(ports) => ports.iter().position(|port| *port == named).map(Some),
        };
        let rules: Vec<RuleRef> = self.matching(&policies, port).map(|(rule, _)| rule).collect();
        (!rules.is_empty()).then_some(Ground::TunnelOpened(rules))
    }

    /// The rules that match, in order.
    fn matching<'a>(
        &'a self,
        policies: &'a [&'a PolicyTerms],
        port: impl Fn(&Entries<Port>) -> Option<Option<usize>> + 'a,
    ) -> impl Iterator<Item = (RuleRef, RuleAction)> + 'a {
        policies.iter().flat_map(|policy| self.rules(policy)).filter_map(move |(policy, number, rule)| {
            self.own(&rule.own)?;
            let (peer, port) = (self.peer(&rule.peers)?, port(&rule.ports)?);
            let name = RuleRef {
                policy: policy.clone(),
                direction: self.direction,
                rule: number,
                name: rule.name.clone(),
                peer,
                port,
            };
            Some((name, rule.action))
        })
    }

    fn rules<'a>(
        &self,
        policy: &'a PolicyTerms,
    ) -> impl Iterator<Item = (&'a PolicyName, usize, &'a RuleTerms)> {
        let rules = policy.direction(self.direction).rules.iter().enumerate();
        rules.map(|(number, rule)| (&policy.name, number, rule))
    }

    /// Which of a rule's peers the other end is, if it is one.
    fn peer(&self, peers: &Entries<PeerTerm>) -> Option<Option<usize>> {
        matched(peers, |peer| self.is(peer, self.peer, self.peer_pod))
    }

    /// Which of the policy's pods that a rule is about this end is, if it is one.
    fn own(&self, own: &Entries<PeerTerm>) -> Option<Option<usize>> {
        matched(own, |peer| self.own.is_some_and(|(address, pod)| self.is(peer, address, Some(pod))))
    }

    fn is(&self, peer: &PeerTerm, address: IpAddr, pod: Option<&W::Pod<'w>>) -> bool {
        let is_pod = |term: &PodTerm| pod.is_some_and(|pod| self.world.selects(term, pod));
        match peer {
            PeerTerm::Pods(term) => is_pod(term),
            PeerTerm::Block(block) => block.contains(address),
            PeerTerm::Outside(inside) => {
                !is_pod(&PodTerm::everything()) && !inside.iter().any(|net| net.contains(&address))
            }
        }
    }

    /// Which of a rule's ports is asked for, if one is.
    fn port(&self, ports: &Entries<Port>, traffic: Traffic) -> Option<Option<usize>> {
        matched(ports, |port| match (traffic, port) {
            (Traffic::Portless, _) => false,
            (Traffic::Port(protocol, _), Port::All(of)) => protocol == *of,
            (Traffic::Port(protocol, number), Port::Range(of, (first, last))) => {
                protocol == *of && (*first..=*last).contains(&number)
            }
            (Traffic::Port(protocol, number), Port::Named(of, name)) => {
                let names = |pod: &W::Pod<'w>| pod.ports(name, protocol).any(|one| one == number);
                protocol == *of && self.destination.is_some_and(names)
            }
        })
    }
}

/// The first entry that matches, if one does; no number where the list means anything.
fn matched<T>(entries: &Entries<T>, matches: impl Fn(&T) -> bool) -> Option<Option<usize>> {
    match entries {
        Entries::Any => Some(None),
        Entries::Of(entries) => entries.iter().position(matches).map(Some),
    }
}
