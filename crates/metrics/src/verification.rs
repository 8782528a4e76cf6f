//! What the kernel holds against what it should hold: how many pods are verified, how often it was looked, and what differed.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use ::verification::{DataPlaneMode, DriftAction, Drifted, Layer, Ledger, VerificationState};
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::register::Register;

/// All of it.
pub(crate) struct VerificationMetrics {
    pods: PodGauges,
    verifications: IntCounterVec,
    durations: HistogramVec,
    drift: IntCounterVec,
    repairs: HistogramVec,
    lost: IntCounter,
    unwatched: IntGauge,
    told: IntGaugeVec,
    capture: IntGauge,
    left: IntGaugeVec,
}

/// How many pods are how.
struct PodGauges {
    registry: Registry,
    expected: IntGaugeVec,
    verified: IntGaugeVec,
    unverified: IntGaugeVec,
    rules: IntGaugeVec,
    contended: IntGauge,
    listeners: IntGaugeVec,
    last: IntGaugeVec,
    short: OnceLock<[IntGauge; 2]>,
}

impl PodGauges {
    fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            registry: make.0.clone(),
            expected: make.gauges("istio_cni_pods_expected", "Pods that should be captured", &["mode"])?,
            verified: make.gauges(
                "istio_cni_pods_verified",
                "Pods whose network namespaces are as planned, by a comparison that is not too old",
                &["mode"],
            )?,
            unverified: make.gauges(
                "istio_cni_pods_unverified",
                "Pods that should be captured and are not verified, by state",
                &["mode", "state", "reason"],
            )?,
            rules: make.gauges(
                "istio_cni_pod_rules",
                "Pods that should be captured, by what is known of their rules",
                &["state"],
            )?,
            contended: make.gauge(
                "istio_cni_contended_pods",
                "Pods whose rules are not put right now because somebody undoes it again and again",
            )?,
            listeners: make.gauges(
                "istio_cni_pod_listeners",
                "Pods in whose network namespaces nobody listens on a port that traffic is redirected to",
                &["mode", "listener"],
            )?,
            last: make.gauges(
                "istio_cni_verification_last_timestamp_seconds",
                "When the pod that was not seen as planned for longest was, and when the node's network namespace was, in seconds since 1970",
                &["scope"],
            )?,
            short: OnceLock::new(),
        })
    }
}

/// How many pods have their rules: how people ask first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodRuleCounts {
    /// They are as planned.
    pub healthy: usize,
    /// None of them is there.
    pub missing: usize,
    /// Something differs.
    pub different: usize,
    /// Nobody can tell.
    pub unverifiable: usize,
}

impl VerificationMetrics {
    pub(crate) fn new(make: &Register<'_>) -> Result<Self, prometheus::Error> {
        let none: [&str; 0] = [];
        let metrics = Self {
            pods: PodGauges::new(make)?,
            verifications: make.counters(
                "istio_cni_verifications_total",
                "Looks at network namespaces of pods: after an event, at the generation only, in full",
                &["layer", "result"],
            )?,
            durations: make.histograms(
                "istio_cni_verification_duration_seconds",
                "Seconds that a look took",
                &["layer"],
            )?,
            drift: make.counters(
                "istio_cni_drift_total",
                "What in the kernel differed from what it should be, and what became of it",
                &["what", "action"],
            )?,
            repairs: make.histograms(
                "istio_cni_drift_repair_duration_seconds",
                "Seconds from the look that found a difference until it was put right",
                &[],
            )?,
            lost: make.counter(
                "istio_cni_verification_events_lost_total",
                "Times that the kernel had more events of a pod's network namespace than it keeps; each is followed by a full comparison",
            )?,
            unwatched: make.gauge(
                "istio_cni_verification_unwatched_pods",
                "Pods whose network namespaces are looked at by turns only, for want of descriptors",
            )?,
            told: make.gauges(
                "istio_cni_verification_kernel_tells",
                "Whether this kernel tells of changes in network namespaces: when it is asked, by itself, and by whom",
                &["what"],
            )?,
            capture: make.gauge("istio_cni_capture_enabled", "Whether pods are captured at all")?,
            left: make.gauges(
                "istio_cni_capture_disabled_pods",
                "Pods that keep the rules they have while capture is disabled",
                &["mode"],
            )?,
        };
        metrics.repairs.with_label_values(&none);
        metrics.begin();
        Ok(metrics)
    }

    /// Counters that are absent until something happens raise no alarm when it does.
    fn begin(&self) {
        for layer in Layer::ALL {
            for result in ["equal", "drift", "error"] {
                self.verifications.with_label_values(&[layer.label(), result]);
            }
            self.durations.with_label_values(&[layer.label()]);
        }
        for mode in DataPlaneMode::ALL {
            self.left.with_label_values(&[mode.label()]);
        }
        for what in ["generation", "events", "culprits"] {
            self.told.with_label_values(&[what]);
        }
        for what in Drifted::ALL {
            for action in DriftAction::ALL {
                self.drift.with_label_values(&[what.label(), action.label()]);
            }
        }
    }
}

fn number(pods: usize) -> i64 {
    i64::try_from(pods).unwrap_or(i64::MAX)
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl super::Metrics {
    /// Whether pods are captured at all.
    pub fn capture_enabled(&self, enabled: bool) {
        self.verification.capture.set(i64::from(enabled));
    }

    /// So many pods keep the rules they have while capture is disabled.
    pub fn left_as_they_are(&self, mode: DataPlaneMode, pods: usize) {
        let gauge = self.verification.left.with_label_values(&[mode.label()]);
        gauge.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// Exports the gauges of pods' rules, of the configuration and of connections by the short names as well.
    ///
    /// # Errors
    /// As [`super::Metrics::new`].
    pub fn with_short_names(&self) -> Result<(), prometheus::Error> {
        let make = Register(&self.verification.pods.registry);
        let help = "As istio_cni_pod_rules";
        let [healthy, missing] =
            ["pod_rules_healthy", "pod_rules_missing"].map(|name| make.gauge(name, help));
        let _ = self.verification.pods.short.set([healthy?, missing?]);
        self.short_health_names()
    }

    /// So many pods are expected, verified and not: one snapshot.
    pub fn pods_verified(&self, ledger: &Ledger) {
        let of = &self.verification.pods;
        for mode in DataPlaneMode::ALL {
            of.expected.with_label_values(&[mode.label()]).set(number(ledger.expected(mode)));
            of.verified.with_label_values(&[mode.label()]).set(number(ledger.verified(mode)));
            for (state, pods) in ledger.unverified(mode) {
                let reason = state.reason().map_or("", |reason| reason.label());
                of.unverified.with_label_values(&[mode.label(), state.label(), reason]).set(number(pods));
            }
        }
        let contended = DataPlaneMode::ALL.map(|mode| ledger.count(mode, VerificationState::Contended));
        of.contended.set(number(contended.iter().sum()));
    }

    /// So it stands with the pods' rules.
    pub fn pod_rules(&self, pods: PodRuleCounts) {
        let of = &self.verification.pods;
        let PodRuleCounts { healthy, missing, different, unverifiable } = pods;
        let states = [
            ("healthy", healthy),
            ("missing", missing),
            ("different", different),
            ("unverifiable", unverifiable),
        ];
        for (at, (state, pods)) in states.into_iter().enumerate() {
            of.rules.with_label_values(&[state]).set(number(pods));
            if let Some(short) = of.short.get().and_then(|short| short.get(at)) {
                short.set(number(pods));
            }
        }
    }

    /// In so many pods of a mode nobody listens where somebody should.
    pub fn listeners_missing(&self, mode: DataPlaneMode, pods: usize) {
        self.verification.pods.listeners.with_label_values(&[mode.label(), "missing"]).set(number(pods));
    }

    /// When the pod that was not seen as planned for longest was; absent while no pod was, so that no alarm goes by a pod that is gone.
    pub fn oldest_verification(&self, at: Option<SystemTime>) {
        let (last, scope) = (&self.verification.pods.last, ["oldest-pod"]);
        match at {
            Some(at) => last.with_label_values(&scope).set(seconds(at)),
            // It fails where there is none.
            None => drop(last.remove_label_values(&scope)),
        }
    }

    /// The node's network namespace is as planned now.
    pub fn host_verified(&self) {
        self.verification.pods.last.with_label_values(&["host"]).set(seconds(SystemTime::now()));
    }

    /// It was looked at a pod's network namespace.
    pub fn verified(&self, layer: Layer, result: &str, time: Duration) {
        let of = &self.verification;
        of.verifications.with_label_values(&[layer.label(), result]).inc();
        of.durations.with_label_values(&[layer.label()]).observe(time.as_secs_f64());
    }

    /// So much differed, and that became of it.
    pub fn drift(&self, what: Drifted, outcome: DriftAction, count: usize) {
        let labels = [what.label(), outcome.label()];
        self.verification.drift.with_label_values(&labels).inc_by(count as u64);
    }

    /// What differed was put right after so long.
    pub fn drift_repaired_within(&self, time: Duration) {
        let none: [&str; 0] = [];
        self.verification.repairs.with_label_values(&none).observe(time.as_secs_f64());
    }

    /// The kernel had more events than it keeps.
    pub fn verification_events_lost(&self) {
        self.verification.lost.inc();
    }

    /// So many pods are looked at by turns only.
    pub fn unwatched(&self, pods: usize) {
        self.verification.unwatched.set(number(pods));
    }

    /// The kernel gives the number of the last transaction of a namespace, tells of each by itself, and names who has made it.
    pub fn kernel_tells(&self, generation: bool, events: bool, culprits: bool) {
        let all = [("generation", generation), ("events", events), ("culprits", culprits)];
        for (what, told) in all {
            self.verification.told.with_label_values(&[what]).set(told.into());
        }
    }
}
