//! What compiled rules do to connections, for a cluster of plain objects and without a kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ruleset::eval::{Packet, Verdict, evaluate};
use ruleset::{Backend, Contents, Family, Hook, Key, Protocol, SetDelta};

use crate::compile::{CompiledPod, PodPoint, compile_pod};
use crate::index::{LocalFacts, LocalName, PeerMember, PolicyIndex};
use crate::{
    FlowRoute, PlainPod, PlainWorld, PolicyFlow, PolicyWorld as _, Traffic, World as _, service_verdicts,
};

/// The rules of each pod of a cluster in its own network namespace, and what is in their sets.
#[derive(Debug)]
pub struct CompiledPods<'w> {
    world: &'w PlainWorld,
    backend: Backend,
    pods: BTreeMap<LocalName, PodRules>,
}

/// The rules of a pod, and what is in their sets.
#[derive(Debug)]
pub struct PodRules {
    /// The rules.
    pub compiled: CompiledPod,
    /// What their sets have.
    pub contents: Contents,
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
    /// Compiles the policies for all live pods, each node by itself.
    pub fn new(world: &'w PlainWorld, backend: Backend) -> Self {
        let mut pods = BTreeMap::new();
        for node in world.pod_nodes() {
            let index = indexed(world, node);
            let own = world.node(node).unwrap_or_default();
            for pod in world.live_on(node) {
                let name = name_of(pod);
                let Some(classes) = index.classes_of(&name) else { continue };
                let compiled = compile_pod(&index, classes, &PodPoint { node: own, services: true }, backend);
                let mut contents = contents(&index, &compiled);
                if let Some(class) = &classes.egress {
                    let verdicts = service_verdicts(world, &index, class);
                    for set in &compiled.services {
                        let members = if set.allowed { &verdicts.allowed } else { &verdicts.denied };
                        contents.apply(&set.name, &of_family(members.iter().copied(), set.family));
                    }
                }
                pods.insert(name, PodRules { compiled, contents });
            }
        }
        Self { world, backend, pods }
    }

    /// The rules of a live pod.
    pub fn pod(&self, pod: &PlainPod) -> Option<&PodRules> {
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
        let packet = Packet { out_interface: INTERFACE.into(), ..packet(&asked) };
        self.point(flow.source, flow, &packet, Hook::Postrouting)
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
        self.point(flow.destination, flow, &packet, Hook::Prerouting)
    }

    /// Whether both ends are one pod.
    pub fn is_same_pod(&self, flow: &PolicyFlow) -> bool {
        let [one, other] = [flow.source, flow.destination].map(|address| self.world.pod_at(address));
        one.is_some() && one == other
    }

    fn point(&self, address: IpAddr, flow: &PolicyFlow, packet: &Packet, hook: Hook) -> PointVerdict {
        let passes = |why: &str| PointVerdict { is_allowed: true, decided_by: why.to_owned() };
        if flow.route != FlowRoute::Service && self.is_same_pod(flow) {
            return passes("it stays in the pod");
        }
        let Some(pod) = self.world.pod_at(address) else { return passes("no pod has the address") };
        let Some(PodRules { compiled, contents }) = self.pod(pod) else {
            return passes("the pod has no rules");
        };
        let layers = std::slice::from_ref(&compiled.rules);
        let found = evaluate(layers, self.backend, packet, hook, false, contents);
        let decided_by = found.decided_by.map_or_else(
            || "no rule".to_owned(),
            |place| format!("{}[{}] {}", place.chain.name, place.index, place.rule.why),
        );
        PointVerdict { is_allowed: found.verdict == Verdict::Pass, decided_by }
    }
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
        let facts = LocalFacts { labels: pod.facts.labels.clone(), addresses: pod.facts.addresses.clone() };
        index.local_pod(world, &name_of(pod), Some(facts));
    }
    index
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
