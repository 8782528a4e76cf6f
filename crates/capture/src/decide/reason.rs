//! The rows of the decision table: each has a name, for logs and programs, and one text, for people.

use std::fmt;

/// Why a pod is left alone, or is not of ambient mode. In the order of the table: the first row that holds decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The node agent's own pod, which must start when nothing else does.
    OwnAgentPod,
    /// The runtime names no pod.
    NotKubernetes,
    /// The namespace is excluded by configuration.
    ExcludedNamespace,
    /// The kill switch is on, and the pod is not in the mesh yet.
    CaptureDisabled,
    /// The pod uses the node's network.
    HostNetwork,
    /// It is a ztunnel.
    Ztunnel,
    /// The injector handled the pod, so that it is not of ambient mode; the rows of sidecars follow.
    Injected,
    /// Ambient mode does not want the pod; the rows of sidecars follow.
    NotSelected,
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

/// A pod that is left alone, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// The row of the table.
    pub reason: Reason,
    /// What exactly was found, for people; empty where the reason says it all.
    pub detail: String,
}

/// What is missing for a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// The labels of this namespace, which an enablement selector of ambient mode looks at.
    NamespaceLabels(String),
}

/// Reason, name, text. `docs/decision.md` has the same table.
pub const REASONS: &[(Reason, &str, &str)] = &[
    (Reason::OwnAgentPod, "own-agent-pod", "it is the node agent itself"),
    (Reason::NotKubernetes, "not-kubernetes", "it is not a pod of Kubernetes"),
    (Reason::ExcludedNamespace, "excluded-namespace", "its namespace is excluded by the configuration"),
    (Reason::CaptureDisabled, "capture-disabled", "capture is disabled by the configuration"),
    (Reason::HostNetwork, "host-network", "it uses the network of the node"),
    (Reason::Ztunnel, "ztunnel", "it is ztunnel itself"),
    (Reason::Injected, "injected", "it has a sidecar, so it is not of ambient mode"),
    (Reason::NotSelected, "not-selected", "no enablement selector matches the labels of pod and namespace"),
    (Reason::IstioInitPresent, "istio-init-present", "its own init container sets the rules"),
    (Reason::EnvoyDisabled, "envoy-disabled", "its proxy does not run Envoy"),
    (Reason::NoProxy, "no-proxy", "it has no container istio-proxy"),
    (Reason::NotASidecar, "not-a-sidecar", "its proxy is not a sidecar"),
    (Reason::InjectFalse, "inject-false", "injection is turned off for it"),
    (Reason::NoStatus, "no-status", "the injector did not handle it"),
    (Reason::InterceptionNone, "interception-none", "it asks for no interception"),
];

// === impl Reason ===

impl Reason {
    /// A stable name for logs, metrics and programs.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The reason for people, about "it", the pod.
    pub fn text(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> &'static (Reason, &'static str, &'static str) {
        // In the order of the variants, as a test makes sure.
        &REASONS[self as usize]
    }

    /// Whether a sidecar's rows follow: the row only keeps the pod out of ambient mode.
    pub(super) fn is_of_ambient_mode_only(self) -> bool {
        matches!(self, Self::Injected | Self::NotSelected)
    }
}

// === impl Skip ===

impl Skip {
    /// `text: detail`, for people.
    pub fn text(&self) -> String {
        let text = self.reason.text();
        if self.detail.is_empty() { text.to_owned() } else { format!("{text}: {}", self.detail) }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.name())?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

// === impl Need ===

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NamespaceLabels(namespace) => {
                write!(f, "the labels of namespace {}", crate::values::printable(namespace))
            }
        }
    }
}
