//! When each of many things is due.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

/// Things by the time when they are due; each is there once.
#[derive(Debug, Clone)]
pub struct Agenda<K> {
    by_time: BTreeSet<(Duration, K)>,
    times: HashMap<K, Duration>,
}

// === impl Agenda ===

impl<K> Default for Agenda<K> {
    fn default() -> Self {
        Self { by_time: BTreeSet::new(), times: HashMap::new() }
    }
}

impl<K: Copy + Ord + Hash> Agenda<K> {
    /// The thing is due then, and at no other time.
    pub fn set(&mut self, key: K, at: Duration) {
        self.remove(key);
        self.times.insert(key, at);
        self.by_time.insert((at, key));
    }

    /// The thing is due then at the latest.
    pub fn hurry(&mut self, key: K, at: Duration) {
        if self.times.get(&key).is_none_or(|before| at < *before) {
            self.set(key, at);
        }
    }

    /// The thing is not due at all.
    pub fn remove(&mut self, key: K) {
        if let Some(at) = self.times.remove(&key) {
            self.by_time.remove(&(at, key));
        }
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// What is due by now, the earliest first. It is not due any more then.
    pub fn take_due(&mut self, now: Duration) -> Vec<K> {
        let mut due = Vec::new();
        while let Some((_, key)) = self.by_time.first().copied().filter(|(at, _)| *at <= now) {
            self.remove(key);
            due.push(key);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_is_due_once_and_in_order() {
        let mut agenda = Agenda::default();
        agenda.set("late", at(9));
        agenda.set("soon", at(3));
        agenda.set("moved", at(1));
        agenda.set("moved", at(5));
        agenda.hurry("late", at(4));
        agenda.hurry("soon", at(8));
        agenda.set("gone", at(2));
        agenda.remove("gone");
        assert_eq!(agenda.next(), Some(at(3)));
        assert_eq!(agenda.take_due(at(2)), Vec::<&str>::new());
        assert_eq!(agenda.take_due(at(5)), ["soon", "late", "moved"]);
        assert_eq!(agenda.next(), None);
    }
}
