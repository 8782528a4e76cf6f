//! Sidecar pods that started while runtimes did not call the plugin: before it was installed, or after another component had written over its
//! configuration. They are found by age and never entered: [`journal`] has the times without the plugin, [`suspect`] the pods of these times. A
//! record of the plugin, or a validation container that ended well, shows that a pod is captured all the same.

mod journal;
mod suspect;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::write::EventText;
use cluster::{Cluster, Writer};
use facts::{Object, PodRef};
use fault::Backoff;
use telemetry::Scope as Log;
use tokio::sync::Notify;

use crate::events::COMPONENT;
use crate::health::{Health, Notice, count_and_names};
use crate::metrics::Metrics;
use journal::Journal;
use suspect::Made;
pub(crate) use suspect::Rules;

/// How often pods are looked at without being told.
const PERIOD: Duration = Duration::from_secs(30);
/// Between two looks: while many pods start, each changes some times.
const PAUSE: Duration = Duration::from_millis(500);
/// Pauses after the API server did not take something.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), PERIOD);
/// How often the API server may refuse an event or a label before it counts as a right that the chart does not give.
const TRIES: u32 = 5;
/// `reason` of the event.
const REASON: &str = "StartedWithoutPlugin";
/// `reason` in the metric.
const METRIC: &str = "no-plugin";
const MESSAGE: &str = "this pod started while istio-cni was not in the CNI configuration of its node, so its traffic is NOT CAPTURED; delete \
                       the pod, and its controller starts one that is";

/// What it needs of the agent.
pub(crate) struct Parts {
    pub(crate) run_dir: PathBuf,
    pub(crate) rules: Rules,
    /// Key and value.
    pub(crate) label: (String, String),
    pub(crate) cluster: Cluster,
    /// Absent where pods are manifests, of which nobody knows when they started.
    pub(crate) writer: Option<Writer>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Log,
}

/// Finds the pods and tells of them.
pub(crate) struct OlderPods {
    parts: Parts,
    rules: Mutex<Rules>,
    /// Read when it is first needed: by then the agent before has written its last word.
    journal: OnceLock<Mutex<Journal>>,
    wake: Notify,
}

/// A pod that was found.
#[derive(Debug, Clone)]
struct Found {
    key: PodRef,
    /// kubelet starts it, and deleting its copy in the API does not start it anew.
    is_static: bool,
    /// How often its event or its label was refused.
    refused: u32,
}

impl OlderPods {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let rules = Mutex::new(parts.rules.clone());
        Arc::new(Self { rules, journal: OnceLock::new(), wake: Notify::new(), parts })
    }

    /// Runtimes call the plugin from now on.
    pub(crate) fn in_place(&self) {
        self.note(|journal| journal.in_place(now()));
    }

    /// Until now runtimes called the plugin, if they did.
    pub(crate) fn in_doubt(&self) {
        self.note(|journal| journal.in_doubt(now()));
    }

    /// Runtimes were found not to call the plugin.
    pub(crate) fn missing(&self) {
        self.note(Journal::missing);
    }

    /// Goes by changed options from now on.
    pub(crate) fn follow(&self, rules: Rules) {
        *lock(&self.rules) = rules;
        self.changed();
    }

    /// Pods have changed.
    pub(crate) fn changed(&self) {
        self.wake.notify_one();
    }

    /// Whether the plugin would capture the pod by a sidecar's rules.
    pub(crate) fn asks_for_capture(&self, pod: &Object) -> bool {
        lock(&self.rules).asks_for_capture(pod)
    }

    /// Whether this pod was found, marked and told of.
    pub(crate) fn is_told(&self, uid: &str) -> bool {
        self.journal().is_told(uid)
    }

    /// Looks and tells until the task is aborted.
    pub(crate) async fn work(self: Arc<Self>) {
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        let mut failures = 0;
        let mut again = PERIOD;
        loop {
            let _ = tokio::time::timeout(again, self.wake.notified()).await;
            // Before the pods are listed, those that are gone cannot be told from those that are not known yet.
            if self.parts.cluster.state().synced {
                found = self.look(found).await;
                self.show(&found);
                failures = if self.tell(&mut found).await { 0 } else { failures + 1 };
                again = if failures == 0 { PERIOD } else { PAUSES.pause(failures) };
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The pods now; what was known of one stays.
    async fn look(self: &Arc<Self>, mut before: BTreeMap<String, Found>) -> BTreeMap<String, Found> {
        let mut suspects = self.suspects();
        if !suspects.is_empty() {
            let run_dir = self.parts.run_dir.clone();
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
                    self.parts.log.warn(text, &[("error", &error)]);
                    return before;
                }
            };
            suspects.retain(|(pod, made)| !records.iter().any(|record| made.is_recorded(pod, record)));
        }
        let mut found = BTreeMap::new();
        for (pod, _) in suspects {
            let key = pod.pod_ref();
            let known = before.remove(&key.uid).unwrap_or_else(|| self.is_new(&pod, key.clone()));
            found.insert(key.uid, known);
        }
        let uids: Vec<String> = {
            let index = self.parts.cluster.index();
            index.pods().filter_map(|pod| pod.uid().map(str::to_owned)).collect()
        };
        self.note_quietly(|journal| journal.forget(|uid| uids.iter().any(|known| known == uid)));
        found
    }

    fn suspects(&self) -> Vec<(Arc<Object>, Made)> {
        let gaps = self.journal().gaps(now());
        if gaps.is_empty() {
            return Vec::new();
        }
        let rules = lock(&self.rules).clone();
        let index = self.parts.cluster.index();
        index.pods().filter_map(|pod| Some((pod.clone(), rules.suspect(pod, &gaps)?))).collect()
    }

    /// Logs and counts a pod, unless an earlier agent did.
    fn is_new(&self, pod: &Object, key: PodRef) -> Found {
        if !self.journal().is_told(&key.uid) {
            let text = "a pod started WITHOUT CAPTURE: the plugin was not in the CNI configuration then; delete the pod";
            self.parts.log.error(text, &[("pod", &key)]);
            self.parts.metrics.uncaptured(METRIC);
        }
        Found { key, is_static: pod.static_hash().is_some(), refused: 0 }
    }

    /// How it is now, for metrics and people.
    fn show(&self, found: &BTreeMap<String, Found>) {
        self.parts.metrics.started_without_plugin(found.len());
        if found.is_empty() {
            self.parts.health.settled(Notice::OlderPods);
            return;
        }
        let names = found.values().map(|pod| pod.key.to_string());
        let names = count_and_names(&names.collect::<Vec<_>>());
        let text = format!(
            "sidecar pods without capture, as they started while the plugin was not in the CNI configuration: {names}; delete them"
        );
        self.parts.health.notice(Notice::OlderPods, &text);
    }

    /// Gives each pod its event and its label, once. Whether all have theirs.
    async fn tell(&self, found: &mut BTreeMap<String, Found>) -> bool {
        let Some(writer) = &self.parts.writer else { return true };
        let mut all = true;
        for (uid, pod) in found {
            if self.journal().is_told(uid) {
                continue;
            }
            match self.mark(writer, pod).await {
                Err(error) if error.status() == Some(403) && pod.refused < TRIES => {
                    (pod.refused, all) = (pod.refused + 1, false);
                }
                Err(error) if error.status() != Some(403) => {
                    let name = pod.key.to_string();
                    let text = "cannot mark a pod that started without the plugin; trying again";
                    self.parts.log.warn(text, &[("pod", &name), ("error", &error)]);
                    // Who did not take this one would not take the others.
                    return false;
                }
                // Done, or the chart gives no right to it.
                _ => self.note_quietly(|journal| journal.told(uid)),
            }
        }
        all
    }

    async fn mark(&self, writer: &Writer, pod: &Found) -> Result<(), cluster::Error> {
        // Deleting the copy of a static pod would not start it anew, so nobody may be told to by the label.
        if !pod.is_static {
            let (key, value) = &self.parts.label;
            match writer.label_pod(&pod.key, key, value).await {
                // The pod is gone, or another one has its name.
                Err(error) if matches!(error.status(), Some(404 | 409)) => return Ok(()),
                // Only some features of the chart bring the right to label.
                Err(error) if error.status() == Some(403) => {}
                done => done?,
            }
        }
        let text = EventText { warning: true, reason: REASON, message: MESSAGE, component: COMPONENT };
        writer.create_event(&pod.key, text).await
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        lock(self.journal.get_or_init(|| Mutex::new(Journal::read(&self.parts.run_dir))))
    }

    fn note(&self, change: impl FnOnce(&mut Journal) -> io::Result<()>) {
        self.note_quietly(change);
        self.changed();
    }

    fn note_quietly(&self, change: impl FnOnce(&mut Journal) -> io::Result<()>) {
        if let Err(error) = change(&mut self.journal()) {
            let text =
                "the next agent will not know when the plugin was missing: its times cannot be written";
            self.parts.log.warn(text, &[("error", &error)]);
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
