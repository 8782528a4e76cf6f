//! Sidecar mode after a pod's start. One that started without, or with a part of its capture, is found, counted, told to people and marked, however
//! long the API server is away; or it gets its rules while it runs ([`repair`]).
//!
//! Three things say so of a pod: a plugin's report, kept as a note ([`notes`]), the times in which runtimes did not call the plugin ([`older`]), and what
//! the kernel or its validation container shows ([`repair`]).
//! Both make a start of the pod's record ([`record`]). What is wanted of it comes from the decision table, [`intent::sidecar::steps`] plans acts, and
//! [`executor`] carries them out, one at a time for each pod, by the queue of [`crate::pods`].

mod drain;
mod executor;
mod hearsay;
mod live;
mod locate;
mod mark;
mod notes;
mod older;
mod outside;
mod pods;
mod record;
mod repair;
mod rules;
mod validation;
mod verified;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use capture::Expected;
use capture::annotations::NodeSettings;
use cluster::{Cluster, Queue, Writer};
use facts::{Facts, PodRef};
use fault::Backoff;
use intent::live::LiveUpdates;
use intent::sidecar::{Aim, Capture, DeletionRate};
use kernel::Choice;
use kernel::iptables::Iptables;
use rundir::OperationReport;
use telemetry::Scope;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};

use self::live::RecordedPods;
use crate::ambient::Ambient;
use crate::backends::Backends;
use crate::drains::Drains;
use crate::events::Events;
use crate::finder::Finder;
use crate::health::Health;
use crate::live::LiveNews;
use crate::pods::{Reconcile, work};
use crate::slots::Slots;
use crate::verification::PodVerifier;
use executor::{MarkFailure, carry_out};
use metrics::Metrics;
use older::OlderPods;
pub(crate) use older::SuspectRules;
use pods::{ExpectedBy, SidecarPods};
use record::{Start, StartEvidence, StartRecords};
use repair::{CaptureSeen, LOOK_PAUSES, Repairs};
pub(crate) use repair::{RepairMode, RepairOptions, RepairTrigger};

/// How often it is looked without being told, as for notes of plugins.
const PERIOD: Duration = Duration::from_secs(30);
/// Between two looks: while many pods start, each changes some times.
const PAUSE: Duration = Duration::from_millis(500);
/// Pauses after the API server did not take something.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), PERIOD);
/// How long an agent that starts waits for the pods of its node, by which it knows the ones that are not to be captured.
const PODS_WITHIN: Duration = Duration::from_secs(3);

/// What it needs of the agent.
pub(crate) struct Parts {
    pub(crate) run_dir: PathBuf,
    pub(crate) rules: SuspectRules,
    pub(crate) repair: RepairOptions,
    pub(crate) live_updates: LiveUpdates,
    /// The longest that a pod drains.
    pub(crate) drain_timeout: Duration,
    /// As an ADD of this node has them.
    pub(crate) node: NodeSettings,
    pub(crate) choice: Choice,
    pub(crate) kernel_network_runtime_classes: Vec<String>,
    /// The node's procfs.
    pub(crate) proc_root: PathBuf,
    /// Key and value.
    pub(crate) label: (String, String),
    pub(crate) cluster: Cluster,
    /// Absent where pods are manifests: there is nobody to tell, and nobody knows when they started.
    pub(crate) writer: Option<Writer>,
    pub(crate) ambient: Arc<Ambient>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) events: Arc<Events>,
    /// What is under way in pods' namespaces.
    pub(crate) slots: Arc<Slots>,
    /// Hears of sandboxes that are found.
    pub(crate) verifier: Arc<PodVerifier>,
    pub(crate) log: Scope,
}

/// Finds the pods and tells of them.
pub(crate) struct Sidecars {
    parts: Parts,
    older: OlderPods,
    records: StartRecords,
    /// Pods that wait for something to be done about them by the API.
    queue: Queue<PodRef>,
    /// Pods that should be captured.
    pods: SidecarPods,
    /// What they are expected by.
    expected_by: Mutex<Arc<ExpectedBy>>,
    /// Pods that wait for a look into their namespaces.
    looks: Arc<Queue<PodRef>>,
    finder: Finder,
    slots: Arc<Slots>,
    backends: Arc<Backends>,
    /// Changes of running pods.
    live: LiveNews,
    recorded: RecordedPods,
    /// Pods that are not captured any more and whose connections go on.
    drains: Drains,
    started: Instant,
    deletions: Mutex<DeletionRate>,
    /// When namespaces that are not known were looked for last.
    sought: Mutex<Option<Instant>>,
    /// The pods of the node and the namespaces that were known when records were last swept: until they change, none has become stale.
    swept_for: Mutex<Option<verified::SweptFor>>,
    /// How often in a row the API server took nothing.
    away: AtomicU32,
    /// It is time to look.
    wake: Notify,
}

// === impl Sidecars ===

impl Sidecars {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            older: OlderPods::new(&parts),
            records: StartRecords::default(),
            queue: Queue::with_pauses(PAUSES),
            pods: SidecarPods::default(),
            expected_by: Mutex::new(Arc::new(expected_by(&parts, &parts.rules))),
            looks: Arc::new(Queue::with_pauses(LOOK_PAUSES)),
            finder: Finder::default(),
            slots: parts.slots.clone(),
            backends: Arc::new(Backends::new(Iptables::new, &parts.run_dir)),
            live: live_news(&parts),
            recorded: RecordedPods::default(),
            swept_for: Mutex::default(),
            drains: Drains::default(),
            started: Instant::now(),
            deletions: Mutex::new(mark::deletion_rate()),
            sought: Mutex::default(),
            away: AtomicU32::default(),
            wake: Notify::new(),
            parts,
        })
    }

    /// Runtimes call the plugin from now on.
    pub(crate) fn plugin_is_in_place(&self) {
        self.older.in_place();
        self.wake.notify_one();
    }

    /// Until now runtimes called the plugin, if they did.
    pub(crate) fn plugin_is_in_doubt(&self) {
        self.older.in_doubt();
        self.wake.notify_one();
    }

    /// Runtimes were found not to call the plugin.
    pub(crate) fn plugin_is_missing(&self) {
        self.older.missing();
        self.wake.notify_one();
    }

    /// From now on pods are meant to start without the plugin.
    pub(crate) fn plugin_goes(&self) {
        self.older.end();
    }

    /// Keeps a plugin's report until the pod is marked.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn note(&self, report: &OperationReport) -> std::io::Result<()> {
        rundir::note::leave(&self.parts.run_dir, report)?;
        self.wake.notify_one();
        Ok(())
    }

    /// Goes by changed options from now on.
    pub(crate) fn follow(&self, rules: SuspectRules) {
        let by = Arc::new(expected_by(&self.parts, &rules));
        *self.expected_by.lock().unwrap_or_else(PoisonError::into_inner) = by;
        self.older.follow(rules);
        self.all_changed();
    }

    /// These pods have changed.
    pub(crate) fn changed(&self, pods: &[PodRef]) {
        pods.iter().flat_map(|pod| self.records.of_the_name(pod)).for_each(|pod| self.queue.push(pod));
        pods.iter().for_each(|pod| self.looks.push(pod.clone()));
        self.wake.notify_one();
    }

    /// All pods have changed, or are known from now on.
    pub(crate) fn all_changed(&self) {
        self.records.pods().into_iter().for_each(|pod| self.queue.push(pod));
        let pods: Vec<PodRef> = self.parts.cluster.index().pods().map(|pod| pod.pod_ref()).collect();
        pods.into_iter().for_each(|pod| self.looks.push(pod));
        self.wake.notify_one();
    }

    /// Looks and tells until the task is aborted.
    pub(crate) async fn live(self: Arc<Self>) {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().watch());
        tasks.spawn(work(Arc::new(Repairs { sidecars: self.clone() })));
        tasks.spawn(work(self));
        while tasks.join_next().await.is_some() {}
    }

    async fn watch(self: Arc<Self>) {
        let listed = async {
            while !self.parts.cluster.state().synced {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let _ = tokio::time::timeout(PODS_WITHIN, listed).await;
        loop {
            // All are counted as they are found, before any is marked: an API server that hangs must not delay the alarm.
            self.take_notes();
            self.show_uncaptured();
            self.take_older().await;
            self.tend_pods().await;
            let _ = tokio::time::timeout(PERIOD, self.wake.notified()).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What a pod of this node should have; nothing where its object is cut off.
    pub(crate) fn expected(&self, facts: &Facts) -> Option<Arc<Expected>> {
        self.pods.expected(facts, &self.expected_by())
    }

    fn expected_by(&self) -> Arc<ExpectedBy> {
        self.expected_by.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn deletions(&self) -> MutexGuard<'_, DeletionRate> {
        self.deletions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether namespaces that are not known are to be looked for again.
    fn is_time_to_look(&self) -> bool {
        let mut sought = self.sought.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = sought.is_none_or(|at| at.elapsed() >= PERIOD);
        if is_time {
            *sought = Some(Instant::now());
        }
        is_time
    }

    /// Whether the API server can be told: what has the label may be deleted by others, so it is for pods that are known to be ones to capture.
    fn may_mark(&self) -> bool {
        self.parts.writer.is_none() || self.parts.cluster.state().synced
    }
}

fn live_news(parts: &Parts) -> LiveNews {
    let Parts { log, events, metrics, .. } = parts;
    LiveNews::new(log.clone(), events.clone(), metrics.clone(), &capture::annotations::CAPTURE_KEYS)
}

/// What decides which pods should be captured.
fn expected_by(parts: &Parts, rules: &SuspectRules) -> ExpectedBy {
    ExpectedBy { scope: rules.scope.clone(), enrolment: parts.ambient.enrolment(), node: parts.node.clone() }
}

impl Reconcile for Sidecars {
    type Failure = MarkFailure;

    fn queue(&self) -> &Queue<PodRef> {
        &self.queue
    }

    /// Whoever did not take the one would not take the others.
    fn places(&self) -> usize {
        1
    }

    fn resized(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    async fn reconcile(&self, pod: &PodRef, _attempt: u32) -> Result<(), MarkFailure> {
        for mut start in self.records.starts(pod) {
            if !start.evidence.is_hearsay() {
                continue;
            }
            match self.capture_seen(pod) {
                CaptureSeen::Unknown => {}
                // It comes again then.
                CaptureSeen::Pending => continue,
                CaptureSeen::Captured if start.have.capture == Capture::None => {
                    start.have.capture = Capture::Whole;
                    let seen = |start: &mut Start| start.have.capture = Capture::Whole;
                    self.records.change(pod, &start.evidence, seen);
                }
                CaptureSeen::Captured => {}
            }
            let wanted = self.wanted(pod, &start);
            match wanted {
                // It comes again when they are listed.
                Aim::Captured if !self.may_mark() => continue,
                Aim::Captured if start.have.capture == Capture::Whole => {}
                Aim::Captured => self.count(pod, &start),
                Aim::LeftAlone => {
                    let text = "a pod that started without its facts is not one to capture";
                    self.parts.log.info(text, &[("pod", pod)]);
                }
            }
            // The older pods of an agent that removes the plugin are none of its concern.
            if start.evidence != StartEvidence::Times || !self.older.is_over() {
                carry_out(self, &self.records, pod, start, wanted).await?;
            }
        }
        Ok(())
    }

    fn succeeded(&self, _: &PodRef) {}

    async fn failed(&self, pod: &PodRef, failure: &MarkFailure, _attempt: u32) {
        if !failure.is_quiet() {
            let text = "cannot mark a pod that started without capture; trying again";
            self.parts.log.warn(text, &[("pod", pod), ("error", failure)]);
        }
        if failure.is_of_the_server() {
            let times = self.away.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::time::sleep(PAUSES.pause(times)).await;
            // That was its pause.
            self.queue.push(pod.clone());
        }
    }

    fn panicked(&self, error: JoinError) {
        let text = "the work on a pod panicked; this is a defect, please report it";
        self.parts.log.error(text, &[("error", &error)]);
    }
}
