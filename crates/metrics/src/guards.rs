//! What the agent gave up rather than wait for it: connections, lines of plugins, lines of its own log.

use prometheus::{IntCounter, IntCounterVec};
use telemetry::Journal;

use super::register::Register;

/// All of it.
pub(super) struct GuardMetrics {
    pub(super) connections: IntCounterVec,
    pub(super) plugin_lines: IntCounterVec,
    lost_lines: IntCounter,
    journal: Journal,
}

impl GuardMetrics {
    pub(super) fn new(make: &Register<'_>, journal: Journal) -> Result<Self, prometheus::Error> {
        Ok(Self {
            connections: make.counters(
                "istio_cni_connections_closed_total",
                "Connections to the agent that were closed without an answer, or refused",
                &["listener", "reason"],
            )?,
            plugin_lines: make.counters(
                "istio_cni_plugin_log_lines_dropped_total",
                "Lines posted to log.sock that were not printed",
                &["reason"],
            )?,
            lost_lines: make.counter(
                "istio_cni_log_lines_lost_total",
                "Lines of the agent's log that are lost because the log was not read or could not be written",
            )?,
            journal,
        })
    }

    /// The journal counts by itself.
    pub(super) fn before_reading(&self) {
        self.lost_lines.inc_by(self.journal.lost().saturating_sub(self.lost_lines.get()));
    }
}
