//! Sidecar mode after a pod's start. One that started without, or with a part of its capture, is found, counted, told to people and marked, however
//! long the API server is away; or it gets its rules while it runs ([`repair`]).
//!
//! Three things say so of a pod: a plugin's report, kept as a note ([`notes`]), the times in which runtimes did not call the plugin ([`older`]), and what
//! the kernel or its validation container shows ([`repair`]).
//! Both make a start of the pod's record ([`record`]). What is wanted of it comes from the decision table, [`intent::sidecar::steps`] plans acts, and
//! [`executor`] carries them out, one at a time for each pod, by the queue of [`crate::pods`].

mod drain;
mod executor;
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
mod verified;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use capture::annotations::NodeSettings;
use cluster::{Cluster, Queue, Writer};
use facts::PodRef;
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
use crate::health::{Health, Notice, count_and_names};
use crate::live::LiveNews;
use crate::metrics::Metrics;
use crate::pods::{Reconcile, work};
use crate::slots::Slots;
use executor::{MarkFailure, carry_out};
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
    deletions: Mutex<DeletionRate>,
    /// When namespaces that are not known were looked for last.
    sought: Mutex<Option<Instant>>,
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
            live: LiveNews::new(parts.log.clone(), parts.events.clone(), parts.metrics.clone()),
            recorded: RecordedPods::default(),
            drains: Drains::default(),
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

    /// Makes a start of each note that is new, and forgets those whose note is gone.
    fn take_notes(&self) {
        // The note of a start that is settled is removed: another one at its place is of another start.
        let is_of_note = |start: &Start| matches!(start.evidence, StartEvidence::Note(_));
        self.records.retain(|_, start| !(is_of_note(start) && start.have.settled));
        let paths = match notes::list(&self.parts.run_dir) {
            Ok(paths) => paths,
            // What is known of them is not lost for that.
            Err(error) => {
                let text = "the notes about uncaptured pods cannot be read; trying again";
                return self.parts.log.warn(text, &[("error", &error)]);
            }
        };
        self.records.retain(|_, start| match &start.evidence {
            StartEvidence::Note(path) => paths.contains(path),
            StartEvidence::Times | StartEvidence::Seen | StartEvidence::Lost => true,
        });
        for path in paths {
            if self.records.has_note(&path) {
                continue;
            }
            match notes::read(&path) {
                Ok((pod, start)) => self.take(pod, start),
                Err(error) => {
                    let text = "a note about an uncaptured pod cannot be read and is removed";
                    self.parts.log.error(text, &[("path", &path.display()), ("error", &error)]);
                    let _ = std::fs::remove_file(path);
                }
            }
        }
    }

    /// Makes a start of each pod that started without the plugin, and forgets those that are gone or have shown that they are captured.
    async fn take_older(&self) {
        // Before the pods are listed, those that are gone cannot be told from those that are not known yet.
        if !self.parts.cluster.state().synced || self.older.is_over() {
            return;
        }
        let Some(mut found) = self.older.look().await else { return };
        found.retain(|pod, _| self.capture_seen(pod) != CaptureSeen::Captured);
        self.records.retain(|pod, start| start.evidence != StartEvidence::Times || found.contains_key(pod));
        for (pod, start) in &found {
            if !self.records.has_times(pod) {
                self.take(pod.clone(), start.clone());
            }
        }
        self.show_older(&found.into_keys().collect::<Vec<_>>());
    }

    fn take(&self, pod: PodRef, start: Start) {
        let evidence = start.evidence.clone();
        self.records.add(pod.clone(), start);
        if let Some(start) = self.records.start(&pod, &evidence)
            && self.capture_seen(&pod) != CaptureSeen::Pending
            && self.wanted(&pod, &start) == Aim::Captured
        {
            self.count(&pod, &start);
        }
        self.queue.push(pod);
    }

    /// What is wanted of a pod that started, by the decision table. One that is not known counts.
    fn wanted(&self, pod: &PodRef, start: &Start) -> Aim {
        // The look at it, or at its times, has gone by the table. A plugin that had no facts could not tell, and one that loaded rules could.
        if !matches!(start.evidence, StartEvidence::Note(_)) || start.have.capture != Capture::None {
            return Aim::Captured;
        }
        let Some(facts) = self.parts.cluster.index().facts(&pod.namespace, &pod.name) else {
            return Aim::Captured;
        };
        let is_another = pod.known_uid().is_some_and(|uid| facts.pod.uid() != Some(uid));
        let in_mesh = || self.parts.ambient.may_want(&facts);
        if is_another || self.older.asks_for_capture(&facts.pod) || in_mesh() {
            Aim::Captured
        } else {
            Aim::LeftAlone
        }
    }

    /// Logs and counts a start, once in this process's life, and not one of which an earlier agent told.
    fn count(&self, pod: &PodRef, start: &Start) {
        if start.is_counted {
            return;
        }
        self.records.change(pod, &start.evidence, |start| start.is_counted = true);
        let (log, metrics) = (&self.parts.log, &self.parts.metrics);
        let (name, error): (telemetry::Label<'_>, telemetry::Label<'_>) =
            (("pod", pod), ("error", &start.error));
        match (&start.evidence, start.have.capture) {
            // What was done about it is logged.
            (StartEvidence::Seen | StartEvidence::Lost, _) => {}
            (StartEvidence::Times, _) => {
                let text = "a pod started WITHOUT CAPTURE: the plugin was not in the CNI configuration then; delete the pod";
                log.error(text, &[name]);
                self.count_without_plugin(pod);
            }
            (StartEvidence::Note(_), Capture::None) => {
                metrics.uncaptured("failure-policy-open");
                log.error("a pod started WITHOUT CAPTURE", &[name, error]);
            }
            (StartEvidence::Note(_), Capture::Part | Capture::Whole) => {
                metrics.uncaptured("incomplete");
                let text =
                    "a pod has its rules, but not all of its traffic is captured, or that is not certain";
                log.warn(text, &[name, error]);
            }
        }
    }

    /// Counts a pod that started without the plugin, once, whatever shows it.
    fn count_without_plugin(&self, pod: &PodRef) {
        let is_before_agent = {
            let index = self.parts.cluster.index();
            index.pod(&pod.namespace, &pod.name).is_some_and(|object| self.older.is_before_agent(object))
        };
        if self.older.counts(&pod.uid) {
            let reason = if is_before_agent { "started-before-agent" } else { "no-plugin" };
            self.parts.metrics.uncaptured(reason);
        }
    }

    /// Tells of pods without capture that are there: those of the notes, and those that have the label, of earlier ones.
    fn show_uncaptured(&self) {
        let mut names = self.records.names(|pod, start| {
            let noted =
                matches!(start.evidence, StartEvidence::Note(_)) && start.have.capture == Capture::None;
            noted && self.wanted(pod, start) == Aim::Captured
        });
        let (key, value) = &self.parts.label;
        let index = self.parts.cluster.index();
        let marked = index.pods().filter(|pod| pod.label(key) == Some(value));
        let marked = marked.filter(|pod| !pod.uid().is_some_and(|uid| self.older.is_told(uid)));
        names.extend(marked.map(|pod| pod.pod_ref().to_string()));
        drop(index);
        if names.is_empty() {
            self.parts.health.settled(Notice::Uncaptured);
            return;
        }
        let names = count_and_names(&Vec::from_iter(names));
        let text = format!(
            "pods that started without capture, as failure_policy: open allows: {names}; delete them"
        );
        self.parts.health.notice(Notice::Uncaptured, &text);
    }

    /// How many started without the plugin now, for metrics and people.
    fn show_older(&self, pods: &[PodRef]) {
        self.parts.metrics.started_without_plugin(pods.len());
        if pods.is_empty() {
            self.parts.health.settled(Notice::OlderPods);
            return;
        }
        let names = count_and_names(&pods.iter().map(PodRef::to_string).collect::<Vec<_>>());
        let text = format!(
            "sidecar pods without capture, as they started while the plugin was not in the CNI configuration: {names}; delete them"
        );
        self.parts.health.notice(Notice::OlderPods, &text);
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
