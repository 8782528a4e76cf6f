//! What is known of pods that started without all of their capture.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use facts::PodRef;
use intent::sidecar::{Capture, Started};

/// What says how a pod started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StartEvidence {
    /// A plugin's report; a pod has one for each of its sandboxes.
    Note(PathBuf),
    /// The times in which runtimes did not call the plugin.
    Times,
    /// Its network namespace, or its validation container.
    Seen,
    /// Its validation container has failed for good.
    Lost,
}

/// One start of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) evidence: StartEvidence,
    pub(super) have: Started,
    /// Why, as the plugin said it; empty where it was not called.
    pub(super) error: String,
    /// How often its Event was refused.
    pub(super) refused: u32,
    /// Log and metric have it.
    pub(super) is_counted: bool,
}

/// The starts of each pod.
#[derive(Debug, Default)]
pub(super) struct StartRecords(Mutex<BTreeMap<PodRef, Vec<Start>>>);

// === impl StartEvidence ===

impl StartEvidence {
    /// Whether it was learnt without a look at the pod, from a note or by the times.
    pub(super) fn is_hearsay(&self) -> bool {
        matches!(self, Self::Note(_) | Self::Times)
    }
}

// === impl Start ===

impl Start {
    pub(super) fn new(evidence: StartEvidence, capture: Capture) -> Self {
        Self { evidence, have: Started::new(capture), error: String::new(), refused: 0, is_counted: false }
    }
}

// === impl StartRecords ===

impl StartRecords {
    pub(super) fn add(&self, pod: PodRef, start: Start) {
        self.lock().entry(pod).or_default().push(start);
    }

    /// Forgets a start.
    pub(super) fn forget(&self, pod: &PodRef, evidence: &StartEvidence) {
        self.retain(|known, start| known != pod || start.evidence != *evidence);
    }

    /// Pods that were looked at and about which something is to be done still.
    pub(super) fn waiting(&self) -> Vec<PodRef> {
        let waits = |start: &Start| !start.evidence.is_hearsay() && !start.have.settled;
        let all = self.lock();
        all.iter().filter(|(_, starts)| starts.iter().any(waits)).map(|(pod, _)| pod.clone()).collect()
    }

    pub(super) fn starts(&self, pod: &PodRef) -> Vec<Start> {
        self.lock().get(pod).cloned().unwrap_or_default()
    }

    pub(super) fn start(&self, pod: &PodRef, evidence: &StartEvidence) -> Option<Start> {
        self.starts(pod).into_iter().find(|start| start.evidence == *evidence)
    }

    /// Changes what is known of a start; gives it, unless it is forgotten.
    pub(super) fn change(
        &self,
        pod: &PodRef,
        evidence: &StartEvidence,
        change: impl FnOnce(&mut Start),
    ) -> Option<Start> {
        let mut all = self.lock();
        let start = all.get_mut(pod)?.iter_mut().find(|start| start.evidence == *evidence)?;
        change(start);
        Some(start.clone())
    }

    pub(super) fn retain(&self, keep: impl Fn(&PodRef, &Start) -> bool) {
        self.lock().retain(|pod, starts| {
            starts.retain(|start| keep(pod, start));
            !starts.is_empty()
        });
    }

    pub(super) fn pods(&self) -> Vec<PodRef> {
        self.lock().keys().cloned().collect()
    }

    /// Pods of this name; of some the uid is not known.
    pub(super) fn of_the_name(&self, pod: &PodRef) -> Vec<PodRef> {
        let all = self.lock();
        let same = |known: &&PodRef| known.name == pod.name && known.namespace == pod.namespace;
        all.keys().filter(same).cloned().collect()
    }

    pub(super) fn has_note(&self, path: &Path) -> bool {
        let is = |start: &Start| matches!(&start.evidence, StartEvidence::Note(note) if note == path);
        self.lock().values().flatten().any(is)
    }

    pub(super) fn has_times(&self, pod: &PodRef) -> bool {
        self.start(pod, &StartEvidence::Times).is_some()
    }

    /// The names of pods that have such a start.
    pub(super) fn names(&self, is_one: impl Fn(&PodRef, &Start) -> bool) -> BTreeSet<String> {
        let all = self.lock().clone();
        let such = all.iter().filter(|(pod, starts)| starts.iter().any(|start| is_one(pod, start)));
        such.map(|(pod, _)| pod.to_string()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PodRef, Vec<Start>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
