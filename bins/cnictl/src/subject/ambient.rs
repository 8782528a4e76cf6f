//! A pod of ambient mode: its own rules, the node's, and its addresses in the node's sets.

use std::net::IpAddr;

use capture::ambient::{
    NodeOptions, PROBES_V4, PROBES_V6, PodOptions, plan_host, plan_pod, plan_translating_pod,
};
use capture::decide::{CaptureMode, refuse};
use capture::select::is_label_value;
use capture::{PlanTarget, Pod};
use ruleset::{Backend, Plan};
use rundir::AmbientOptions;
use serde::Serialize;

use super::{By, Captured};
use crate::configuration::{Configuration, node_options};

/// What is taken for granted where nothing names a backend.
pub(super) const NFTABLES: &str = "the kernel has nf_tables (--backend)";

/// A pod of ambient mode.
#[derive(Debug)]
pub(crate) struct AmbientPod {
    pub(crate) node: NodeNetns,
    /// The plan for it if it translates destinations of what comes in itself.
    pub(super) translating: Plan,
}

/// What is in the node's own network namespace.
#[derive(Debug)]
pub(crate) struct NodeNetns {
    pub(crate) plan: Plan,
    /// The pod's addresses in the node's sets of probe addresses.
    pub(crate) members: Vec<ProbeMember>,
}

/// An address in a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ProbeMember {
    pub(crate) set: &'static str,
    pub(crate) address: IpAddr,
    /// The comment of the element: the pod's uid.
    pub(crate) uid: String,
}

/// What the agent loads for the pod.
pub(super) fn captured(
    pod: &Pod,
    ips: &[IpAddr],
    configuration: &Configuration,
    backend: Option<Backend>,
    ipv6: bool,
    assumed: &mut Vec<String>,
) -> Captured {
    let agent = configuration.ask_agent();
    if agent.is_none() && configuration.is_real() {
        assumed.push(format!(
            "the chart's options of ambient mode, because no agent with ambient mode answers at {} (--run-dir)",
            configuration.agent_socket().display()
        ));
    }
    let backend = backend.unwrap_or_else(|| chosen_backend(configuration, agent.as_ref(), assumed));
    let (mut node, sender) = node_options(agent.as_ref());
    node.ipv6 |= ipv6;
    let (options, mut warnings) = PodOptions::parse(&pod.annotations);
    let classes = &configuration.plugin.kernel_network_runtime_classes;
    let refusal =
        refuse(CaptureMode::Ambient { ipv6: node.ipv6 }, pod.runtime_class.as_deref(), classes, ips).err();
    let complete = refusal.is_none();
    warnings.splice(0..0, refusal.map(|refusal| format!("the node agent refuses the pod: {refusal}")));
    if ips.is_empty() {
        assumed.push("the pod has no address yet, so none is in the node's sets (--pod-ip)".to_owned());
    }
    let facts = PlanTarget { backend, ipv6: node.ipv6 };
    let plan = plan_pod(&node, &options, backend);
    let translating = plan_translating_pod(&node, &options, backend);
    let members = ips.iter().filter_map(|&address| member(address, pod.uid.as_deref(), &node)).collect();
    let host = NodeNetns { plan: plan_host(&node, sender, backend), members };
    Captured { by: By::Ztunnel(AmbientPod { node: host, translating }), complete, warnings, facts, plan }
}

/// Addresses of a family that is off are in no set.
fn member(address: IpAddr, uid: Option<&str>, node: &NodeOptions) -> Option<ProbeMember> {
    let set = match address {
        IpAddr::V4(_) => PROBES_V4,
        IpAddr::V6(_) if node.ipv6 => PROBES_V6,
        IpAddr::V6(_) => return None,
    };
    // It goes into commands as text.
    let uid = uid.filter(|uid| is_label_value(uid)).unwrap_or_default().to_owned();
    Some(ProbeMember { set, address, uid })
}

fn chosen_backend(
    configuration: &Configuration,
    agent: Option<&AmbientOptions>,
    assumed: &mut Vec<String>,
) -> Backend {
    match (agent.map(|agent| &*agent.backend), configuration.plugin.native_nftables) {
        (Some("iptables"), _) | (None, Some(false)) => Backend::Iptables,
        (Some(_), _) | (None, Some(true)) => Backend::Nftables,
        (None, None) => {
            assumed.push(NFTABLES.to_owned());
            Backend::Nftables
        }
    }
}
