//! Pods that started without capture, or with a part of it: found, counted, told to people and marked, however long the API server is away.
//!
//! The queue is a directory of notes, one for each container, which the plugin writes itself when this agent does not answer. A note is removed when
//! the pod has its event and its label, or when it turns out that the pod is not one to capture: a plugin that had no facts could not tell.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cluster::write::EventText;
use cluster::{Cluster, Writer};
use facts::Object;
use fault::Backoff;
use rundir::{Outcome, Report, note};
use telemetry::Scope;
use tokio::sync::Notify;

use crate::ambient::Ambient;
use crate::events::COMPONENT;
use crate::health::{Health, Notice, count_and_names};
use crate::metrics::Metrics;
use crate::older::OlderPods;

/// How often the directory is looked at without being told: for notes of plugins.
const PERIOD: Duration = Duration::from_secs(30);
/// Pauses after the API server did not take something.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), PERIOD);
/// How long an agent that starts waits for the pods of its node, by which it knows the ones that are not to be captured.
const PODS_WITHIN: Duration = Duration::from_secs(3);
/// `reason` of the event about a pod without capture.
const REASON: &str = "StartedWithoutCapture";
/// `reason` of the event about a pod whose rules do not capture all of its traffic.
const REASON_INCOMPLETE: &str = "CaptureIncomplete";

/// The directory of notes.
pub(crate) struct Uncaptured {
    run_dir: PathBuf,
    wake: Notify,
}

/// What is done about a note.
pub(crate) struct Marker {
    /// Absent where pods are manifests: there is nobody to tell.
    pub(crate) writer: Option<Writer>,
    /// Key and value of the label.
    pub(crate) label: (String, String),
    pub(crate) cluster: Cluster,
    pub(crate) older: Arc<OlderPods>,
    pub(crate) ambient: Arc<Ambient>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Scope,
}

/// Notes that are there and were dealt with before.
#[derive(Default)]
struct Known {
    counted: BTreeSet<PathBuf>,
    /// Marked, but not to be removed.
    marked: BTreeSet<PathBuf>,
}

impl Uncaptured {
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned(), wake: Notify::new() }
    }

    /// Keeps a report until the pod is marked.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn note(&self, report: &Report) -> io::Result<()> {
        note::leave(&self.run_dir, report)?;
        self.wake.notify_one();
        Ok(())
    }

    /// Works on notes until the task is aborted.
    pub(crate) async fn work(&self, marker: Marker) {
        let mut known = Known::default();
        let mut failures = 0;
        marker.wait_for_pods().await;
        loop {
            // All are counted before any is marked: an API server that hangs must not delay the alarm.
            let notes: Vec<(PathBuf, Report)> = self
                .notes()
                .into_iter()
                .filter_map(|path| marker.take_in(&path, &mut known).map(|report| (path, report)))
                .collect();
            marker.show(&notes);
            let mut failed = false;
            for (path, report) in &notes {
                failed |= !marker.handle(path, report, &mut known).await;
            }
            if failed {
                // New notes wait as well: whoever did not take the others would not take them.
                failures += 1;
                tokio::time::sleep(PAUSES.pause(failures)).await;
            } else {
                failures = 0;
                let _ = tokio::time::timeout(PERIOD, self.wake.notified()).await;
            }
        }
    }

    fn notes(&self) -> Vec<PathBuf> {
        note::list(&self.run_dir, usize::MAX).unwrap_or_default()
    }
}

impl Known {
    fn forget(&mut self, path: &Path) {
        self.counted.remove(path);
        self.marked.remove(path);
    }
}

impl Marker {
    async fn wait_for_pods(&self) {
        let synced = async {
            while !self.cluster.state().synced {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let _ = tokio::time::timeout(PODS_WITHIN, synced).await;
    }

    /// Whether the pod of a note is one to capture; a pod that is not known counts.
    fn is_to_be_captured(&self, report: &Report) -> bool {
        let Some(facts) = self.cluster.index().facts(&report.namespace, &report.name) else { return true };
        let is_another = !report.uid.is_empty() && facts.pod.uid() != Some(&*report.uid);
        let in_mesh = || self.ambient.may_want(&facts);
        is_another || self.older.asks_for_capture(&facts.pod) || in_mesh()
    }

    /// Tells of pods without capture that are there: those of the notes, and those that have the label, of earlier ones.
    fn show(&self, notes: &[(PathBuf, Report)]) {
        let noted =
            notes.iter().map(|(_, report)| report).filter(|report| report.result != Outcome::Incomplete);
        let mut names: BTreeSet<String> = noted.map(|report| report.pod().to_string()).collect();
        let (key, value) = &self.label;
        let is_marked = |pod: &&Arc<Object>| {
            pod.label(key) == Some(value) && !pod.uid().is_some_and(|uid| self.older.is_told(uid))
        };
        let index = self.cluster.index();
        names.extend(index.pods().filter(is_marked).map(|pod| pod.pod_ref().to_string()));
        if names.is_empty() {
            self.health.settled(Notice::Uncaptured);
            return;
        }
        let names = count_and_names(&Vec::from_iter(names));
        let text = format!(
            "pods that started without capture, as failure_policy: open allows: {names}; delete them"
        );
        self.health.notice(Notice::Uncaptured, &text);
    }

    /// Reads a note, and counts it when it is new. One of a pod that is not one to capture is removed.
    fn take_in(&self, path: &Path, known: &mut Known) -> Option<Report> {
        let report = note::read(path)
            .inspect_err(|error| {
                self.log.error(
                    "a note about an uncaptured pod cannot be read and is removed",
                    &[("path", &path.display()), ("error", error)],
                );
                let _ = std::fs::remove_file(path);
            })
            .ok()?;
        if report.result != Outcome::Incomplete && !self.is_to_be_captured(&report) {
            let pod = report.pod();
            self.log.info("a pod that started without its facts is not one to capture", &[("pod", &pod)]);
            known.forget(path);
            let _ = std::fs::remove_file(path);
            return None;
        }
        if known.counted.insert(path.to_owned()) {
            let pod = report.pod();
            let labels: [telemetry::Label<'_>; 2] = [("pod", &pod), ("error", &report.error)];
            if report.result == Outcome::Incomplete {
                self.metrics.uncaptured("incomplete");
                let text =
                    "a pod has its rules, but not all of its traffic is captured, or that is not certain";
                self.log.warn(text, &labels);
            } else {
                self.metrics.uncaptured("failure-policy-open");
                self.log.error("a pod started WITHOUT CAPTURE", &labels);
            }
        }
        Some(report)
    }

    /// Whether the note is done with.
    async fn handle(&self, path: &Path, report: &Report, known: &mut Known) -> bool {
        let pod = report.pod();
        if self.writer.is_some() && !self.cluster.state().synced {
            // What has the label may be deleted by others, so it is for pods that are known to be ones to capture.
            return true;
        }
        if let Some(writer) = &self.writer
            && !known.marked.contains(path)
            && let Err(error) = self.tell(writer, report).await
        {
            self.log.warn(
                "cannot mark a pod that started without capture; trying again",
                &[("pod", &pod), ("error", &error)],
            );
            return false;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // Not once more an event for the same pod.
                known.marked.insert(path.to_owned());
                self.log.warn("cannot remove a note", &[("path", &path.display()), ("error", &error)]);
                false
            }
            _ => {
                known.forget(path);
                true
            }
        }
    }

    async fn tell(&self, writer: &Writer, report: &Report) -> Result<(), cluster::Error> {
        if report.result != Outcome::Incomplete {
            return self.mark(writer, report).await;
        }
        // No label: whoever deletes pods that have it would delete this one for ever, since the next would be no better.
        let message =
            format!("not all traffic of this pod is captured, or that is not certain: {}", report.error);
        let text =
            EventText { warning: true, reason: REASON_INCOMPLETE, message: &message, component: COMPONENT };
        match writer.create_event(&report.pod(), text).await {
            // The pod is gone, or the chart gives the right for events only with repair, ambient mode or the policy `open`.
            Err(error) if matches!(error.status(), Some(403 | 404 | 409)) => Ok(()),
            done => done,
        }
    }

    async fn mark(&self, writer: &Writer, report: &Report) -> Result<(), cluster::Error> {
        let pod = report.pod();
        let message = format!(
            "istio-cni could not set up this pod and let it start without traffic capture (failure_policy: open): {}",
            report.error
        );
        let (key, value) = &self.label;
        // The label first: it is what the pod is found by.
        match writer.label_pod(&pod, key, value).await {
            // The pod is gone, or another one has its name: there is nothing left to mark.
            Err(error) if matches!(error.status(), Some(404 | 409)) => return Ok(()),
            done => done?,
        }
        let text = EventText { warning: true, reason: REASON, message: &message, component: COMPONENT };
        writer.create_event(&pod, text).await
    }
}
