//! The options of verification as types.

use std::time::Duration;

use options::agent::{BadOption, Options, Setting};

use crate::config::duration;

/// What `VERIFY_INTERVAL` may be: more often costs more than it tells, and less often than a minute is too late for people.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// Shortest time between two looks, by the older option: each costs some tenths of a millisecond per pod.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// How pods are verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerifyConfig {
    /// `VERIFY_INTERVAL`, or else `AMBIENT_VERIFY_INTERVAL`.
    pub(crate) interval: Duration,
    /// `VERIFY_FULL_INTERVAL`.
    pub(crate) full: Duration,
    /// `VERIFY_REPAIR`: what differs is put right.
    pub(crate) repairs: bool,
    /// `CAPTURE` is not `disabled`: pods are captured at all. It is followed while the agent runs.
    pub(crate) captures: bool,
    /// `HEALTH_METRICS_SHORT_NAMES`.
    pub(crate) short_names: bool,
}

impl VerifyConfig {
    /// # Errors
    /// The first option that means nothing.
    pub(crate) fn new(options: &Options) -> Result<Self, BadOption> {
        let text = |setting| options.text(setting);
        let older = duration("ambient-verify-interval", text(Setting::AmbientVerifyInterval))?;
        let interval = match text(Setting::VerifyInterval) {
            "" => older.max(SHORTEST_INTERVAL),
            text => Some(duration("verify-interval", text)?)
                .filter(|interval| INTERVALS.contains(interval))
                .ok_or_else(|| BadOption::new("verify-interval", text, "is not from 1s to 60s"))?,
        };
        let full = duration("verify-full-interval", text(Setting::VerifyFullInterval))?;
        let repairs = match text(Setting::VerifyRepair) {
            "on" => true,
            "off" => false,
            text => return Err(BadOption::new("verify-repair", text, "is neither on nor off")),
        };
        let captures = text(Setting::Capture) != "disabled";
        let short_names = options.on(Setting::HealthMetricsShortNames);
        Ok(Self { interval, full: full.max(interval), repairs, captures, short_names })
    }
}
