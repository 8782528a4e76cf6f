//! What is kept of a Node: what DaemonSets go by.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// Taints under these domains say what state a node is in: not ready, cordoned, short of memory, not set up yet. The controller lets its
/// pods tolerate most of them. None of them says that the DaemonSet is not meant for the node.
const OF_THE_STATE: [&str; 2] = ["node.kubernetes.io/", "node.cloudprovider.kubernetes.io/"];

/// What kubelet says in its condition `Ready` while it ends the pods of a machine that shuts down (`ShutdownStatus` in Kubernetes'
/// `pkg/kubelet/nodeshutdown`).
const SHUTTING_DOWN: &str = "node is shutting down";

/// A node: what DaemonSets go by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) shuts_down: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
    pub(crate) effect: String,
}

// === impl Node ===

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Metadata {
            name: String,
            #[serde(default)]
            labels: Option<BTreeMap<String, String>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Spec {
            taints: Option<Vec<Taint>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Status {
            conditions: Option<Vec<Condition>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Condition {
            r#type: String,
            status: String,
            message: Option<String>,
        }
        #[derive(Deserialize)]
        struct Object {
            metadata: Metadata,
            #[serde(default)]
            spec: Spec,
            #[serde(default)]
            status: Status,
        }
        let Object { metadata, spec, status } = Object::deserialize(deserializer)?;
        let ends = |condition: &Condition| {
            condition.r#type == "Ready"
                && condition.status == "False"
                && condition.message.as_ref().is_some_and(|message| message.contains(SHUTTING_DOWN))
        };
        let shuts_down = status.conditions.iter().flatten().any(ends);
        let (labels, taints) = (metadata.labels.unwrap_or_default(), spec.taints.unwrap_or_default());
        Ok(Self { name: metadata.name, labels, taints, shuts_down })
    }
}

impl Node {
    /// Whether its kubelet says that the machine is shutting down.
    pub fn is_shutting_down(&self) -> bool {
        self.shuts_down
    }

    /// Whether it has a taint of this key.
    pub fn has_taint(&self, key: &str) -> bool {
        self.taints.iter().any(|taint| taint.key == key)
    }
}

// === impl Taint ===

impl Taint {
    pub(crate) fn evicts(&self) -> bool {
        self.effect == "NoExecute"
    }

    pub(crate) fn keeps_off(&self) -> bool {
        (self.evicts() || self.effect == "NoSchedule")
            && !OF_THE_STATE.iter().any(|domain| self.key.starts_with(domain))
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_deref() {
            None | Some("") => write!(f, "{}:{}", self.key, self.effect),
            Some(value) => write!(f, "{}={value}:{}", self.key, self.effect),
        }
    }
}
