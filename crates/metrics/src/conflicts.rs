//! Conflicts with rules of others.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

use super::register::Register;

/// All of it.
pub(super) struct ConflictMetrics {
    found: IntGaugeVec,
    resolved: IntCounterVec,
    scans: HistogramVec,
}

impl ConflictMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            found: make.gauges(
                "istio_cni_conflicts",
                "Rules and settings of others that change what rules of ours mean, in the pods' network namespaces and the node's",
                &["scope", "id", "severity"],
            )?,
            resolved: make.counters(
                "istio_cni_conflicts_resolved_total",
                "Times that rules of ours were put before those of others",
                &["id"],
            )?,
            scans: make.histograms(
                "istio_cni_conflict_scan_duration_seconds",
                "Seconds that it took to look for conflicts in a network namespace",
                &[],
            )?,
        })
    }
}

impl super::Metrics {
    /// So many conflicts are there, by scope, id and severity.
    pub fn conflicts(&self, counts: &HashMap<(&'static str, String, String), i64>) {
        self.conflicts.found.reset();
        for ((scope, id, severity), count) in counts {
            self.conflicts.found.with_label_values(&[scope, id.as_str(), severity.as_str()]).set(*count);
        }
    }

    /// Rules of ours were put before those of others.
    pub fn conflict_resolved(&self, id: &str) {
        self.conflicts.resolved.with_label_values(&[id]).inc();
    }

    /// A namespace was read.
    pub fn conflict_scan(&self, time: Duration) {
        self.conflicts.scans.with_label_values::<&str>(&[]).observe(time.as_secs_f64());
    }
}
