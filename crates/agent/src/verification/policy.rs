//! How often pods are looked at, and whether what differs is put right: what the options say now.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::verification::Schedule;

use super::config::VerifyConfig;

/// The options in force. Times are since the verifier's start.
#[derive(Debug)]
pub(super) struct VerifyPolicy(Mutex<InForce>);

#[derive(Debug)]
struct InForce {
    config: VerifyConfig,
    schedule: Schedule,
    /// Until that time, confirmations count as long as they did by the options before: not every pod has had its turn by the new ones.
    before: Option<(Duration, Duration)>,
}

// === impl VerifyPolicy ===

impl VerifyPolicy {
    pub(super) fn new(config: VerifyConfig) -> Self {
        let schedule = Schedule::new(config.interval, config.full);
        Self(Mutex::new(InForce { config, schedule, before: None }))
    }

    pub(super) fn schedule(&self) -> Schedule {
        self.in_force().schedule
    }

    /// How old a confirmation may be that counts now.
    pub(super) fn fresh_for(&self, now: Duration) -> Duration {
        let in_force = self.in_force();
        let fresh_for = in_force.schedule.fresh_for();
        let before = in_force.before.filter(|(until, _)| now < *until);
        before.map_or(fresh_for, |(_, before)| before.max(fresh_for))
    }

    /// Whether pods are captured at all.
    pub(super) fn captures(&self) -> bool {
        self.in_force().config.captures
    }

    /// Whether what differs is left as it is, and by which option.
    pub(super) fn leaves(&self) -> Option<&'static str> {
        let in_force = self.in_force();
        match (in_force.config.captures, in_force.config.repairs) {
            (false, _) => Some("CAPTURE is disabled"),
            (true, false) => Some("VERIFY_REPAIR is off"),
            (true, true) => None,
        }
    }

    /// Takes other options; whether they differ.
    pub(super) fn follow(&self, new: &VerifyConfig, now: Duration) -> bool {
        let mut in_force = self.in_force();
        if in_force.config == *new {
            return false;
        }
        let schedule = Schedule::new(new.interval, new.full);
        let before = in_force.schedule.fresh_for();
        *in_force =
            InForce { config: new.clone(), schedule, before: Some((now + schedule.fresh_for(), before)) };
        true
    }

    fn in_force(&self) -> MutexGuard<'_, InForce> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(seconds: u64) -> VerifyConfig {
        let interval = Duration::from_secs(seconds);
        VerifyConfig { interval, full: interval * 20, repairs: true, captures: true, short_names: false }
    }

    #[test]
    fn a_shorter_interval_makes_no_confirmation_too_old_before_pods_have_had_their_turn() {
        let policy = VerifyPolicy::new(config(60));
        let at = Duration::from_secs;
        assert!(!policy.follow(&config(60), at(100)), "nothing has changed");
        assert!(policy.follow(&config(1), at(100)));
        assert_eq!(policy.schedule().interval(), at(1));
        assert_eq!((policy.fresh_for(at(101)), policy.fresh_for(at(102))), (at(120), at(2)));
        assert!(policy.follow(&config(30), at(200)));
        assert_eq!((policy.fresh_for(at(201)), policy.fresh_for(at(300))), (at(60), at(60)));
    }

    #[test]
    fn what_is_left_is_left_by_an_option() {
        let policy = VerifyPolicy::new(config(1));
        assert_eq!(policy.leaves(), None);
        policy.follow(&VerifyConfig { repairs: false, ..config(1) }, Duration::ZERO);
        assert_eq!(policy.leaves(), Some("VERIFY_REPAIR is off"));
        policy.follow(&VerifyConfig { captures: false, ..config(1) }, Duration::ZERO);
        assert_eq!((policy.leaves(), policy.captures()), (Some("CAPTURE is disabled"), false));
    }
}
