//! What the agent gave up rather than wait for it: connections, lines of plugins, lines of its own log.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use telemetry::Journal;

/// All of it.
pub(super) struct GuardMetrics {
    pub(super) connections: IntCounterVec,
    pub(super) plugin_lines: IntCounterVec,
    lost_lines: IntCounter,
    journal: Journal,
}

impl GuardMetrics {
    /// # Errors
    /// A name is there twice or is none, which the tests would have told.
    pub(super) fn new(registry: &Registry, journal: Journal) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let lost_lines = IntCounter::new(
            "istio_cni_log_lines_lost_total",
            "Lines of the agent's log that are lost because nobody read the log or it could not be written",
        )?;
        registry.register(Box::new(lost_lines.clone()))?;
        Ok(Self {
            connections: counter(
                "istio_cni_connections_closed_total",
                "Connections to the agent that were closed without an answer, or refused",
                &["listener", "reason"],
            )?,
            plugin_lines: counter(
                "istio_cni_plugin_log_lines_dropped_total",
                "Lines posted to log.sock that were not printed",
                &["reason"],
            )?,
            lost_lines,
            journal,
        })
    }

    /// The journal counts by itself.
    pub(super) fn before_reading(&self) {
        self.lost_lines.inc_by(self.journal.lost().saturating_sub(self.lost_lines.get()));
    }
}
