//! What compiled rules do to connections, for a cluster of plain objects and without a kernel.

mod node;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ruleset::eval::{Packet, RulePlace, Verdict, evaluate};
use ruleset::{Backend, Contents, Family, Hook, Key, Protocol, SetDelta};

use crate::compile::{CompiledPod, PodPoint, compile_pod};
use crate::index::{LocalFacts, LocalName, PeerMember, PolicyIndex, TunnelJudge};
use crate::{
    FlowRoute, PlainPod, PlainWorld, PolicyFlow, PolicyWorld as _, TUNNEL_PORT, Traffic, World as _,
    ZTUNNEL_MARK, service_verdicts,
};

pub use node::{CompiledNodes, judge_at_node, node_plans};

/// The rules of each pod of a cluster in its own network namespace, and what is in their sets.
#[derive(Debug)]
pub struct CompiledPods<'w> {
    world: &'w PlainWorld,
    backend: Backend,
    pods: BTreeMap<LocalName, EvaluatedPod>,
}

/// The rules of a pod, and what is in their sets.
#[derive(Debug)]
pub struct EvaluatedPod {
    /// The rules.
    pub compiled: CompiledPod,
    /// What their sets have.
    pub contents: Contents,
    /// Whether the pod is in ambient mode.
    pub is_enrolled: bool,
}

/// What the rules of one end do to the first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointVerdict {
    /// Whether it goes on.
    pub is_allowed: bool,
    /// The rule that decides, for people.
    pub decided_by: String,
}

/// An address of a Service, and its port.
pub type ServicePoint = (IpAddr, u16);

// === impl CompiledPods ===

impl<'w> CompiledPods<'w> {
    /// Compiles the policies for all live pods, each node by itself. `is_enrolled` says which pods are in ambient mode.
    pub fn new(world: &'w PlainWorld, backend: Backend, is_enrolled: impl Fn(&PlainPod) -> bool) -> Self {
        Self::compiled(world, backend, is_enrolled, false)
    }

    /// The rules for what is inside the tunnels of pods in ambient mode, beside those of nodes.
    pub fn inner(world: &'w PlainWorld, backend: Backend) -> Self {
        Self::compiled(world, backend, |pod| pod.is_enrolled, true)
    }

    fn compiled(
        world: &'w PlainWorld,
        backend: Backend,
        is_enrolled: impl Fn(&PlainPod) -> bool,
        inner: bool,
    ) -> Self {
        let mut pods = BTreeMap::new();
        for node in world.pod_nodes() {
            let index = indexed(world, node);
            let own = world.node(node).unwrap_or_default();
            for pod in world.live_on(node) {
                let name = name_of(pod);
                let Some(classes) = index.classes_of(&name) else { continue };
                let enrolled = is_enrolled(pod).then_some(&[][..]);
                if inner && enrolled.is_none() {
                    continue;
                }
                let point = PodPoint { node: own, services: true, enrolled, inner, ..PodPoint::default() };
                let compiled = compile_pod(&index, classes, &point, backend);
                let mut contents = contents(&index, &compiled);
                if let Some(class) = &classes.egress {
                    let verdicts = service_verdicts(world, &index, class);
                    for set in &compiled.services {
                        let members = if set.allowed { &verdicts.allowed } else { &verdicts.denied };
                        contents.apply(&set.name, &of_family(members.iter().copied(), set.family));
                    }
                }
                pods.insert(name, EvaluatedPod { compiled, contents, is_enrolled: enrolled.is_some() });
            }
        }
        Self { world, backend, pods }
    }

    /// The rules of a live pod.
    pub fn pod(&self, pod: &PlainPod) -> Option<&EvaluatedPod> {
        self.pods.get(&name_of(pod))
    }

    /// What the source's rules do to a connection. By a Service the packet goes to the Service's address there.
    pub fn egress(&self, flow: &PolicyFlow, service: Option<ServicePoint>) -> PointVerdict {
        let asked = match (service, flow.traffic) {
            (Some((destination, port)), Traffic::Port(protocol, _)) => {
                PolicyFlow { destination, traffic: Traffic::Port(protocol, port), ..*flow }
            }
            _ => *flow,
        };
        let leaving = Packet { out_interface: INTERFACE.into(), ..packet(&asked) };
        let mut ways = Vec::new();
        if self.is_enrolled(flow.source) && leaving.protocol == Protocol::Tcp {
            // First the application asks, then ztunnel does.
            ways.push((leaving.clone(), Hook::Output));
            ways.push((outer(flow, Packet { mark: ZTUNNEL_MARK.0, ..leaving }), Hook::Postrouting));
        } else {
            ways.push((outer(flow, leaving), Hook::Postrouting));
        }
        self.point(flow.source, flow, &ways)
    }

    /// What the destination's rules do to a connection. A pod that reaches itself by a Service has its node's address there, because the answer has
    /// to come back to the service proxy.
    pub fn ingress(&self, flow: &PolicyFlow) -> PointVerdict {
        let mut packet = Packet { in_interface: INTERFACE.into(), ..packet(flow) };
        if flow.route == FlowRoute::Service && self.is_same_pod(flow) {
            let node = self.world.pod_at(flow.destination).and_then(|pod| self.world.node(&pod.facts.node));
            let family = Family::of_address(flow.source);
            let own = node.into_iter().flatten().rfind(|address| Family::of_address(**address) == family);
            packet.source = own.copied().unwrap_or(packet.source);
        }
        let mut ways = vec![(outer(flow, packet.clone()), Hook::Prerouting)];
        if self.is_enrolled(flow.destination) && packet.protocol == Protocol::Tcp {
            let inner = Packet { in_interface: "lo".into(), mark: ZTUNNEL_MARK.0, ..packet };
            ways.push((inner, Hook::Prerouting));
        }
        self.point(flow.destination, flow, &ways)
    }

    fn is_enrolled(&self, address: IpAddr) -> bool {
        self.world.pod_at(address).and_then(|pod| self.pod(pod)).is_some_and(|rules| rules.is_enrolled)
    }

    /// Whether both ends are one pod.
    pub fn is_same_pod(&self, flow: &PolicyFlow) -> bool {
        let [one, other] = [flow.source, flow.destination].map(|address| self.world.pod_at(address));
        one.is_some() && one == other
    }

    /// What becomes of a connection that goes all of these ways.
    fn point(&self, address: IpAddr, flow: &PolicyFlow, ways: &[(Packet, Hook)]) -> PointVerdict {
        let mut verdict = PointVerdict { is_allowed: true, decided_by: "it stays in the pod".to_owned() };
        if flow.route != FlowRoute::Service && self.is_same_pod(flow) {
            return verdict;
        }
        "no rules are there".clone_into(&mut verdict.decided_by);
        let rules = self.world.pod_at(address).and_then(|pod| self.pod(pod));
        let Some(EvaluatedPod { compiled, contents, .. }) = rules else { return verdict };
        for (packet, hook) in ways {
            let layers = std::slice::from_ref(&compiled.rules);
            let found = evaluate(layers, self.backend, packet, *hook, false, contents);
            verdict.is_allowed = found.verdict == Verdict::Pass;
            verdict.decided_by = text(found.decided_by);
            if !verdict.is_allowed {
                break;
            }
        }
        verdict
    }
}

/// What the network carries of a connection's packet.
fn outer(flow: &PolicyFlow, packet: Packet) -> Packet {
    if flow.route == FlowRoute::Tunnel { Packet { destination_port: TUNNEL_PORT, ..packet } } else { packet }
}

/// The rule that decided, for people.
fn text(decided_by: Option<RulePlace<'_>>) -> String {
    decided_by.map_or_else(
        || "no rule".to_owned(),
        |place| format!("{}[{}] {}", place.chain.name, place.index, place.rule.why),
    )
}

/// The interface of pods.
const INTERFACE: &str = "eth0";

/// What a node makes of a cluster.
pub fn indexed(world: &PlainWorld, node: &str) -> PolicyIndex {
    let mut index = PolicyIndex::default();
    for policy in world.policies() {
        index.policy(world, &policy.name, Some(policy.clone()));
    }
    for pod in world.live_on(node) {
        index.local_pod(world, &name_of(pod), Some(local_facts(pod)));
    }
    index
}

/// A pod of a node. Where it is in ambient mode its tunnel is judged inside.
pub fn local_facts(pod: &PlainPod) -> LocalFacts {
    LocalFacts {
        labels: pod.facts.labels.clone(),
        addresses: pod.facts.addresses.clone(),
        tunnel: if pod.is_enrolled { TunnelJudge::Inside } else { TunnelJudge::Port },
    }
}

/// The name of a pod.
pub fn name_of(pod: &PlainPod) -> LocalName {
    LocalName { namespace: pod.namespace.clone(), name: pod.name.clone() }
}

/// What the sets that follow pods have.
pub fn contents(index: &PolicyIndex, compiled: &CompiledPod) -> Contents {
    let mut contents = Contents::default();
    for (name, family, meant) in &compiled.kept {
        let members =
            index.sets().find(|(set, _)| *set == meant).into_iter().flat_map(|(_, members)| members);
        contents.apply(name, &of_family(members, *family));
    }
    contents
}

fn of_family(members: impl Iterator<Item = PeerMember>, family: Family) -> SetDelta {
    let mut delta = SetDelta::default();
    for member in members.filter(|one| Family::of_address(one.address) == family) {
        delta.add(Key::from(member));
    }
    delta
}

/// The first packet of a connection, at no interface yet.
pub fn packet(flow: &PolicyFlow) -> Packet {
    let (protocol, port) = match flow.traffic {
        Traffic::Port(protocol, port) => (crate::index::protocol(protocol), port),
        Traffic::Portless if flow.source.is_ipv4() => (Protocol::Icmp, 0),
        Traffic::Portless => (Protocol::Icmpv6, 0),
    };
    let source_port = if port == 0 { 0 } else { 40000 };
    let ends = [SocketAddr::new(flow.source, source_port), SocketAddr::new(flow.destination, port)];
    let mut packet = Packet::new(protocol, ends[0], ends[1]);
    // An echo request.
    packet.icmp = (if protocol == Protocol::Icmpv6 { 128 } else { 8 }, 0);
    packet
}
