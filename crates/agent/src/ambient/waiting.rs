//! Pods that wait for something of the node, such as a ztunnel. What is missing concerns all of them alike, so the log has one line with their
//! number, repeated with growing pauses, and not one for each pod and try.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use facts::PodRef;
use tokio::sync::Notify;

/// What is missing on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum WaitCause {
    /// Rules and sets in the node's own network namespace.
    HostSide,
    /// A ztunnel that takes the pod.
    Ztunnel,
    /// The API server's answer.
    ApiServer,
}

/// How long pods wait before the first line: what is over by then, as while ztunnel is replaced, is no news.
const FIRST: Duration = Duration::from_secs(1);
/// Pause before the second line; each one after it is twice as long.
const PAUSE: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_secs(600);
/// An Event tells of a pod that waits after so many tries and so long: a ztunnel that is replaced is back by then.
const EVENT_TRIES: u32 = 3;
const EVENT_AFTER: Duration = Duration::from_secs(2);

/// Who waits, and what was said of it.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By uid.
    pods: HashMap<String, Wait>,
    told: HashMap<WaitCause, Told>,
}

#[derive(Debug)]
struct Wait {
    key: PodRef,
    cause: WaitCause,
    /// What the last try said.
    text: String,
    since: Instant,
    tries: u32,
    /// It has its Event.
    has_event: bool,
}

/// The lines about a cause.
#[derive(Debug)]
struct Told {
    since: Instant,
    lines: u32,
    next: Instant,
}

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WaitLine {
    /// So many pods wait.
    Waits {
        /// For what.
        cause: WaitCause,
        /// How many.
        pods: usize,
        /// What the last try of one of them said.
        text: String,
        /// Since when the first of them does.
        waited: Duration,
    },
    /// None does any more, after a line that said so.
    Over {
        /// For what they did.
        cause: WaitCause,
        /// How long.
        waited: Duration,
    },
}

// === impl WaitCause ===

impl WaitCause {
    const ALL: [Self; 3] = [Self::HostSide, Self::Ztunnel, Self::ApiServer];

    /// What pods wait for.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HostSide => "the node's network namespace",
            Self::Ztunnel => "a ztunnel",
            Self::ApiServer => "the API server",
        }
    }
}

// === impl Waiting ===

impl Waiting {
    /// A try for a pod failed for want of this.
    pub(crate) fn note(&self, key: &PodRef, cause: WaitCause, text: &str, now: Instant) {
        {
            let mut state = self.state();
            let new = || Wait {
                key: key.clone(),
                cause,
                text: String::new(),
                since: now,
                tries: 0,
                has_event: false,
            };
            let wait = state.pods.entry(key.uid.clone()).or_insert_with(new);
            if wait.cause != cause {
                *wait = new();
            }
            wait.tries = wait.tries.saturating_add(1);
            text.clone_into(&mut wait.text);
        }
        self.changed.notify_one();
    }

    /// Whether an Event is to tell of the pod now: once, after some tries.
    pub(crate) fn wants_event(&self, uid: &str, now: Instant) -> bool {
        let mut state = self.state();
        let Some(wait) = state.pods.get_mut(uid) else { return false };
        let due = wait.tries >= EVENT_TRIES && now.saturating_duration_since(wait.since) >= EVENT_AFTER;
        due && !std::mem::replace(&mut wait.has_event, true)
    }

    /// The Event could not be written.
    pub(crate) fn missed_event(&self, uid: &str) {
        if let Some(wait) = self.state().pods.get_mut(uid) {
            wait.has_event = false;
        }
    }

    /// Work on the pod succeeded, or failed for a reason of its own. A pod whose sandbox is given up for want of a ztunnel has no failure, and
    /// waits all the same: see [`Self::retain`].
    pub(crate) fn answered(&self, uid: &str) {
        let mut state = self.state();
        if state.pods.get(uid).is_some_and(|wait| wait.cause != WaitCause::Ztunnel) {
            state.pods.remove(uid);
            self.changed.notify_one();
        }
    }

    /// The pod waits for nothing of the node.
    pub(crate) fn over(&self, uid: &str) {
        if self.state().pods.remove(uid).is_some() {
            self.changed.notify_one();
        }
    }

    /// Forgets those that wait for a ztunnel no longer.
    pub(crate) fn retain(&self, still: impl Fn(&PodRef) -> bool) {
        let waiting: Vec<PodRef> = {
            let state = self.state();
            let of_ztunnel = state.pods.values().filter(|wait| wait.cause == WaitCause::Ztunnel);
            of_ztunnel.map(|wait| wait.key.clone()).collect()
        };
        for key in waiting.iter().filter(|key| !still(key)) {
            self.over(&key.uid);
        }
    }

    /// How many wait, and what the last try said.
    pub(crate) fn of(&self, cause: WaitCause) -> Option<(usize, String)> {
        self.state().of(cause).map(|(pods, wait)| (pods, wait.text.clone()))
    }

    /// What the log has to hear by now.
    pub(crate) fn lines(&self, now: Instant) -> Vec<WaitLine> {
        let mut state = self.state();
        WaitCause::ALL.into_iter().filter_map(|cause| state.line(cause, now)).collect()
    }

    /// Whether there is nothing to tell, now or later.
    pub(crate) fn is_quiet(&self) -> bool {
        let state = self.state();
        state.pods.is_empty() && state.told.is_empty()
    }

    /// Waits until that may have changed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How many wait for this, and the first of them.
    fn of(&self, cause: WaitCause) -> Option<(usize, &Wait)> {
        let waits = || self.pods.values().filter(|wait| wait.cause == cause);
        waits().min_by_key(|wait| wait.since).map(|first| (waits().count(), first))
    }

    fn line(&mut self, cause: WaitCause, now: Instant) -> Option<WaitLine> {
        let Some((pods, since, text)) =
            self.of(cause).map(|(pods, first)| (pods, first.since, first.text.clone()))
        else {
            let told = self.told.remove(&cause)?;
            let waited = now.saturating_duration_since(told.since);
            return (told.lines > 0).then_some(WaitLine::Over { cause, waited });
        };
        let told = self.told.entry(cause).or_insert(Told { since, lines: 0, next: since + FIRST });
        if now < told.next {
            return None;
        }
        told.next = now + PAUSE.saturating_mul(1 << told.lines.min(6)).min(MAX_PAUSE);
        told.lines += 1;
        Some(WaitLine::Waits { cause, pods, text, waited: now.saturating_duration_since(told.since) })
    }
}

#[cfg(test)]
mod tests;
