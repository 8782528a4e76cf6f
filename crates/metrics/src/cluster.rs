//! What is counted of the API server and of the pods that it tells of.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::register::Register;

/// All of it.
pub(super) struct ClusterMetrics {
    changes: IntCounter,
    watch_failures: IntCounterVec,
    api_server_failures: IntCounterVec,
    api_server_up: IntGaugeVec,
    pods: IntGauge,
    reboots: IntCounter,
}

impl ClusterMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            changes: make.counter(
                "istio_cni_pod_changes_total",
                "Changes of pods of this node, or of what concerns them",
            )?,
            watch_failures: make.counters(
                "istio_cni_watch_failures_total",
                "Failures of a watch",
                &["watch"],
            )?,
            api_server_failures: make.counters(
                "istio_cni_api_server_failures_total",
                "Failures of watches of the API server, and outages, by reason",
                &["reason"],
            )?,
            api_server_up: make.gauges(
                "istio_cni_api_server_up",
                "Whether the API server answers this agent",
                &[],
            )?,
            pods: make.gauge("istio_cni_pods", "Pods of this node that the agent knows")?,
            reboots: make.counter(
                "istio_cni_reboots_total",
                "Restarts of the machine that agents of this node noticed",
            )?,
        })
    }
}

impl super::Metrics {
    /// So many pods changed.
    pub fn cluster_changes(&self, pods: usize) {
        self.cluster.changes.inc_by(pods as u64);
    }

    /// So many pods of this node are known.
    pub fn known_pods(&self, pods: usize) {
        self.cluster.pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// Agents of this node have noticed so many restarts of the machine.
    pub fn reboots(&self, reboots: u64) {
        self.cluster.reboots.inc_by(reboots.saturating_sub(self.cluster.reboots.get()));
    }

    /// A watch failed.
    pub fn watch_failure(&self, watch: &str) {
        self.cluster.watch_failures.with_label_values(&[watch]).inc();
    }

    /// The API server failed a watch, or was found away, for this reason.
    pub fn api_server_failure(&self, reason: &str) {
        self.cluster.api_server_failures.with_label_values(&[reason]).inc();
    }

    /// Whether the API server answers. The gauge is absent until this is first said.
    pub fn api_server_up(&self, up: bool) {
        let none: [&str; 0] = [];
        self.cluster.api_server_up.with_label_values(&none).set(i64::from(up));
    }
}
