//! Prometheus metrics: the original's by their names and labels, then ours.

mod ambient;
mod guards;

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use facts::Report;
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use telemetry::Journal;

use crate::serve::{Answer, Handler, text};
use ambient::AmbientMetrics;
use guards::GuardMetrics;

/// Upper bounds in seconds, from a cached answer to the end of kubelet's patience.
const BUCKETS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0, 240.0,
];
/// Values of a label that come from outside are cut off after so many, lest a broken writer fill the memory of the monitoring.
const MAX_COMPONENTS: usize = 16;

/// All of them.
pub(crate) struct Metrics {
    registry: Registry,
    install_ready: IntGaugeVec,
    installs: IntCounterVec,
    overwritten: IntCounterVec,
    components: Mutex<BTreeSet<String>>,
    operations: IntCounterVec,
    durations: HistogramVec,
    sources: IntCounterVec,
    facts_requests: IntCounterVec,
    uncaptured: IntCounterVec,
    started_without_plugin: IntGauge,
    leftover_pods: IntGauge,
    cluster_changes: IntCounter,
    watch_failures: IntCounterVec,
    api_server_failures: IntCounterVec,
    api_server_up: IntGaugeVec,
    /// Absent in sidecar mode, so that dashboards see which mode a node is in.
    ambient: Option<AmbientMetrics>,
    /// Pods of this node that are known.
    pub(crate) pods: IntGauge,
    /// Counts what is counted only when somebody asks.
    census: OnceLock<Box<dyn Fn() + Send + Sync>>,
    guards: GuardMetrics,
}

impl Metrics {
    /// # Errors
    /// A name is there twice or is none, which the tests would have told.
    pub(crate) fn new(ambient: bool, journal: Journal) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let guards = GuardMetrics::new(&registry, journal)?;
        let ambient = ambient.then(|| AmbientMetrics::new(&registry)).transpose()?;
        let counter = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let installs = counter("istio_cni_installs_total", "Installations by their result", &["result"])?;
        let overwritten = counter(
            "istio_cni_config_overwritten_total",
            "How often another component replaced the CNI configuration that has our plugin",
            &["component"],
        )?;
        let operations =
            counter("istio_cni_operations_total", "Calls of the plugin", &["operation", "result"])?;
        let sources = counter(
            "istio_cni_facts_source_total",
            "Where calls of the plugin had their facts from",
            &["source"],
        )?;
        let facts_requests =
            counter("istio_cni_facts_requests_total", "Questions of plugins to this agent", &["result"])?;
        let uncaptured = counter(
            "istio_cni_uncaptured_pods_total",
            "Pods that started without capture, or without all of it, although they should have it",
            &["reason"],
        )?;
        let started_without_plugin = IntGauge::new(
            "istio_cni_started_without_plugin_pods",
            "Sidecar pods that run without capture because they started while the plugin was not in the CNI configuration",
        )?;
        registry.register(Box::new(started_without_plugin.clone()))?;
        let leftover_pods = IntGauge::new(
            "istio_cni_ambient_leftover_pods",
            "Pods that have rules or an annotation of ambient mode on a node where it is off",
        )?;
        registry.register(Box::new(leftover_pods.clone()))?;
        let cluster_changes = IntCounter::new(
            "istio_cni_pod_changes_total",
            "Changes of pods of this node, or of what concerns them",
        )?;
        registry.register(Box::new(cluster_changes.clone()))?;
        let watch_failures = counter("istio_cni_watch_failures_total", "Failures of a watch", &["watch"])?;
        let api_server_failures = counter(
            "istio_cni_api_server_failures_total",
            "Failures of watches of the API server, and outages, by reason",
            &["reason"],
        )?;
        let options = HistogramOpts::new(
            "istio_cni_operation_duration_seconds",
            "Seconds of calls of the plugin, in total and by phase",
        );
        let durations =
            HistogramVec::new(options.buckets(BUCKETS.to_vec()), &["operation", "result", "phase"])?;
        registry.register(Box::new(durations.clone()))?;
        let none: [&str; 0] = [];
        let opts = Opts::new("istio_cni_install_ready", "Whether the plugin is installed and configured");
        let install_ready = IntGaugeVec::new(opts, &none)?;
        registry.register(Box::new(install_ready.clone()))?;
        let opts = Opts::new("istio_cni_api_server_up", "Whether the API server answers this agent");
        let api_server_up = IntGaugeVec::new(opts, &none)?;
        registry.register(Box::new(api_server_up.clone()))?;
        let pods = IntGauge::new("istio_cni_pods", "Pods of this node that the agent knows")?;
        registry.register(Box::new(pods.clone()))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            registry,
            install_ready,
            installs,
            overwritten,
            components: Mutex::default(),
            operations,
            durations,
            sources,
            facts_requests,
            uncaptured,
            started_without_plugin,
            leftover_pods,
            cluster_changes,
            watch_failures,
            api_server_failures,
            api_server_up,
            ambient,
            pods,
            census: OnceLock::new(),
            guards,
        })
    }

    /// `census` is called before the metrics are read.
    pub(crate) fn before_reading(&self, census: impl Fn() + Send + Sync + 'static) {
        let _ = self.census.set(Box::new(census));
    }

    /// Whether the installation is in order. The gauge is absent until this is first said.
    pub(crate) fn install_ready(&self, ready: bool) {
        let none: [&str; 0] = [];
        self.install_ready.with_label_values(&none).set(i64::from(ready));
    }

    /// An installation ended like this, one of the original's words.
    pub(crate) fn installed(&self, result: &str) {
        self.installs.with_label_values(&[result]).inc();
    }

    /// Another component replaced the configuration.
    pub(crate) fn overwritten(&self, component: &str) {
        let mut known = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        let room = known.len() < MAX_COMPONENTS || known.contains(component);
        let label = if room { component } else { "other" };
        known.insert(label.to_owned());
        self.overwritten.with_label_values(&[label]).inc();
    }

    /// A call of the plugin.
    pub(crate) fn operation(&self, report: &Report) {
        let operation = match report.operation.as_str() {
            known @ ("add" | "check" | "del" | "gc" | "status") => known,
            _ => "other",
        };
        let result = report.result.name();
        self.operations.with_label_values(&[operation, result]).inc();
        let seconds = |phase: &str, seconds: f64| {
            if seconds.is_finite() && seconds >= 0.0 {
                self.durations.with_label_values(&[operation, result, phase]).observe(seconds);
            }
        };
        seconds("total", report.seconds);
        for (phase, taken) in report.phases.iter() {
            seconds(phase, taken);
        }
        if let known @ ("agent" | "api" | "last-known" | "annotations" | "manifests") =
            report.facts_source.as_str()
        {
            self.sources.with_label_values(&[known]).inc();
        }
    }

    /// So many pods changed.
    pub(crate) fn cluster_changes(&self, pods: usize) {
        self.cluster_changes.inc_by(pods as u64);
    }

    /// A watch failed.
    pub(crate) fn watch_failure(&self, watch: &str) {
        self.watch_failures.with_label_values(&[watch]).inc();
    }

    /// The API server failed a watch, or was found away, for this reason.
    pub(crate) fn api_server_failure(&self, reason: &str) {
        self.api_server_failures.with_label_values(&[reason]).inc();
    }

    /// Whether the API server answers. The gauge is absent until this is first said.
    pub(crate) fn api_server_up(&self, up: bool) {
        let none: [&str; 0] = [];
        self.api_server_up.with_label_values(&none).set(i64::from(up));
    }

    /// A pod runs without capture.
    pub(crate) fn uncaptured(&self, reason: &str) {
        self.uncaptured.with_label_values(&[reason]).inc();
    }

    /// So many pods run without capture that started while runtimes did not call the plugin.
    pub(crate) fn started_without_plugin(&self, pods: usize) {
        self.started_without_plugin.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// So many pods have something of ambient mode although it is off.
    pub(crate) fn leftover_pods(&self, pods: usize) {
        self.leftover_pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// A connection to this listener was closed or refused for this reason.
    pub(crate) fn connection_closed(&self, listener: &str, reason: &str) {
        self.guards.connections.with_label_values(&[listener, reason]).inc();
    }

    /// So many lines of plugins are not printed.
    pub(crate) fn plugin_lines_dropped(&self, reason: &str, lines: u64) {
        self.guards.plugin_lines.with_label_values(&[reason]).inc_by(lines);
    }

    /// A question of a plugin.
    pub(crate) fn facts_request(&self, result: &str) {
        self.facts_requests.with_label_values(&[result]).inc();
    }
}

impl Handler for Metrics {
    const NAME: &'static str = "metrics";
    const MAX_BODY: usize = 0;

    async fn answer(&self, request: &Request<()>, _: Bytes) -> Answer {
        if request.uri().path() != "/metrics" {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        if let Some(census) = self.census.get() {
            census();
        }
        self.guards.before_reading();
        let mut body = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut body) {
            Ok(()) => {
                let mut answer = text(StatusCode::OK, body);
                let kind =
                    hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                answer.headers_mut().insert("content-type", kind);
                answer
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("write the metrics: {error}\n")),
        }
    }
}
