//! The places of a listener. Connections come without end and most cost nothing but a place, so a new one always gets one: the oldest that asks
//! nothing, of whoever has the most, makes room. A good client sends its request at once; what it has sent is always read before it can lose its
//! place, however busy the machine is.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use tokio::sync::{Notify, oneshot};

use crate::CountClosed;

/// How long a connection may last, with all of its requests: a client that does not read its answers would keep its place for good.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be silent where no other one comes.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How often it is looked whether one can make room where none could.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The places. Clones are the same ones. `K` is whose share a connection takes.
pub(super) struct ConnectionPlaces<K>(Arc<Shared<K>>);

struct Shared<K> {
    max: usize,
    state: Mutex<State<K>>,
    freed: Notify,
}

struct State<K> {
    /// By age, the oldest first.
    held: BTreeMap<u64, Held<K>>,
    counts: HashMap<K, usize>,
    number: u64,
}

struct Held<K> {
    key: K,
    progress: Arc<ConnectionProgress>,
    /// The connection itself.
    socket: Arc<dyn AsFd + Send + Sync>,
    /// Dropped, it ends the connection.
    _keep: oneshot::Sender<()>,
}

/// How far a connection has come.
#[derive(Debug, Default)]
pub(super) struct ConnectionProgress {
    /// What was there at the first look is read.
    was_heard: AtomicBool,
    is_busy: AtomicBool,
    has_answered: AtomicBool,
}

/// A place, given back when dropped.
pub(super) struct ConnectionPlace<K: Copy + Eq + Hash> {
    places: ConnectionPlaces<K>,
    number: u64,
    progress: Arc<ConnectionProgress>,
    evicted: oneshot::Receiver<()>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// By itself, or after an answer.
    Done,
    /// It took too long to ask.
    Slow,
    /// Another one got its place.
    Evicted,
    /// Its user may not ask.
    Forbidden,
}

// === impl ConnectionProgress ===

impl ConnectionProgress {
    /// What the client said at first is read, and it is answered if it was a request.
    pub(super) fn was_heard(&self) {
        self.was_heard.store(true, Ordering::Relaxed);
    }

    /// A request is whole, and its answer is being made.
    pub(super) fn begin(&self) {
        self.is_busy.store(true, Ordering::Relaxed);
    }

    /// The answer is made.
    pub(super) fn end(&self) {
        self.is_busy.store(false, Ordering::Relaxed);
        self.has_answered.store(true, Ordering::Relaxed);
    }

    /// Whether there was an answer.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }
}

// === impl ConnectionPlaces ===

impl<K> Clone for ConnectionPlaces<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Copy + Eq + Hash> ConnectionPlaces<K> {
    /// So many.
    pub(super) fn new(max: usize) -> Self {
        let state = State { held: BTreeMap::new(), counts: HashMap::new(), number: 0 };
        Self(Arc::new(Shared { max, state: Mutex::new(state), freed: Notify::new() }))
    }

    /// A place; another connection may lose its own. Waits only where each of them is being answered, or has said something that is not read yet.
    pub(super) async fn take(&self, key: K, socket: Arc<dyn AsFd + Send + Sync>) -> ConnectionPlace<K> {
        loop {
            if let Some(place) = self.try_take(key, &socket) {
                return place;
            }
            // Not only until one is free: one that was heard can make room, too.
            let _ = tokio::time::timeout(LOOK_AGAIN, self.0.freed.notified()).await;
        }
    }

    /// Waits until all have been answered, for so long at most. Who asks nothing within a moment is not waited for.
    pub(super) async fn emptied(&self, limit: Duration) {
        let began = Instant::now();
        while began.elapsed() < limit {
            {
                let state = self.state();
                let is_silent = |held: &Held<K>| {
                    began.elapsed() >= LAST_WORDS && held.is_idle() && !held.progress.has_answered()
                };
                if state.held.values().all(is_silent) {
                    return;
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Gives up the connection that is the first to lose its place.
    pub(super) fn evict(&self) {
        self.state().evict();
    }

    fn try_take(&self, key: K, socket: &Arc<dyn AsFd + Send + Sync>) -> Option<ConnectionPlace<K>> {
        let mut state = self.state();
        // The new one counts, so that one who has as many as others gives way to them.
        *state.counts.entry(key).or_default() += 1;
        if state.held.len() >= self.0.max && !state.evict() {
            state.leave(key);
            return None;
        }
        state.number += 1;
        let (keep, evicted) = oneshot::channel();
        let (number, progress) = (state.number, Arc::new(ConnectionProgress::default()));
        let socket = socket.clone();
        state.held.insert(number, Held { key, progress: progress.clone(), socket, _keep: keep });
        Some(ConnectionPlace { places: self.clone(), number, progress, evicted })
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl<K: Copy + Eq + Hash> State<K> {
    /// Takes the place of the oldest that is not being answered, of those who have the most; whether there is one.
    fn evict(&mut self) -> bool {
        let mut found: Option<(u64, K, usize)> = None;
        for (number, held) in &self.held {
            let count = self.counts.get(&held.key).copied().unwrap_or_default();
            if found.is_none_or(|(_, _, most)| count > most) && held.is_idle() {
                found = Some((*number, held.key, count));
            }
        }
        let Some((number, key, _)) = found else { return false };
        self.held.remove(&number);
        self.leave(key);
        true
    }

    fn leave(&mut self, key: K) {
        if let Some(count) = self.counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
    }
}

impl<K> Held<K> {
    /// Whether it asks nothing, as far as is known.
    fn is_idle(&self) -> bool {
        let progress = &self.progress;
        if progress.is_busy.load(Ordering::Relaxed) {
            return false;
        }
        // Where many come at once, what one has said may wait for its turn.
        progress.was_heard.load(Ordering::Relaxed) || !has_unread(&*self.socket)
    }
}

fn has_unread(socket: &dyn AsFd) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    recv(socket, &mut [0; 1][..], flags).is_ok_and(|(_, count)| count > 0)
}

// === impl ConnectionPlace ===

impl<K: Copy + Eq + Hash> ConnectionPlace<K> {
    /// What the connection tells of itself.
    pub(super) fn progress(&self) -> Arc<ConnectionProgress> {
        self.progress.clone()
    }

    /// Works until the end, until the time is over, or until another connection gets this place.
    pub(super) async fn hold(mut self, work: impl Future<Output = Ending>) -> Ending {
        tokio::select! {
            biased;
            _ = &mut self.evicted => Ending::Evicted,
            ended = tokio::time::timeout(CONNECTION_TIMEOUT, work) => match ended {
                Ok(ending) => ending,
                Err(_) if self.progress.has_answered() => Ending::Done,
                Err(_) => Ending::Slow,
            },
        }
    }
}

impl<K: Copy + Eq + Hash> Drop for ConnectionPlace<K> {
    fn drop(&mut self) {
        let mut state = self.places.state();
        if let Some(held) = state.held.remove(&self.number) {
            state.leave(held.key);
        }
        drop(state);
        self.places.0.freed.notify_one();
    }
}

// === impl Ending ===

impl Ending {
    /// Counts what a client may wonder about.
    pub(super) fn count(self, counted: &impl CountClosed, listener: &str) {
        match self {
            Self::Done => {}
            Self::Slow => counted.connection_closed(listener, "slow"),
            Self::Evicted => counted.connection_closed(listener, "place"),
            Self::Forbidden => counted.connection_closed(listener, "forbidden"),
        }
    }
}

#[cfg(test)]
mod tests;
