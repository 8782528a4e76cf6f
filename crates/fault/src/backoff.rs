//! Growing pauses between tries.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

/// Pauses that double from `first` up to `most`, each varied so that the nodes of a cluster, or the pods of a node, do not try in step.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    /// Bounds of the factor that each is multiplied with.
    vary: (f64, f64),
}

impl Backoff {
    /// Pauses within a fifth of their length.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, vary: (0.8, 1.2) }
    }

    /// Pauses between half of their length and all of it: agents that lost the same server at one moment soon ask at different ones.
    pub const fn spread(first: Duration, most: Duration) -> Self {
        Self { first, most, vary: (0.5, 1.0) }
    }

    /// The pause after so many failures in a row, from 1; never longer than `most`.
    pub fn pause(self, failures: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20));
        let base = doubled.min(self.most);
        let (low, high) = self.vary;
        // The longest pauses vary, too: those that would be longer do not all become the same.
        let high = high.min(self.most.as_secs_f64() / base.as_secs_f64());
        // RandomState is the standard library's only source of randomness
        let random = RandomState::new().hash_one(failures) % 1000;
        base.mul_f64(low + (high - low) * random as f64 / 1000.0).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_within_their_bounds_and_differ() {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        for (failures, about) in [(1, 0.2), (2, 0.4), (3, 0.8), (7, 12.8), (8, 25.6), (9, 30.0), (1000, 30.0)]
        {
            let pauses: Vec<f64> = (0..50).map(|_| backoff.pause(failures).as_secs_f64()).collect();
            let within = |pause: &f64| (about * 0.799..=f64::min(about * 1.201, 30.0)).contains(pause);
            assert!(pauses.iter().all(within), "{failures}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{failures}: {pauses:?}");
            let longest = pauses.iter().filter(|pause| **pause >= 30.0).count();
            assert!(longest < 10, "{failures}: {pauses:?}");
        }
    }

    #[test]
    fn spread_pauses_take_half_of_their_length_or_more() {
        let backoff = Backoff::spread(Duration::from_millis(400), Duration::from_secs(4));
        for (failures, most) in [(1, 0.4), (2, 0.8), (4, 3.2), (5, 4.0), (1000, 4.0)] {
            let pauses: Vec<f64> = (0..200).map(|_| backoff.pause(failures).as_secs_f64()).collect();
            assert!(pauses.iter().all(|pause| (most / 2.0..=most).contains(pause)), "{failures}: {pauses:?}");
            let early = pauses.iter().filter(|pause| **pause < most * 0.75).count();
            assert!((50..150).contains(&early), "{failures}: {pauses:?}");
        }
    }
}
