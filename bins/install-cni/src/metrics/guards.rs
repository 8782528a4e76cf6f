//! What the agent gave up rather than wait for it.

use prometheus::{IntCounter, Registry};
use telemetry::Journal;

/// All of it.
pub(super) struct GuardMetrics {
    lost_lines: IntCounter,
    journal: Journal,
}

impl GuardMetrics {
    /// # Errors
    /// A name is there twice or is none, which the tests would have told.
    pub(super) fn new(registry: &Registry, journal: Journal) -> Result<Self, prometheus::Error> {
        let lost_lines = IntCounter::new(
            "istio_cni_log_lines_lost_total",
            "Lines of the agent's log that are lost because nobody read the log or it could not be written",
        )?;
        registry.register(Box::new(lost_lines.clone()))?;
        Ok(Self { lost_lines, journal })
    }

    /// The journal counts by itself.
    pub(super) fn before_reading(&self) {
        self.lost_lines.inc_by(self.journal.lost().saturating_sub(self.lost_lines.get()));
    }
}
