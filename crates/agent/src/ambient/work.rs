//! What is wanted of one pod, by what the API server says now.

use std::net::IpAddr;
use std::time::Instant;

use cluster::Queue;
use facts::{Facts, PodRef};
use intent::{Look, Want};
use tokio::task::JoinError;

use super::Ambient;
use super::desired::Desired;
use super::executor::Executor;
use super::failure::AmbientFailure;
use super::members::{Member, MemberState};
use super::ports::{Disk as _, NetnsSource};
use crate::pods::Reconcile;

/// Tasks that work, besides those that wait for a pod's namespace. Most of a pod's time is waiting for ztunnel or the API server.
const WORKERS: usize = 8;

impl Reconcile for Ambient {
    type Failure = AmbientFailure;

    fn queue(&self) -> &Queue<PodRef> {
        &self.pods.queue
    }

    fn places(&self) -> usize {
        WORKERS + self.pods.slots.slow()
    }

    fn resized(&self) -> impl Future<Output = ()> + Send {
        self.pods.slots.changed()
    }

    async fn reconcile(&self, key: &PodRef, attempt: u32) -> Result<(), AmbientFailure> {
        // Without a uid one pod cannot be told from the next of its name.
        if key.uid.is_empty() {
            return Ok(());
        }
        // What is known may change while others have the pod's turn.
        let _turn = self.pods.members.turn(&key.uid).await;
        let facts = self.cluster.index().facts(&key.namespace, &key.name);
        let facts = facts.filter(|facts| facts.pod.uid() == Some(&*key.uid));
        // Until the API server has listed the pods, what was kept of them says which are in the mesh, not which have to leave it.
        let listed = self.is_listed();
        if attempt > 1 {
            self.count_retry(facts.is_some());
        }
        let Some(facts) = facts else {
            if !listed {
                return Ok(());
            }
            let left = self.leave(key, None, &Want::Gone, "it is deleted").await;
            if left.is_ok() {
                self.telling.live.settled(&key.uid);
                self.telling.troubles.forget(&key.uid);
            }
            return left;
        };
        let rules = self.config.rules.now();
        match rules.desired_now(&facts, !self.is_outside(key)) {
            Desired::Unknown => {
                let labels: [telemetry::Label<'_>; 1] = [("pod", key)];
                self.log.debug("the labels of a pod's namespace are not known yet", &labels);
                Ok(())
            }
            Desired::Ended | Desired::Out(_) if !listed => Ok(()),
            Desired::Ended => self.leave(key, Some(&facts), &Want::Ended, "it has ended").await,
            Desired::Out(reason) => self.leave(key, Some(&facts), &Want::Out, &reason).await,
            Desired::In => self.keep_in(key, &facts).await,
        }
    }

    fn succeeded(&self, key: &PodRef) {
        // There may be nothing to do on a pod until its next sandbox, which says nothing of what failed with the last one.
        if self.is_where_it_belongs(key) {
            self.log.settled(&[("pod", key)]);
            self.telling.troubles.solved(&key.uid, Instant::now());
        }
        self.telling.waiting.answered(&key.uid);
    }

    async fn failed(&self, key: &PodRef, failure: &AmbientFailure, attempt: u32) {
        self.tell(key, failure, attempt).await;
    }

    fn panicked(&self, error: JoinError) {
        self.log.error(AmbientFailure::from(error), &[]);
    }
}

impl Ambient {
    /// Whether the pod is in the mesh, or is not to be.
    fn is_where_it_belongs(&self, key: &PodRef) -> bool {
        let facts = self.cluster.index().facts(&key.namespace, &key.name);
        let Some(facts) = facts.filter(|facts| facts.pod.uid() == Some(&*key.uid)) else { return true };
        let rules = self.config.rules.now();
        !rules.captures()
            || rules.desired(&facts) != Desired::In
            || self.pods.members.state(&key.uid) == Some(MemberState::Enrolled)
    }

    /// Whether no rules of ours are in force for a pod: without ztunnel it would have no network with them.
    fn is_outside(&self, key: &PodRef) -> bool {
        let inside = |member: Member| member.have.is_captured() && !Self::is_gone(&member);
        !self.pods.members.get(&key.uid).is_some_and(inside)
    }

    async fn keep_in(&self, key: &PodRef, facts: &Facts) -> Result<(), AmbientFailure> {
        let ips = facts.pod.ips();
        if let Err(failure) = self.refuse(facts, &ips) {
            return self.show_out(key, facts, failure).await;
        }
        let known = match self.pods.members.get(&key.uid) {
            Some(member) => Some(self.follow_process(member).await),
            None => None,
        };
        if let Some(member) = known.clone().filter(|member| ips.is_empty() && Self::is_gone(member)) {
            return self.forget_sandbox(member).await;
        }
        if let Some(member) = known.clone().filter(|member| self.holds(member)) {
            if member.state != MemberState::Enrolled {
                self.wait_for_ztunnel(key);
            }
            let member = self.follow_options(member, facts).await?;
            let member = self.follow_translations(member).await?;
            return match self.follow_pod(self.work_on(member), facts, ips).await {
                // An annotation that cannot be written says nothing about the pod.
                Err(AmbientFailure::Api(error)) => Err(AmbientFailure::Api(error)),
                Err(failure) => self.show_out(key, facts, failure).await,
                Ok(()) => Ok(()),
            };
        }
        // An event of the plugin comes before the status has an address; what it said holds until then.
        let usable = known.as_ref().is_some_and(|member| !member.ips().is_empty() && !member.announced);
        if ips.is_empty()
            && known.is_none()
            && let Some(sandbox) = self.sandbox_of(key).await
        {
            let ips = sandbox.origin.addresses.clone();
            return self.enter(key, facts, &ips, NetnsSource::Noted(sandbox)).await;
        }
        if ips.is_empty() && !usable {
            // Whoever wrote an annotation that such a pod has: it is not seen to be in.
            let member = known.unwrap_or_else(|| Member::of(&facts.pod).0);
            return self.mark_out(member, facts, true).await;
        }
        self.enter(key, facts, &ips, NetnsSource::Running).await
    }

    async fn enter(
        &self,
        key: &PodRef,
        facts: &Facts,
        ips: &[IpAddr],
        place: NetnsSource,
    ) -> Result<(), AmbientFailure> {
        match self.enrol(key, facts, ips, place).await {
            Ok(work) => self.follow_pod(work, facts, Vec::new()).await,
            Err(failure) => {
                let gone = self.pods.members.get(&key.uid).filter(Self::is_gone);
                if let (Some(member), AmbientFailure::NotFound(_)) = (gone, &failure) {
                    self.forget_sandbox(member).await?;
                }
                self.show_out(key, facts, failure).await
            }
        }
    }

    /// Follows the addresses and the annotation of a pod that is in, or was and only the answer of a ztunnel is missing.
    async fn follow_pod(
        &self,
        mut work: Executor<'_, Self>,
        facts: &Facts,
        addresses: Vec<IpAddr>,
    ) -> Result<(), AmbientFailure> {
        self.keep(work.member()).await;
        if work.member().state == MemberState::Enrolled {
            self.tell_of_the_other_family(work.member()).await;
        }
        work.change(|member| member.see_annotation(&facts.pod, true));
        work.carry_out(&Want::Held { addresses }, false).await?;
        Ok(())
    }

    /// Whether nothing is to be done on a pod but to follow its addresses: it is in, or it was and only the answer of a ztunnel is missing that is
    /// still to come, or its rules are to be left as they are.
    fn holds(&self, member: &Member) -> bool {
        let waits = match member.have.look() {
            None | Some(Look::Unknown) => false,
            Some(Look::AsPlanned) => !self.pods.ztunnels.is_informed(),
            Some(Look::Left | Look::Due) => true,
        };
        let unconfirmed = member.state == MemberState::Unconfirmed && waits;
        member.state == MemberState::Enrolled
            || (unconfirmed && member.netns.is_some() && !Self::is_gone(member))
    }

    /// A look at the pod or a try failed: what says that it is in does so no longer, whoever wrote it.
    async fn show_out(
        &self,
        key: &PodRef,
        facts: &Facts,
        failure: AmbientFailure,
    ) -> Result<(), AmbientFailure> {
        let known = self.pods.members.get(&key.uid);
        let unconfirmed = known.as_ref().is_some_and(|member| member.state == MemberState::Unconfirmed);
        if unconfirmed && failure.is_absence() {
            return Err(failure);
        }
        self.pods.members.change(&key.uid, Member::doubt);
        let known = self.pods.members.get(&key.uid);
        let member = known.unwrap_or_else(|| Member::of(&facts.pod).0);
        self.mark_out(member, facts, failure.is_refusal()).await?;
        Err(failure)
    }

    /// The runtime gave a sandbox up: nothing of ours is left of it, and the next one is announced.
    async fn forget_sandbox(&self, member: Member) -> Result<(), AmbientFailure> {
        self.work_on(member).carry_out(&Want::Ended, false).await?;
        Ok(())
    }

    /// Lets a pod that is not wholly in carry the annotation that is true, or none of ours; also if somebody has changed it since.
    async fn mark_out(&self, member: Member, facts: &Facts, for_good: bool) -> Result<(), AmbientFailure> {
        let mut work = self.work_on(member);
        work.change(|member| {
            let says = !for_good && member.have.true_mark().is_some();
            member.see_annotation(&facts.pod, says);
        });
        work.carry_out(&Want::Refused { for_good }, false).await?;
        Ok(())
    }
}
