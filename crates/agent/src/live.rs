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
    /// What people change of pods of this mode.
    keys: &'static [&'static str],
    /// Why a pod's change was refused, by uid, as it was told last.
    told: Mutex<HashMap<String, String>>,
}

// === impl LiveNews ===

impl LiveNews {
    pub(crate) fn new(
        log: Scope,
        events: Arc<Events>,
        metrics: Arc<Metrics>,
        keys: &'static [&'static str],
    ) -> Self {
        Self { log, events, metrics, keys, told: Mutex::default() }
    }

    /// New rules are in force in a running pod.
    pub(crate) async fn applied(&self, pod: &PodRef, changes: &[SettingChange], took: Duration) {
        self.settled(&pod.uid);
        self.metrics.live_update("applied");
        let changes = changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let ms = format!("{:.3}", took.as_secs_f64() * 1000.0);
        let manager = self.manager(pod).await;
        self.log.info(
            "changed annotations of a running pod are in force",
            &[("pod", pod), ("changes", &changes), ("manager", &manager), ("ms", &ms)],
        );
        let text = format!("changed annotations (by {manager}) are in force for new connections: {changes}");
        self.events.tell(pod, UPDATED, &text).await;
    }

    /// A running pod is not captured any more; its open connections go on.
    pub(crate) async fn drains(&self, pod: &PodRef, reason: &str) {
        self.settled(&pod.uid);
        self.metrics.live_update("drained");
        let text =
            "a running pod is not captured any more; what is open through its proxy goes on until it ends";
        let manager = self.manager(pod).await;
        self.log.info(text, &[("pod", pod), ("reason", &reason), ("manager", &manager)]);
        let text = format!(
            "the pod is not captured any more ({reason}; changed by {manager}): new connections go past its proxy, open ones go on until they end"
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
        let manager = self.manager(pod).await;
        self.log.warn(
            "a change of a running pod is not applied",
            &[("pod", pod), ("cause", &text), ("manager", &manager)],
        );
        self.events.warn(pod, refused.event_reason(), &format!("{text} (changed by {manager})")).await;
    }

    /// Who made the change, as far as the API server knows.
    async fn manager(&self, pod: &PodRef) -> String {
        self.events.last_manager(pod, self.keys).await
    }

    /// Nothing of a pod is refused any more, or it is gone.
    pub(crate) fn settled(&self, uid: &str) {
        self.told().remove(uid);
    }

    fn told(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
