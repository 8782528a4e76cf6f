//! Broken pods in the API: they are deleted or labelled, as the original does it, and what cannot be repaired is told.

use std::collections::HashSet;
use std::time::Duration;

use capture::Expected;
use cluster::write::EventText;
use facts::{Object, PodRef};
use intent::sidecar::{Aim, Capture, DeletionRate, Labelled, Removal};

use super::Sidecars;
use super::executor::{MarkFailure, WriteRefused, carry_out};
use super::pods::SandboxRules;
use super::record::{Start, StartEvidence};
use super::repair::{RepairMode, RepairTrigger};
use crate::health::HealthPart;

/// `source.component` of Events that the original has too.
pub(super) const COMPONENT: &str = "cni-repair";
/// Their reasons.
pub(super) const REASON_DELETE: &str = "DeleteBrokenPod";
pub(super) const REASON_LABEL: &str = "LabelBrokenPod";
/// What may be deleted at once counts for so long.
const DELETED_WITHIN: Duration = Duration::from_secs(60);

impl Sidecars {
    /// Does in the API what is to be done about a pod that is without capture and does not get it in its namespace.
    pub(super) async fn mark(
        &self,
        pod: &PodRef,
        object: &Object,
        evidence: StartEvidence,
    ) -> Result<(), MarkFailure> {
        let Some(start) = self.broken_start(pod, object, evidence) else { return Ok(()) };
        if start.have.settled || !self.may_mark() {
            return Ok(());
        }
        if start.have.removal == Removal::Due && !self.may_delete() {
            return Ok(());
        }
        let evidence = start.evidence.clone();
        carry_out(self, &self.records, pod, start, Aim::Captured).await?;
        let Some(done) = self.records.start(pod, &evidence) else { return Ok(()) };
        if done.have.removal == Removal::Done {
            self.parts.log.info("a broken pod is deleted", &[("pod", pod)]);
            self.parts.metrics.repaired_pod("delete", "success");
        } else if done.have.label == Labelled::Given {
            self.parts.log.info("a broken pod is labelled", &[("pod", pod)]);
            self.parts.metrics.repaired_pod("label", "success");
        }
        Ok(())
    }

    /// What is known of the pod's start; nothing where there is nothing to do.
    fn broken_start(&self, pod: &PodRef, object: &Object, evidence: StartEvidence) -> Option<Start> {
        if let Some(known) = self.records.start(pod, &evidence) {
            return Some(known);
        }
        let mut start = Start::new(evidence, Capture::None);
        match (&start.evidence, self.parts.repair.mode) {
            (StartEvidence::Lost, _) if self.older.is_told(&pod.uid) => return None,
            (StartEvidence::Seen, RepairMode::Delete) => {
                // What deletes the API server's copy of a static pod does not start it anew.
                if object.static_hash().is_some() {
                    return None;
                }
                start.have.removal = Removal::Due;
            }
            (StartEvidence::Seen, RepairMode::Label) if object.label(&self.parts.label.0).is_some() => {
                self.parts.log.info("a broken pod has the label already", &[("pod", pod)]);
                self.parts.metrics.repaired_pod("label", "skip");
                return None;
            }
            (StartEvidence::Seen, RepairMode::Label) => {}
            _ => start.have.label = Labelled::Barred,
        }
        self.records.add(pod.clone(), start.clone());
        Some(start)
    }

    /// Whether another pod may be deleted now: one that starts again before the plugin is in place would be broken again, and a node does not lose
    /// all of its pods at once.
    fn may_delete(&self) -> bool {
        if !self.parts.health.is_ready(HealthPart::Install) {
            return false;
        }
        let pods = self.parts.cluster.index().pods().count();
        let mut deletions = self.deletions();
        deletions.take(self.started.elapsed(), pods)
    }

    /// Deletes a pod that is still as broken as it was.
    pub(super) async fn delete_broken(&self, pod: &PodRef) -> Result<(), WriteRefused> {
        let Some(writer) = &self.parts.writer else { return Ok(()) };
        let refused = |error: cluster::Error| match error.status() {
            Some(404) => WriteRefused::Gone,
            _ => WriteRefused::Other(error),
        };
        let now = writer.pod(pod).await.map_err(refused)?;
        let is_same = now.uid() == Some(&pod.uid);
        if !is_same || now.is_deleting() || !self.is_without_capture(pod, &now) {
            return Err(WriteRefused::Gone);
        }
        let version = now.metadata.as_ref().and_then(|metadata| metadata.resource_version.as_deref());
        writer.delete_pod(pod, version.unwrap_or_default()).await.map_err(refused)
    }

    /// Whether the pod is as broken as when that was decided: what the index has may be older than its object.
    fn is_without_capture(&self, pod: &PodRef, now: &Object) -> bool {
        let Some(sandbox) = self.pods.sandbox(&pod.uid) else { return self.acts_on_crash(now) };
        let lacks = sandbox.rules == SandboxRules::Never && self.options().trigger == RepairTrigger::Kernel;
        lacks || self.acts_on_crash(now)
    }

    /// Tells of a pod that could not be deleted or labelled.
    pub(super) async fn tell_unmarked(&self, pod: &PodRef, failure: &MarkFailure) {
        let (kind, reason, did) = match self.parts.repair.mode {
            RepairMode::Delete => ("delete", REASON_DELETE, "delete"),
            RepairMode::Label => ("label", REASON_LABEL, "label"),
            RepairMode::None | RepairMode::Repair => return,
        };
        let message = format!("pod detected as broken, but failed to {did}: {failure}");
        let text = EventText { warning: true, reason, message: &message, component: COMPONENT };
        if let Some(writer) = &self.parts.writer {
            let mut told = writer.create_event(pod, text).await;
            // A connection that was kept may be closed by the server just then.
            if told.as_ref().is_err_and(|error| error.status().is_none()) {
                told = writer.create_event(pod, text).await;
            }
            if let Err(error) = told {
                self.parts.log.debug("no Event of a broken pod", &[("pod", pod), ("error", &error)]);
            }
        }
        self.parts.metrics.repaired_pod(kind, "fail");
    }

    /// Goes on with what waits, and forgets what is over.
    pub(super) async fn tend_pods(&self) {
        if self.parts.cluster.state().synced {
            let uids: HashSet<String> = {
                let index = self.parts.cluster.index();
                index.pods().filter_map(|pod| pod.uid().map(str::to_owned)).collect()
            };
            let is_there = |uid: &str| uids.contains(uid);
            self.pods.retain(is_there);
            self.records.retain(|pod, start| start.evidence.is_hearsay() || is_there(&pod.uid));
        }
        for pod in self.records.waiting() {
            self.looks.push(pod);
        }
        let by = self.expected_by();
        let facts = self.all_facts();
        let not_injected = facts.iter().filter(|facts| {
            let expected = self.pods.expected(facts, &by);
            let asks =
                |expected: &Expected| matches!(expected, Expected::Outside(capture::Outside::NotInjected(_)));
            !facts.pod.is_terminal() && expected.as_deref().is_some_and(asks)
        });
        self.parts.metrics.not_injected(not_injected.count());
        let unexpected = facts.iter().filter(|facts| self.is_unexpected(facts, &by));
        self.parts.metrics.unexpected(unexpected.count());
        if self.is_time_to_look() {
            self.look_again().await;
        }
    }
}

/// As many as may be deleted within [`DELETED_WITHIN`].
pub(super) fn deletion_rate() -> DeletionRate {
    DeletionRate::new(DELETED_WITHIN)
}
