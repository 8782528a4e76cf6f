//! How often something is repaired that somebody undoes: never a fight, and never forgotten.

use std::collections::VecDeque;
use std::time::Duration;

/// A drift so soon after a repair is a relapse.
const RELAPSE: Duration = Duration::from_secs(10);
/// The longest pause before a repair.
const LONGEST: Duration = Duration::from_secs(60);
/// So long without a relapse, and it is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Repairs of one kind in one pod, in [`BUDGET_TIME`].
const BUDGET: usize = 20;
const BUDGET_TIME: Duration = Duration::from_secs(3600);

/// The repairs of one kind of drift in one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relapses {
    /// When they were, within [`BUDGET_TIME`].
    repairs: VecDeque<Duration>,
    /// Relapses in a row.
    count: u32,
    last: Option<Duration>,
    /// Until when the next repair waits.
    until: Option<Duration>,
}

/// When something may be repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// Now.
    Now,
    /// Not before this time, because it was undone so often.
    At(Duration),
    /// Not before this time, because that was done too often.
    Spent(Duration),
}

// === impl Relapses ===

impl Relapses {
    /// A drift was seen. It is asked once for each drift, and again when the time that was said has come.
    pub fn drifted(&mut self, now: Duration) -> Permit {
        while self.repairs.front().is_some_and(|first| now >= *first + BUDGET_TIME) {
            self.repairs.pop_front();
        }
        if self.repairs.len() >= BUDGET {
            return Permit::Spent(self.repairs.front().copied().unwrap_or(now) + BUDGET_TIME);
        }
        if let Some(until) = self.until {
            return if now >= until { Permit::Now } else { Permit::At(until) };
        }
        if self.last.is_some_and(|last| now >= last + FORGOTTEN) {
            (self.count, self.last) = (0, None);
        }
        if self.repairs.back().is_none_or(|repair| now > *repair + RELAPSE) {
            return Permit::Now;
        }
        (self.count, self.last) = (self.count.saturating_add(1), Some(now));
        let pause = Duration::from_secs(1 << (self.count - 1).min(6)).min(LONGEST);
        self.until = Some(now + pause);
        Permit::At(now + pause)
    }

    /// It was repaired, or that was tried.
    pub fn repaired(&mut self, now: Duration) {
        self.until = None;
        self.repairs.push_back(now);
    }

    /// Nothing differs any more, whoever put it right.
    pub fn settled(&mut self) {
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Somebody undoes each repair after so long; gives when it was repaired.
    fn contest(after: Duration, time: Duration) -> Vec<Duration> {
        let (mut relapses, mut now, mut repairs) = (Relapses::default(), Duration::ZERO, Vec::new());
        while now < time {
            match relapses.drifted(now) {
                Permit::Now => {
                    relapses.repaired(now);
                    repairs.push(now);
                    now += after;
                }
                Permit::At(at) | Permit::Spent(at) => now = at,
            }
        }
        repairs
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let repairs = contest(Duration::ZERO, seconds(400));
        let pauses: Vec<u64> = repairs.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]);
    }

    #[test]
    fn who_undoes_it_each_tenth_of_a_second_sees_few_repairs() {
        assert!(contest(Duration::from_millis(100), seconds(120)).len() <= 12);
    }

    #[test]
    fn a_drift_now_and_then_is_repaired_at_once_twenty_times_an_hour() {
        let repairs = contest(seconds(20), seconds(3600));
        assert_eq!(repairs.len(), BUDGET);
        assert_eq!(repairs[19], seconds(380));
        assert_eq!(contest(seconds(20), seconds(7200)).len(), 2 * BUDGET);
    }

    #[test]
    fn ten_minutes_without_a_relapse_are_a_new_beginning() {
        let mut relapses = Relapses::default();
        for now in [0, 10] {
            assert_ne!(relapses.drifted(seconds(now)), Permit::Spent(seconds(now)));
            relapses.repaired(seconds(now));
        }
        assert_eq!(relapses.drifted(seconds(12)), Permit::At(seconds(14)));
        relapses.repaired(seconds(14));
        assert_eq!(relapses.drifted(seconds(614)), Permit::Now);
        relapses.repaired(seconds(614));
        assert_eq!(relapses.drifted(seconds(615)), Permit::At(seconds(616)));
    }

    #[test]
    fn what_is_right_again_by_itself_is_repaired_at_once_the_next_time() {
        let mut relapses = Relapses::default();
        relapses.repaired(seconds(0));
        assert_eq!(relapses.drifted(seconds(1)), Permit::At(seconds(2)));
        relapses.settled();
        assert_eq!(relapses.drifted(seconds(20)), Permit::Now);
    }

    proptest! {
        #[test]
        fn never_more_than_the_budget_in_any_hour(pauses in prop::collection::vec(0_u64..200_000, 1..200)) {
            let (mut relapses, mut now, mut repairs) = (Relapses::default(), Duration::ZERO, Vec::new());
            for pause in pauses {
                now += Duration::from_millis(pause);
                if relapses.drifted(now) == Permit::Now {
                    relapses.repaired(now);
                    repairs.push(now);
                }
            }
            for (number, start) in repairs.iter().enumerate() {
                let hour = repairs[number..].iter().filter(|repair| **repair < *start + BUDGET_TIME);
                prop_assert!(hour.count() <= BUDGET);
            }
        }
    }
}
