//! `kubectl istio-cni`: the nodes of a cluster at once. This program under the name `kubectl-istio_cni` asks `cnictl` in each agent's container, by
//! the user's own kubectl and with the user's own rights; it reads only.

mod ask;
mod complete;
mod table;
mod tenants;

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use serde::Serialize;
use serde_json::Value;

use crate::chain::seconds;
use crate::output::{Format, VerbAnswer, one_line, structured};
use crate::pods::{API_VERSION, PARTLY_UNKNOWN};
use ask::Kubectl;
pub(crate) use ask::NodeAnswer;
pub(crate) use complete::complete;

/// The name under which kubectl finds it as `kubectl istio-cni`.
pub(crate) const PLUGIN_NAME: &str = "kubectl-istio_cni";
/// The name under which kubectl asks what could follow on the command line.
pub(crate) const COMPLETION_NAME: &str = "kubectl_complete-istio_cni";

const EXAMPLES: &str = "\
Examples:
  # Is the plugin on every node, of which version, and are the pods captured that should be?
  kubectl istio-cni status

  # Every pod that is not known to be captured, wherever it runs
  kubectl istio-cni verify -A

  # On which nodes is the last change of a tenant not in force?
  kubectl istio-cni tenants

kubectl finds this program as kubectl-istio_cni in the PATH, and kubectl_complete-istio_cni beside it for completion: both are links to cnictl.
The right to exec in the agents' pods is needed (create pods/exec). Nodes are seen by their agents' pods: of a node where the DaemonSet wants none, nothing is said.

Exit codes: 0 every agent's pod answers, and its node is healthy
            1 something is wrong on a node, or the command failed
            2 wrong command line
            3 there is nothing to show
            4 nothing wrong was seen, and not every node answers, or knows all that was asked";

/// Asks the nodes of a cluster how their pods are captured.
#[derive(Debug, Parser)]
#[command(name = PLUGIN_NAME, bin_name = "kubectl istio-cni", version, propagate_version = true)]
#[command(after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct KubectlCli {
    #[command(subcommand)]
    verb: KubectlVerb,
}

#[derive(Debug, Subcommand)]
enum KubectlVerb {
    /// Show each node: versions of plugin and agent, pods that are captured, what is wrong
    Status(StatusOfNodes),
    /// List pods with the node of each: whether it should be captured, why, and its state
    Pods(PodsOfNodes),
    /// The same, of pods that should be captured and are not known to be; fails if there is one
    Verify(PodsOfNodes),
    /// Show each tenant, and the nodes on which its last change is not in force; fails if there is one
    Tenants(tenants::TenantsOfNodes),
}

#[derive(Debug, clap::Args)]
struct StatusOfNodes {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, clap::Args)]
struct PodsOfNodes {
    /// Pods of all namespaces (the default)
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Pods of this namespace only
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "all_namespaces", value_parser = plain)]
    namespace: Option<String>,
    /// Pods with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = plain)]
    selector: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Which cluster, as whom, and where the agents are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ClusterArgs {
    /// Kubeconfig, as of kubectl
    #[arg(long, value_name = "FILE", value_parser = plain)]
    kubeconfig: Option<String>,
    /// Context of the kubeconfig, as of kubectl
    #[arg(long, value_name = "CONTEXT", value_parser = plain)]
    context: Option<String>,
    /// User to be, as of kubectl
    #[arg(long = "as", value_name = "USER", value_parser = plain)]
    impersonate: Option<String>,
    /// Group to be of, as of kubectl (repeat)
    #[arg(long = "as-group", value_name = "GROUP", value_parser = plain)]
    groups: Vec<String>,
    /// Namespace of the agents
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system", value_parser = plain)]
    agent_namespace: String,
    /// Ask this node only (repeat)
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// How long a node may take
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds)]
    timeout: Duration,
}

/// What comes of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodesDocument<'a> {
    api_version: &'static str,
    kind: &'static str,
    /// Each node with an agent's pod, whether it answers, and if not, why.
    nodes: &'a [NodeAnswer],
    /// What the nodes say, each item with its `node`.
    items: Vec<Value>,
}

/// A value that kubectl, or cnictl on a node, takes for one. It comes after its flag and is never a flag itself.
fn plain(text: &str) -> Result<String, String> {
    match text.is_empty() || text.starts_with('-') {
        true => Err("empty, or begins with -".to_owned()),
        false => Ok(text.to_owned()),
    }
}

impl KubectlCli {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// kubectl cannot be started or refuses.
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        match &self.verb {
            KubectlVerb::Status(args) => args.run(),
            KubectlVerb::Pods(args) => args.run("pods"),
            KubectlVerb::Verify(args) => args.run("verify"),
            KubectlVerb::Tenants(args) => args.run(),
        }
    }
}

impl StatusOfNodes {
    fn run(&self) -> Result<VerbAnswer> {
        let nodes = self.cluster.ask(&["status", "-o", "json"])?;
        let items: Vec<Value> =
            nodes.iter().filter_map(|node| with_node(&node.node, node.said.clone()?)).collect();
        let wrong = items.iter().find(|item| item["healthy"] != true).map(|item| {
            let problem = item["problems"][0].as_str().unwrap_or("not everything could be looked at");
            format!("node {}: {problem}", item["node"].as_str().unwrap_or_default())
        });
        let text = match self.output {
            Format::Json | Format::Yaml => document("NodeStatusList", &nodes, items, self.output)?,
            Format::Table | Format::Wide => table::of_nodes(&nodes),
        };
        Ok(finished(text, wrong, &nodes))
    }
}

impl PodsOfNodes {
    fn run(&self, verb: &'static str) -> Result<VerbAnswer> {
        let mut line = vec![verb, "-o", "json"];
        for (flag, value) in [("-n", &self.namespace), ("-l", &self.selector)] {
            line.extend(value.iter().flat_map(|value| [flag, value.as_str()]));
        }
        let nodes = self.cluster.ask(&line)?;
        let of_node = |node: &NodeAnswer| {
            let items =
                node.said.as_ref().and_then(|said| said["items"].as_array()).cloned().unwrap_or_default();
            items.into_iter().filter_map(|item| with_node(&node.node, item)).collect::<Vec<_>>()
        };
        let items: Vec<Value> = nodes.iter().flat_map(of_node).collect();
        let is_bad = |item: &&Value| {
            let (wanted, state) = (item["wanted"].as_str(), item["state"].as_str());
            !matches!(wanted, None | Some("" | "none")) && !matches!(state, Some("verified" | "draining"))
        };
        let bad: Vec<&Value> = items.iter().filter(is_bad).collect();
        let wrong = bad.first().filter(|_| verb == "verify").map(|first| {
            let (pod, state) = (table::pod_of(first), first["state"].as_str().unwrap_or("not known"));
            format!("{} pods are not known to be captured, the first is {pod}: {state}", bad.len())
        });
        let text = match (self.output, verb) {
            (Format::Json | Format::Yaml, _) => document("NodePodList", &nodes, items.clone(), self.output)?,
            (_, "verify") => table::of_pods(bad.iter().copied()),
            _ => table::of_pods(items.iter()),
        };
        if items.is_empty() && nodes.iter().all(NodeAnswer::knows) {
            let problem = "no node knows of such a pod".to_owned();
            return Ok(VerbAnswer { exit: crate::pods::NOTHING, ..VerbAnswer::failed(text, problem) });
        }
        Ok(finished(text, wrong, &nodes))
    }
}

impl ClusterArgs {
    /// Asks every agent's container.
    pub(crate) fn ask(&self, line: &[&str]) -> Result<Vec<NodeAnswer>> {
        let kubectl = Kubectl::of(self);
        let mut agents = kubectl.agents()?;
        if !self.nodes.is_empty() {
            agents.retain(|agent| self.nodes.contains(&agent.node));
        }
        if agents.is_empty() {
            bail!(
                "no agent's pod is known in namespace {} (label k8s-app=istio-cni-node); give another by --agent-namespace, or other nodes by --node",
                self.agent_namespace
            );
        }
        Ok(kubectl.ask_all(&agents, line))
    }
}

/// The object with the node's name.
fn with_node(node: &str, mut item: Value) -> Option<Value> {
    item.as_object_mut()?.insert("node".to_owned(), node.into());
    Some(item)
}

fn document(kind: &'static str, nodes: &[NodeAnswer], items: Vec<Value>, format: Format) -> Result<String> {
    structured(format, &NodesDocument { api_version: API_VERSION, kind, nodes, items })
}

/// The exit code says what is worst.
pub(crate) fn finished(text: String, wrong: Option<String>, nodes: &[NodeAnswer]) -> VerbAnswer {
    let silent: Vec<&NodeAnswer> = nodes.iter().filter(|node| !node.answers()).collect();
    let unknowing = nodes.iter().find(|node| node.answers() && !node.knows());
    match (wrong, silent.first()) {
        (Some(wrong), _) => VerbAnswer::failed(text, one_line(&wrong)),
        (None, Some(first)) => {
            let problem = format!(
                "{} of {} nodes do not answer, the first is {}: {}",
                silent.len(),
                nodes.len(),
                first.node,
                first.error
            );
            VerbAnswer { exit: PARTLY_UNKNOWN, ..VerbAnswer::failed(text, one_line(&problem)) }
        }
        (None, None) => match unknowing {
            Some(node) => {
                let problem = format!("node {}: {}", node.node, node.error);
                VerbAnswer { exit: PARTLY_UNKNOWN, ..VerbAnswer::failed(text, one_line(&problem)) }
            }
            None => VerbAnswer::text(text),
        },
    }
}
