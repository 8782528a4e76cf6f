//! What is known of a pod: itself, and the labels of its namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use capture::decide::{Enrolment, Exclusions, Membership, Subject, membership};
use capture::select::{self, Labels};
use serde::{Deserialize, Serialize};

use crate::object::Object;

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
    pub fn membership(&self, scope: &Exclusions, enrolment: &Enrolment, in_mesh: bool) -> Membership {
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
