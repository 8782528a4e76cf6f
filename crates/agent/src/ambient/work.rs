//! The queue's workers: one pod at a time each, from what the API server says now (AA-36).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use facts::{Facts, PodRef};

use super::Ambient;
use super::desired::{self, Desired, ENABLED, PENDING, REDIRECTION};
use super::enrol::Place;
use super::failure::{Again, Failure};
use super::leave::Ending;
use super::members::{Look, Member, State};

/// Tasks that work, besides those that wait for a pod's namespace. Most of a pod's time is waiting for ztunnel or the API server.
const WORKERS: usize = 8;

impl Ambient {
    /// Works until the task is aborted.
    pub(super) async fn work(self: Arc<Self>) {
        let mut workers = tokio::task::JoinSet::new();
        let working = Arc::new(());
        loop {
            let changed = self.slots.changed();
            while workers.len() < WORKERS + self.slots.slow() {
                workers.spawn(self.clone().worker(working.clone()));
            }
            tokio::select! {
                // After a panic the pod comes again after a pause, and the others must not be left with nobody.
                ended = workers.join_next() => {
                    if let Some(Err(error)) = ended {
                        self.log.error(Failure::from(error), &[]);
                    }
                }
                () = changed => {}
            }
        }
    }

    /// Works until there are too many that do. `working` counts them.
    async fn worker(self: Arc<Self>, working: Arc<()>) {
        while Arc::strong_count(&working) <= 1 + WORKERS + self.slots.slow() {
            let running = self.queue.pop().await;
            match self.reconcile(running.key(), running.attempt()).await {
                Ok(()) => {
                    // There may be nothing to do on a pod until its next sandbox, which says nothing of what failed with the last one.
                    if self.is_where_it_belongs(running.key()) {
                        self.log.settled(&[("pod", running.key())]);
                        self.troubles.solved(&running.key().uid, Instant::now());
                    }
                    self.waiting.answered(&running.key().uid);
                    running.done();
                }
                Err(failure) => {
                    self.tell(running.key(), &failure, running.attempt()).await;
                    match failure.again() {
                        Again::Backoff => running.retry(),
                        Again::OnChange => running.done(),
                    }
                }
            }
        }
    }

    async fn reconcile(&self, key: &PodRef, attempt: u32) -> Result<(), Failure> {
        // Without a uid one pod cannot be told from the next of its name.
        if key.uid.is_empty() {
            return Ok(());
        }
        // What is known may change while others have the pod's turn.
        let _turn = self.members.turn(&key.uid).await;
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
            let left = self.leave(key, None, Ending::Gone, "it is deleted").await;
            if left.is_ok() {
                self.troubles.forget(&key.uid);
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
            Desired::Ended => self.leave(key, Some(&facts), Ending::Ended, "it has ended").await,
            Desired::Out(reason) => self.leave(key, Some(&facts), Ending::Out, &reason).await,
            Desired::In => self.keep_in(key, &facts).await,
        }
    }

    /// Whether the pod is in the mesh, or is not to be.
    fn is_where_it_belongs(&self, key: &PodRef) -> bool {
        let facts = self.cluster.index().facts(&key.namespace, &key.name);
        let Some(facts) = facts.filter(|facts| facts.pod.uid() == Some(&*key.uid)) else { return true };
        let rules = self.config.rules.now();
        !rules.captures()
            || rules.desired(&facts) != Desired::In
            || self.members.state(&key.uid) == Some(State::Enrolled)
    }

    /// Whether no rules of ours are in force for a pod: without ztunnel it would have no network with them.
    fn is_outside(&self, key: &PodRef) -> bool {
        let inside = |member: Member| member.ruled && !Self::is_gone(&member);
        !self.members.get(&key.uid).is_some_and(inside)
    }

    async fn keep_in(&self, key: &PodRef, facts: &Facts) -> Result<(), Failure> {
        let ips = facts.pod.ips();
        if let Err(failure) = self.refuse(facts, &ips) {
            return self.show_out(key, facts, failure).await;
        }
        let known = self.members.get(&key.uid);
        if let Some(member) = known.clone().filter(|member| ips.is_empty() && Self::is_gone(member)) {
            return self.forget_sandbox(member).await;
        }
        if let Some(mut member) = known.clone().filter(|member| self.holds(member)) {
            if let Err(failure) = self.follow_addresses(&mut member, &ips) {
                return self.show_out(key, facts, failure).await;
            }
            self.keep(&member).await;
            return match member.state {
                State::Enrolled => {
                    self.tell_of_the_other_family(&mut member).await;
                    self.mark(member, facts, Some(ENABLED)).await
                }
                _ => {
                    self.wait_for_ztunnel(key);
                    Ok(())
                }
            };
        }
        // An event of the plugin comes before the status has an address; what it said holds until then.
        let usable = known.as_ref().is_some_and(|member| !member.ips.is_empty() && !member.announced);
        if ips.is_empty()
            && known.is_none()
            && let Some(sandbox) = self.sandbox_of(key).await
        {
            let ips = sandbox.origin.addresses.clone();
            return self.enter(key, facts, &ips, Place::Noted(sandbox)).await;
        }
        if ips.is_empty() && !usable {
            // Whoever wrote an annotation that such a pod has: it is not seen to be in.
            let member = known.unwrap_or_else(|| Member::of(&facts.pod).0);
            return self.mark(member, facts, None).await;
        }
        self.enter(key, facts, &ips, Place::Running).await
    }

    async fn enter(&self, key: &PodRef, facts: &Facts, ips: &[IpAddr], place: Place) -> Result<(), Failure> {
        match self.enrol(key, facts, ips, place).await {
            Ok(mut member) => {
                self.tell_of_the_other_family(&mut member).await;
                self.mark(member, facts, Some(ENABLED)).await
            }
            Err(failure) => {
                let gone = self.members.get(&key.uid).filter(Self::is_gone);
                if let (Some(member), Failure::NotFound(_)) = (gone, &failure) {
                    self.forget_sandbox(member).await?;
                }
                self.show_out(key, facts, failure).await
            }
        }
    }

    /// Whether nothing is to be done on a pod but to follow its addresses: it is in, or it was and only the answer of a ztunnel is missing that is
    /// still to come, or its rules are to be left as they are.
    fn holds(&self, member: &Member) -> bool {
        let waits = match member.look {
            Look::Unknown => false,
            Look::AsPlanned => !self.ztunnels.is_informed(),
            Look::Left | Look::Due => true,
        };
        let unconfirmed = member.state == State::Unconfirmed && waits;
        member.state == State::Enrolled || (unconfirmed && member.netns.is_some() && !Self::is_gone(member))
    }

    /// A look at the pod or a try failed: what says that it is in does so no longer, whoever wrote it.
    async fn show_out(&self, key: &PodRef, facts: &Facts, failure: Failure) -> Result<(), Failure> {
        let known = self.members.get(&key.uid);
        let unconfirmed = known.as_ref().is_some_and(|member| member.state == State::Unconfirmed);
        if unconfirmed && failure.is_absence() {
            return Err(failure);
        }
        let mut member = match known {
            Some(member) => member,
            None => Member::of(&facts.pod).0,
        };
        if matches!(member.state, State::Unconfirmed | State::Enrolled) {
            member.state = State::Pending;
            self.note(&member);
        }
        let ruled = member.look == Look::AsPlanned && !failure.is_refusal();
        self.mark(member, facts, ruled.then_some(PENDING)).await?;
        Err(failure)
    }

    /// The runtime gave a sandbox up: nothing of ours is left of it, and the next one is announced.
    async fn forget_sandbox(&self, mut member: Member) -> Result<(), Failure> {
        (member.probed, member.listed) = (false, false);
        member.acked.set(false);
        self.note(&member);
        self.host()?.remove(&member.ips, &member.key.uid)?;
        self.ztunnels.remove(&member.key.uid).await?;
        self.annotate(&mut member, None).await?;
        self.forget(&member).await;
        Ok(())
    }

    fn follow_addresses(&self, member: &mut Member, ips: &[IpAddr]) -> Result<(), Failure> {
        let set = |ips: &[IpAddr]| ips.iter().copied().collect::<BTreeSet<_>>();
        let (old, new) = (set(&member.ips), set(ips));
        if new.is_empty() || (old == new && member.probed) {
            return Ok(());
        }
        // Noted first: a verification in between goes by it.
        if old != new {
            member.set_ips(ips.to_vec());
        }
        member.probed = false;
        self.note(member);
        let host = self.host()?;
        host.remove(&old.difference(&new).copied().collect::<Vec<_>>(), &member.key.uid)?;
        host.add(ips, &member.key.uid)?;
        member.probed = true;
        self.note(member);
        Ok(())
    }

    /// Lets the pod carry the annotation that is true by now, or none of ours; also if somebody has changed it since.
    async fn mark(
        &self,
        mut member: Member,
        facts: &Facts,
        value: Option<&'static str>,
    ) -> Result<(), Failure> {
        let shown = facts.pod.annotation(REDIRECTION);
        // To say once more what is true does no harm; what is to go is not believed gone before it surely is.
        let settled = if value.is_some() { member.may_say_again() } else { member.is_settled() };
        if settled && shown != value {
            member.annotation = shown.map(str::to_owned);
        }
        // Another value says of itself that the pod is not in.
        if value.is_none() && !member.annotation.as_deref().is_some_and(desired::claims) {
            return Ok(());
        }
        self.annotate(&mut member, value).await
    }
}
