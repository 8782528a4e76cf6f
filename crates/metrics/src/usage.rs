//! What tenants' pods send and receive.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus::{IntCounterVec, IntGaugeVec};

use super::Metrics;
use super::register::Register;

/// Pairs of tenants that have series of their own; each has some series.
const MOST_PAIRS: usize = 500;
/// What all further ones are called.
const OTHER: &str = "other";

/// All of it.
pub(super) struct UsageMetrics {
    bytes: IntCounterVec,
    packets: IntCounterVec,
    connections: IntCounterVec,
    pod_seconds: IntGaugeVec,
    pairs: Mutex<BTreeSet<[String; 2]>>,
}

const LABELS: &[&str] = &["tenant", "peer_tenant", "direction"];

impl UsageMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            bytes: make.counters(
                "istio_cni_tenant_bytes_total",
                "Bytes of packets of tenants' pods of this node, headers of the network included; who is no tenant is in parentheses",
                LABELS,
            )?,
            packets: make.counters("istio_cni_tenant_packets_total", "The packets of these bytes", LABELS)?,
            connections: make.counters(
                "istio_cni_tenant_connections_total",
                "Those of these packets that began a connection",
                LABELS,
            )?,
            pod_seconds: make.gauges(
                "istio_cni_tenant_usage_pod_seconds",
                "Seconds that tenants' pods were there in this hour, added up, by whether their packets were counted",
                &["counted"],
            )?,
            pairs: Mutex::default(),
        })
    }
}

impl Metrics {
    /// So many bytes, packets and connections more.
    pub fn usage(&self, tenant: &str, peer: &str, direction: &str, amount: [u64; 3]) {
        let UsageMetrics { bytes, packets, connections, pairs, .. } = &self.usage;
        let pair = [tenant.to_owned(), peer.to_owned()];
        let mut pairs = pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let is_named = pairs.contains(&pair) || (pairs.len() < MOST_PAIRS && pairs.insert(pair));
        drop(pairs);
        let labels = if is_named { [tenant, peer, direction] } else { [OTHER, OTHER, direction] };
        for (counter, more) in [bytes, packets, connections].into_iter().zip(amount) {
            counter.with_label_values(&labels).inc_by(more);
        }
    }

    /// Of the present hour: those in which packets were counted, and the others.
    pub fn usage_pod_seconds(&self, of: [u64; 2]) {
        for (counted, seconds) in ["true", "false"].into_iter().zip(of) {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            self.usage.pod_seconds.with_label_values(&[counted]).set(seconds);
        }
    }
}
