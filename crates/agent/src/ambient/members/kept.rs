//! A pod as it is kept for the next agent, and as that one finds it.

use facts::Object;
use intent::{Act, Observation, RedirectionMark, Rules};

use super::{GivenNetns, Member, MemberState};
use crate::ambient::record::{Place, PodRecord, Stage};

impl Member {
    /// A pod of which an earlier agent kept a record. Its rules are those of then, whatever its annotations say by now.
    pub(crate) fn recorded(pod: &Object, record: &PodRecord) -> Self {
        let addresses = pod.ips();
        let addresses = if addresses.is_empty() { record.ips.clone() } else { addresses };
        let mut member = Self::left_by_another(pod, addresses);
        member.options = record.options.clone().into();
        (member.translates, member.translates_now) = (record.translates, record.translates);
        if record.tcp_loose_before.is_some() {
            member.have.see(Observation::Strict);
        }
        member.call(record.called.clone());
        member.announced = record.stage == Stage::Announced;
        member.state = match record.stage {
            Stage::Enrolled => MemberState::Unconfirmed,
            Stage::Leaving => MemberState::Leaving,
            Stage::Draining { since } => {
                member.have.after(&Act::Drain, since);
                MemberState::Draining
            }
            Stage::Announced => MemberState::Pending,
            // It was in: what the agent before had doubts about, or was putting right, is looked at, and nothing is taken back before.
            Stage::Pending if member.have.mark == Some(RedirectionMark::Enabled) => MemberState::Unconfirmed,
            Stage::Pending | Stage::Other => {
                member.have.see(Observation::RulesInDoubt);
                MemberState::Pending
            }
        };
        member
    }

    /// What the next agent is to know of it.
    pub(crate) fn record(&self) -> PodRecord {
        let stage = match self.state {
            MemberState::Pending if self.announced => Stage::Announced,
            MemberState::Pending => Stage::Pending,
            // The next agent has to look all the same.
            MemberState::Unconfirmed | MemberState::Enrolled => Stage::Enrolled,
            MemberState::Leaving | MemberState::Draining => match self.have.rules {
                Rules::Drain { since } => Stage::Draining { since },
                _ => Stage::Leaving,
            },
        };
        let mut record = PodRecord::new(&self.key, &self.service_account, stage);
        record.netns = self.netns.as_deref().map(|netns| Place {
            path: netns.path().to_owned(),
            dev: netns.id().dev,
            ino: netns.id().ino,
            given: self.given == GivenNetns::Path,
        });
        record.ips.clone_from(&self.have.addresses);
        record.options = (&self.options).into();
        record.translates = self.translates;
        record.called.clone_from(&self.cgroup);
        // The kernel knows only 0 and 1, and strict is 0.
        record.tcp_loose_before = self.have.strict.then_some(1);
        record
    }
}
