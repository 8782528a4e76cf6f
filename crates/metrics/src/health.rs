//! What the agent's periodic checks of its node come to.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec, Registry};

use super::register::Register;

/// All of it.
pub(crate) struct HealthMetrics {
    registry: Registry,
    status: IntGaugeVec,
    last_success: IntGaugeVec,
    checks: IntCounterVec,
    durations: HistogramVec,
    config: IntGaugeVec,
    connectivity: IntGaugeVec,
    build: IntGaugeVec,
    short: OnceLock<ShortNames>,
}

/// What the configuration of CNI may be like, as a label.
const CONFIG_STATES: [&str; 4] = ["healthy", "missing", "invalid", "error"];
/// How a check may end, as a label.
const RESULTS: [&str; 3] = ["ok", "failed", "timeout"];
/// Short names of the connections.
const CONNECTIONS: [(&str, &str); 2] = [("kubernetes", "k8s_connectivity"), ("dns", "cluster_connectivity")];

/// Absent until something is known.
struct ShortNames {
    config: [IntGaugeVec; 4],
    connectivity: [(&'static str, [IntGaugeVec; 2]); 2],
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckEnd {
    /// Nothing is wrong.
    Ok,
    /// Something is.
    Failed,
    /// It did not end in its time.
    Timeout,
    /// It could not be looked, so nothing is known.
    Unknown,
}

impl HealthMetrics {
    pub(crate) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            registry: make.0.clone(),
            status: make.gauges(
                "istio_cni_health_status",
                "Whether the last check of this kind found everything in order; absent while that is not known",
                &["check"],
            )?,
            last_success: make.gauges(
                "istio_cni_health_last_success_timestamp_seconds",
                "When a check of this kind last found everything in order, in seconds since 1970",
                &["check"],
            )?,
            checks: make.counters(
                "istio_cni_health_checks_total",
                "Checks that the agent makes of its node, by how they ended",
                &["check", "result"],
            )?,
            durations: make.histograms_of(
                "istio_cni_health_check_duration_seconds",
                "Seconds that a check took",
                &["check"],
                &[0.001, 0.01, 0.1, 1.0, 5.0],
            )?,
            config: make.gauges(
                "istio_cni_config_state",
                "Which of these states the CNI configuration is in",
                &["state"],
            )?,
            connectivity: make.gauges(
                "istio_cni_connectivity",
                "Whether this node reaches it",
                &["target"],
            )?,
            build: make.gauges(
                "istio_cni_build_info",
                "What runs here",
                &["version", "commit", "backend", "mode"],
            )?,
            short: OnceLock::new(),
        })
    }
}

impl super::Metrics {
    /// This runs here.
    pub fn build_info(&self, version: &str, commit: &str, backend: &str, mode: &str) {
        self.health.build.with_label_values(&[version, commit, backend, mode]).set(1);
    }

    /// Such checks are made: their counters begin.
    pub fn has_check(&self, check: &str) {
        for result in RESULTS {
            self.health.checks.with_label_values(&[check, result]);
        }
    }

    /// A check ended.
    pub fn check_ended(&self, check: &str, end: CheckEnd, time: Duration) {
        let of = &self.health;
        of.durations.with_label_values(&[check]).observe(time.as_secs_f64());
        let result = match end {
            CheckEnd::Ok => "ok",
            CheckEnd::Failed => "failed",
            CheckEnd::Timeout => "timeout",
            // It fails where there is none.
            CheckEnd::Unknown => return drop(of.status.remove_label_values(&[check])),
        };
        of.checks.with_label_values(&[check, result]).inc();
        of.status.with_label_values(&[check]).set(i64::from(end == CheckEnd::Ok));
        if end == CheckEnd::Ok {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            of.last_success.with_label_values(&[check]).set(now);
        }
    }

    /// The CNI configuration is in this state, and in no other.
    pub fn config_state(&self, state: &str) {
        // Whoever reads meanwhile waits, so that every reading has one.
        let _census = self.census.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let none: [&str; 0] = [];
        for (at, known) in CONFIG_STATES.into_iter().enumerate() {
            let value = i64::from(known == state);
            self.health.config.with_label_values(&[known]).set(value);
            if let Some(short) = self.health.short.get().and_then(|short| short.config.get(at)) {
                short.with_label_values(&none).set(value);
            }
        }
    }

    /// Whether something is reached from this node.
    pub fn connectivity(&self, target: &str, reached: bool) {
        let none: [&str; 0] = [];
        self.health.connectivity.with_label_values(&[target]).set(i64::from(reached));
        let short =
            self.health.short.get().and_then(|short| short.connectivity.iter().find(|(of, _)| *of == target));
        if let Some((_, [healthy, error])) = short {
            healthy.with_label_values(&none).set(i64::from(reached));
            error.with_label_values(&none).set(i64::from(!reached));
        }
    }

    /// Exports the gauges above by short names as well.
    pub(crate) fn short_health_names(&self) -> Result<(), prometheus::Error> {
        let make = Register(&self.health.registry);
        let gauge = |name: String, help: &str| make.gauges(&name, help, &[]);
        let [a, b, c, d] =
            CONFIG_STATES.map(|state| gauge(format!("cni_config_{state}"), "As istio_cni_config_state"));
        let [kubernetes, cluster] = CONNECTIONS.map(|(target, name)| {
            let of = |end: &str| gauge(format!("{name}_{end}"), "As istio_cni_connectivity");
            Ok::<_, prometheus::Error>((target, [of("healthy")?, of("error")?]))
        });
        let names = ShortNames { config: [a?, b?, c?, d?], connectivity: [kubernetes?, cluster?] };
        let _ = self.health.short.set(names);
        Ok(())
    }
}
