//! Finds the terms that may mean a pod without looking at all of them.

use std::collections::{BTreeSet, HashMap};

use facts::LabelSet;
use facts::Selector;
use facts::labels::Operator;

use crate::terms::{NamespaceTerm, PodTerm};
use crate::world::PolicyPod;

/// Numbers of terms, each under one thing that a pod must have to be meant: its namespace, one of its labels, a label of its namespace.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    /// Of one namespace, by its name.
    named: HashMap<Box<str>, Bucket>,
    /// By a label of the pod; those that no label is needed for.
    anywhere: Bucket,
    by_namespace_label: ByLabel,
    /// How many go by labels of namespaces.
    pub(super) labelled: usize,
}

#[derive(Debug, Default)]
struct Bucket {
    by_label: ByLabel,
    all: BTreeSet<u32>,
}

/// By key and value.
#[derive(Debug, Default)]
struct ByLabel(HashMap<Box<str>, HashMap<Box<str>, BTreeSet<u32>>>);

// === impl Anchors ===

impl Anchors {
    /// Adds a term, or takes it away. No term means every pod.
    pub(super) fn set(&mut self, term: Option<&PodTerm>, number: u32, is_there: bool) {
        let Some(PodTerm { namespaces, labels }) = term else {
            return set(&mut self.anywhere.all, number, is_there);
        };
        match namespaces {
            NamespaceTerm::Named(name) => {
                let bucket = self.named.entry(name.clone()).or_default();
                bucket.set(labels, number, is_there);
                if bucket.is_empty() {
                    self.named.remove(name);
                }
            }
            NamespaceTerm::Any => self.anywhere.set(labels, number, is_there),
            NamespaceTerm::Labelled(selector) => {
                self.labelled = if is_there { self.labelled + 1 } else { self.labelled.saturating_sub(1) };
                match (needed(labels), needed(selector)) {
                    (None, Some((key, values))) => self.by_namespace_label.set(key, values, number, is_there),
                    _ => self.anywhere.set(labels, number, is_there),
                }
            }
        }
    }

    /// The terms that may mean a pod, each once.
    pub(super) fn candidates(&self, pod: &impl PolicyPod, namespace: Option<&LabelSet>) -> Vec<u32> {
        let mut found = Vec::new();
        for bucket in self.named.get(pod.namespace()).into_iter().chain([&self.anywhere]) {
            found.extend(&bucket.all);
            bucket.by_label.find(pod.labels(), &mut found);
        }
        self.by_namespace_label.find(namespace.into_iter().flat_map(LabelSet::iter), &mut found);
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// A label that must have one of some values.
fn needed(selector: &Selector) -> Option<(&str, &[Box<str>])> {
    selector.requirements().iter().find_map(|one| match &one.operator {
        Operator::In(values) => Some((&*one.key, &**values)),
        _ => None,
    })
}

/// Adds a number, or takes it away.
pub(super) fn set(numbers: &mut BTreeSet<u32>, number: u32, is_there: bool) {
    if is_there {
        numbers.insert(number)
    } else {
        numbers.remove(&number)
    };
}

// === impl Bucket ===

impl Bucket {
    fn set(&mut self, labels: &Selector, number: u32, is_there: bool) {
        match needed(labels) {
            Some((key, values)) => self.by_label.set(key, values, number, is_there),
            None => set(&mut self.all, number, is_there),
        }
    }

    fn is_empty(&self) -> bool {
        self.all.is_empty() && self.by_label.0.is_empty()
    }
}

// === impl ByLabel ===

impl ByLabel {
    fn set(&mut self, key: &str, values: &[Box<str>], number: u32, is_there: bool) {
        let of_key = self.0.entry(key.into()).or_default();
        for value in values {
            let numbers = of_key.entry(value.clone()).or_default();
            set(numbers, number, is_there);
            if numbers.is_empty() {
                of_key.remove(value);
            }
        }
        if of_key.is_empty() {
            self.0.remove(key);
        }
    }

    fn find<'a>(&self, labels: impl Iterator<Item = (&'a str, &'a str)>, found: &mut Vec<u32>) {
        for (key, value) in labels {
            found.extend(self.0.get(key).and_then(|of_key| of_key.get(value)).into_iter().flatten());
        }
    }
}
