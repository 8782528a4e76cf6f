//! A queue of keys, each of which is worked on by one at a time.
//!
//! A key that is pushed again while it waits is there once; one that is pushed while it is worked on comes again afterwards; one whose
//! work failed comes again after a growing pause. So the queue is never longer than there are keys, however many events there are.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fault::Backoff;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Pauses before the work on a key is repeated.
const RETRY: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(5));

/// See the module. Share it by reference or in an `Arc`.
#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    pauses: Backoff,
    /// Wakes one of those who wait in [`Queue::pop`]; whoever leaves work behind passes it on.
    wake: Notify,
}

#[derive(Debug)]
struct State<K> {
    keys: HashMap<K, Entry>,
    ready: VecDeque<K>,
    /// By time, and by number where times are equal.
    later: BTreeMap<(Instant, u64), K>,
    number: u64,
}

#[derive(Debug)]
struct Entry {
    stage: Stage,
    /// In a row, so far.
    failures: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Ready,
    Later(Instant, u64),
    Running { again: bool },
}

/// A key that is being worked on. Dropped without [`Running::done`], as by a panic, the key comes again.
#[derive(Debug)]
pub struct Running<'a, K: Clone + Eq + Hash> {
    queue: &'a Queue<K>,
    key: K,
    attempt: u32,
    done: bool,
}

// === impl Queue ===

impl<K: Clone + Eq + Hash> Default for Queue<K> {
    fn default() -> Self {
        Self::with_pauses(RETRY)
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty, with pauses of its own before the work on a key is repeated.
    pub fn with_pauses(pauses: Backoff) -> Self {
        let state = State { keys: HashMap::new(), ready: VecDeque::new(), later: BTreeMap::new(), number: 0 };
        Self { state: Mutex::new(state), pauses, wake: Notify::new() }
    }

    /// Asks for work on a key. One that waits for its next try is not kept waiting any longer.
    pub fn push(&self, key: K) {
        let mut state = self.state();
        let State { keys, ready, later, .. } = &mut *state;
        match keys.get_mut(&key) {
            None => {
                keys.insert(key.clone(), Entry { stage: Stage::Ready, failures: 0 });
                ready.push_back(key);
            }
            Some(Entry { stage: Stage::Ready, .. }) => return,
            Some(Entry { stage: Stage::Running { again }, .. }) => {
                *again = true;
                return;
            }
            Some(entry) => {
                if let Stage::Later(at, number) = entry.stage {
                    later.remove(&(at, number));
                }
                entry.stage = Stage::Ready;
                ready.push_back(key);
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The next key, when there is one. Nothing is lost when the future is dropped.
    pub async fn pop(&self) -> Running<'_, K> {
        loop {
            let next = {
                let mut state = self.state();
                state.promote(Instant::now());
                if let Some(running) = state.start() {
                    let more = !state.ready.is_empty() || !state.later.is_empty();
                    drop(state);
                    if more {
                        self.wake.notify_one();
                    }
                    let (key, attempt) = running;
                    return Running { queue: self, key, attempt, done: false };
                }
                state.later.keys().next().map(|(at, _)| *at)
            };
            match next {
                // woken or not, the state is looked at again
                Some(at) => drop(tokio::time::timeout_at(at, self.wake.notified()).await),
                None => self.wake.notified().await,
            }
        }
    }

    /// Number of keys that wait or are worked on.
    pub fn len(&self) -> usize {
        self.state().keys.len()
    }

    /// Whether nothing waits and nothing is worked on.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn finish(&self, key: &K, done: bool) {
        let mut state = self.state();
        let State { keys, ready, later, number } = &mut *state;
        let Some(entry) = keys.get_mut(key) else { return };
        entry.failures = if done { 0 } else { entry.failures.saturating_add(1) };
        if entry.stage == (Stage::Running { again: true }) {
            entry.stage = Stage::Ready;
            ready.push_back(key.clone());
        } else if done {
            keys.remove(key);
            return;
        } else {
            let at = Instant::now() + self.pauses.pause(entry.failures);
            *number += 1;
            entry.stage = Stage::Later(at, *number);
            later.insert((at, *number), key.clone());
        }
        drop(state);
        self.wake.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    /// Makes keys ready whose pause is over.
    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            let key = entry.remove();
            if let Some(entry) = self.keys.get_mut(&key) {
                entry.stage = Stage::Ready;
            }
            self.ready.push_back(key);
        }
    }

    fn start(&mut self) -> Option<(K, u32)> {
        let key = self.ready.pop_front()?;
        let entry = self.keys.get_mut(&key)?;
        entry.stage = Stage::Running { again: false };
        Some((key, entry.failures.saturating_add(1)))
    }
}

// === impl Running ===

impl<K: Clone + Eq + Hash> Running<'_, K> {
    /// The key.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Which try this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The work is done: the key comes again only if it was pushed meanwhile.
    pub fn done(mut self) {
        self.done = true;
    }

    /// The work failed: the key comes again after a pause, usually of 5 ms, doubling up to 5 s, or at once if it was pushed meanwhile.
    pub fn retry(self) {}
}

impl<K: Clone + Eq + Hash> Drop for Running<'_, K> {
    fn drop(&mut self) {
        self.queue.finish(&self.key, self.done);
    }
}

#[cfg(test)]
mod tests;
