//! Network policies.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus::IntCounterVec;

use super::register::Register;

/// Sets of policies that are told apart. Policies are written by others.
const MAX_SETS: usize = 500;
/// What all further ones are called.
const OTHER: &str = "other";
/// Longest name of a set; a pod may be selected by many policies.
const MAX_NAME: usize = 256;

/// All of it.
pub(super) struct PolicyMetrics {
    denied: IntCounterVec,
    /// Direction, namespace and policies of those that have a series.
    sets: Mutex<BTreeSet<[String; 3]>>,
}

impl PolicyMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            denied: make.counters(
                "istio_cni_policy_denied_total",
                "Packets that network policies denied, by direction, namespace of the pod and the policies that select it",
                &["direction", "namespace", "policy_set"],
            )?,
            sets: Mutex::default(),
        })
    }
}

impl super::Metrics {
    /// A set of policies has denied so many packets.
    pub fn policy_denied(&self, direction: &str, namespace: &str, policies: &str, packets: u64) {
        let name = &policies[..policies.floor_char_boundary(MAX_NAME)];
        let set = [direction.to_owned(), namespace.to_owned(), name.to_owned()];
        let mut known = self.policy.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = known.contains(&set) || known.len() < MAX_SETS;
        let labels = if has_room { [direction, namespace, name] } else { [direction, OTHER, OTHER] };
        if has_room {
            known.insert(set.clone());
        }
        self.policy.denied.with_label_values(&labels).inc_by(packets);
    }
}
