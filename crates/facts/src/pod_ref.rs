//! The identity of a pod.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One pod, told apart from others that had or will have its name. Shown as `namespace/name`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(default)]
pub struct PodRef {
    /// `metadata.namespace`; empty when the runtime is not Kubernetes.
    pub namespace: String,
    /// `metadata.name`; empty when the runtime is not Kubernetes.
    pub name: String,
    /// `metadata.uid`; empty where it is not known: in a manifest without one, and where the runtime does not pass it on. A pod that was
    /// deleted and created again under the same name differs in this only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl PodRef {
    /// A pod of which only the name is known.
    pub fn named(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into(), uid: String::new() }
    }

    /// The uid, if it is known.
    pub fn known_uid(&self) -> Option<&str> {
        Some(&*self.uid).filter(|uid| !uid.is_empty())
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
