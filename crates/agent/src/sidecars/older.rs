//! Sidecar pods that started while runtimes did not call the plugin: before it was installed, or after another component had written over its
//! configuration. They are found by age and never entered: [`journal`] has the times without the plugin, [`suspect`] the pods of these times. A
//! record of the plugin, or a validation container that ended well, shows that a pod is captured all the same.

mod journal;
mod suspect;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use cluster::Cluster;
use facts::{Object, PodRef};
use intent::sidecar::{Capture, Labelled};
use telemetry::Scope as Log;

use super::Parts;
use super::record::{Start, StartEvidence};
use journal::OlderJournal;
use suspect::Made;
pub(crate) use suspect::SuspectRules;

/// Finds the pods.
pub(super) struct OlderPods {
    run_dir: PathBuf,
    cluster: Cluster,
    log: Log,
    rules: Mutex<SuspectRules>,
    /// Read when it is first needed: by then the agent before has written its last word.
    journal: OnceLock<Mutex<OlderJournal>>,
    /// The plugin is being removed.
    is_over: AtomicBool,
    /// Uids of pods that are counted.
    counted: Mutex<BTreeSet<String>>,
}

impl OlderPods {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            run_dir: parts.run_dir.clone(),
            cluster: parts.cluster.clone(),
            log: parts.log.clone(),
            rules: Mutex::new(parts.rules.clone()),
            journal: OnceLock::new(),
            is_over: AtomicBool::new(false),
            counted: Mutex::default(),
        }
    }

    /// Runtimes call the plugin from now on.
    pub(super) fn in_place(&self) {
        self.note(|journal| journal.in_place(now()));
    }

    /// Until now runtimes called the plugin, if they did.
    pub(super) fn in_doubt(&self) {
        self.note(|journal| journal.in_doubt(now()));
    }

    /// Runtimes were found not to call the plugin.
    pub(super) fn missing(&self) {
        self.note(OlderJournal::missing);
    }

    /// From now on pods are meant to start without the plugin.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Whether pods are meant to start without the plugin.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Goes by changed options from now on.
    pub(super) fn follow(&self, rules: SuspectRules) {
        *lock(&self.rules) = rules;
    }

    /// Whether the plugin would capture the pod by a sidecar's rules.
    pub(super) fn asks_for_capture(&self, pod: &Object) -> bool {
        lock(&self.rules).asks_for_capture(pod)
    }

    /// Whether this pod was found, marked and told of.
    pub(super) fn is_told(&self, uid: &str) -> bool {
        self.journal().is_told(uid)
    }

    /// This pod was marked and told of.
    pub(super) fn told(&self, uid: &str) {
        self.note(|journal| journal.told(uid));
    }

    /// Whether the pod's sandbox is older than the first agent of this start of the machine that had the plugin in place.
    pub(super) fn is_before_agent(&self, pod: &Object) -> bool {
        Made::of(pod).is_some_and(|made| self.journal().is_before_agent(made.earliest()))
    }

    /// Whether the pod is to be counted: not yet by this agent, nor told of by an earlier one.
    pub(super) fn counts(&self, uid: &str) -> bool {
        !self.is_told(uid) && lock(&self.counted).insert(uid.to_owned())
    }

    /// The pods now; nothing where that cannot be said.
    pub(super) async fn look(&self) -> Option<BTreeMap<PodRef, Start>> {
        let mut suspects = self.suspects();
        if !suspects.is_empty() {
            let run_dir = self.run_dir.clone();
            let records = tokio::task::spawn_blocking(move || applied::attachments(&run_dir)).await;
            let records = match records {
                Ok(records) => records.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let records = match records {
                Ok(records) => records,
                // A captured pod must not be told of for want of its record.
                Err(error) => {
                    let text = "the plugin's records cannot be read; trying again";
                    self.log.warn(text, &[("error", &error)]);
                    return None;
                }
            };
            suspects.retain(|(pod, made)| {
                !records.iter().any(|record| made.is_recorded(pod, &record.origin, record.written))
            });
        }
        let found = suspects.into_iter().map(|(pod, _)| (pod.pod_ref(), self.start(&pod))).collect();
        let uids: HashSet<String> = {
            let index = self.cluster.index();
            index.pods().filter_map(|pod| pod.uid().map(str::to_owned)).collect()
        };
        lock(&self.counted).retain(|uid| uids.contains(uid));
        self.note(|journal| journal.forget(|uid| uids.contains(uid)));
        Some(found)
    }

    fn suspects(&self) -> Vec<(Arc<Object>, Made)> {
        let gaps = self.journal().gaps(now());
        if gaps.is_empty() {
            return Vec::new();
        }
        let rules = lock(&self.rules).clone();
        let index = self.cluster.index();
        index.pods().filter_map(|pod| Some((pod.clone(), rules.suspect(pod, &gaps)?))).collect()
    }

    /// The start of a pod that was found, as it is after an earlier agent.
    fn start(&self, pod: &Object) -> Start {
        let mut start = Start::new(StartEvidence::Times, Capture::None);
        // kubelet starts it, and deleting its copy in the API does not start it anew: nobody may be told to by the label.
        if pod.static_hash().is_some() {
            start.have.label = Labelled::Barred;
        }
        if pod.uid().is_some_and(|uid| self.is_told(uid)) {
            (start.have.told, start.have.settled, start.is_counted) = (true, true, true);
        }
        start
    }

    fn journal(&self) -> MutexGuard<'_, OlderJournal> {
        lock(self.journal.get_or_init(|| Mutex::new(OlderJournal::read(&self.run_dir))))
    }

    fn note(&self, change: impl FnOnce(&mut OlderJournal) -> io::Result<()>) {
        if let Err(error) = change(&mut self.journal()) {
            let text =
                "the next agent will not know when the plugin was missing: its times cannot be written";
            self.log.warn(text, &[("error", &error)]);
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
