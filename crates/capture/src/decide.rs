//! What becomes of a pod: one ordered table, in which the first row that holds decides, for the plugin, the node agent and `cnictl` alike.
//!
//! | stage | function | what it looks at | who needs only this |
//! |---|---|---|---|
//! | names | [`decide_by_name`] | what the runtime says of the pod | the plugin, before it asks for facts |
//! | ambient mode | [`membership`] | labels of pod and namespace, and two facts more | the agent, for pods that run |
//! | sidecars | [`decide`], which is all three | the whole pod | |
//!
//! What is captured in principle and cannot be, on this node or as the pod is, is a [`Refusal`]: its start fails, it is not left alone.

mod reason;
mod refusal;
mod sidecar;

use crate::annotations::{AnnotationError, NodeSettings};
use crate::pod::Pod;
use crate::select::{self, Labels, Selection, Selectors};
use crate::settings::Settings;
use crate::values::printable;

pub use reason::{Need, REASONS, Reason, Skip};
pub use refusal::{CaptureMode, Refusal, refuse, sandbox_of_class};

/// Name prefix of the node agent's own pods, where its DaemonSet has the usual name.
pub const AGENT_POD_PREFIX: &str = "istio-cni-node-";

/// Name of the proxy's container, whichever list it is in.
pub const PROXY_CONTAINER: &str = "istio-proxy";

/// Which pods the node's configuration leaves alone by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Namespace of the node agent.
    pub agent_namespace: String,
    /// Name prefix of its pods; empty: [`AGENT_POD_PREFIX`].
    pub agent_pod_prefix: String,
    /// Namespaces whose pods are never captured.
    pub excluded_namespaces: Vec<String>,
    /// The kill switch: no pod is captured that is not yet.
    pub capture_disabled: bool,
}

/// Which pods ambient mode takes into the mesh. The default takes none: the mode is off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enrolment {
    /// The enablement selectors.
    pub selectors: Selectors,
    /// Namespace of ztunnel; empty where it is not known, as to the plugin.
    pub ztunnel_namespace: String,
}

/// What is looked at of a pod to tell whether it is of ambient mode.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// `metadata.namespace`
    pub namespace: &'a str,
    /// `metadata.name`
    pub name: &'a str,
    /// `spec.hostNetwork`
    pub host_network: bool,
    /// Annotation `sidecar.istio.io/status` is there, whatever it says.
    pub injected: bool,
    /// `metadata.labels`
    pub labels: Labels<'a>,
    /// The labels of its namespace, where they are known.
    pub namespace_labels: Option<Labels<'a>>,
    /// Rules of ambient mode are in force for it. The kill switch leaves such a pod as it is.
    pub in_mesh: bool,
}

/// Whether a pod is of ambient mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// It belongs into the mesh.
    In,
    /// It does not.
    Out(Skip),
    /// It cannot be told.
    Unknown(Need),
}

/// The outcome for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The pod's traffic is left alone.
    Skip(Skip),
    /// Its traffic goes through its sidecar.
    Sidecar {
        /// How.
        settings: Box<Settings>,
        /// The proxy is an init container that keeps running.
        native_sidecar: bool,
        /// Texts for the log.
        warnings: Vec<String>,
        /// Why, with all rules in place, not all of its traffic is captured. Such a pod must not be called captured.
        gaps: Vec<String>,
    },
    /// Its traffic goes through the node's ztunnel. How, [`crate::ambient::PodOptions::parse`] reads.
    Ambient,
    /// Facts are missing.
    Unknown(Need),
}

/// The rows of ambient mode, after those of names.
pub fn membership(pod: &Subject<'_>, scope: &Exclusions, enrolment: &Enrolment) -> Membership {
    let by_name = decide_by_name(pod.namespace, pod.name, scope);
    if let Some(skip) = by_name.filter(|skip| !(pod.in_mesh && skip.reason == Reason::CaptureDisabled)) {
        return Membership::Out(skip);
    }
    for (reason, holds, detail) in OUT_OF_THE_MESH {
        if holds(pod, enrolment) {
            return Membership::Out(Skip { reason: *reason, detail: (*detail).to_owned() });
        }
    }
    match enrolment.selectors.select(pod.labels, pod.namespace_labels) {
        Selection::Selected => Membership::In,
        Selection::NeedsNamespace => Membership::Unknown(Need::NamespaceLabels(pod.namespace.to_owned())),
        Selection::NotSelected => {
            Membership::Out(Skip { reason: Reason::NotSelected, detail: String::new() })
        }
    }
}

/// The decision for a pod whose facts are known, by the whole table.
///
/// # Errors
/// The pod is to be captured by a sidecar's rules, but an annotation cannot be used.
pub fn decide(
    pod: &Pod,
    scope: &Exclusions,
    enrolment: &Enrolment,
    node: &NodeSettings,
) -> Result<Decision, AnnotationError> {
    let labels = |key: &str| pod.labels.get(key).map(String::as_str);
    let of_namespace =
        pod.namespace_labels.as_ref().map(|labels| |key: &str| labels.get(key).map(String::as_str));
    let subject = Subject {
        namespace: &pod.namespace,
        name: &pod.name,
        host_network: pod.host_network,
        injected: select::is_injected(pod.annotations.keys().map(String::as_str)),
        labels: &labels,
        namespace_labels: of_namespace.as_ref().map(|labels| labels as Labels<'_>),
        in_mesh: false,
    };
    match membership(&subject, scope, enrolment) {
        Membership::In => Ok(Decision::Ambient),
        Membership::Unknown(need) => Ok(Decision::Unknown(need)),
        Membership::Out(skip) if skip.reason.is_of_ambient_mode_only() => {
            sidecar::decide(pod, node, (!enrolment.is_off()).then_some(skip.reason))
        }
        Membership::Out(skip) => Ok(Decision::Skip(skip)),
    }
}

/// Rows that hold whatever the selectors say. What was found stands beside the reason.
type Row = (Reason, fn(&Subject<'_>, &Enrolment) -> bool, &'static str);

const OUT_OF_THE_MESH: &[Row] = &[
    (Reason::HostNetwork, |pod, _| pod.host_network, "hostNetwork is true"),
    (Reason::Ztunnel, |pod, mesh| mesh.is_ztunnel(pod.namespace, pod.labels), "label app is ztunnel"),
    (Reason::Injected, |pod, _| pod.injected, "annotation sidecar.istio.io/status"),
];

/// The rows that need nothing but the pod's name; `None` means that its facts are needed.
pub fn decide_by_name(namespace: &str, name: &str, scope: &Exclusions) -> Option<Skip> {
    let skip = |reason, detail| Some(Skip { reason, detail });
    let prefix =
        Some(&*scope.agent_pod_prefix).filter(|prefix| !prefix.is_empty()).unwrap_or(AGENT_POD_PREFIX);
    if name.starts_with(prefix) && namespace == scope.agent_namespace {
        return skip(Reason::OwnAgentPod, format!("pod {} in namespace {namespace:?}", printable(name)));
    }
    if name.is_empty() || namespace.is_empty() {
        return skip(Reason::NotKubernetes, "the runtime passed no pod name and namespace".to_owned());
    }
    if scope.excluded_namespaces.iter().any(|excluded| excluded == namespace) {
        return skip(Reason::ExcludedNamespace, format!("namespace {}", printable(namespace)));
    }
    if scope.capture_disabled {
        return skip(Reason::CaptureDisabled, "capture: disabled".to_owned());
    }
    None
}

// === impl Enrolment ===

impl Enrolment {
    /// Whether no pod is ever taken into the mesh.
    pub fn is_off(&self) -> bool {
        self.selectors.is_empty()
    }

    /// Whether a pod is one of ztunnel's.
    pub fn is_ztunnel(&self, namespace: &str, labels: Labels<'_>) -> bool {
        !namespace.is_empty() && namespace == self.ztunnel_namespace && labels("app") == Some("ztunnel")
    }
}

#[cfg(test)]
mod tests;
