//! Network policies.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

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
    would_deny: IntCounterVec,
    pods: IntGaugeVec,
    guarded: IntGaugeVec,
    elements: IntGaugeVec,
    invalid: IntGaugeVec,
    unresolved: IntGaugeVec,
    repairs: IntCounterVec,
    programming: HistogramVec,
    peer_lag: HistogramVec,
    snapshot_age: IntGaugeVec,
    /// When what is in force was known, where it is not known now; nothing where nothing is enforced.
    known: Mutex<Option<Option<SystemTime>>>,
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
            would_deny: make.counters(
                "istio_cni_policy_would_deny_total",
                "Packets that passed although network policies would deny them, because these are only tried out",
                &["direction", "namespace", "policy_set"],
            )?,
            pods: make.gauges(
                "istio_cni_policy_pods",
                "Pods of this node by where their network policies are enforced, and whether any isolates them",
                &["point", "state"],
            )?,
            guarded: make.gauges(
                "istio_cni_policy_guarded_pods",
                "Isolated pods whose own rules are not loaded yet, or not known to be",
                &[],
            )?,
            elements: make.gauges(
                "istio_cni_policy_elements",
                "Addresses, and addresses with ports, that rules of network policies look packets up in",
                &["kind"],
            )?,
            invalid: make.gauges(
                "istio_cni_policy_invalid_entries",
                "Entries of network policies that an API server would refuse, so that they match nothing",
                &[],
            )?,
            unresolved: make.gauges(
                "istio_cni_policy_unresolved_names",
                "Names of ports in network policies that no pod has, so that they match nothing",
                &[],
            )?,
            repairs: make.counters(
                "istio_cni_policy_repairs_total",
                "Times that rules of network policies were not as they should be and were put right",
                &["reason"],
            )?,
            programming: make.histograms(
                "istio_cni_policy_programming_seconds",
                "Seconds from an event until the kernel has what it changes",
                &[],
            )?,
            peer_lag: make.histograms(
                "istio_cni_policy_peer_lag_seconds",
                "Seconds from the creation of a pod of the cluster until rules here know its address",
                &[],
            )?,
            snapshot_age: make.gauges(
                "istio_cni_policy_snapshot_age_seconds",
                "Age of what an earlier agent kept of network policies and this one goes by until the API server has listed everything; 0 after that",
                &[],
            )?,
            known: Mutex::default(),
            sets: Mutex::default(),
        })
    }

    /// Looks how old what is known is.
    pub(super) fn before_reading(&self) {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known else { return };
        let age = known.map(|known| known.elapsed().unwrap_or_default().as_secs());
        let age = i64::try_from(age.unwrap_or_default()).unwrap_or(i64::MAX);
        self.snapshot_age.with_label_values::<&str>(&[]).set(age);
    }
}

impl super::Metrics {
    /// A set of policies has denied so many packets.
    pub fn policy_denied(&self, direction: &str, namespace: &str, policies: &str, packets: u64) {
        self.count_packets(&self.policy.denied, (direction, namespace, policies), packets);
    }

    /// A set of policies would have, if they were not only tried out.
    pub fn policy_would_deny(&self, direction: &str, namespace: &str, policies: &str, packets: u64) {
        self.count_packets(&self.policy.would_deny, (direction, namespace, policies), packets);
    }

    fn count_packets(
        &self,
        series: &IntCounterVec,
        (direction, namespace, policies): (&str, &str, &str),
        packets: u64,
    ) {
        let name = &policies[..policies.floor_char_boundary(MAX_NAME)];
        let set = [direction.to_owned(), namespace.to_owned(), name.to_owned()];
        let mut known = self.policy.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = known.contains(&set) || known.len() < MAX_SETS;
        let labels = if has_room { [direction, namespace, name] } else { [direction, OTHER, OTHER] };
        if has_room {
            known.insert(set);
        }
        series.with_label_values(&labels).inc_by(packets);
    }

    /// Rules of policies were put right.
    pub fn policy_repaired(&self, reason: &str) {
        self.policy.repairs.with_label_values(&[reason]).inc();
    }

    /// What is in force was known at this time; nothing where it is known now.
    pub fn policy_known(&self, at: Option<SystemTime>) {
        *self.policy.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// An event is in the kernel.
    pub fn policy_in_kernel(&self, after: Duration) {
        self.policy.programming.with_label_values::<&str>(&[]).observe(after.as_secs_f64());
    }

    /// A pod of the cluster is known to rules.
    pub fn policy_peer_known(&self, after: Duration) {
        self.policy.peer_lag.with_label_values::<&str>(&[]).observe(after.as_secs_f64());
    }

    /// So many pods wait for their rules.
    pub fn policy_guarded(&self, pods: usize) {
        self.policy.guarded.with_label_values::<&str>(&[]).set(number(pods));
    }

    /// So many pods are isolated or not, by where policies are enforced.
    pub fn policy_pods(&self, counts: impl Iterator<Item = (&'static str, bool, usize)>) {
        self.policy.pods.reset();
        for (point, is_isolated, pods) in counts {
            let state = if is_isolated { "isolated" } else { "open" };
            self.policy.pods.with_label_values(&[point, state]).set(number(pods));
        }
    }

    /// So many elements are in sets, and so many entries of policies mean nothing.
    pub fn policy_entries(&self, peers: usize, named_ports: usize, refused: usize, unresolved: usize) {
        for (kind, count) in [("peers", peers), ("ports", named_ports)] {
            self.policy.elements.with_label_values(&[kind]).set(number(count));
        }
        self.policy.invalid.with_label_values::<&str>(&[]).set(number(refused));
        self.policy.unresolved.with_label_values::<&str>(&[]).set(number(unresolved));
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
