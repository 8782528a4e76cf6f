//! Events about conflicts: one for each pod, or the node, and kind and hour, however often it is looked.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::conflicts::ConflictId;
use facts::PodRef;
use tokio::sync::Notify;

use crate::events::Events;

/// `reason` of Events about pods, and about the node.
const REASON: &str = "CaptureConflict";
const NODE_REASON: &str = "MeshNodeConflict";
const HOUR: Duration = Duration::from_secs(3600);
/// Events that wait for the API server; more of them are lost, and what they say is in the log.
const MOST: usize = 256;

/// What was told, and what is to be written.
#[derive(Debug, Default)]
pub(super) struct ToldConflicts {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By uid; the node has none.
    at: HashMap<(Option<String>, ConflictId), Instant>,
    waiting: Vec<(Option<PodRef>, String)>,
}

impl ToldConflicts {
    /// Has it written, unless the same was within the hour.
    pub(super) fn tell(&self, pod: Option<&PodRef>, id: ConflictId, text: String) {
        if self.is_due(pod, id, Instant::now()) {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.waiting.len() < MOST {
                state.waiting.push((pod.cloned(), text));
            }
            self.more.notify_one();
        }
    }

    fn is_due(&self, pod: Option<&PodRef>, id: ConflictId, now: Instant) -> bool {
        let uid = pod.map(|pod| pod.uid.clone());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.at.retain(|_, at| now.duration_since(*at) < HOUR);
        let due = !state.at.contains_key(&(uid.clone(), id));
        if due {
            state.at.insert((uid, id), now);
        }
        due
    }

    /// Writes what is told, until the task is aborted.
    pub(super) async fn write(&self, events: &Events) {
        loop {
            self.more.notified().await;
            let waiting =
                std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).waiting);
            for (pod, text) in waiting {
                match pod {
                    Some(pod) => drop(events.warn(&pod, REASON, &text).await),
                    None => events.about_node(true, NODE_REASON, &text).await,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_looks_make_one_event_for_a_pod_and_kind_in_an_hour() {
        let told = ToldConflicts::default();
        let start = Instant::now();
        let (web, db) =
            (PodRef::named("shop", "web"), PodRef { uid: "2".into(), ..PodRef::named("shop", "db") });
        let due = |pod, id, seconds| told.is_due(Some(pod), id, start + Duration::from_secs(seconds));
        let count = (0..1000).filter(|second| due(&web, ConflictId::P1, *second)).count();
        assert_eq!(count, 1);
        assert!(due(&web, ConflictId::P3, 1000) && due(&db, ConflictId::P1, 1000));
        assert!(due(&web, ConflictId::P1, 3600));
        let node = |seconds| told.is_due(None, ConflictId::P1, start + Duration::from_secs(seconds));
        assert!(node(3600) && !node(3601));
    }
}
