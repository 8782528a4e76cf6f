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

    /// Whether the pod asks Istio's injector for a sidecar: its own label before its namespace's, and a revision asks where nothing opts out.
    pub fn asks_for_injection(&self) -> bool {
        let own = self.pod.label(INJECT).or_else(|| self.pod.annotation(INJECT));
        let of_namespace = |key: &str| self.namespace_labels.as_ref()?.get(key).map(String::as_str);
        match (own, of_namespace(INJECTION)) {
            (Some(text), _) => text == "true",
            (None, Some("disabled")) => false,
            (None, Some("enabled")) => true,
            (None, _) => self.pod.label(REVISION).or_else(|| of_namespace(REVISION)).is_some(),
        }
    }
}

/// Label, and once annotation, of a pod.
const INJECT: &str = "sidecar.istio.io/inject";
/// Label of a namespace.
const INJECTION: &str = "istio-injection";
/// Label of either.
const REVISION: &str = "istio.io/rev";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_own_label_asks_for_injection_or_forbids_it_before_its_namespaces() {
        for (pod, namespace, asks) in [
            (None, None, false),
            (Some(("sidecar.istio.io/inject", "true")), None, true),
            (Some(("sidecar.istio.io/inject", "true")), Some(("istio-injection", "disabled")), true),
            (Some(("sidecar.istio.io/inject", "false")), Some(("istio-injection", "enabled")), false),
            (None, Some(("istio-injection", "enabled")), true),
            (None, Some(("istio-injection", "disabled")), false),
            (None, Some(("istio.io/rev", "canary")), true),
            (Some(("istio.io/rev", "canary")), None, true),
            (Some(("istio.io/rev", "canary")), Some(("istio-injection", "disabled")), false),
            (Some(("app", "web")), Some(("team", "shop")), false),
        ] {
            let labels = |pair: Option<(&str, &str)>| -> BTreeMap<String, String> {
                pair.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
            };
            let object = serde_json::json!({"metadata": {"labels": labels(pod)}});
            let facts = Facts {
                pod: Arc::new(serde_json::from_value(object).unwrap()),
                namespace_labels: Some(labels(namespace)),
            };
            assert_eq!(facts.asks_for_injection(), asks, "{pod:?} {namespace:?}");
        }
    }
}
