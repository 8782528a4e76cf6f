//! What the rules of nodes do to connections.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ruleset::eval::{Owner, Packet, Verdict, evaluate};
use ruleset::{Backend, Hook};

use super::{PointVerdict, indexed, outer, packet, text};
use crate::compile::{CompiledNode, EnforcementSettings, compile_node};
use crate::{FlowRoute, PlainWorld, PolicyFlow, World as _};

/// The rules of each node of a cluster in its own network namespace.
#[derive(Debug)]
pub struct CompiledNodes<'w> {
    world: &'w PlainWorld,
    backend: Backend,
    nodes: BTreeMap<&'w str, CompiledNode>,
}

// === impl CompiledNodes ===

impl<'w> CompiledNodes<'w> {
    /// Compiles the policies for all nodes that have pods.
    pub fn new(world: &'w PlainWorld, backend: Backend) -> Self {
        let settings = EnforcementSettings { backend, ..EnforcementSettings::default() };
        let compiled = |node| (node, compile_node(&indexed(world, node), settings));
        Self { world, backend, nodes: world.pod_nodes().into_iter().map(compiled).collect() }
    }

    /// The rules of each node.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &CompiledNode)> {
        self.nodes.iter().map(|(name, node)| (*name, node))
    }

    /// What the rules of the nodes of both ends do to a connection; the service proxy has chosen where it goes.
    pub fn judge(&self, flow: &PolicyFlow) -> PointVerdict {
        let ends = [flow.source, flow.destination].map(|address| self.world.pod_at(address));
        if flow.route != FlowRoute::Service && ends[0].is_some() && ends[0] == ends[1] {
            return PointVerdict { is_allowed: true, decided_by: "it stays in the pod".to_owned() };
        }
        let mut verdict = PointVerdict { is_allowed: true, decided_by: "no node of a pod".to_owned() };
        for pod in ends.into_iter().flatten() {
            if verdict.is_allowed {
                verdict = self.at(&pod.facts.node, flow);
            }
        }
        verdict
    }

    fn at(&self, name: &str, flow: &PolicyFlow) -> PointVerdict {
        let own = self.world.node(name).unwrap_or_default();
        let is_node = |address: IpAddr| own.contains(&address) && self.world.pod_at(address).is_none();
        let mut packet =
            Packet { in_interface: "pod".into(), out_interface: "out".into(), ..outer(flow, packet(flow)) };
        if is_node(flow.source) {
            packet.in_interface.clear();
            packet.own_source = true;
            packet.owner = Some(Owner { uid: 0, gid: 0 });
        }
        let hook = if is_node(flow.destination) { Hook::Input } else { Hook::Postrouting };
        let Some(node) = self.nodes.get(name) else {
            return PointVerdict { is_allowed: true, decided_by: "the node has no rules".to_owned() };
        };
        let layers = std::slice::from_ref(&node.rules);
        let found = evaluate(layers, self.backend, &packet, hook, false, &node.contents);
        PointVerdict { is_allowed: found.verdict == Verdict::Pass, decided_by: text(found.decided_by) }
    }
}
