//! A pod as it is kept for the next agent, and as that one finds it.

use facts::Object;

use super::{Member, State};
use crate::ambient::record::{Place, Record, Stage};

impl Member {
    /// A pod of which an earlier agent kept a record. Its rules are those of then, whatever its annotations say by now.
    pub(crate) fn recorded(pod: &Object, record: &Record) -> Self {
        let (mut member, _) = Self::of(pod);
        member.options = record.options.clone().into();
        member.strict = record.tcp_loose_before.is_some();
        member.call(record.called.clone());
        member.announced = record.stage == Stage::Announced;
        member.state = match record.stage {
            Stage::Enrolled => State::Unconfirmed,
            Stage::Leaving => State::Leaving,
            Stage::Draining { .. } => State::Draining,
            Stage::Announced | Stage::Pending | Stage::Other => State::Pending,
        };
        if let Stage::Draining { since } = record.stage {
            member.draining = Some(since);
        }
        let ips = pod.ips();
        member.set_ips(if ips.is_empty() { record.ips.clone() } else { ips });
        member
    }

    /// What the next agent is to know of it.
    pub(crate) fn record(&self) -> Record {
        let stage = match self.state {
            State::Pending if self.announced => Stage::Announced,
            State::Pending => Stage::Pending,
            // The next agent has to look all the same.
            State::Unconfirmed | State::Enrolled => Stage::Enrolled,
            State::Leaving => Stage::Leaving,
            State::Draining => Stage::Draining { since: self.draining.unwrap_or_default() },
        };
        let mut record = Record::new(&self.key, &self.service_account, stage);
        record.netns = self.netns.as_deref().map(|netns| Place {
            path: netns.path().to_owned(),
            dev: netns.id().dev,
            ino: netns.id().ino,
            given: self.given,
        });
        record.ips.clone_from(&self.ips);
        record.options = (&self.options).into();
        record.called.clone_from(&self.cgroup);
        // The kernel knows only 0 and 1, and strict is 0.
        record.tcp_loose_before = self.strict.then_some(1);
        record
    }
}
