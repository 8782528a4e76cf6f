//! Whether a pod is captured: an ordered table in which the first row that holds decides (cni-plugin.md section 5).

use std::fmt;

use crate::annotations::{
    AnnotationError, DISABLE_ENVOY, INJECT, NodeSettings, PodSettings, STATUS, parse_settings, proxy_variable,
};
use crate::exempt;
use crate::pod::{Container, Pod, PodId};
use crate::settings::Settings;
use crate::values::{Quoted, parse_bool, printable};

/// Name prefix of the node agent's own pods, where its DaemonSet has the usual name.
pub const AGENT_POD_PREFIX: &str = "istio-cni-node-";

/// Name of the proxy's container, whichever list it is in.
pub const PROXY_CONTAINER: &str = "istio-proxy";
const INIT_CONTAINER: &str = "istio-init";

/// What the node's configuration says about pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Namespace of the node agent.
    pub agent_namespace: String,
    /// Name prefix of its pods; empty: [`AGENT_POD_PREFIX`].
    pub agent_pod_prefix: String,
    /// Namespaces whose pods are never captured.
    pub excluded_namespaces: Vec<String>,
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
}

/// A pod that is left alone, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// The row of the table.
    pub reason: Reason,
    /// What exactly was found, for people.
    pub detail: String,
}

/// The rows of the decision table, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The node agent's own pod, which must start when nothing else does.
    OwnAgentPod,
    /// The runtime names no pod.
    NotKubernetes,
    /// The namespace is excluded by configuration.
    ExcludedNamespace,
    /// The pod uses the node's network.
    HostNetwork,
    /// An init container programs the pod itself.
    IstioInitPresent,
    /// The proxy is told not to run Envoy.
    EnvoyDisabled,
    /// There is no proxy in the pod.
    NoProxy,
    /// The proxy is a gateway or another kind, not a sidecar.
    NotASidecar,
    /// Label or annotation turn injection off.
    InjectFalse,
    /// The injector did not handle the pod.
    NoStatus,
    /// The pod asks for no interception.
    InterceptionNone,
}

/// The part of the decision that needs no facts about the pod; `None` means that they are needed.
pub fn decide_by_id(id: &PodId, scope: &Scope) -> Option<Skip> {
    let skip = |reason, detail| Some(Skip { reason, detail });
    let prefix =
        Some(&*scope.agent_pod_prefix).filter(|prefix| !prefix.is_empty()).unwrap_or(AGENT_POD_PREFIX);
    if id.name.starts_with(prefix) && id.namespace == scope.agent_namespace {
        return skip(
            Reason::OwnAgentPod,
            format!("pod {} in namespace {:?}", printable(&id.name), id.namespace),
        );
    }
    if id.name.is_empty() || id.namespace.is_empty() {
        return skip(Reason::NotKubernetes, "the runtime passed no pod name and namespace".to_owned());
    }
    if scope.excluded_namespaces.contains(&id.namespace) {
        return skip(Reason::ExcludedNamespace, format!("namespace {}", printable(&id.namespace)));
    }
    None
}

/// The decision for a pod whose facts are known.
///
/// # Errors
/// The pod is to be captured, but an annotation cannot be used.
pub fn decide(pod: &Pod, node: &NodeSettings) -> Result<Decision, AnnotationError> {
    let view = View::of(pod);
    for (reason, found) in TABLE {
        if let Some(detail) = found(&view) {
            return Ok(Decision::Skip(Skip { reason: *reason, detail }));
        }
    }
    match parse_settings(pod, &view.proxy, node)? {
        PodSettings::None => Ok(Decision::Skip(Skip {
            reason: Reason::InterceptionNone,
            detail: "annotation sidecar.istio.io/interceptionMode is NONE".to_owned(),
        })),
        PodSettings::Capture { settings, mut warnings } => {
            let native_sidecar =
                pod.init_containers.iter().any(|c| c.name == PROXY_CONTAINER && c.restarts_always);
            if !native_sidecar && !pod.containers.iter().any(|c| c.name == PROXY_CONTAINER) {
                warnings.push(
                    "istio-proxy is an init container without restartPolicy Always: it ends before the pod's \
                     containers start, and their traffic will find no proxy"
                        .to_owned(),
                );
            }
            let exempt = exempt::find(pod, &view.proxy, &settings);
            warnings.extend(exempt.warnings);
            Ok(Decision::Sidecar { settings, native_sidecar, warnings, gaps: exempt.gaps })
        }
    }
}

/// A row holds when it finds something; the text says what.
type Row = (Reason, fn(&View<'_>) -> Option<String>);

const TABLE: &[Row] = &[
    (Reason::HostNetwork, |view| view.pod.host_network.then(|| "hostNetwork is true".to_owned())),
    (Reason::IstioInitPresent, |view| {
        view.container(INIT_CONTAINER).map(|_| "container istio-init".to_owned())
    }),
    (Reason::EnvoyDisabled, |view| {
        let disabled = proxy_variable(&view.proxy, DISABLE_ENVOY).and_then(parse_bool);
        (disabled == Some(true)).then(|| "DISABLE_ENVOY is true on istio-proxy".to_owned())
    }),
    (Reason::NoProxy, |view| view.proxy.is_empty().then(|| format!("containers: {}", view.names()))),
    (Reason::NotASidecar, |view| {
        view.proxy_type()
            .filter(|kind| *kind != "sidecar")
            .map(|kind| format!("proxy type {}", Quoted::new(kind)))
    }),
    (Reason::InjectFalse, |view| view.inject_false()),
    (Reason::NoStatus, |view| {
        (!view.pod.annotations.contains_key(STATUS)).then(|| format!("annotation {STATUS} is absent"))
    }),
];

/// A pod as the table looks at it.
struct View<'a> {
    pod: &'a Pod,
    /// Every container of the proxy's name, init containers first.
    proxy: Vec<&'a Container>,
}

impl<'a> View<'a> {
    fn of(pod: &'a Pod) -> Self {
        Self { pod, proxy: pod.all_containers().filter(|c| c.name == PROXY_CONTAINER).collect() }
    }

    fn container(&self, name: &str) -> Option<&'a Container> {
        self.pod.all_containers().find(|c| c.name == name)
    }

    fn names(&self) -> String {
        self.pod.all_containers().map(|c| printable(&c.name)).collect::<Vec<_>>().join(", ")
    }

    /// `proxy <type> …` as the proxy's arguments; the last container that says it counts.
    fn proxy_type(&self) -> Option<&'a str> {
        self.proxy.iter().rev().find_map(|c| match c.args.as_slice() {
            [program, kind, ..] if program == "proxy" => Some(kind.as_str()),
            _ => None,
        })
    }

    /// The label, where present, hides the annotation, even when it is no boolean.
    fn inject_false(&self) -> Option<String> {
        let (kind, text) = match self.pod.labels.get(INJECT) {
            Some(text) => ("label", text),
            None => ("annotation", self.pod.annotations.get(INJECT)?),
        };
        (parse_bool(text) == Some(false)).then(|| format!("{kind} {INJECT} is {text}"))
    }
}

impl Reason {
    /// A stable name for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::OwnAgentPod => "own-agent-pod",
            Self::NotKubernetes => "not-kubernetes",
            Self::ExcludedNamespace => "excluded-namespace",
            Self::HostNetwork => "host-network",
            Self::IstioInitPresent => "istio-init-present",
            Self::EnvoyDisabled => "envoy-disabled",
            Self::NoProxy => "no-proxy",
            Self::NotASidecar => "not-a-sidecar",
            Self::InjectFalse => "inject-false",
            Self::NoStatus => "no-status",
            Self::InterceptionNone => "interception-none",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason.name(), self.detail)
    }
}

#[cfg(test)]
mod tests;
