//! What the kernel holds against what it should hold: once at the start for every pod, and then again and again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use facts::PodRef;
use intent::{Look, Observation, Probes, RedirectionMark};
use netns::find::WantedPod;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Ambient;
use super::desired::{self, Desired, REDIRECTION};
use super::members::{Member, MemberState};
use super::ports::Disk as _;
use crate::drains::Wait;

/// Namespaces that are looked at at once.
const AT_ONCE: usize = 4;
/// How long the others wait for one of them. It is looked at to its end all the same.
const PATIENCE: Duration = Duration::from_secs(1);

impl Ambient {
    /// Verifies until the task is aborted.
    pub(super) async fn verify(self: Arc<Self>) {
        let mut next = Instant::now() + self.config.verify_every;
        self.look_by_turns(next).await;
        loop {
            tokio::time::sleep_until(next).await;
            self.look_again().await;
            self.verify_host().await;
            self.verify_pods().await;
            if self.is_listed()
                && let Some(error) = self.kept.evidence.sweep(&self.pods.members)
            {
                self.log.warn(&error, &[]);
            }
            self.metrics.shadowed(self.kept.evidence.shadowed());
            self.node.finder.forget().await;
            next = Instant::now() + self.config.verify_every;
        }
    }

    /// Looks at the pods that an earlier agent had in the mesh, one by one over all of the time until `end`, and changes nothing of rules that are of
    /// another layout. A node whose pods are many has more to do at its agent's start than this.
    async fn look_by_turns(self: &Arc<Self>, end: Instant) {
        let due = self.pods.members.all().into_iter().filter(|member| member.have.look() == Some(Look::Due));
        let due: Vec<String> = due.map(|member| member.key.uid).collect();
        let Ok(count) = u32::try_from(due.len()) else { return };
        let pause = end.saturating_duration_since(Instant::now()) / (count + 1);
        let mut turn = Instant::now();
        for uid in due {
            turn += pause;
            tokio::time::sleep_until(turn).await;
            let is_due = |uid: &str| {
                self.pods.members.get(uid).is_some_and(|member| member.have.look() == Some(Look::Due))
            };
            if is_due(&uid) {
                self.verify_in_time(uid, true).await;
            }
        }
        if count > 0 {
            self.log.info("the pods of an earlier agent are verified", &[("pods", &count)]);
        }
    }

    /// Looks for what could not be found or done before.
    pub(super) async fn look_again(&self) {
        let lost: Vec<Member> =
            self.pods.members.all().into_iter().filter(|member| member.netns.is_none()).collect();
        if !lost.is_empty()
            && let Ok(roots) = self.roots()
            && let Ok(mut found) = self
                .node
                .finder
                .find_all(&roots, lost.iter().map(|lost| lost.wanted(lost.ips(), &self.config)).collect())
                .await
        {
            for member in lost {
                let Some(netns) = found.remove(&member.key.uid) else { continue };
                let _turn = self.pods.members.turn(&member.key.uid).await;
                let netns = std::cell::Cell::new(Some(netns));
                let found = self.pods.members.change(&member.key.uid, |member| {
                    netns.take().into_iter().for_each(|netns| member.move_to_keeping(netns));
                });
                let Some(member) = found else { continue };
                self.keep(&member).await;
                self.log.info("the namespace of a pod in the mesh is found", &[("pod", &member.key)]);
                self.pods.queue.push(member.key);
            }
        }
        self.push_misplaced();
    }

    /// Asks for work on all pods.
    pub(super) fn push_all(&self) {
        let keys: Vec<_> = self.cluster.index().pods().map(|pod| pod.pod_ref()).collect();
        // And those that went while the earlier ones were taken over.
        let members = self.pods.members.all().into_iter().map(|member| member.key);
        for key in keys.into_iter().chain(members) {
            self.pods.queue.push(key);
        }
    }

    /// Asks for work on every pod that is not where it belongs: what failed for want of a change may succeed by now.
    fn push_misplaced(&self) {
        if !self.is_listed() {
            return;
        }
        let mut keys: Vec<PodRef> = Vec::new();
        {
            let index = self.cluster.index();
            let pods: Vec<_> = index.pods().cloned().collect();
            for facts in pods.iter().filter_map(|pod| index.facts(pod.namespace(), pod.name())) {
                let key = facts.pod.pod_ref();
                let member = self.pods.members.get(&key.uid);
                let state = member.as_ref().map(|member| member.state);
                let shown = facts.pod.annotation(REDIRECTION);
                let settled = match self.config.rules.desired(&facts) {
                    Desired::In => {
                        // A manifest is nobody's to annotate.
                        state == Some(MemberState::Enrolled)
                            && (self.manifests
                                || shown.and_then(desired::mark_of) == Some(RedirectionMark::Enabled))
                    }
                    Desired::Out(_) => {
                        let drains = || self.pods.drains.of(&key.uid) == Wait::Open;
                        (state.is_none() || drains()) && !shown.is_some_and(desired::claims)
                    }
                    Desired::Ended => state.is_none() && !shown.is_some_and(desired::claims),
                    Desired::Unknown => true,
                };
                if !settled {
                    keys.push(key);
                }
            }
            let gone = |member: &Member| {
                index.pod(&member.key.namespace, &member.key.name).and_then(|pod| pod.uid())
                    != Some(&*member.key.uid)
            };
            keys.extend(self.pods.members.all().into_iter().filter(gone).map(|member| member.key));
        }
        for key in keys {
            self.pods.queue.push(key);
        }
    }

    /// Whether the node's namespace is as it should be now.
    pub(super) async fn verify_host(self: &Arc<Self>) -> bool {
        let ambient = self.clone();
        let verify = move || ambient.host().map(|host| host.verify(|| ambient.addresses()));
        match self.in_kernel(verify).await {
            Ok(Ok(Ok(repaired))) => {
                if repaired.rules {
                    self.metrics.repaired("host-rules", 1);
                    self.log.warn("the rules for host probes differed and are put right", &[]);
                }
                if repaired.members > 0 {
                    self.metrics.repaired("host-sets", repaired.members);
                    let labels: [telemetry::Label<'_>; 1] = [("addresses", &repaired.members)];
                    self.log.warn("the addresses for host probes differed and are put right", &labels);
                }
                return true;
            }
            Ok(Ok(Err(error))) => self.log.error(&error, &[]),
            Ok(Err(error)) => self.log.error(&error, &[]),
            Err(error) => self.log.error(&error, &[]),
        }
        false
    }

    /// What the host's sets should hold, and whether that is all: somebody may be in them whose address is not known any more.
    fn addresses(&self) -> (Vec<(IpAddr, String)>, bool) {
        let mut members = self.pods.members.all();
        // An address may be another pod's before the API server says that the pod before has ended: the last one counts.
        members.sort_unstable_by_key(|member| member.addressed);
        // What leaves keeps its addresses until its rules are gone.
        let inside = members.iter().filter(|member| match member.have.probes {
            Probes::In => true,
            Probes::Maybe => !(member.announced || is_leaving(member.state)),
            Probes::None => false,
        });
        let owners: HashMap<IpAddr, &str> =
            inside.flat_map(|member| member.ips().iter().map(|ip| (*ip, &*member.key.uid))).collect();
        let wanted = owners.into_iter().map(|(ip, uid)| (ip, uid.to_owned())).collect();
        (wanted, self.is_listed() && members.iter().all(|member| !member.ips().is_empty()))
    }

    /// Compares the rules of every pod; gives how many were looked at and how many were repaired.
    pub(super) async fn verify_pods(self: &Arc<Self>) -> (usize, usize) {
        let mut members = self.pods.members.all();
        // What was begun there before has not ended: it is looked at again when that has.
        members.retain(|member| member.is_verified() && !self.pods.slots.is_overdue(&member.key.uid));
        let looked = members.len();
        let mut repaired = 0;
        let mut tasks = JoinSet::new();
        for member in members {
            if tasks.len() >= AT_ONCE {
                repaired += usize::from(matches!(tasks.join_next().await, Some(Ok(true))));
            }
            let ambient = self.clone();
            tasks.spawn(async move { ambient.verify_in_time(member.key.uid, false).await });
        }
        while let Some(done) = tasks.join_next().await {
            repaired += usize::from(matches!(done, Ok(true)));
        }
        (looked, repaired)
    }

    /// As [`Self::verify_pod`], which goes on alone where it takes longer than the other pods wait for it.
    async fn verify_in_time(self: &Arc<Self>, uid: String, only_look: bool) -> bool {
        let Some(verifying) = self.pods.slots.verifying(&uid) else { return false };
        let ambient = self.clone();
        let look = tokio::spawn(async move {
            let _verifying = verifying;
            ambient.verify_pod(uid, only_look).await
        });
        matches!(tokio::time::timeout(PATIENCE, look).await, Ok(Ok(true)))
    }

    /// Whether something differed and was put right; nothing is where it is only to be looked at.
    async fn verify_pod(&self, uid: String, only_look: bool) -> bool {
        let _turn = self.pods.members.turn(&uid).await;
        let Some(member) = self.pods.members.get(&uid).filter(Member::is_verified) else { return false };
        // One that the others have not waited for may come to its turn when everything is being removed.
        if self.life.ending.get().is_some() || self.pods.slots.is_overdue(&uid) {
            return false;
        }
        // What is on its way out, or was when an agent before this one ended, gets nothing back.
        if !self.belongs_in(&member) {
            return false;
        }
        if Self::is_gone(&member) {
            self.miss_sandbox(&member);
            return false;
        }
        let (pod, was_due) = (member.key.clone(), member.have.look() == Some(Look::Due));
        let (looked, repaired) = match self.put_right(member, only_look).await {
            Ok(true) => {
                self.metrics.repaired("pod-rules", 1);
                self.log.warn("the rules of a pod differed and are put right", &[("pod", &pod)]);
                (true, true)
            }
            Ok(false) => {
                self.log.settled(&[("pod", &pod)]);
                (true, false)
            }
            Err(error) => {
                self.log.error(fault::message(&error), &[("pod", &pod)]);
                self.telling.troubles.note(&uid, error.reason());
                (false, false)
            }
        };
        self.looked(&pod, looked, was_due);
        repaired
    }

    /// Notes that a pod's rules were looked at. Work is asked for where they are not as they should be.
    fn looked(&self, pod: &PodRef, looked: bool, was_due: bool) {
        let member = self.pods.members.change(&pod.uid, |member| {
            member.missed = false;
            if !looked {
                member.have.see(Observation::Rules(Look::Unknown));
            }
            if member.have.look() == Some(Look::Unknown) {
                member.doubt();
            }
        });
        let differs = member.is_some_and(|member| member.have.look() == Some(Look::Unknown));
        if differs || was_due {
            self.pods.queue.push(pod.clone());
        }
    }

    /// The sandbox is gone. A pod that is being deleted is gone soon, too; of another one the runtime has made a sandbox without telling us.
    fn miss_sandbox(&self, member: &Member) {
        self.pods.members.change(&member.key.uid, |member| {
            if member.missed {
                member.doubt();
            }
            member.missed = true;
        });
        if member.missed {
            self.pods.queue.push(member.key.clone());
        }
    }

    fn belongs_in(&self, member: &Member) -> bool {
        let PodRef { namespace, name, uid } = &member.key;
        let facts = self.cluster.index().facts(namespace, name);
        let facts = facts.filter(|facts| facts.pod.uid() == Some(uid));
        facts.is_some_and(|facts| matches!(self.config.rules.desired(&facts), Desired::In | Desired::Unknown))
    }

    /// Pods that belong into the mesh and whose namespace is not known.
    pub(super) fn without_netns(&self) -> Vec<WantedPod> {
        let index = self.cluster.index();
        let pods: Vec<_> = index.pods().cloned().collect();
        let facts = pods.iter().filter_map(|pod| index.facts(pod.namespace(), pod.name()));
        let wanted =
            facts.filter(|facts| self.config.rules.desired(facts) == Desired::In).filter_map(|facts| {
                let uid = facts.pod.uid()?;
                let known = self.pods.members.get(uid).is_some_and(|member| member.netns.is_some());
                let ips = facts.pod.ips();
                (!known && !ips.is_empty()).then(|| Member::of(&facts.pod).0.wanted(&ips, &self.config))
            });
        wanted.collect()
    }
}

fn is_leaving(state: MemberState) -> bool {
    matches!(state, MemberState::Leaving | MemberState::Draining)
}
