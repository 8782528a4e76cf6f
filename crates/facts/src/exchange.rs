//! What the plugin and the node agent say to each other, and where.
//!
//! Over HTTP/1.1 on the unix socket [`SOCKET_NAME`] in the run directory: `GET /v1/facts/<namespace>/<name>?uid=<uid>` is answered with
//! [`Facts`] or with 404 and a text; `POST /v1/report` takes a [`Report`]. Members may be added; readers skip what they do not know.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use capture::decide::{Enrolment, Membership, Scope, Subject, membership};
use capture::select::{self, Labels};
use serde::{Deserialize, Serialize};

use crate::PodRef;
use crate::object::Object;

/// The agent's socket in the run directory. Its mode is 0600, and both sides look at the other's user.
pub const SOCKET_NAME: &str = "agent.sock";
/// The agent's socket in the run directory where plugins announce pods of ambient mode, upstream's included.
pub const EVENT_SOCKET_NAME: &str = "pluginevent.sock";
/// Path of the facts on the socket, before namespace and name.
pub const FACTS_PATH: &str = "/v1/facts";
/// Path of the reports on the socket.
pub const REPORT_PATH: &str = "/v1/report";

/// Path of the agent's [`Status`] on the socket.
pub const STATUS_PATH: &str = "/v1/status";

/// Directory of last known facts in the run directory: a file of [`Facts`] for each pod of the node, see [`facts_file`].
pub const FACTS_DIR: &str = "facts";
/// Directory of pods that started without capture, in the run directory: a file of [`Report`] for each, named by container. The plugin
/// leaves one when it cannot tell the agent; the agent takes it from there.
pub const UNCAPTURED_DIR: &str = "uncaptured";
/// Directory of the agent's own records of ambient pods in the run directory: a file for each pod that has something of ours, named by uid.
pub const AMBIENT_DIR: &str = "ambient";
/// File of the agent's own in the run directory: when runtimes called the plugin.
pub const PLUGIN_TIMES_NAME: &str = "plugin-times.json";
/// File in the run directory that the agent that works on the node holds with flock(2) as long as it lives; it has the agent's [`Holder`].
pub const LOCK_NAME: &str = "agent.lock";
/// The same of an agent that waits for its turn: the one before it leaves everything in place when it ends.
pub const NEXT_LOCK_NAME: &str = "agent.next";

/// Largest report, in bytes.
pub const MAX_REPORT: usize = 64 << 10;

/// What is known of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The pod, trimmed to what is read.
    pub pod: Arc<Object>,
    /// Labels of its namespace; absent while the namespace is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_labels: Option<BTreeMap<String, String>>,
}

impl Facts {
    /// Whether the pod is of ambient mode. `in_mesh`: rules of it are in force for the pod.
    pub fn membership(&self, scope: &Scope, enrolment: &Enrolment, in_mesh: bool) -> Membership {
        let annotations = self.pod.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref());
        let of_namespace =
            self.namespace_labels.as_ref().map(|labels| |key: &str| labels.get(key).map(String::as_str));
        let subject = Subject {
            namespace: self.pod.namespace(),
            name: self.pod.name(),
            host_network: self.pod.host_network(),
            injected: select::is_injected(annotations.into_iter().flatten().map(|(key, _)| key.as_str())),
            labels: &|key| self.pod.label(key),
            namespace_labels: of_namespace.as_ref().map(|labels| labels as Labels<'_>),
            in_mesh,
        };
        membership(&subject, scope, enrolment)
    }
}

/// One operation of the plugin, told at its end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
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
}

impl Report {
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
    /// The pod is none to capture.
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
            (true, true) => f.write_str("one that does not say its name"),
        }
    }
}

/// How the agent is, for the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
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

/// Name of the file in [`FACTS_DIR`] for a pod; `None` for text that is no Kubernetes name and could leave the directory.
pub fn facts_file(namespace: &str, name: &str) -> Option<String> {
    let is_name = |text: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        !text.is_empty() && text.len() <= 253 && !text.starts_with('.') && text.chars().all(allowed)
    };
    // Longer names than a file may have (NAME_MAX is 255 bytes) are left out: such a pod is asked for elsewhere.
    let file = format!("{namespace}_{name}.json");
    (is_name(namespace) && is_name(name) && file.len() <= 255).then_some(file)
}

#[cfg(test)]
mod tests;
