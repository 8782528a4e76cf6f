//! What is known of the node's pods and of namespaces: two stores, and the facts that they say together.

use std::collections::BTreeMap;
use std::sync::Arc;

use facts::{Facts, Namespace, Object, PodRef};

use crate::news::{Hold, News, ObjectDelta, ObjectKey, Uid};
use crate::objects::Objects;

/// Pods of this node and labels of namespaces.
#[derive(Debug, Default)]
pub struct Index {
    pub(crate) pods: Objects<Object>,
    pub(crate) namespaces: Objects<Namespace>,
    /// Names of namespaces that have changed and were not told of yet.
    changed_namespaces: Vec<Box<str>>,
}

// === impl Index ===

impl Index {
    /// Takes in what is told of pods, which are kept as they are: trim them before. Returns the pods that changed, which are two when one of another
    /// uid had the name.
    pub fn take_pods(&mut self, news: News<Arc<Object>>) -> Vec<PodRef> {
        self.pods.take(news).iter().flat_map(pods_of).collect()
    }

    /// Takes in what is told of namespaces. Returns the pods of those whose labels differ from before.
    pub fn take_namespaces(&mut self, news: News<Arc<Namespace>>) -> Vec<PodRef> {
        let changed = self.namespaces.take(news);
        // One that is made anew with the same labels changes nothing for its pods.
        let differ = changed.iter().filter(|delta| delta.before != delta.after);
        self.changed_namespaces.extend(differ.clone().map(|delta| delta.key.name.clone()));
        differ.flat_map(|delta| self.pods_in(&delta.key.name)).collect()
    }

    /// The names of the namespaces that have changed since this was asked last, or are gone.
    pub(crate) fn take_changed_namespaces(&mut self) -> Vec<Box<str>> {
        std::mem::take(&mut self.changed_namespaces)
    }

    /// What an earlier process kept of a pod and its namespace. It counts until a list or a watch says otherwise; what these have said already
    /// counts more.
    pub fn remember(&mut self, facts: Facts) {
        let Facts { pod, namespace_labels } = facts;
        if let Some(labels) = namespace_labels {
            let namespace = Namespace { labels: (&labels).into() };
            self.namespaces.remember(ObjectKey::new("", pod.namespace()), Uid::default(), namespace.into());
        }
        let (key, uid) =
            (ObjectKey::new(pod.namespace(), pod.name()), Uid::new(pod.uid().unwrap_or_default()));
        self.pods.remember(key, uid, pod);
    }

    /// Whether what is known of a pod is only what an earlier process kept.
    pub fn is_remembered(&self, namespace: &str, name: &str) -> bool {
        self.pods.is_remembered(namespace, name)
    }

    /// What is known of a pod, if it is one of this node.
    pub fn facts(&self, namespace: &str, name: &str) -> Option<Facts> {
        let pod = self.pods.get(namespace, name)?.clone();
        Some(Facts { pod, namespace_labels: self.labels(namespace) })
    }

    /// The labels of a namespace, where they are known.
    pub fn labels(&self, namespace: &str) -> Option<BTreeMap<String, String>> {
        self.namespaces.get("", namespace).map(|namespace| namespace.labels.to_map())
    }

    /// A namespace, where its object is known.
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get("", name)
    }

    /// All namespaces whose objects are known, by their names.
    pub fn namespaces(&self) -> impl Iterator<Item = (&str, &Arc<Namespace>)> {
        self.namespaces.iter().map(|(_, name, namespace)| (name, namespace))
    }

    /// Whether the labels of a namespace are known.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.get("", name).is_some()
    }

    /// A pod of this node, with its status.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.pods.get(namespace, name)
    }

    /// All pods of this node.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.pods.iter().map(|(_, _, pod)| pod)
    }

    /// The pods of a namespace on this node.
    pub fn pods_in(&self, namespace: &str) -> Vec<PodRef> {
        self.pods.in_namespace(namespace).map(|(_, pod)| pod.pod_ref()).collect()
    }

    /// Whether pods and namespaces have been listed completely, once.
    pub fn is_synced(&self) -> bool {
        self.pods.is_listed() && self.namespaces.is_listed()
    }
}

/// The pods that a change is about.
fn pods_of(delta: &ObjectDelta<Arc<Object>>) -> Vec<PodRef> {
    let mut pods: Vec<PodRef> = delta.before.iter().chain(&delta.after).map(|pod| pod.pod_ref()).collect();
    pods.dedup();
    pods
}

#[cfg(test)]
mod tests;
