//! Prometheus metrics: the original's by their names and labels, then ours.

mod ambient;
mod audit;
mod cluster;
mod conflicts;
mod guards;
mod health;
mod plugin;
mod points;
mod policy;
mod register;
mod repair;
mod tenants;
mod usage;
mod verification;
mod zds;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use prometheus::{Encoder, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};
use telemetry::Journal;

use ambient::AmbientMetrics;
use audit::AuditMetrics;
use cluster::ClusterMetrics;
use conflicts::ConflictMetrics;
use guards::GuardMetrics;
pub use health::CheckEnd;
use health::HealthMetrics;
use plugin::PluginMetrics;
use points::PointMetrics;
use policy::PolicyMetrics;
use register::Register;
use repair::RepairMetrics;
use serve::{CountClosed, Handler, ServedAnswer, text};
pub use tenants::CountedTenant;
use tenants::TenantMetrics;
use usage::UsageMetrics;
pub use verification::PodRuleCounts;
use verification::VerificationMetrics;

/// Values of a label that come from outside are cut off after so many, lest a broken writer fill the memory of the monitoring.
const MAX_COMPONENTS: usize = 16;

/// Counts something when it is asked.
type Census = Box<dyn Fn() + Send + Sync>;

/// All of them.
pub struct Metrics {
    registry: Registry,
    install_ready: IntGaugeVec,
    installs: IntCounterVec,
    overwritten: IntCounterVec,
    components: Mutex<BTreeSet<String>>,
    leftover_pods: IntGauge,
    live_updates: IntCounterVec,
    plugin: PluginMetrics,
    policy: PolicyMetrics,
    audit: AuditMetrics,
    points: PointMetrics,
    cluster: ClusterMetrics,
    repair: RepairMetrics,
    tenants: TenantMetrics,
    usage: UsageMetrics,
    /// Absent in sidecar mode, so that dashboards see which mode a node is in.
    ambient: Option<AmbientMetrics>,
    verification: VerificationMetrics,
    conflicts: ConflictMetrics,
    /// Count what is counted only when somebody asks.
    census: Mutex<Vec<Census>>,
    guards: GuardMetrics,
    health: HealthMetrics,
}

impl Metrics {
    /// # Errors
    /// A name is there twice or is none, which the tests would have told.
    pub fn new(ambient: bool, journal: Journal) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let make = Register(&registry);
        Ok(Self {
            install_ready: make.gauges(
                "istio_cni_install_ready",
                "Whether the plugin is installed and configured",
                &[],
            )?,
            installs: make.counters(
                "istio_cni_installs_total",
                "Installations by their result",
                &["result"],
            )?,
            overwritten: make.counters(
                "istio_cni_config_overwritten_total",
                "How often another component replaced the CNI configuration that has our plugin",
                &["component"],
            )?,
            components: Mutex::default(),
            leftover_pods: make.gauge(
                "istio_cni_ambient_leftover_pods",
                "Pods that have rules or an annotation of ambient mode on a node where it is off",
            )?,
            live_updates: make.counters(
                "istio_cni_live_updates_total",
                "Changes of running pods' labels and annotations that concern their rules, by what became of them",
                &["result"],
            )?,
            plugin: PluginMetrics::new(&make)?,
            policy: PolicyMetrics::new(&make)?,
            audit: AuditMetrics::new(&make)?,
            points: PointMetrics::new(&make)?,
            cluster: ClusterMetrics::new(&make)?,
            repair: RepairMetrics::new(&make)?,
            tenants: TenantMetrics::new(&make)?,
            usage: UsageMetrics::new(&make)?,
            ambient: ambient.then(|| AmbientMetrics::new(&make)).transpose()?,
            verification: VerificationMetrics::new(&make)?,
            conflicts: ConflictMetrics::new(&make)?,
            census: Mutex::default(),
            guards: GuardMetrics::new(&make, journal)?,
            health: HealthMetrics::new(&make)?,
            registry,
        })
    }

    /// `census` is called before the metrics are read. It may not call this.
    pub fn before_reading(&self, census: impl Fn() + Send + Sync + 'static) {
        self.census.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(census));
    }

    /// Everything, as text. Whoever else reads meanwhile waits: the sums of one census hold in what is read after it.
    ///
    /// # Errors
    /// A family of metrics has no text, as one without a name.
    pub fn read(&self) -> Result<Vec<u8>, prometheus::Error> {
        let census = self.census.lock().unwrap_or_else(PoisonError::into_inner);
        census.iter().for_each(|census| census());
        self.guards.before_reading();
        self.policy.before_reading();
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// Whether the installation is in order. The gauge is absent until this is first said.
    pub fn install_ready(&self, ready: bool) {
        let none: [&str; 0] = [];
        self.install_ready.with_label_values(&none).set(i64::from(ready));
    }

    /// An installation ended like this, one of the original's words.
    pub fn installed(&self, result: &str) {
        self.installs.with_label_values(&[result]).inc();
    }

    /// Another component replaced the configuration.
    pub fn overwritten(&self, component: &str) {
        let mut known = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        let room = known.len() < MAX_COMPONENTS || known.contains(component);
        let label = if room { component } else { "other" };
        known.insert(label.to_owned());
        self.overwritten.with_label_values(&[label]).inc();
    }

    /// So many pods have something of ambient mode although it is off.
    pub fn leftover_pods(&self, pods: usize) {
        self.leftover_pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// This became of a change of a running pod.
    pub fn live_update(&self, result: &str) {
        self.live_updates.with_label_values(&[result]).inc();
    }

    /// So many lines of plugins are not printed.
    pub fn plugin_lines_dropped(&self, reason: &str, lines: u64) {
        self.guards.plugin_lines.with_label_values(&[reason]).inc_by(lines);
    }
}

impl CountClosed for Metrics {
    fn connection_closed(&self, listener: &str, reason: &str) {
        self.guards.connections.with_label_values(&[listener, reason]).inc();
    }
}

impl Handler for Metrics {
    const NAME: &'static str = "metrics";
    const MAX_BODY: usize = 0;

    async fn answer(&self, request: &Request<()>, _: Bytes) -> ServedAnswer {
        if request.uri().path() != "/metrics" {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        }
        match self.read() {
            Ok(body) => {
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

#[cfg(test)]
mod tests;
