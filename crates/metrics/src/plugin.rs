//! What is counted of the plugin's calls.

use prometheus::{HistogramVec, IntCounterVec, IntGauge};
use rundir::{OperationReport, Outcome};

use super::register::Register;

/// Upper bounds in seconds: a cached answer, an ADD as it should be, one that is slow, one that a runtime gives up. There are five phases, so each bound
/// is five series for each operation and result.
const BUCKETS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0];
/// Operations that every runtime calls.
const OPERATIONS: [&str; 3] = ["add", "check", "del"];
/// Where facts come from.
const SOURCES: [&str; 5] = ["agent", "api", "last-known", "annotations", "manifests"];
/// Why pods start without capture.
const UNCAPTURED: [&str; 4] = ["failure-policy-open", "incomplete", "no-plugin", "started-before-agent"];

/// All of it.
pub(super) struct PluginMetrics {
    operations: IntCounterVec,
    durations: HistogramVec,
    sources: IntCounterVec,
    facts_requests: IntCounterVec,
    uncaptured: IntCounterVec,
    started_without_plugin: IntGauge,
}

impl PluginMetrics {
    pub(super) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            operations: make.counters(
                "istio_cni_operations_total",
                "Calls of the plugin",
                &["operation", "result"],
            )?,
            durations: make.histograms_of(
                "istio_cni_operation_duration_seconds",
                "Seconds of calls of the plugin, in total and by phase",
                &["operation", "result", "phase"],
                BUCKETS,
            )?,
            sources: make.counters(
                "istio_cni_facts_source_total",
                "Sources of the facts that calls of the plugin used",
                &["source"],
            )?,
            facts_requests: make.counters(
                "istio_cni_facts_requests_total",
                "Questions of plugins to this agent",
                &["result"],
            )?,
            uncaptured: make.counters(
                "istio_cni_uncaptured_pods_total",
                "Pods that started without capture, or without all of it, although they should have it",
                &["reason"],
            )?,
            started_without_plugin: make.gauge(
                "istio_cni_started_without_plugin_pods",
                "Sidecar pods that run without capture because they started while the plugin was not in the CNI configuration",
            )?,
        };
        metrics.begin();
        Ok(metrics)
    }

    /// Counters that are absent until something happens raise no alarm when it does.
    fn begin(&self) {
        let results = [
            Outcome::Captured,
            Outcome::Skipped,
            Outcome::Failed,
            Outcome::Uncaptured,
            Outcome::Incomplete,
            Outcome::Disabled,
        ];
        for operation in OPERATIONS {
            for result in results {
                self.operations.with_label_values(&[operation, result.name()]);
            }
        }
        for reason in UNCAPTURED {
            self.uncaptured.with_label_values(&[reason]);
        }
        for source in SOURCES {
            self.sources.with_label_values(&[source]);
        }
        for result in ["found", "unknown", "stale", "unsynced"] {
            self.facts_requests.with_label_values(&[result]);
        }
    }
}

impl super::Metrics {
    /// A call of the plugin.
    pub fn operation(&self, report: &OperationReport) {
        let operation = match report.operation.as_str() {
            known @ ("add" | "check" | "del" | "gc" | "status") => known,
            _ => "other",
        };
        let result = report.result.name();
        self.plugin.operations.with_label_values(&[operation, result]).inc();
        let seconds = |phase: &str, seconds: f64| {
            if seconds.is_finite() && seconds >= 0.0 {
                self.plugin.durations.with_label_values(&[operation, result, phase]).observe(seconds);
            }
        };
        seconds("total", report.seconds);
        for (phase, taken) in report.phases.iter() {
            seconds(phase, taken);
        }
        if SOURCES.contains(&report.facts_source.as_str()) {
            self.plugin.sources.with_label_values(&[&*report.facts_source]).inc();
        }
    }

    /// A pod runs without capture.
    pub fn uncaptured(&self, reason: &str) {
        self.plugin.uncaptured.with_label_values(&[reason]).inc();
    }

    /// So many pods run without capture that started while runtimes did not call the plugin.
    pub fn started_without_plugin(&self, pods: usize) {
        self.plugin.started_without_plugin.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// A question of a plugin.
    pub fn facts_request(&self, result: &str) {
        self.plugin.facts_requests.with_label_values(&[result]).inc();
    }
}
