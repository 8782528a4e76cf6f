//! What the rules of nodes do to connections.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ruleset::eval::{Owner, Packet, Verdict, evaluate};
use ruleset::{Backend, Contents, Hook, Ruleset};

use super::{PointVerdict, indexed, outer, packet, text};
use crate::compile::{
    CompiledNode, DenialAnswer, EgressToOwnNode, EnforcementSettings, Established, compile_node,
};
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
        let Some(node) = self.nodes.get(name) else {
            return PointVerdict { is_allowed: true, decided_by: "the node has no rules".to_owned() };
        };
        judge_at_node(self.world, name, (&node.rules, &node.contents), self.backend, flow)
    }
}

/// What rules in a node's network namespace, and who is in their sets, do to a connection; the service proxy has chosen where it goes.
pub fn judge_at_node(
    world: &PlainWorld,
    name: &str,
    (rules, contents): (&Ruleset, &Contents),
    backend: Backend,
    flow: &PolicyFlow,
) -> PointVerdict {
    let own = world.node(name).unwrap_or_default();
    let is_node = |address: IpAddr| own.contains(&address) && world.pod_at(address).is_none();
    let mut packet =
        Packet { in_interface: "pod".into(), out_interface: "out".into(), ..outer(flow, packet(flow)) };
    if is_node(flow.source) {
        packet.in_interface.clear();
        packet.own_source = true;
        packet.owner = Some(Owner { uid: 0, gid: 0 });
    }
    let hook = if is_node(flow.destination) { Hook::Input } else { Hook::Postrouting };
    let found = evaluate(std::slice::from_ref(rules), backend, &packet, hook, false, contents);
    PointVerdict { is_allowed: found.verdict == Verdict::Pass, decided_by: text(found.decided_by) }
}

/// What a node may have in nf_tables for a cluster, by all settings that its agent may have.
pub fn node_plans(world: &PlainWorld, name: &str) -> Vec<Ruleset> {
    let index = indexed(world, name);
    let mut plans = Vec::new();
    for established in [Established::Cut, Established::Keep] {
        for egress_to_own_node in [EgressToOwnNode::Judge, EgressToOwnNode::Allow] {
            for answer in [DenialAnswer::Never, DenialAnswer::OfTenants, DenialAnswer::Always] {
                let backend = Backend::Nftables;
                let settings = EnforcementSettings { backend, established, egress_to_own_node, answer };
                plans.push(compile_node(&index, settings).rules);
            }
        }
    }
    plans
}
