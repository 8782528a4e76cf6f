//! What the acts of [`super::executor`] do outside of the agent.

use std::sync::atomic::Ordering;

use cluster::write::EventText;
use facts::PodRef;
use intent::sidecar::{Capture, Removal};

use super::executor::{MarkFailure, SidecarPorts, WriteRefused};
use super::record::{Start, StartEvidence};
use super::{Sidecars, mark, notes};
use crate::events::COMPONENT;

/// `reason` of the event about a pod without capture.
const REASON: &str = "StartedWithoutCapture";
/// `reason` of the event about a pod whose rules do not capture all of its traffic.
const REASON_INCOMPLETE: &str = "CaptureIncomplete";
/// `reason` of the event about a pod that started without the plugin.
const REASON_OLDER: &str = "StartedWithoutPlugin";
const MESSAGE_OLDER: &str = "this pod started while istio-cni was not in the CNI configuration of its node, so its traffic is NOT CAPTURED; \
                             delete the pod, and its controller starts one that is";

/// `reason` of the event about a pod that no repair can help.
const REASON_IMPOSSIBLE: &str = "RepairImpossible";
const MESSAGE_IMPOSSIBLE: &str = "this pod started without traffic capture, its validation has failed, and its restartPolicy is Never, so nothing starts it \
                                  again; start another one in its place";

impl SidecarPorts for Sidecars {
    async fn delete(&self, pod: &PodRef) -> Result<(), WriteRefused> {
        self.delete_broken(pod).await
    }

    async fn label(&self, pod: &PodRef) -> Result<(), WriteRefused> {
        let Some(writer) = &self.parts.writer else { return Ok(()) };
        let (key, value) = &self.parts.label;
        Ok(writer.label_pod(pod, key, value).await?)
    }

    async fn tell(&self, pod: &PodRef, start: &Start) -> Result<(), WriteRefused> {
        let Some(writer) = &self.parts.writer else { return Ok(()) };
        let (reason, message) = event(start);
        let component = if start.evidence == StartEvidence::Seen { mark::COMPONENT } else { COMPONENT };
        let text = EventText { warning: true, reason, message: &message, component };
        writer.create_event(pod, text).await?;
        // It has taken all of a pod, not a label alone: what fails next begins with the shortest pause.
        self.away.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn settle(&self, pod: &PodRef, start: &Start) -> Result<(), MarkFailure> {
        match &start.evidence {
            StartEvidence::Seen => {}
            StartEvidence::Times | StartEvidence::Lost => self.older.told(&pod.uid),
            StartEvidence::Note(path) => {
                notes::remove(path).map_err(|cause| MarkFailure::Note { path: path.clone(), cause })?;
                // With its note gone it is one that has the label, or none.
                self.wake.notify_one();
            }
        }
        Ok(())
    }
}

/// The reason and the message of a start's Event.
fn event(start: &Start) -> (&'static str, String) {
    match (&start.evidence, start.have.capture) {
        (StartEvidence::Seen, _) if start.have.removal == Removal::Done => {
            (mark::REASON_DELETE, "pod detected as broken, deleted".to_owned())
        }
        (StartEvidence::Seen, _) => (mark::REASON_LABEL, "pod detected as broken, labeled".to_owned()),
        (StartEvidence::Lost, _) => (REASON_IMPOSSIBLE, MESSAGE_IMPOSSIBLE.to_owned()),
        (StartEvidence::Times, _) => (REASON_OLDER, MESSAGE_OLDER.to_owned()),
        (StartEvidence::Note(_), Capture::None) => {
            let text = "istio-cni could not set up this pod and let it start without traffic capture (failure_policy: open)";
            (REASON, format!("{text}: {}", start.error))
        }
        (StartEvidence::Note(_), Capture::Part | Capture::Whole) => {
            let text = "not all traffic of this pod is captured, or that is not certain";
            (REASON_INCOMPLETE, format!("{text}: {}", start.error))
        }
    }
}
