//! Pods that have left the mesh and whose connections through ztunnel are open still.

use std::time::Duration;

use capture::ambient::{CAPTURE_PORTS, MARK_MASK, ZTUNNEL_MARK};
use intent::Rules;

use super::Ambient;
use super::members::Member;
use crate::drains::{Draining, Through, now};

/// The longest that a pod drains when everything is removed. kubelet gives the agent 30 s in all.
pub(super) const AT_THE_END: Duration = Duration::from_secs(10);

/// What goes through ztunnel.
pub(super) fn through_ztunnel() -> Through {
    Through { ports: CAPTURE_PORTS.to_vec(), mark: Some((ZTUNNEL_MARK, MARK_MASK)), is_transparent: false }
}

impl Ambient {
    /// Waits, without keeping the caller, until nothing goes through ztunnel any more; then the pod is worked on again.
    pub(super) fn start_drain(&self, member: &Member) {
        let (Some(netns), left) = (member.netns.clone(), self.drain_left(member)) else { return };
        let (key, queue) = (member.key.clone(), self.pods.queue.clone());
        let draining = Draining {
            pod: key.clone(),
            netns,
            through: through_ztunnel(),
            slots: self.pods.slots.clone(),
            log: self.log.clone(),
        };
        let wait = draining.wait(left);
        self.pods.drains.start(&member.key.uid, wait, move || queue.push(key.clone()));
    }

    /// How long the pod may drain from now on, by its clock and that of the agent's end.
    pub(super) fn drain_left(&self, member: &Member) -> Duration {
        let now = now();
        let Rules::Drain { since } = member.have.rules else { return Duration::ZERO };
        let past = Duration::from_secs(now.saturating_sub(since));
        let left = self.config.drain_timeout.saturating_sub(past);
        match self.life.ending.get() {
            Some(ending) => {
                left.min((*ending + AT_THE_END).saturating_duration_since(std::time::Instant::now()))
            }
            None => left,
        }
    }
}
