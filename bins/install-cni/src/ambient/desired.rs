//! What a pod should be, from what the API server says of it: pure.

use capture::select::{Eligibility, Selectors};
pub(crate) use facts::object::REDIRECTION;
use facts::{Facts, Object};

/// It is wholly in the mesh.
pub(crate) const ENABLED: &str = "enabled";
/// Its rules are in place, and no ztunnel has taken it yet.
pub(crate) const PENDING: &str = "pending";

/// Whether the annotation with this value says that something of ours is in the pod. The older agents of others opted pods out with other
/// values.
pub(crate) fn claims(value: &str) -> bool {
    matches!(value, ENABLED | PENDING)
}

/// Where a pod belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Desired {
    /// Into the mesh.
    In,
    /// Out of it, for this reason.
    Out(String),
    /// It has ended: its namespace goes with it.
    Ended,
    /// It cannot be told yet.
    Unknown,
}

/// What decides besides the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) selectors: Selectors,
    /// `CAPTURE`: false lets no pod into the mesh that is not in already.
    pub(crate) capture: bool,
    /// `EXCLUDE_NAMESPACES`.
    pub(crate) excluded: Vec<String>,
    /// Namespace of ztunnel.
    pub(crate) system_namespace: String,
}

// === impl Rules ===

impl Rules {
    /// Where the pod belongs (AA-24, AA-33, AA-36).
    pub(crate) fn desired(&self, facts: &Facts) -> Desired {
        let pod = &facts.pod;
        if pod.is_terminal() {
            return Desired::Ended;
        }
        if self.excluded.iter().any(|namespace| namespace == pod.namespace()) {
            return Desired::Out(format!("namespace {} is excluded", pod.namespace()));
        }
        if self.is_ztunnel(pod) {
            return Desired::Out("it is ztunnel itself".to_owned());
        }
        match self.eligible(facts) {
            Eligibility::Eligible => Desired::In,
            Eligibility::NeedsNamespace => Desired::Unknown,
            Eligibility::Not(reason) => Desired::Out(reason.to_string()),
        }
    }

    /// Whether the pod is one of ztunnel's.
    pub(crate) fn is_ztunnel(&self, pod: &Object) -> bool {
        pod.namespace() == self.system_namespace && pod.label("app") == Some("ztunnel")
    }

    /// Whether the selectors want the pod (AA-21).
    pub(crate) fn eligible(&self, facts: &Facts) -> Eligibility {
        facts.eligible(&self.selectors)
    }
}

#[cfg(test)]
mod tests;
