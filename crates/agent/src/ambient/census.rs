//! How many pods are in the mesh, and how many should be and are not: counted when it is asked, from what is wanted and what was seen.

use std::collections::BTreeMap;

use capture::decide::Enrolment;
use facts::Facts;

use super::Ambient;
use super::desired::Desired;
use super::failure::reason;
use super::members::MemberState;

impl Ambient {
    /// Whether the pod belongs into the mesh, as far as it can be told; one that has ended may have.
    pub(crate) fn may_want(&self, facts: &Facts) -> bool {
        !self.config.is_off && !matches!(self.config.rules.desired(facts), Desired::Out(_))
    }

    /// Which pods the mode takes now; none where it is off.
    pub(crate) fn enrolment(&self) -> Enrolment {
        self.config.rules.now().enrolment.clone()
    }

    /// Lets /metrics say how it is now.
    pub(crate) fn count(&self) {
        let mut outside: BTreeMap<&'static str, usize> = BTreeMap::new();
        let mut without_netns = 0;
        let rules = self.config.rules.now();
        {
            let index = self.cluster.index();
            for facts in index.pods().filter_map(|pod| index.facts(pod.namespace(), pod.name())) {
                let uid = facts.pod.uid().unwrap_or_default();
                let state = self.pods.members.state(uid);
                if state == Some(MemberState::Enrolled) || rules.desired(&facts) != Desired::In {
                    continue;
                }
                // The kill switch wants none that is not in already.
                if state.is_none() && !rules.captures() {
                    continue;
                }
                let trouble = self.telling.troubles.reason(uid);
                // One whose sandbox is still to be made misses nothing.
                if state.is_none() && trouble.is_none() && !facts.pod.is_running() {
                    continue;
                }
                let without = match state {
                    Some(MemberState::Unconfirmed) => reason::UNCONFIRMED,
                    _ => reason::STARTING,
                };
                *outside.entry(trouble.unwrap_or(without)).or_default() += 1;
                without_netns += usize::from(state.is_none());
            }
        }
        for state in MemberState::ALL {
            let more = if state == MemberState::Pending { without_netns } else { 0 };
            self.metrics.ambient_pods(state.name(), self.pods.members.count(state) + more);
        }
        self.metrics.ambient_pods_outside(&outside);
        self.metrics.overdue(self.pods.slots.overdue().len());
    }
}
