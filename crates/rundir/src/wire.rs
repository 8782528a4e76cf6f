//! What the plugin and `cnictl` hear of the agent, and the agent of them. Members may be added; readers skip what they do not know.

pub mod denials;
pub mod pods;
pub mod policy;
pub mod recent;

use std::net::{Ipv4Addr, Ipv6Addr};

use facts::PodRef;
use serde::{Deserialize, Serialize};

use policy::PolicyOutcome;

/// One operation of the plugin, told at its end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperationReport {
    /// Version of the plugin.
    pub version: String,
    /// The verb in lower case: `add`, `check`.
    pub operation: String,
    /// How it ended.
    pub result: Outcome,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// `metadata.uid` of the pod, empty where the runtime does not pass it.
    pub uid: String,
    /// CNI_CONTAINERID.
    pub container: String,
    /// Where the facts came from, empty where none were asked for.
    pub facts_source: String,
    /// Seconds from the start of the plugin to this report.
    pub seconds: f64,
    /// Seconds of each phase that was reached.
    pub phases: Phases,
    /// Whether this node lacks what the rules are loaded with: both backends, or the only one that is allowed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub backend_missing: bool,
    /// The error, or for a pod that started uncaptured or incompletely captured the reason, or for one that is captured by rules that others
    /// shadow what does so; empty otherwise.
    pub error: String,
    /// What was done about policies.
    #[serde(skip_serializing_if = "PolicyOutcome::is_off")]
    pub policy: PolicyOutcome,
}

impl OperationReport {
    /// The pod that the operation was for.
    pub fn pod(&self) -> PodRef {
        PodRef { uid: self.uid.clone(), ..PodRef::named(&*self.namespace, &*self.name) }
    }

    /// Whether the pod started without all of its capture, so that the agent has something to say about it to people.
    pub fn wants_note(&self) -> bool {
        match self.result {
            Outcome::Uncaptured => true,
            Outcome::Incomplete => self.operation == "add",
            Outcome::Captured | Outcome::Skipped | Outcome::Failed | Outcome::Disabled => false,
        }
    }
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The pod is captured, or compares as planned.
    Captured,
    /// The pod is not captured.
    Skipped,
    /// The runtime was told of an error.
    #[default]
    Failed,
    /// The pod could not be set up and was let through: the failure policy is `open`.
    Uncaptured,
    /// The pod has its rules, and part of its traffic passes by its proxy or comes back to it; or parts of it were assumed, so that this is not
    /// known.
    Incomplete,
    /// The pod was let through without a look: capture is switched off.
    Disabled,
}

/// The agent that holds a lock of the run directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holder {
    /// Namespace of its pod, empty where it does not run in one.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// Version of the agent.
    pub version: String,
    /// Its process, as it sees itself.
    pub pid: u32,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { namespace, pod, version, pid } = self;
        match (pod.is_empty(), version.is_empty()) {
            (false, _) => write!(f, "pod {namespace}/{pod}, version {version}"),
            (true, false) => write!(f, "process {pid}, version {version}"),
            (true, true) => f.write_str("an agent without a name in its lock file"),
        }
    }
}

/// How the agent is, for the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentStatus {
    /// Version of the agent.
    pub version: String,
    /// Its process, as it sees itself.
    pub pid: u32,
    /// Whether it is ready.
    pub ready: bool,
    /// For want of what it is not.
    pub pending: Vec<String>,
    /// What is worth knowing although it does its work.
    pub notices: Vec<String>,
    /// Whether it has listed pods and namespaces once.
    pub synced: bool,
    /// Pods of this node that it knows.
    pub pods: usize,
    /// What keeps it from knowing more; empty when nothing does.
    pub last_error: String,
    /// The options of ambient mode by which pods get their rules now; absent where the mode is off or the node is not prepared yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ambient: Option<AmbientOptions>,
}

/// The agent's options of ambient mode, as far as rules and decisions depend on them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmbientOptions {
    /// `nftables` or `iptables`: what holds the rules of the node and its pods.
    pub backend: String,
    /// `AMBIENT_DNS_CAPTURE`
    pub dns_capture: bool,
    /// `AMBIENT_IPV6`
    pub ipv6: bool,
    /// `HOST_PROBE_SNAT_IP`
    pub probe_v4: Ipv4Addr,
    /// `HOST_PROBE_SNAT_IPV6`
    pub probe_v6: Ipv6Addr,
    /// The user whose connections count as probes; absent where those of every process of the node do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_uid: Option<u32>,
    /// `SYSTEM_NAMESPACE`, where ztunnel runs.
    pub system_namespace: String,
}

/// Seconds of the phases of an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phases {
    /// Start, environment, configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parse: Option<f64>,
    /// Waiting for the pod's facts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facts: Option<f64>,
    /// The decision and the settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decide: Option<f64>,
    /// Work in the pod's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply: Option<f64>,
}

impl Outcome {
    /// The word that stands in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Uncaptured => "uncaptured",
            Self::Incomplete => "incomplete",
            Self::Disabled => "disabled",
        }
    }
}

impl Phases {
    /// Each phase that was reached, with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all =
            [("parse", self.parse), ("facts", self.facts), ("decide", self.decide), ("apply", self.apply)];
        all.into_iter().filter_map(|(name, seconds)| seconds.map(|seconds| (name, seconds)))
    }
}
