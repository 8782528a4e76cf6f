//! `policy list`: the policies that select pods, by direction, and where they are enforced.

use anyhow::Result;
use facts::PodRef;
use policy::compile::{log_number, log_number_text};
use policy::index::{PolicyClass, classes_in};
use policy::{PlainPod, TrafficDirection};
use serde::Serialize;

use super::source::{KnownCluster, PolicySourceArgs};
use crate::configuration::ConfigurationArgs;
use crate::output::VerbAnswer;
use crate::pods::{Around, Column, ListArgs, ListHead, NOTHING, ResourceList, SelectArgs};

const EXAMPLES: &str = "\
Examples:
  # Which policies select the pods of this node?
  cnictl policy list

  # Of one pod, with the numbers of its classes, as the kernel's log has them, and what was denied
  cnictl policy list shop/web -o wide

Exit codes: 0 done
            1 failed
            2 wrong command line
            3 there is no such pod
            124 the time was over";

/// Show which network policies select which pods
///
/// A line for each pod and direction. The pods are those of this node, or all of the manifests. Pods that the same policies select have the same
/// class: its number stands in the kernel's log of what is denied. A pod is guarded while its rules in its own network namespace are not loaded.
/// What was denied is counted for all pods of the class together, from when the agent was started.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PolicyListArgs {
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    source: PolicySourceArgs,
    #[command(flatten)]
    list: ListArgs,
}

/// A pod in one direction.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct SelectedPod {
    namespace: String,
    name: String,
    /// `ingress` or `egress`.
    direction: &'static str,
    /// Whether a policy selects it in this direction.
    isolated: bool,
    policies: Vec<String>,
    /// The number of its class in the kernel's log; empty where no policy selects it.
    class: String,
    /// `node`, `pod` or `both`; empty where it is not known.
    point: &'static str,
    /// Its rules are not there yet, and it is isolated. Not there where the agent does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    guarded: Option<bool>,
    /// Packets that pods of its class were denied in this direction, since the agent was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    denied: Option<u64>,
}

const LISTING: ResourceList<SelectedPod> = ResourceList {
    kind: "PolicyPodList",
    item_kind: "PolicyPod",
    columns: &[
        Column { head: "POD", wide: false, cell: |pod| (name_of(pod), None) },
        Column { head: "DIRECTION", wide: false, cell: |pod| (pod.direction.to_owned(), None) },
        Column { head: "POINT", wide: false, cell: |pod| (pod.point.to_owned(), None) },
        Column { head: "POLICIES", wide: false, cell: |pod| (policies(pod), None) },
        Column { head: "CLASS", wide: true, cell: |pod| (pod.class.clone(), None) },
        Column { head: "GUARDED", wide: true, cell: |pod| (guarded(pod), None) },
        Column { head: "DENIED", wide: true, cell: |pod| (denied(pod), None) },
    ],
    key: |pod| format!("{} {}", name_of(pod), pod.direction),
    name: name_of,
    steady: |pod| SelectedPod { denied: None, ..pod.clone() },
};

fn name_of(pod: &SelectedPod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn policies(pod: &SelectedPod) -> String {
    if pod.policies.is_empty() { "(not isolated)".to_owned() } else { pod.policies.join(", ") }
}

fn guarded(pod: &SelectedPod) -> String {
    pod.guarded.map_or_else(String::new, |guarded| if guarded { "yes" } else { "no" }.to_owned())
}

fn denied(pod: &SelectedPod) -> String {
    pod.denied.map_or_else(String::new, |packets| packets.to_string())
}

impl PolicyListArgs {
    pub(super) fn run(&self) -> Result<VerbAnswer> {
        if self.list.watch {
            return LISTING.watch(&self.list, &mut || Ok(self.rows(&self.source.load()?)));
        }
        let known = self.source.load()?;
        let mut rows = self.rows(&known);
        if rows.is_empty() && !self.select.is_everything() {
            let text = "no such pod is known that policies could select".to_owned();
            return Ok(VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(String::new(), text) });
        }
        LISTING.sort(&self.list, &mut rows)?;
        let head = ListHead { evidence: &known.evidence, not_looked_at: &known.remarks };
        let around = Around { after: known.evidence.line() + "\n" };
        Ok(VerbAnswer::text(LISTING.print(&self.list, &head, &rows, &around)?))
    }

    fn rows(&self, known: &KnownCluster) -> Vec<SelectedPod> {
        let of_node = |pod: &&PlainPod| known.node.as_deref().is_none_or(|node| *pod.facts.node == *node);
        let pods = known.world.live_pods().filter(|pod| !pod.is_nameless()).filter(of_node);
        let is_meant = |pod: &&PlainPod| {
            self.select.selects(&PodRef::named(&*pod.namespace, &*pod.name), &pod.facts.labels.to_map())
        };
        pods.filter(is_meant).flat_map(|pod| rows_of(known, pod)).collect()
    }
}

/// One direction of a pod, as policies see it.
#[derive(Debug, Default)]
pub(crate) struct PolicySide {
    pub(crate) isolated: bool,
    /// Names of the policies that select the pod in this direction.
    pub(crate) policies: Vec<String>,
    /// Where they are enforced; empty where that is not known.
    pub(crate) point: String,
    /// Packets that pods with the same policies were denied, since the agent was started.
    pub(crate) denied: Option<u64>,
}

/// The policies of one pod for what comes in and for what goes out; nothing where policies cannot be about it.
///
/// # Errors
/// Nothing tells of policies.
pub(crate) fn policies_of(
    configuration: &ConfigurationArgs,
    namespace: &str,
    name: &str,
) -> Result<Option<[PolicySide; 2]>> {
    let known = PolicySourceArgs::of_node(configuration.clone()).load()?;
    let pod = known.world.live_pods().find(|pod| *pod.namespace == *namespace && *pod.name == *name);
    let side = |row: SelectedPod| {
        let SelectedPod { isolated, policies, point, denied, .. } = row;
        PolicySide { isolated, policies, point: point.to_owned(), denied }
    };
    Ok(pod.map(|pod| rows_of(&known, pod).map(side)))
}

fn rows_of(known: &KnownCluster, pod: &PlainPod) -> [SelectedPod; 2] {
    let classes = classes_in(&known.world, &pod);
    let at = known.points.get(&pod.to_string());
    [(TrafficDirection::Ingress, "ingress"), (TrafficDirection::Egress, "egress")].map(|(of, direction)| {
        let class = classes.of_direction(of).map(|class| &**class);
        let policies = class.map(|class: &PolicyClass| &*class.policies).unwrap_or_default();
        let class_number = class.map(|class| log_number_text(log_number(class))).unwrap_or_default();
        let denied = known.denied.as_ref().filter(|_| class.is_some());
        SelectedPod {
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            direction,
            isolated: policies
                .iter()
                .filter_map(|name| known.world.policy(name))
                .any(|terms| terms.direction(of).isolates(&terms.name)),
            policies: policies.iter().map(ToString::to_string).collect(),
            point: at.map_or("", |at| at.point.name()),
            guarded: at.map(|at| at.is_guarded),
            denied: denied.map(|denied| denied.get(&class_number).copied().unwrap_or_default()),
            class: class_number,
        }
    })
}
