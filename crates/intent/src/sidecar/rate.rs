//! How many pods of a node may be deleted in a while.

use std::time::Duration;

/// One pod in so many, and at least one.
const PART: usize = 10;

/// Bounds what is deleted.
#[derive(Debug, Clone)]
pub struct DeletionRate {
    within: Duration,
    /// When each was that counts still, oldest first.
    taken: Vec<Duration>,
}

impl DeletionRate {
    /// For so long a deletion counts.
    pub fn new(within: Duration) -> Self {
        Self { within, taken: Vec::new() }
    }

    /// Whether one more of a node with so many pods may be deleted, which counts from now on. `now` is the time since any moment that stays the same.
    pub fn take(&mut self, now: Duration, pods: usize) -> bool {
        self.taken.retain(|at| now.saturating_sub(*at) < self.within);
        let may = self.taken.len() < (pods / PART).max(1);
        self.taken.extend(may.then_some(now));
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_pods_and_at_least_one_in_each_while() {
        let start = Duration::from_secs(5);
        let minute = Duration::from_secs(60);
        for (pods, most) in [(0, 1), (1, 1), (19, 1), (20, 2), (250, 25)] {
            let mut rate = DeletionRate::new(minute);
            let at_once = (0..100).filter(|_| rate.take(start, pods)).count();
            assert_eq!(at_once, most, "{pods}");
            assert!(!rate.take(start + minute - Duration::from_millis(1), pods));
            assert!(rate.take(start + minute, pods));
        }
    }
}
