//! How much may be posted: a balance of bytes that fills with time. What is posted is taken as long as it is not used up.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the smallest post costs, in bytes.
const LEAST: usize = 256;
/// Pause between two lines about what is dropped.
const TELL_PAUSE: Duration = Duration::from_secs(60);

/// The balance of those who share it.
#[derive(Debug)]
pub(super) struct Intake {
    /// Most that it holds, in bytes.
    burst: f64,
    /// What comes in a second, in bytes.
    rate: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    balance: f64,
    at: Instant,
    dropped: u64,
    told: Option<Instant>,
}

impl Intake {
    /// Full, with these in bytes and in bytes for each second.
    pub(super) fn new(burst: u32, rate: u32, now: Instant) -> Self {
        let burst = f64::from(burst);
        let state = State { balance: burst, at: now, dropped: 0, told: None };
        Self { burst, rate: rate.into(), state: Mutex::new(state) }
    }

    /// Whether a post of so many bytes is taken. It may overdraw the balance, so that one of any size is taken at some time.
    pub(super) fn take(&self, bytes: usize, now: Instant) -> bool {
        let mut state = self.state();
        let passed = now.saturating_duration_since(state.at).as_secs_f64();
        state.balance = (state.balance + passed * self.rate).min(self.burst);
        state.at = now;
        let takes = state.balance > 0.0;
        if takes {
            state.balance -= bytes.max(LEAST) as f64;
        }
        takes
    }

    /// So many bytes more than it looked like.
    pub(super) fn charge(&self, bytes: usize) {
        self.state().balance -= bytes as f64;
    }

    /// So many lines were dropped. Now and then, how many since that was last told.
    pub(super) fn dropped(&self, lines: u64, now: Instant) -> Option<u64> {
        let mut state = self.state();
        state.dropped += lines;
        if state.told.is_some_and(|told| now.saturating_duration_since(told) < TELL_PAUSE) {
            return None;
        }
        state.told = Some(now);
        Some(std::mem::take(&mut state.dropped))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balance_is_used_up_and_fills_with_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let intake = Intake::new(1000, 100, start);
        assert!(intake.take(900, start) && intake.take(5000, start), "the second one overdraws it");
        assert!(!intake.take(1, start) && !intake.take(1, at(49)));
        assert!(intake.take(1, at(50)), "4900 missed, which take 49 s");
        assert!(!intake.take(1, at(50)), "the smallest costs 256");
        intake.charge(10_000);
        assert!(!intake.take(1, at(100)) && intake.take(1, at(200)));
        let full = at(10_000);
        assert!((0..4).all(|_| intake.take(0, full)) && !intake.take(0, full), "it holds 1000 at most");
    }

    #[test]
    fn what_is_dropped_is_told_now_and_then() {
        let start = Instant::now();
        let intake = Intake::new(1000, 100, start);
        assert_eq!(intake.dropped(3, start), Some(3));
        assert_eq!(intake.dropped(4, start + Duration::from_secs(59)), None);
        assert_eq!(intake.dropped(5, start + Duration::from_secs(61)), Some(9));
    }
}
