//! What ambient mode counts: the original's by their names and labels, then ours.

use std::collections::BTreeMap;

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::register::Register;
use super::zds::ZdsMetrics;

/// All of it.
pub(crate) struct AmbientMetrics {
    events: IntCounterVec,
    requests: IntCounterVec,
    pods: IntGaugeVec,
    outside: IntGaugeVec,
    enrolment: HistogramVec,
    repaired: IntCounterVec,
    ended: IntCounter,
    drifted: IntCounterVec,
    shadowed: IntGauge,
    overdue: IntGauge,
    pub(super) zds: ZdsMetrics,
}

impl AmbientMetrics {
    pub(crate) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            events: make.counters(
                "nodeagent_reconcile_events_total",
                "Changes of pods and namespaces that were heard of, and work on pods that was repeated",
                &["type"],
            )?,
            requests: make.counters(
                "istio_cni_plugin_requests_total",
                "Pods that plugins announced, by the answer's HTTP status",
                &["response_code"],
            )?,
            pods: make.gauges(
                "istio_cni_ambient_pods",
                "Pods in the mesh, on their way into it or out of it",
                &["state"],
            )?,
            outside: make.gauges(
                "istio_cni_ambient_pods_outside",
                "Pods that should be in the mesh and are not, by reason",
                &["reason"],
            )?,
            enrolment: make.histograms(
                "istio_cni_ambient_enrolment_duration_seconds",
                "Seconds from the event to a pod that is wholly in the mesh",
                &["way"],
            )?,
            ended: make.counter(
                "istio_cni_ambient_connections_ended_total",
                "Connections through ztunnel that were ended because their pod left the mesh and its time to drain was over",
            )?,
            repaired: make.counters(
                "istio_cni_drift_repaired_total",
                "What in the kernel differed from what it should be and was put right",
                &["what"],
            )?,
            drifted: make.counters(
                "istio_cni_drift_found_total",
                "What in the kernel differed from what it should be and was left so by configuration",
                &["what"],
            )?,
            shadowed: make.gauge(
                "istio_cni_ambient_shadowed_pods",
                "Pods in whose namespaces rules of others let packets escape capture, or may",
            )?,
            overdue: make.gauge(
                "istio_cni_ambient_verifications_overdue",
                "Pods in whose network namespaces something has not ended in time, so that their rules are not verified",
            )?,
            zds: ZdsMetrics::new(make)?,
        })
    }
}

/// What is counted; nothing where the mode is off.
impl super::Metrics {
    /// So many changes were heard of, or tried again.
    pub fn reconciled(&self, kind: &str, times: u64) {
        if let Some(ambient) = &self.ambient {
            ambient.events.with_label_values(&[kind]).inc_by(times);
        }
    }

    /// A plugin was answered.
    pub fn plugin_request(&self, status: u16) {
        if let Some(ambient) = &self.ambient {
            ambient.requests.with_label_values(&[&status.to_string()]).inc();
        }
    }

    /// So many pods are in a state.
    pub fn ambient_pods(&self, state: &str, pods: usize) {
        if let Some(ambient) = &self.ambient {
            ambient.pods.with_label_values(&[state]).set(i64::try_from(pods).unwrap_or(i64::MAX));
        }
    }

    /// So many pods should be in the mesh and are not, by why.
    pub fn ambient_pods_outside(&self, pods: &BTreeMap<&'static str, usize>) {
        if let Some(ambient) = &self.ambient {
            ambient.outside.reset();
            for (reason, pods) in pods {
                let pods = i64::try_from(*pods).unwrap_or(i64::MAX);
                ambient.outside.with_label_values(&[reason]).set(pods);
            }
        }
    }

    /// A pod is in the mesh, so many seconds after the event.
    pub fn enrolled(&self, way: &str, seconds: f64) {
        if let Some(ambient) = &self.ambient {
            ambient.enrolment.with_label_values(&[way]).observe(seconds);
        }
    }

    /// So many connections were ended because their pod has left the mesh.
    pub fn connections_ended(&self, count: usize) {
        if let Some(ambient) = &self.ambient {
            ambient.ended.inc_by(count as u64);
        }
    }

    /// So much differed and was put right.
    pub fn repaired(&self, what: &str, count: usize) {
        if let Some(ambient) = &self.ambient {
            ambient.repaired.with_label_values(&[what]).inc_by(count as u64);
        }
    }

    /// The rules of a pod differ and are left so.
    pub fn drifted(&self) {
        if let Some(ambient) = &self.ambient {
            ambient.drifted.with_label_values(&["pod-rules"]).inc();
        }
    }

    /// In so many namespaces others shadow our rules.
    pub fn shadowed(&self, pods: usize) {
        if let Some(ambient) = &self.ambient {
            ambient.shadowed.set(i64::try_from(pods).unwrap_or(i64::MAX));
        }
    }

    /// So many pods are overdue.
    pub fn overdue(&self, pods: usize) {
        if let Some(ambient) = &self.ambient {
            ambient.overdue.set(i64::try_from(pods).unwrap_or(i64::MAX));
        }
    }
}
