//! A pod is taken into the mesh, from wherever an earlier try ended.

use std::net::IpAddr;
use std::time::Instant;

use facts::{Facts, PodRef};
use intent::{Act, Birth, Look, Observation, Rules, Want};
use netns::Netns;

use super::Ambient;
use super::executor::{Entering, Executor};
use super::failure::AmbientFailure;
use super::members::{GivenNetns, Member, MemberState};
use super::ports::{Disk as _, NetnsSource};
use crate::verification::{FoundBy, NetnsIdentity, identity};

impl Ambient {
    /// Takes a pod into the mesh; gives who goes on with it. Whoever calls has the pod's turn.
    pub(super) async fn enrol(
        &self,
        key: &PodRef,
        facts: &Facts,
        ips: &[IpAddr],
        place: NetnsSource,
    ) -> Result<Executor<'_, Self>, AmbientFailure> {
        let began = Instant::now();
        if key.uid.is_empty() {
            return Err(AmbientFailure::NoUid);
        }
        let member = self.member(key, facts);
        self.refuse(facts, ips)?;
        let new = matches!(place, NetnsSource::Given { .. });
        // One that nobody sees go with its sandbox has to have a process of the pod still: the runtime may have given the sandbox up.
        let is_here =
            member.given != GivenNetns::Descriptor && member.netns.is_some() && !Self::is_gone(&member);
        let entering = Entering {
            addresses: ips.to_vec(),
            options: Member::of(&facts.pod).0.options,
            node: self.config.node.now(),
            birth: if new { Birth::New } else { Birth::Running },
            is_lost: !(matches!(place, NetnsSource::Running) && is_here),
        };
        let mut work = Executor::new(self, &self.pods.members, member, place);
        let entered = work.enter(&entering).await;
        if !matches!(&entered, Err(stopped) if stopped.at == Act::Locate) {
            self.pods.drains.stop(&key.uid);
        }
        if let Err(stopped) = entered {
            let loads = matches!(stopped.at, Act::LoadRules { .. });
            // Whoever announced it takes everything back. What is there of rules redirects to ztunnel still, or lets connections through it go on.
            let stays = work.member().announced
                || matches!(work.member().have.rules, Rules::Capture(_) | Rules::Drain { .. });
            if loads && !stays {
                // A pod whose rules cannot be had is not in the mesh at all: its ztunnel is told, its probes go the usual way.
                self.tell_given_up(key, &work.give_up().await);
            }
            return Err(stopped.failure);
        }
        work.change(|member| (member.state, member.announced) = (MemberState::Enrolled, false));
        if work.member().state != MemberState::Enrolled {
            let text = "it refused the pod when it connected meanwhile".to_owned();
            return Err(AmbientFailure::Ztunnel(zds::AddError::Refused(text)));
        }
        if !new {
            // Of an announced pod the queue does that, which nobody waits for: that something of it is here is on disk already.
            self.keep(work.member()).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        let way = if new { "plugin" } else { "running" };
        self.metrics.enrolled(way, seconds);
        let ms = format!("{:.3}", seconds * 1000.0);
        self.log.info("pod is in the mesh", &[("pod", key), ("uid", &key.uid), ("way", &way), ("ms", &ms)]);
        Ok(work)
    }

    /// Goes on with what is known of a pod. Whoever calls has the pod's turn.
    pub(super) fn work_on(&self, member: Member) -> Executor<'_, Self> {
        Executor::new(self, &self.pods.members, member, NetnsSource::Leaving)
    }

    /// What is known of a pod, or its beginning.
    fn member(&self, key: &PodRef, facts: &Facts) -> Member {
        self.pods.members.get(&key.uid).unwrap_or_else(|| {
            let (new, warnings) = Member::of(&facts.pod);
            warnings.iter().for_each(|warning| self.log.warn(warning, &[("pod", key)]));
            new
        })
    }

    /// Pods whose traffic would pass by the rules that they would get.
    pub(super) fn refuse(&self, facts: &Facts, ips: &[IpAddr]) -> Result<(), AmbientFailure> {
        Ok(self.config.refuse(facts.pod.runtime_class(), ips)?)
    }

    pub(super) fn tell_given_up(&self, key: &PodRef, failures: &[AmbientFailure]) {
        failures.iter().for_each(|failure| self.log.warn(failure, &[("pod", key)]));
    }

    /// Puts right what differs in the rules of a pod, by a look at them; whether something did. Where they are only to be looked at nothing is.
    /// Whoever calls has the pod's turn.
    pub(super) async fn put_right(&self, member: Member, only_look: bool) -> Result<bool, AmbientFailure> {
        // The repair begins with a look of its own.
        let finding =
            if only_look { self.observe(&member).await? } else { Observation::Rules(Look::Unknown) };
        let state = member.state;
        let mut work = self.work_on(member);
        work.change(|member| {
            // To the next agent, if this one ends meanwhile, it is one that was in.
            if member.state == MemberState::Enrolled {
                member.state = MemberState::Unconfirmed;
            }
            member.have.see(finding);
        });
        if !only_look && let Err(stopped) = work.carry_out(&Want::Verified, false).await {
            work.change(Member::doubt);
            return Err(stopped.into());
        }
        // It counts as it did before if what differed is put right.
        work.change(|member| member.state = state);
        Ok(work.has_changed_rules())
    }

    /// Whether the sandbox that a plugin announced is gone: its file does not stand for the namespace any more.
    pub(super) fn is_gone(member: &Member) -> bool {
        let gone = |netns: &Netns| identity(netns, FoundBy::Path) != NetnsIdentity::Holds;
        member.given == GivenNetns::Path && member.netns.as_deref().is_none_or(gone)
    }
}
