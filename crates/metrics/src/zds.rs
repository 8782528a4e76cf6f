//! What is counted of ztunnels' connections.

use prometheus::{HistogramVec, IntCounterVec, IntGauge};

use super::register::Register;

/// All of it.
pub(super) struct ZdsMetrics {
    connected: IntGauge,
    messages: IntCounterVec,
    acks: HistogramVec,
}

impl ZdsMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            connected: make.gauge("ztunnel_connected", "Connections of ztunnels")?,
            messages: make.counters(
                "istio_cni_zds_messages_total",
                "Messages to ztunnels",
                &["kind", "result"],
            )?,
            acks: make.histograms(
                "istio_cni_zds_ack_duration_seconds",
                "Seconds until ztunnels answer",
                &["kind"],
            )?,
        })
    }

    fn count(&self, event: &zds::ZtunnelEvent) {
        match event {
            zds::ZtunnelEvent::Connected { connected, .. }
            | zds::ZtunnelEvent::Disconnected { connected, .. } => {
                self.connected.set(i64::try_from(*connected).unwrap_or(i64::MAX));
            }
            zds::ZtunnelEvent::Acked { kind, seconds, .. } => {
                self.messages.with_label_values(&[kind.name(), "ack"]).inc();
                self.acks.with_label_values(&[kind.name()]).observe(*seconds);
            }
            zds::ZtunnelEvent::Nacked { kind, .. } => {
                self.messages.with_label_values(&[kind.name(), "nack"]).inc();
            }
            _ => {}
        }
    }
}

impl super::Metrics {
    /// A ztunnel came, went or answered. Counted in ambient mode only.
    pub fn ztunnel(&self, event: &zds::ZtunnelEvent) {
        if let Some(ambient) = &self.ambient {
            ambient.zds.count(event);
        }
    }
}
