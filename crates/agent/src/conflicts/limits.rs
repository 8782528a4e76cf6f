//! How often rules of ours are put before those of others in one namespace.

use std::time::{Duration, Instant};

/// At most so often in an hour.
const MOST: usize = 2;
const HOUR: Duration = Duration::from_secs(3600);
/// Whoever is back within this time does it on purpose, or by a loop like ours.
const RELAPSE: Duration = Duration::from_secs(10);

/// When it was done.
#[derive(Debug, Default)]
pub(super) struct AttemptLimit(Vec<Instant>);

impl AttemptLimit {
    /// Whether it may be done now; it is counted as done then.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        self.0.retain(|at| now.duration_since(*at) < HOUR);
        if self.0.len() >= MOST {
            return false;
        }
        if self.0.last().is_some_and(|last| now.duration_since(*last) < RELAPSE) {
            // It would not last: for an hour nothing more is tried.
            self.0 = vec![now; MOST];
            return false;
        }
        self.0.push(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_in_an_hour_and_never_soon_after() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut limits = AttemptLimit::default();
        assert!(limits.allow(at(0)));
        assert!(limits.allow(at(20)));
        assert!(!limits.allow(at(60)));
        assert!(!limits.allow(at(3599)));
        assert!(limits.allow(at(3601)));
        let mut limits = AttemptLimit::default();
        assert!(limits.allow(at(0)));
        assert!(!limits.allow(at(1)), "whoever is back at once is not fought");
        assert!(!limits.allow(at(60)));
        assert!(!limits.allow(at(3600)));
        assert!(limits.allow(at(3602)));
    }
}
