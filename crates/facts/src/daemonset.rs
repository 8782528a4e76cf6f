//! What is kept of a DaemonSet: whether it is being deleted, and which nodes it is for.

mod affinity;
mod placement;

use serde::Deserialize;

pub use placement::{Misplaced, NodeConstraints};

/// A DaemonSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonSet {
    /// Whether it is being deleted.
    pub is_deleting: bool,
    /// It is being deleted without its pods (`--cascade=orphan`): they go on, often under another DaemonSet.
    pub leaves_pods: bool,
    /// Which nodes its pods are for. The error is about a placement that means nothing.
    pub placement: Result<NodeConstraints, String>,
}

// === impl DaemonSet ===

impl<'de> Deserialize<'de> for DaemonSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Metadata {
            deletion_timestamp: Option<String>,
            finalizers: Vec<String>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Template {
            spec: serde_json::Value,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Spec {
            template: Template,
        }
        #[derive(Deserialize)]
        struct Object {
            #[serde(default)]
            metadata: Metadata,
            #[serde(default)]
            spec: Spec,
        }
        let Object { metadata, spec } = Object::deserialize(deserializer)?;
        let placement = NodeConstraints::of(&spec.template.spec).map_err(|error| error.to_string());
        let is_deleting = metadata.deletion_timestamp.is_some();
        // `FinalizerOrphanDependents` of Kubernetes' metav1.
        let leaves_pods = is_deleting && metadata.finalizers.iter().any(|name| name == "orphan");
        Ok(Self { is_deleting, leaves_pods, placement })
    }
}
