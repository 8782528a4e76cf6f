//! Which pods ask for a sidecar's capture and may have started without the plugin, by what the API server says of them: pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use applied::Origin;
use capture::Decision;
use capture::annotations::NodeSettings;
use capture::decide::{Enrolment, Exclusions};
use facts::{Object, PodRef};

use super::journal::Gap;

/// The longest that kubelet waits for a sandbox, in seconds (its `--runtime-request-timeout` for one).
const SANDBOX_TIME: u64 = 4 * 60;

/// What decides besides the pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SuspectRules {
    pub(crate) scope: Exclusions,
    /// `REPAIR_INIT_CONTAINER_NAME`: it ends well only in a pod that is captured.
    pub(crate) check: String,
}

/// When a pod's sandbox was made, as far as it can be told: not before and not after these seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Made {
    after: u64,
    before: u64,
}

impl SuspectRules {
    /// When the pod's sandbox was made, if the pod asks for capture, its sandbox may have been made in one of the gaps, and the pod does not show
    /// itself that it is captured.
    pub(super) fn suspect(&self, pod: &Object, gaps: &[Gap]) -> Option<Made> {
        let made = Made::of(pod)?;
        let in_gap = gaps.iter().any(|gap| made.after < gap.until && made.before >= gap.from);
        (in_gap && !pod.is_terminal() && self.asks_for_capture(pod) && !pod.has_completed(&self.check))
            .then_some(made)
    }

    /// Whether the plugin would capture the pod.
    pub(super) fn asks_for_capture(&self, pod: &Object) -> bool {
        let Ok(pod) = pod.clone().into_pod(&pod.pod_ref()) else { return false };
        // Annotations that mean nothing are a wish for capture all the same: its ADD would have failed.
        let decided = capture::decide(&pod, &self.scope, &Enrolment::default(), &NodeSettings::default());
        !matches!(decided, Ok(Decision::Skip(_)))
    }
}

impl Made {
    /// `None` while the sandbox has no network yet: its ADD may be under way.
    pub(super) fn of(pod: &Object) -> Option<Self> {
        let start = pod.start_time().and_then(cluster::time::seconds)?;
        match pod.sandbox_ready_time().and_then(cluster::time::seconds) {
            // kubelet tells this anew with each sandbox, and the start only once.
            Some(ready) => {
                Some(Self { after: start.max(ready.saturating_sub(SANDBOX_TIME)), before: ready + 1 })
            }
            None if pod.ips().is_empty() => None,
            None => Some(Self { after: start, before: start + SANDBOX_TIME }),
        }
    }

    /// The earliest that it may be.
    pub(super) fn earliest(self) -> u64 {
        self.after
    }

    /// Whether the plugin's record of an attachment is of this pod's sandbox, and not of an earlier one.
    pub(super) fn is_recorded(self, pod: &Object, origin: &Origin, written: SystemTime) -> bool {
        let id = PodRef { uid: origin.uid.clone(), ..PodRef::default() };
        let its = origin.pod == pod.pod_ref().to_string() && pod.check(&id).is_ok();
        its && written >= UNIX_EPOCH + Duration::from_secs(self.after)
    }
}

#[cfg(test)]
mod tests;
