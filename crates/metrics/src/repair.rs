//! What is counted of the repair of pods that started without capture.

use prometheus::{IntCounterVec, IntGauge};

use super::register::Register;

/// All of it.
pub(super) struct RepairMetrics {
    repaired: IntCounterVec,
    not_injected: IntGauge,
    unexpected: IntGauge,
}

impl RepairMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            repaired: make.counters(
                "istio_cni_repair_pods_repaired_total",
                "Pods that started without capture and were repaired, deleted or labelled, or were to be",
                &["type", "result"],
            )?,
            unexpected: make.gauge(
                "istio_cni_pods_unexpected",
                "Sidecar pods that have rules of ours and are not to be captured any more",
            )?,
            not_injected: make.gauge(
                "istio_cni_not_injected_pods",
                "Pods whose labels, or those of their namespaces, ask for a sidecar, and that run without one",
            )?,
        })
    }
}

impl super::Metrics {
    /// A pod was repaired, deleted or labelled (`kind`), with this result: the original's words.
    pub fn repaired_pod(&self, kind: &str, result: &str) {
        self.repair.repaired.with_label_values(&[kind, result]).inc();
    }

    /// So many pods have rules of ours and are not to be captured any more.
    pub fn unexpected(&self, pods: usize) {
        self.repair.unexpected.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// So many pods ask for a sidecar and have none.
    pub fn not_injected(&self, pods: usize) {
        self.repair.not_injected.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }
}
