//! Which nodes a DaemonSet is for, as its controller judges it (Kubernetes `pkg/controller/daemon`, `NodeShouldRunDaemonPod`).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::affinity::{self, NodeSelector};
use crate::node::{Node, Taint};

/// What a DaemonSet's pods say about their nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConstraints {
    node_name: Option<String>,
    node_selector: Option<BTreeMap<String, String>>,
    #[serde(skip)]
    required: Option<NodeSelector>,
    tolerations: Option<Vec<Toleration>>,
}

/// Why a node is none of a DaemonSet's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misplaced {
    /// Its pods name another node.
    NodeName(String),
    /// A label of the `nodeSelector` that the node does not have: key and value.
    NodeSelector(String, String),
    /// The required node affinity does not hold.
    Affinity,
    /// A taint that its pods do not tolerate, and that takes running ones off the node.
    Taint(String),
    /// The same, but those that run go on (`NoSchedule`).
    TaintForNew(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Toleration {
    key: Option<String>,
    operator: Option<String>,
    value: Option<String>,
    effect: Option<String>,
}

// === impl NodeConstraints ===

impl NodeConstraints {
    /// From the `spec` of the pod template.
    pub(super) fn of(spec: &Value) -> Result<Self, serde_json::Error> {
        if spec.is_null() {
            return Ok(Self::default());
        }
        let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let required = Option::<NodeSelector>::deserialize(required)?;
        Ok(Self { required, ..Self::deserialize(spec)? })
    }

    /// Whether no property of a node matters, taints aside.
    pub fn is_anywhere(&self) -> bool {
        let selects = self.node_selector.as_ref().is_some_and(|labels| !labels.is_empty());
        !selects && self.required.is_none() && self.node_name().is_none()
    }

    /// Why the node is not one of them, if it is not.
    ///
    /// # Errors
    /// The required affinity is not valid; the text says why.
    pub fn misplaced(&self, node: &Node) -> Result<Option<Misplaced>, String> {
        if let Some(other) = self.node_name().filter(|name| *name != node.name) {
            return Ok(Some(Misplaced::NodeName(other.to_owned())));
        }
        let mut selector = self.node_selector.iter().flatten();
        if let Some((key, value)) = selector.find(|(key, value)| node.labels.get(*key) != Some(value)) {
            return Ok(Some(Misplaced::NodeSelector(key.clone(), value.clone())));
        }
        if let Some(required) = &self.required {
            let node = affinity::SelectedNode { name: &node.name, labels: &node.labels };
            if !required.matches(&node).map_err(|senseless| senseless.to_string())? {
                return Ok(Some(Misplaced::Affinity));
            }
        }
        let intolerable = || node.taints.iter().filter(|taint| taint.keeps_off() && !self.tolerates(taint));
        let evicts =
            intolerable().find(|taint| taint.evicts()).map(|taint| Misplaced::Taint(taint.to_string()));
        let keeps_new_off = || intolerable().next().map(|taint| Misplaced::TaintForNew(taint.to_string()));
        Ok(evicts.or_else(keeps_new_off))
    }

    fn node_name(&self) -> Option<&str> {
        self.node_name.as_deref().filter(|name| !name.is_empty())
    }

    fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().flatten().any(|toleration| toleration.tolerates(taint))
    }
}

impl Toleration {
    /// An operator that is not known here counts as met: nothing is concluded from what is not understood.
    fn tolerates(&self, taint: &Taint) -> bool {
        let given = |text: &'_ Option<String>| text.clone().unwrap_or_default();
        let (key, effect) = (given(&self.key), given(&self.effect));
        let values_fit = match self.operator.as_deref() {
            None | Some("" | "Equal") => given(&self.value) == given(&taint.value),
            Some(_) => true,
        };
        (effect.is_empty() || effect == taint.effect) && (key.is_empty() || key == taint.key) && values_fit
    }
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeName(name) => write!(f, "its pods are for node {name}"),
            Self::NodeSelector(key, value) => {
                write!(f, "the node lacks the label {key}={value} of its nodeSelector")
            }
            Self::Affinity => f.write_str("its required node affinity does not hold"),
            Self::Taint(taint) | Self::TaintForNew(taint) => {
                write!(f, "its pods do not tolerate the node's taint {taint}")
            }
        }
    }
}
