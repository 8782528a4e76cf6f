//! Annotations of a pod in the mesh that say how it is captured, and that change while it runs.

use std::time::Instant;

use capture::ambient::PodOptions;
use facts::Facts;
use intent::live::{LiveUpdates, RefusedChange, applies_options};

use super::Ambient;
use super::failure::AmbientFailure;
use super::members::{Member, MemberState};
use super::ports::Disk as _;

impl Ambient {
    /// Applies what a pod's annotations say now, if they say something else than what its rules were made from; gives what is known of the pod
    /// then. Where that fails the rules and the options of before stay in force. Whoever calls has the pod's turn.
    pub(super) async fn follow_options(
        &self,
        member: Member,
        facts: &Facts,
    ) -> Result<Member, AmbientFailure> {
        let updates = self.config.live_updates;
        if updates == LiveUpdates::Off || member.state != MemberState::Enrolled {
            return Ok(member);
        }
        let (wanted, warnings) = PodOptions::parse(&facts.pod.annotations());
        if let Some(warning) = warnings.into_iter().next() {
            self.telling.live.refused(&member.key, &RefusedChange::Invalid(warning)).await;
            return Ok(member);
        }
        if !applies_options(&member.options, &wanted, updates) {
            self.telling.live.settled(&member.key.uid);
            return Ok(member);
        }
        let (began, before) = (Instant::now(), member.options.clone());
        let changed = self.take_options(member, &wanted).await;
        if let Err(failure) = self.put_right(changed.clone(), false).await {
            self.take_options(changed, &before).await;
            return Err(failure);
        }
        self.telling.live.applied(&changed.key, &before.changes(&wanted), began.elapsed()).await;
        Ok(self.pods.members.get(&changed.key.uid).unwrap_or(changed))
    }

    /// The next agent is to know by which options the rules are made, before they are.
    async fn take_options(&self, mut member: Member, options: &PodOptions) -> Member {
        member.options.clone_from(options);
        let uid = member.key.uid.clone();
        let known = self.pods.members.change(&uid, |member| member.options.clone_from(options));
        let member = known.unwrap_or(member);
        self.keep(&member).await;
        member
    }
}
