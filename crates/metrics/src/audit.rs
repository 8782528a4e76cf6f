//! The audit file.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::register::Register;

/// Digits of a line's hash that are exported: enough to find that the file was written anew.
const PREFIX: usize = 16;

/// All of it.
pub(super) struct AuditMetrics {
    events: IntCounterVec,
    packets: IntCounterVec,
    lost: IntCounterVec,
    chain: IntGaugeVec,
    waiting: IntGaugeVec,
}

impl AuditMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        let made = Self {
            events: make.counters(
                "istio_cni_audit_events_total",
                "Lines for the audit file, by type and verdict",
                &["type", "verdict"],
            )?,
            packets: make.counters(
                "istio_cni_audit_packets_total",
                "Packets that lines of the audit file tell of, by type, verdict and whether they were logged or only counted",
                &["type", "verdict", "known_by"],
            )?,
            lost: make.counters(
                "istio_cni_audit_events_lost_total",
                "Packets (kernel, agent) and lines (disk) that are missing in the audit file, by where they were lost",
                &["where"],
            )?,
            chain: make.gauges(
                "istio_cni_audit_chain_info",
                "The last line of the audit file, as evidence that is kept elsewhere: its number and what its hash begins with",
                &["seq", "hash_prefix"],
            )?,
            waiting: make.gauges("istio_cni_audit_queue_bytes", "Bytes that wait for the audit file", &[])?,
        };
        // Without a 0 before it, no alert would see the first loss.
        for place in ["kernel", "agent", "disk"] {
            made.lost.with_label_values(&[place]);
        }
        Ok(made)
    }
}

impl super::Metrics {
    /// A line of this type is to be written, about so many packets.
    pub fn audit_event(&self, kind: &str, verdict: &str, packets: u64, limited: u64) {
        self.audit.events.with_label_values(&[kind, verdict]).inc();
        for (known_by, packets) in [("log", packets.saturating_sub(limited)), ("counter", limited)] {
            self.audit.packets.with_label_values(&[kind, verdict, known_by]).inc_by(packets);
        }
    }

    /// So much is missing in the file.
    pub fn audit_lost(&self, place: &str, count: u64) {
        self.audit.lost.with_label_values(&[place]).inc_by(count);
    }

    /// Where the chain of the file stands, by hash and number, and how much waits for it.
    pub fn audit_stands(&self, link: Option<(&str, u64)>, waiting: usize) {
        self.audit.chain.reset();
        if let Some((hash, seq)) = link {
            let prefix = &hash[..hash.len().min(PREFIX)];
            self.audit.chain.with_label_values(&[&seq.to_string(), prefix]).set(1);
        }
        self.audit.waiting.with_label_values::<&str>(&[]).set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }
}
