//! A brake for the fight with another writer.

use std::time::{Duration, Instant};

/// One cycle per this time is free.
const INTERVAL: Duration = Duration::from_secs(5);
/// How far ahead free cycles may be taken: one, so that what is overwritten is put right at once although the agent has just started, or has
/// looked at something else.
const BURST: Duration = INTERVAL;
/// Longest pause before a cycle.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// More rewrites than this in a row are reported.
const TOLERATED: u32 = 5;

/// A token bucket of size two. Reservations add up, so a fight is remembered for a while after it ended.
#[derive(Debug)]
pub(crate) struct Throttle {
    free_at: Instant,
    hits: u32,
}

impl Throttle {
    pub(crate) fn new(now: Instant) -> Self {
        Self { free_at: now, hits: 0 }
    }

    /// The pause before a cycle that starts now.
    pub(crate) fn pause(&mut self, now: Instant) -> Duration {
        let needed = self.free_at.saturating_duration_since(now + BURST);
        self.free_at = self.free_at.max(now) + INTERVAL;
        if needed.is_zero() {
            self.hits = 0;
        }
        needed.min(LONGEST_PAUSE)
    }

    /// Counts a configuration that had to be written again; the number of them in a row, once it is worth a warning. Cycles that
    /// found the configuration in order are no fight: a token may rotate as often as it likes.
    pub(crate) fn rewritten(&mut self) -> Option<u32> {
        self.hits += 1;
        (self.hits > TOLERATED).then_some(self.hits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_are_free_and_a_fight_gets_one_a_second_and_is_told() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        let mut now = start;
        assert_eq!(throttle.pause(now), Duration::ZERO);
        // The first that is overwritten, and soon after the start.
        now += Duration::from_millis(100);
        assert_eq!(throttle.pause(now), Duration::ZERO);
        for hit in 1..=7 {
            let pause = throttle.pause(now);
            assert_eq!(pause, Duration::from_secs(1));
            now += pause;
            assert_eq!(throttle.rewritten(), (hit > 5).then_some(hit));
        }
        now += Duration::from_secs(60);
        assert_eq!(throttle.pause(now), Duration::ZERO);
        assert_eq!(throttle.rewritten(), None);
        assert_eq!(throttle.pause(now), Duration::ZERO);
        assert_eq!(throttle.pause(now + Duration::from_millis(4500)), Duration::from_millis(500));
    }
}
