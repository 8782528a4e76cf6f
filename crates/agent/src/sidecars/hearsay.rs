//! Starts without capture that are learnt without a look at the pods: from notes of plugins, and by the times in which runtimes did not call it.

use facts::PodRef;
use intent::sidecar::{Aim, Capture};

use super::record::{Start, StartEvidence};
use super::repair::CaptureSeen;
use super::{Sidecars, notes};
use crate::health::{Notice, count_and_names};

impl Sidecars {
    /// Makes a start of each note that is new, and forgets those whose note is gone.
    pub(super) fn take_notes(&self) {
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
    pub(super) async fn take_older(&self) {
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
    pub(super) fn wanted(&self, pod: &PodRef, start: &Start) -> Aim {
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
    pub(super) fn count(&self, pod: &PodRef, start: &Start) {
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

    /// Counts a pod that started without the plugin, once, whatever shows it; whether this was the time.
    pub(super) fn count_without_plugin(&self, pod: &PodRef) -> bool {
        let is_before_agent = {
            let index = self.parts.cluster.index();
            index.pod(&pod.namespace, &pod.name).is_some_and(|object| self.older.is_before_agent(object))
        };
        let counts = self.older.counts(&pod.uid);
        if counts {
            let reason = if is_before_agent { "started-before-agent" } else { "no-plugin" };
            self.parts.metrics.uncaptured(reason);
        }
        counts
    }

    /// Tells of pods without capture that are there: those of the notes, and those that have the label, of earlier ones.
    pub(super) fn show_uncaptured(&self) {
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
}
