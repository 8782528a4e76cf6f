//! The queue's workers: one pod at a time each, from what the API server says now (AA-36).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::PodKey;
use cluster::write::EventText;
use facts::Facts;

use super::Ambient;
use super::desired::{Desired, ENABLED, PENDING, REDIRECTION};
use super::enrol::{Place, pod_text};
use super::failure::{Again, Failure};
use super::leave::Ending;
use super::members::{Member, State};

/// Tasks that work. Most of a pod's time is waiting for ztunnel or the API server.
const WORKERS: usize = 8;
/// After so long the watch has told of our own patch, and what it says else is somebody's change.
const SETTLED: Duration = Duration::from_secs(10);
/// `reason` of the event about a pod that cannot be enrolled.
const REASON: &str = "AmbientEnrollmentFailed";
/// `source.component` of the event: the agent's DaemonSet.
const COMPONENT: &str = "istio-cni-node";

impl Ambient {
    /// Works until the task is aborted.
    pub(super) async fn work(self: Arc<Self>) {
        let mut workers = tokio::task::JoinSet::new();
        loop {
            while workers.len() < WORKERS {
                workers.spawn(self.clone().worker());
            }
            // None ends but by a panic. Its pod comes again after a pause, and the others must not be left with nobody.
            if let Some(Err(error)) = workers.join_next().await {
                self.log.error(Failure::from(error), &[]);
            }
        }
    }

    async fn worker(self: Arc<Self>) {
        loop {
            let running = self.queue.pop().await;
            match self.reconcile(running.key()).await {
                Ok(()) => {
                    self.log.settled(&[("pod", &pod_text(running.key()))]);
                    running.done();
                }
                Err(failure) => {
                    self.tell(running.key(), &failure).await;
                    match failure.again() {
                        Again::Backoff => running.retry(),
                        Again::OnChange => running.done(),
                    }
                }
            }
        }
    }

    async fn reconcile(&self, key: &PodKey) -> Result<(), Failure> {
        // Without a uid one pod cannot be told from the next of its name.
        if key.uid.is_empty() {
            return Ok(());
        }
        // What is known may change while others have the pod's turn.
        let _turn = self.members.turn(&key.uid).await;
        let facts = self.cluster.index().facts(&key.namespace, &key.name);
        let facts = facts.filter(|facts| facts.pod.uid() == Some(&*key.uid));
        let Some(facts) = facts else {
            self.metrics.reconciled("delete");
            return self.leave(key, None, Ending::Gone, "it is deleted").await;
        };
        self.metrics.reconciled(if self.seen(key) { "update" } else { "add" });
        match self.config.rules.desired(&facts) {
            Desired::Unknown => {
                let labels: [telemetry::Label<'_>; 1] = [("pod", &pod_text(key))];
                self.log.debug("the labels of a pod's namespace are not known yet", &labels);
                Ok(())
            }
            Desired::Ended => self.leave(key, Some(&facts), Ending::Ended, "it has ended").await,
            Desired::Out(reason) => self.leave(key, Some(&facts), Ending::Out, &reason).await,
            Desired::In => self.keep_in(key, &facts).await,
        }
    }

    async fn keep_in(&self, key: &PodKey, facts: &Facts) -> Result<(), Failure> {
        let ips = facts.pod.ips();
        let known = self.members.get(&key.uid);
        if let Some(mut member) = known.clone().filter(|member| member.state == State::Enrolled) {
            self.follow_addresses(&mut member, &ips)?;
            self.keep(&member).await;
            return self.mark(member, facts, ENABLED).await;
        }
        // An event of the plugin comes before the status has an address; what it said holds until then.
        let usable = known.as_ref().is_some_and(|member| !member.ips.is_empty() && !Self::is_gone(member));
        if ips.is_empty() && !usable {
            if let Some(member) = known.filter(Self::is_gone) {
                return self.forget_sandbox(member).await;
            }
            return self.unmark(key, facts).await;
        }
        match self.enrol(key, facts, &ips, Place::Running).await {
            Ok(member) => self.mark(member, facts, ENABLED).await,
            Err(failure) => {
                if let Some(member) = self.members.get(&key.uid).filter(|member| member.ruled) {
                    self.mark(member, facts, PENDING).await?;
                }
                Err(failure)
            }
        }
    }

    /// A pod that an earlier agent has marked and whose sandbox was given up since: the mark is not true any more.
    async fn unmark(&self, key: &PodKey, facts: &Facts) -> Result<(), Failure> {
        let shown = facts.pod.annotation(REDIRECTION);
        if self.members.get(&key.uid).is_some() || !matches!(shown, Some(ENABLED | PENDING)) {
            return Ok(());
        }
        let mut member = self.member(key, facts);
        self.annotate(&mut member, None).await
    }

    /// The runtime gave a sandbox up: nothing of ours is left of it, and the next one is announced.
    async fn forget_sandbox(&self, mut member: Member) -> Result<(), Failure> {
        (member.probed, member.listed, member.acked) = (false, false, false);
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

    /// Lets the pod carry the annotation, which is true by now; also if somebody has changed it since.
    async fn mark(&self, mut member: Member, facts: &Facts, value: &'static str) -> Result<(), Failure> {
        let shown = facts.pod.annotation(REDIRECTION);
        let settled = member.annotated.is_none_or(|at| at.elapsed() > SETTLED);
        if settled && shown != Some(value) {
            member.annotation = shown.map(str::to_owned);
        }
        self.annotate(&mut member, Some(value)).await
    }

    /// Whether the pod has been worked on before.
    fn seen(&self, key: &PodKey) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if seen.len() > 2 * self.cluster.index().pods().count() + 64 {
            seen.retain(|uid| self.cluster.index().pods().any(|pod| pod.uid() == Some(uid)));
        }
        !seen.insert(key.uid.clone())
    }

    /// The log hears of each failure, the pod's events of those that somebody has to do something about.
    async fn tell(&self, key: &PodKey, failure: &Failure) {
        self.log.warn(failure, &[("pod", &pod_text(key))]);
        let text = failure.to_string();
        if failure.again() == Again::OnChange && self.is_news(key, &text) {
            let event = EventText { warning: true, reason: REASON, message: &text, component: COMPONENT };
            if let Some(writer) = &self.writer
                && let Err(error) = writer.create_event(key, event).await
            {
                self.log.warn(&error, &[("pod", &pod_text(key))]);
            }
        }
    }

    /// Whether the pod's last event said something else.
    fn is_news(&self, key: &PodKey, text: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.len() > 1000 {
            told.clear();
        }
        told.insert(key.uid.clone(), text.to_owned()).is_none_or(|before| before != text)
    }
}
