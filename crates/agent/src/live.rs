//! What people hear of changes to the labels and annotations of running pods, of all modes: the log, the pods' Events, a metric. What becomes of such a
//! change is decided by [`intent::live`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use capture::SettingChange;
use facts::PodRef;
use intent::live::RefusedChange;
use telemetry::Scope;

use crate::events::Events;
use metrics::Metrics;

/// `reason` of the Event about a change that is in force.
const UPDATED: &str = "CaptureUpdated";

/// Tells of live changes.
pub(crate) struct LiveNews {
    log: Scope,
    events: Arc<Events>,
    metrics: Arc<Metrics>,
    /// Why a pod's change was refused, by uid, as it was told last.
    told: Mutex<HashMap<String, String>>,
}

// === impl LiveNews ===

impl LiveNews {
    pub(crate) fn new(log: Scope, events: Arc<Events>, metrics: Arc<Metrics>) -> Self {
        Self { log, events, metrics, told: Mutex::default() }
    }

    /// New rules are in force in a running pod.
    pub(crate) async fn applied(&self, pod: &PodRef, changes: &[SettingChange], took: Duration) {
        self.settled(&pod.uid);
        self.metrics.live_update("applied");
        let changes = changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let ms = format!("{:.3}", took.as_secs_f64() * 1000.0);
        self.log.info(
            "changed annotations of a running pod are in force",
            &[("pod", pod), ("changes", &changes), ("ms", &ms)],
        );
        let text = format!("changed annotations are in force for new connections: {changes}");
        self.events.tell(pod, UPDATED, &text).await;
    }

    /// A running pod is not captured any more; its open connections go on.
    pub(crate) async fn drains(&self, pod: &PodRef, reason: &str) {
        self.settled(&pod.uid);
        self.metrics.live_update("drained");
        let text =
            "a running pod is not captured any more; what is open through its proxy goes on until it ends";
        self.log.info(text, &[("pod", pod), ("reason", &reason)]);
        let text = format!(
            "the pod is not captured any more ({reason}): new connections go past its proxy, open ones go on until they end"
        );
        self.events.tell(pod, UPDATED, &text).await;
    }

    /// The rules of a running pod stay as they are, for this reason. It is told once.
    pub(crate) async fn refused(&self, pod: &PodRef, refused: &RefusedChange) {
        let text = refused.to_string();
        if self.told().insert(pod.uid.clone(), text.clone()).as_ref() == Some(&text) {
            return;
        }
        self.metrics.live_update("refused");
        self.log.warn("a change of a running pod is not applied", &[("pod", pod), ("cause", &text)]);
        self.events.warn(pod, refused.event_reason(), &text).await;
    }

    /// Nothing of a pod is refused any more, or it is gone.
    pub(crate) fn settled(&self, uid: &str) {
        self.told().remove(uid);
    }

    fn told(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
