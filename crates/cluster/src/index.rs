//! What is known of the node's pods and of namespaces: a plain struct that is fed objects and says what changed.
//!
//! A list that is repeated because a watch could not go on is applied between `begin_` and `commit_`: nothing is forgotten while it
//! runs, or when it breaks off, and what it did not contain is gone at its end.

mod ahead;
mod own;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use ahead::Ahead;
use facts::{Facts, Object, PodRef};

use crate::daemonset::Seen;

/// In the place of a list's number: what an earlier process kept. No list has it.
const REMEMBERED: u64 = u64::MAX;

/// Pods of this node and labels of namespaces.
#[derive(Debug, Default)]
pub struct Index {
    namespaces: BTreeMap<String, Namespace>,
    pods: Round,
    labels: Round,
    seen: Seen,
    /// Counts what changed in it.
    times_seen: u64,
    /// Whether the running lists contained the DaemonSet and the node.
    listed: (bool, bool),
    pub(crate) pods_ahead: Ahead,
    pub(crate) namespaces_ahead: Ahead,
}

/// The lists of one kind of object so far.
#[derive(Debug, Default)]
struct Round {
    /// The number of the running list, or of the last one. What it contains is marked with it.
    number: u64,
    /// Whether one was complete.
    complete: bool,
    /// The number of the last one that was.
    committed: u64,
}

#[derive(Debug, Default)]
struct Namespace {
    /// Absent while no such namespace is known.
    labels: Option<Marked<Labels>>,
    pods: BTreeMap<String, Marked<Arc<Object>>>,
}

/// Sorted pairs without spare room: there may be ten thousand namespaces, and most have no pod here.
type Labels = Box<[(Box<str>, Box<str>)]>;

#[derive(Debug)]
struct Marked<T> {
    value: T,
    /// The list that contained it, or during which it was applied.
    round: u64,
    /// The same of when it was applied first.
    added: u64,
}

// === impl Index ===

impl Index {
    /// Adds or replaces a pod, which is kept as it is: trim it before. Returns the pods that changed, which are two when one of another
    /// uid had the name.
    pub fn apply_pod(&mut self, pod: impl Into<Arc<Object>>) -> Vec<PodRef> {
        let pod = pod.into();
        let round = self.pods.number;
        let key = key_of(pod.namespace(), pod.name(), &pod);
        let pods = &mut self.namespaces.entry(key.namespace.clone()).or_default().pods;
        let Some(old) = pods.get_mut(&key.name) else {
            pods.insert(key.name.clone(), Marked { value: pod, round, added: round });
            return vec![key];
        };
        old.round = round;
        if Arc::ptr_eq(&old.value, &pod) || old.value == pod {
            return Vec::new();
        }
        let before = key_of(&key.namespace, &key.name, &old.value);
        old.value = pod;
        if before.uid == key.uid { vec![key] } else { vec![before, key] }
    }

    /// Forgets a pod. `uid` keeps a late message about an earlier pod from removing its successor; empty means any.
    pub fn delete_pod(&mut self, namespace: &str, name: &str, uid: &str) -> Vec<PodRef> {
        let Some(entry) = self.namespaces.get_mut(namespace) else { return Vec::new() };
        let other = |pod: &Object| !uid.is_empty() && pod.uid().is_some_and(|known| known != uid);
        match entry.pods.get(name) {
            None => return Vec::new(),
            Some(pod) if other(&pod.value) => return Vec::new(),
            Some(_) => {}
        }
        let gone = entry.pods.remove(name).map(|pod| key_of(namespace, name, &pod.value));
        self.forget_if_empty(namespace);
        gone.into_iter().collect()
    }

    /// A list of all pods begins.
    pub fn begin_pods(&mut self) {
        self.pods.number += 1;
    }

    /// The list is complete: pods that were not applied since [`Self::begin_pods`] are gone. Returns them.
    pub fn commit_pods(&mut self) -> Vec<PodRef> {
        (self.pods.complete, self.pods.committed) = (true, self.pods.number);
        let round = self.pods.number;
        let mut gone = Vec::new();
        for (namespace, entry) in &mut self.namespaces {
            entry.pods.retain(|name, pod| {
                let stays = pod.round == round;
                if !stays {
                    gone.push(key_of(namespace, name, &pod.value));
                }
                stays
            });
        }
        self.namespaces.retain(|_, entry| !entry.is_empty());
        gone
    }

    /// What an earlier process kept of a pod and its namespace. It counts until a list or a watch says otherwise; what these have said already
    /// counts more.
    pub fn remember(&mut self, facts: Facts) {
        let Facts { pod, namespace_labels } = facts;
        let entry = self.namespaces.entry(pod.namespace().to_owned()).or_default();
        if !self.labels.complete
            && entry.labels.is_none()
            && let Some(labels) = namespace_labels
        {
            let value = labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into()));
            entry.labels = Some(Marked { value: value.collect(), round: REMEMBERED, added: 0 });
        }
        if !self.pods.complete && !entry.pods.contains_key(pod.name()) {
            let name = pod.name().to_owned();
            entry.pods.insert(name, Marked { value: pod, round: REMEMBERED, added: 0 });
        }
        self.namespaces.retain(|_, entry| !entry.is_empty());
    }

    /// Whether what is known of a pod is only what an earlier process kept.
    pub fn is_remembered(&self, namespace: &str, name: &str) -> bool {
        let pod = self.namespaces.get(namespace).and_then(|entry| entry.pods.get(name));
        pod.is_some_and(|pod| pod.round == REMEMBERED)
    }

    /// The list is not to be believed: what the lists since the last complete one have added goes again. Returns the pods. Where `most` is given
    /// this is done only if they have added more than that, so that lists that never end well do not fill the memory.
    pub(crate) fn abandon_pods(&mut self, most: Option<usize>) -> Vec<PodRef> {
        let committed = self.pods.committed;
        let added = self.namespaces.values().flat_map(|entry| entry.pods.values());
        if most.is_some_and(|most| added.filter(|pod| pod.added > committed).count() <= most) {
            return Vec::new();
        }
        let mut gone = Vec::new();
        for (namespace, entry) in &mut self.namespaces {
            entry.pods.retain(|name, pod| {
                let stays = pod.added <= committed;
                if !stays {
                    gone.push(key_of(namespace, name, &pod.value));
                }
                stays
            });
        }
        self.namespaces.retain(|_, entry| !entry.is_empty());
        gone
    }

    /// The same of namespaces.
    pub(crate) fn abandon_namespaces(&mut self, most: Option<usize>) -> Vec<PodRef> {
        let committed = self.labels.committed;
        let added = self.namespaces.values().filter_map(|entry| entry.labels.as_ref());
        if most.is_some_and(|most| added.filter(|labels| labels.added > committed).count() <= most) {
            return Vec::new();
        }
        let mut changed = Vec::new();
        for (namespace, entry) in &mut self.namespaces {
            if entry.labels.take_if(|labels| labels.added > committed).is_some() {
                changed.extend(entry.keys(namespace));
            }
        }
        self.namespaces.retain(|_, entry| !entry.is_empty());
        changed
    }

    /// A pod that was asked for by itself is there, whatever becomes of the list that runs.
    pub(crate) fn vouch_for_pod(&mut self, namespace: &str, name: &str) {
        let entry = self.namespaces.get_mut(namespace).and_then(|entry| entry.pods.get_mut(name));
        if let Some(pod) = entry {
            pod.added = 0;
        }
    }

    /// The same of a namespace.
    pub(crate) fn vouch_for_namespace(&mut self, name: &str) {
        if let Some(labels) = self.namespaces.get_mut(name).and_then(|entry| entry.labels.as_mut()) {
            labels.added = 0;
        }
    }

    /// A pod is still there, though what is said of it cannot be read: what was known of it stays.
    pub fn keep_pod(&mut self, namespace: &str, name: &str) {
        let round = self.pods.number;
        let entry = self.namespaces.get_mut(namespace).and_then(|entry| entry.pods.get_mut(name));
        if let Some(pod) = entry {
            pod.round = round;
        }
    }

    /// The list that runs has not said that a pod is there: it is gone at the list's end, unless that does.
    pub(crate) fn doubt_pod(&mut self, namespace: &str, name: &str) {
        let before = self.pods.number.wrapping_sub(1);
        let entry = self.namespaces.get_mut(namespace).and_then(|entry| entry.pods.get_mut(name));
        if let Some(pod) = entry {
            pod.round = before;
        }
    }

    /// The same of a namespace.
    pub(crate) fn doubt_namespace(&mut self, name: &str) {
        let before = self.labels.number.wrapping_sub(1);
        if let Some(labels) = self.namespaces.get_mut(name).and_then(|entry| entry.labels.as_mut()) {
            labels.round = before;
        }
    }

    /// Sets the labels of a namespace. Returns its pods if they differ from before.
    pub fn apply_namespace(&mut self, name: &str, labels: &BTreeMap<String, Option<String>>) -> Vec<PodRef> {
        let round = self.labels.number;
        let pair = |(key, value): (&String, &Option<String>)| {
            (key.as_str().into(), value.as_deref().unwrap_or_default().into())
        };
        let value: Labels = labels.iter().map(pair).collect();
        let entry = self.namespaces.entry(name.to_owned()).or_default();
        match &mut entry.labels {
            Some(known) if known.value == value => {
                known.round = round;
                Vec::new()
            }
            known => {
                let added = known.as_ref().map_or(round, |known| known.added);
                *known = Some(Marked { value, round, added });
                self.pods_in(name)
            }
        }
    }

    /// Forgets the labels of a namespace. Returns its pods.
    pub fn delete_namespace(&mut self, name: &str) -> Vec<PodRef> {
        let Some(entry) = self.namespaces.get_mut(name) else { return Vec::new() };
        if entry.labels.take().is_none() {
            return Vec::new();
        }
        self.forget_if_empty(name);
        self.pods_in(name)
    }

    /// A list of all namespaces begins.
    pub fn begin_namespaces(&mut self) {
        self.labels.number += 1;
    }

    /// The list is complete: the labels of namespaces that were not applied since [`Self::begin_namespaces`] are gone. Returns their
    /// pods.
    pub fn commit_namespaces(&mut self) -> Vec<PodRef> {
        (self.labels.complete, self.labels.committed) = (true, self.labels.number);
        let round = self.labels.number;
        let mut changed = Vec::new();
        for (namespace, entry) in &mut self.namespaces {
            if entry.labels.take_if(|labels| labels.round != round).is_some() {
                changed.extend(entry.keys(namespace));
            }
        }
        self.namespaces.retain(|_, entry| !entry.is_empty());
        changed
    }

    /// A namespace is still there, though what is said of it cannot be read.
    pub fn keep_namespace(&mut self, name: &str) {
        let round = self.labels.number;
        if let Some(labels) = self.namespaces.get_mut(name).and_then(|entry| entry.labels.as_mut()) {
            labels.round = round;
        }
    }

    /// What is known of a pod, if it is one of this node.
    pub fn facts(&self, namespace: &str, name: &str) -> Option<Facts> {
        let entry = self.namespaces.get(namespace)?;
        let pod = entry.pods.get(name)?;
        Some(Facts { pod: pod.value.clone(), namespace_labels: entry.labels() })
    }

    /// The labels of a namespace, where they are known.
    pub fn labels(&self, namespace: &str) -> Option<BTreeMap<String, String>> {
        self.namespaces.get(namespace)?.labels()
    }

    /// Whether a pod is known from a list or a watch of this process.
    pub(crate) fn has_pod(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let pod = self.namespaces.get(namespace).and_then(|entry| entry.pods.get(name));
        pod.is_some_and(|pod| pod.round != REMEMBERED && pod.value.uid().unwrap_or_default() == uid)
    }

    /// Whether the labels of a namespace are known.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.get(name).is_some_and(|entry| entry.labels.is_some())
    }

    /// A pod of this node, with its status.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.namespaces.get(namespace)?.pods.get(name).map(|pod| &pod.value)
    }

    /// All pods of this node.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.namespaces.values().flat_map(|entry| entry.pods.values().map(|pod| &pod.value))
    }

    /// The pods of a namespace on this node.
    pub fn pods_in(&self, namespace: &str) -> Vec<PodRef> {
        self.namespaces.get(namespace).map(|entry| entry.keys(namespace).collect()).unwrap_or_default()
    }

    /// Whether pods and namespaces have been listed completely, once.
    pub fn is_synced(&self) -> bool {
        self.pods.complete && self.labels.complete
    }

    fn forget_if_empty(&mut self, namespace: &str) {
        if self.namespaces.get(namespace).is_some_and(Namespace::is_empty) {
            self.namespaces.remove(namespace);
        }
    }
}

impl Namespace {
    fn is_empty(&self) -> bool {
        self.labels.is_none() && self.pods.is_empty()
    }

    fn labels(&self) -> Option<BTreeMap<String, String>> {
        let pair = |(key, value): &(Box<str>, Box<str>)| (String::from(&**key), String::from(&**value));
        self.labels.as_ref().map(|labels| labels.value.iter().map(pair).collect())
    }

    fn keys(&self, namespace: &str) -> impl Iterator<Item = PodRef> {
        self.pods.iter().map(move |(name, pod)| key_of(namespace, name, &pod.value))
    }
}

fn key_of(namespace: &str, name: &str, pod: &Object) -> PodRef {
    PodRef { namespace: namespace.into(), name: name.into(), uid: pod.uid().unwrap_or_default().into() }
}

#[cfg(test)]
mod tests;
