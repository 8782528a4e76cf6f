//! When a pod is looked at without being asked: at its own phase of the interval, so that the pods of a node do not all come at once.

use std::time::Duration;

/// All pods are looked at for the first time within this time of the agent's start: at once would be a burst, and later would leave the node
/// without an answer.
const FIRST_ROUND: Duration = Duration::from_secs(10);
/// The most that a tick comes earlier or later than its phase, in percent of the interval.
const JITTER: u32 = 10;
/// Moments of an interval at which pods have their ticks: those of the same one are looked at together, as to wake up costs as much as a look at the
/// generation.
const MOMENTS: u32 = 64;

/// How often pods are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    interval: Duration,
    full: Duration,
}

/// What a tick asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Whether the generation is the one of the last equal comparison.
    Cheap,
    /// A full comparison.
    Full,
}

// === impl Schedule ===

impl Schedule {
    /// A tick every `interval`, with a full comparison every `full`.
    #[must_use]
    pub fn new(interval: Duration, full: Duration) -> Self {
        Self { interval: interval.max(Duration::from_millis(1)), full }
    }

    /// Time between two ticks of a pod, without the jitter.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// When a pod that is known from the agent's start on is looked at first.
    #[must_use]
    pub fn first(&self, uid: &str) -> Duration {
        within(hash(uid, 0), FIRST_ROUND.min(self.interval))
    }

    /// The first tick of the pod after `now`.
    #[must_use]
    pub fn next(&self, uid: &str, now: Duration) -> Duration {
        let phase = within(hash(uid, 0), self.interval);
        let earliest = now.saturating_sub(phase).as_nanos() / self.interval.as_nanos();
        let earliest = u64::try_from(earliest).unwrap_or(u64::MAX).saturating_sub(1);
        let ticks = (earliest..).map(|number| self.moment(self.tick(uid, phase, number)));
        // By its jitter each of them is less than one interval away from its phase.
        ticks.take(4).find(|tick| *tick > now).unwrap_or(now + self.interval)
    }

    /// What a tick asks, by the time since the last full comparison that found nothing, if there was one.
    #[must_use]
    pub fn due(&self, since_full: Option<Duration>) -> Due {
        // The next tick would be too late.
        let is_last = |since: Duration| since + self.longest_gap() > self.full;
        if since_full.is_none_or(is_last) { Due::Full } else { Due::Cheap }
    }

    /// How old a confirmation may be that counts.
    #[must_use]
    pub fn fresh_for(&self) -> Duration {
        2 * self.interval
    }

    fn longest_gap(&self) -> Duration {
        self.interval + self.width() + self.between_moments()
    }

    /// The moment that is nearest.
    fn moment(&self, at: Duration) -> Duration {
        let between = self.between_moments().as_nanos().max(1);
        nanoseconds((at.as_nanos() + between / 2) / between * between)
    }

    fn between_moments(&self) -> Duration {
        self.interval / MOMENTS
    }

    fn tick(&self, uid: &str, phase: Duration, number: u64) -> Duration {
        let start = phase + nanoseconds(self.interval.as_nanos().saturating_mul(u128::from(number)));
        // The phase is the middle of where a tick may be.
        (start + within(hash(uid, number + 1), self.width())).saturating_sub(self.width() / 2)
    }

    /// The time within which a tick may be before it goes to its moment.
    fn width(&self) -> Duration {
        (self.interval * (2 * JITTER) / 100).saturating_sub(self.between_moments())
    }
}

/// A moment of `span` by a hash.
fn within(hash: u64, span: Duration) -> Duration {
    let span = span.as_nanos().max(1);
    nanoseconds(u128::from(hash) % span)
}

fn nanoseconds(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

/// FNV-1a: the same in each agent, so that a pod keeps its phase over restarts.
fn hash(text: &str, number: u64) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = text.bytes().chain(number.to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    // Its low bits alone follow the last byte too closely.
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEN_MINUTES: Duration = Duration::from_secs(600);

    proptest! {
        #[test]
        fn ticks_of_a_pod_are_an_interval_apart_give_or_take_the_jitter(
            uid in "[0-9a-f-]{1,36}",
            interval in 1_000_u64..60_000,
            now in 0_u64..10_000_000,
        ) {
            let interval = Duration::from_millis(interval);
            let schedule = Schedule::new(interval, TEN_MINUTES);
            let first = schedule.next(&uid, Duration::from_millis(now));
            prop_assert!(first > Duration::from_millis(now));
            prop_assert!(first <= Duration::from_millis(now) + interval * 12 / 10 + interval);
            let second = schedule.next(&uid, first);
            let gap = second - first;
            prop_assert!(gap >= interval * 8 / 10 && gap <= interval * 12 / 10, "{:?} of {:?}", gap, interval);
        }

        #[test]
        fn a_confirmation_is_never_too_old_for_the_next_tick(uid in "[0-9a-f]{8}", seconds in 1_u64..=60) {
            let schedule = Schedule::new(Duration::from_secs(seconds), TEN_MINUTES);
            let (mut now, mut full) = (schedule.first(&uid), None);
            let mut confirmed = now;
            for _ in 0..100 {
                if schedule.due(full.map(|full| now - full)) == Due::Full {
                    full = Some(now);
                }
                prop_assert!(now - confirmed <= schedule.fresh_for());
                confirmed = now;
                now = schedule.next(&uid, now);
                prop_assert!(now - full.unwrap() <= TEN_MINUTES);
            }
        }
    }

    #[test]
    fn the_first_round_takes_ten_seconds_and_leaves_no_tenth_of_them_empty() {
        let schedule = Schedule::new(Duration::from_secs(30), TEN_MINUTES);
        let mut tenths = [0; 10];
        for pod in 0..250 {
            let first = schedule.first(&format!("8f0f5a8e-{pod:04}-4f4e-9a57-cd6f6d0d2e11"));
            tenths[usize::try_from(first.as_secs()).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|pods| (5..60).contains(pods)), "{tenths:?}");
    }

    #[test]
    fn ticks_of_many_pods_are_spread_over_the_interval() {
        let schedule = Schedule::new(Duration::from_secs(30), TEN_MINUTES);
        let mut seconds = [0; 30];
        for pod in 0..3000 {
            let next = schedule.next(&format!("pod-{pod}"), Duration::from_secs(3000));
            seconds[usize::try_from(next.as_secs() % 30).unwrap()] += 1;
        }
        assert!(seconds.iter().all(|pods| (40..250).contains(pods)), "{seconds:?}");
    }
}
