//! The verifier with a mode that panics.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ::verification::UnverifiableReason;
use capture::{PlanTarget, Settings};
use cluster::{Cluster, OwnPod};
use kernel::iptables::Iptables;
use kernel::watch::EventSupport;
use metrics::Metrics;
use ruleset::Backend;
use telemetry::{Journal, Levels};

use super::*;
use crate::conflicts::{ConflictParts, ConflictResolution, Conflicts};
use crate::events::Events;
use crate::health::Health;

const INTERVAL: Duration = Duration::from_millis(200);
/// More than any step takes, on a busy machine too.
const LONG: Duration = Duration::from_secs(60);

/// Where the mode panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// When it is asked which pods are expected, which is of none.
    Expected,
    /// On the task that begins the looks at all pods.
    Begin,
    /// In the pod's namespace, where whoever compares has its sockets.
    Inside,
    /// When a comparison has ended.
    Compared,
    /// While what differs is put right.
    Repair,
}

/// Pods by uid, and where which of them panics, and how often it did.
struct Mode {
    pods: Vec<ExpectedPod>,
    panics: Mutex<Option<(Place, &'static str)>>,
    times: Mutex<usize>,
}

impl Mode {
    fn is_at(&self, place: Place, uid: &str) {
        if *self.panics.lock().unwrap() == Some((place, uid)) {
            *self.times.lock().unwrap() += 1;
            panic!("on purpose");
        }
    }

    fn set(&self, panics: Option<(Place, &'static str)>) {
        *self.panics.lock().unwrap() = panics;
        *self.times.lock().unwrap() = 0;
    }
}

impl VerifiedMode for Mode {
    fn expected(&self) -> Vec<ExpectedPod> {
        self.is_at(Place::Expected, "");
        self.pods.clone()
    }

    fn backends(&self) -> Arc<Backends> {
        Arc::new(Backends::new(Iptables::new, Path::new("/nonexistent")))
    }

    fn is_at_work(&self, uid: &str) -> bool {
        self.is_at(Place::Begin, uid);
        false
    }

    fn inspect(&self, pod: &PodRef, _: &Inside, _: &Arc<Plan>, _: Option<&Fingerprint>) {
        self.is_at(Place::Inside, &pod.uid);
    }

    fn compared(&self, pod: &PodRef, _: &Comparison) {
        self.is_at(Place::Compared, &pod.uid);
    }

    fn repair<'a>(&'a self, pod: &'a PodRef) -> Later<'a, Result<RepairResult, RepairFailure>> {
        Box::pin(async {
            self.is_at(Place::Repair, &pod.uid);
            Ok(RepairResult::Left)
        })
    }

    fn round(self: Arc<Self>) -> Later<'static, ()> {
        Box::pin(async {})
    }
}

/// A pod in a namespace of its own.
fn pod(uid: &str, plan: Plan) -> ExpectedPod {
    let netns = Arc::new(Netns::unnamed().unwrap());
    let target = VerificationTarget {
        netns,
        found: FoundBy::Descriptor,
        plan: Arc::new(plan),
        addresses: Vec::new(),
        listeners: Vec::new(),
        proxy_started: false,
        acknowledged: true,
    };
    let pod = PodRef { namespace: "shop".to_owned(), name: uid.to_owned(), uid: uid.to_owned() };
    ExpectedPod { pod, mode: DataPlaneMode::Sidecar, born: None, trouble: None, target: Ok(target) }
}

/// A kernel that tells nothing by itself, and not who makes changes.
fn asked_only() -> Result<EventSupport, kernel::Error> {
    Ok(EventSupport { generation: true, events: false, culprits: false })
}

fn verifier(metrics: &Arc<Metrics>, journal: &Journal, dir: &Path) -> Arc<PodVerifier> {
    let (log, own) =
        (journal.scope("verification"), OwnPod { namespace: String::new(), name: String::new() });
    let events = Arc::new(Events::new(None, own, log.clone()));
    let conflicts = Conflicts::new(ConflictParts {
        resolution: ConflictResolution::Off,
        proc_root: "/proc".into(),
        run_dir: dir.to_owned(),
        beside: Vec::new(),
        blocks_ready: None,
        events: events.clone(),
        metrics: metrics.clone(),
        log: log.clone(),
    });
    let config = VerifyConfig {
        interval: INTERVAL,
        full: INTERVAL,
        repairs: true,
        captures: true,
        short_names: false,
    };
    PodVerifier::new(VerifierParts {
        config,
        proc_root: "/proc".into(),
        probe: asked_only,
        conflicts,
        slots: Arc::default(),
        cluster: Cluster::new(),
        events,
        health: Arc::new(Health::of(&[])),
        metrics: metrics.clone(),
        log,
    })
}

fn state(verifier: &PodVerifier, uid: &str) -> VerificationState {
    verifier.pods().into_iter().find(|pod| pod.pod.uid == uid).unwrap().state
}

/// The sum of a metric's series that have this label.
fn sum(metrics: &Metrics, name: &str, label: &str) -> u64 {
    let text = String::from_utf8(metrics.read().unwrap()).unwrap();
    let of = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    of.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

fn errors(metrics: &Metrics) -> u64 {
    sum(metrics, "istio_cni_verifications_total", r#"result="error""#)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_a_look_panics_its_pod_is_not_verified_and_is_looked_at_again() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::new(Levels::default(), false, std::io::sink()).unwrap();
    let metrics = Arc::new(Metrics::new(true, journal.clone()).unwrap());
    let verifier = verifier(&metrics, &journal, dir.path());
    let nothing = Plan { backend: Backend::Nftables, routing: Vec::new(), layers: Vec::new() };
    let target = PlanTarget { backend: Backend::Nftables, ipv6: false };
    let without = pod("without", capture::plan(&Settings::default(), target));
    let mode = Arc::new(Mode {
        pods: vec![pod("right", nothing.clone()), pod("other", nothing), without],
        panics: Mutex::default(),
        times: Mutex::default(),
    });
    verifier.verify(vec![mode.clone()]);
    let task = tokio::spawn(verifier.clone().live());
    let unknown = VerificationState::Unverifiable(UnverifiableReason::Kernel);
    let is = |uid: &str, wanted| state(&verifier, uid) == wanted;
    let (right, without) = (VerificationState::Verified, VerificationState::Drifted);
    let tells = |what: &str| sum(&metrics, "istio_cni_verification_kernel_tells", what);
    until("it is said what the kernel tells", || tells("generation") == 1).await;
    assert_eq!((tells("events"), tells("culprits")), (0, 0));
    until("all were looked at", || is("right", right) && is("without", without)).await;
    for (place, uid, usual) in [
        (Place::Begin, "right", right),
        (Place::Inside, "right", right),
        (Place::Compared, "right", right),
        (Place::Repair, "without", without),
    ] {
        let before = errors(&metrics);
        mode.set(Some((place, uid)));
        until("it is looked at again and again", || *mode.times.lock().unwrap() > 2).await;
        until("nobody can tell", || is(uid, unknown)).await;
        until("it is counted", || errors(&metrics) > before).await;
        until("the other one is verified all the same", || is("other", right)).await;
        mode.set(None);
        until("it is as usual", || is(uid, usual)).await;
    }
    let equal = || sum(&metrics, "istio_cni_verifications_total", r#"result="equal""#);
    let before = errors(&metrics);
    mode.set(Some((Place::Expected, "")));
    until("it is asked again and again", || *mode.times.lock().unwrap() > 2).await;
    until("it is counted", || errors(&metrics) > before).await;
    let looks = equal();
    until("those that are known are looked at all the same", || equal() > looks + 2).await;
    mode.set(None);
    assert!(is("right", right) && !task.is_finished());
    task.abort();
}
