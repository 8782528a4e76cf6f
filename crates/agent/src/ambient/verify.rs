//! What the kernel holds against what it should hold: what is done about it, in pods and in the node's namespace. When it is looked is
//! [`crate::verification`]'s affair.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::verification::{DriftAction, Drifted};
use facts::PodRef;
use intent::{Look, Observation, Probes, RedirectionMark};
use netns::Netns;
use netns::find::{MissingNetns, WantedPod};

use super::Ambient;
use super::desired::{self, Desired, REDIRECTION};
use super::failure::AmbientFailure;
use super::host::NotReady;
use super::members::{Member, MemberState};
use super::ports::Disk as _;
use crate::drains::Wait;
use crate::verification::{FoundBy, NetnsIdentity, identity};

impl Ambient {
    /// Asks for work on pods whose namespaces were found by a process that has ended since: they may have another sandbox by now.
    pub(super) fn push_left_by_process(&self) {
        let left = self.pods.members.all().into_iter().filter(is_left_by_process);
        left.for_each(|member| self.pods.queue.push(member.key));
    }

    /// Looks where a pod is whose namespace was found by a process that has ended since; gives what is known of it then. Whoever calls has the
    /// pod's turn.
    pub(super) async fn follow_process(&self, member: Member) -> Member {
        if !is_left_by_process(&member) {
            return member;
        }
        let found = self.find_running(member.wanted(member.ips(), &self.config)).await;
        let Ok(netns) = found.inspect_err(|error| self.log.debug(error, &[("pod", &member.key)])) else {
            return member;
        };
        let is_same = member.netns.as_deref() == Some(&netns);
        let netns = std::cell::Cell::new(Some(netns));
        let followed = self.pods.members.change(&member.key.uid, |member| match netns.take() {
            // By another of its processes.
            Some(netns) if is_same => member.move_to_keeping(netns),
            Some(netns) => {
                member.move_to(netns);
                member.doubt();
            }
            None => {}
        });
        if !is_same {
            self.log.warn("a pod has another sandbox than before", &[("pod", &member.key)]);
        }
        followed.unwrap_or(member)
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
                // Somebody may have found it while the turn was waited for.
                if self.pods.members.get(&member.key.uid).is_none_or(|member| member.netns.is_some()) {
                    continue;
                }
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
        let (ambient, conflicts) = (self.clone(), self.pods.verifier.known_conflicts().clone());
        let verify = move || {
            ambient.host().map(|host| {
                let repaired = host.verify(|| ambient.addresses())?;
                let probed: Vec<IpAddr> = ambient.addresses().0.into_iter().map(|(ip, _)| ip).collect();
                host.look_for_conflicts(&conflicts, &probed)?;
                Ok::<_, NotReady>(repaired)
            })
        };
        // Before anything is put right: what programs of ours commit is heard of as anybody's.
        let by_programs = self.looks_at_host_by_programs();
        let mut writers = self.take_host_writers();
        let looked = self.in_kernel(verify).await;
        // Who committed meanwhile may be heard of only now.
        let since = self.take_host_writers();
        if writers.is_empty() && !by_programs {
            writers = since;
        }
        let writers = super::host_watch::told(&writers);
        match looked {
            Ok(Ok(Ok(repaired))) => {
                if repaired.rules {
                    self.metrics.repaired("host-rules", 1);
                    self.metrics.drift(Drifted::HostRules, DriftAction::Repaired, 1);
                    let text = "the rules for host probes differed and are put right";
                    self.log.warn(text, &[("culprit", &writers)]);
                    self.tell_host_restored(&writers);
                }
                if repaired.members > 0 {
                    self.metrics.repaired("host-sets", repaired.members);
                    self.metrics.drift(Drifted::HostSets, DriftAction::Repaired, repaired.members);
                    let labels: [telemetry::Label<'_>; 1] = [("addresses", &repaired.members)];
                    self.log.warn("the addresses for host probes differed and are put right", &labels);
                }
                self.metrics.host_verified();
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

    /// Puts right what differs in a pod's rules. Whether something did; nothing where it was not looked, or is to be left.
    pub(super) async fn put_right_now(&self, uid: &str) -> Result<Option<bool>, AmbientFailure> {
        let _turn = self.pods.members.turn(uid).await;
        let Some(member) = self.pods.members.get(uid).filter(Member::is_verified) else { return Ok(None) };
        // One that the others have not waited for may come to its turn when everything is being removed.
        if self.life.ending.get().is_some() || self.pods.slots.is_overdue(uid) {
            return Ok(None);
        }
        // What is on its way out, or was when an agent before this one ended, gets nothing back.
        if !self.belongs_in(&member) {
            return Ok(None);
        }
        if Self::is_gone(&member) {
            self.miss_sandbox(&member);
            return Ok(None);
        }
        self.is_where_it_was(&member).await?;
        let (pod, was_due) = (member.key.clone(), member.have.look() == Some(Look::Due));
        let put_right = self.put_right(member, was_due).await;
        match &put_right {
            Ok(true) => self.metrics.repaired("pod-rules", 1),
            Ok(false) => self.log.settled(&[("pod", &pod)]),
            Err(error) => {
                self.log.error(fault::message(error), &[("pod", &pod)]);
                self.telling.troubles.note(uid, error.reason(), fault::message(error));
            }
        }
        self.looked(&pod, put_right.is_ok(), was_due);
        put_right.map(|repaired| (repaired || !was_due).then_some(repaired))
    }

    /// A namespace that was found by a process of the pod which has ended since: whether it is the pod's still.
    async fn is_where_it_was(&self, member: &Member) -> Result<(), AmbientFailure> {
        let Some(netns) = &member.netns else { return Ok(()) };
        if identity(netns, member.found_by()) == NetnsIdentity::Holds {
            return Ok(());
        }
        let there = self.find_running(member.wanted(member.ips(), &self.config)).await?;
        if there == **netns { Ok(()) } else { Err(AmbientFailure::NotFound(MissingNetns::OtherAddress)) }
    }

    /// Notes that a pod's rules were looked at. Work is asked for where they are not as they should be.
    pub(super) fn looked(&self, pod: &PodRef, looked: bool, was_due: bool) {
        let member = self.pods.members.change(&pod.uid, |member| {
            member.missed = false;
            if !looked {
                member.have.see(Observation::Rules(Look::Unknown));
            }
            if member.have.look() == Some(Look::Unknown) {
                member.doubt();
            }
        });
        if was_due {
            self.tell_due();
        }
        let differs = member.is_some_and(|member| member.have.look() == Some(Look::Unknown));
        if differs || was_due {
            self.pods.queue.push(pod.clone());
        }
    }

    /// One more of the pods of an earlier agent was looked at: says so when it was the last.
    fn tell_due(&self) {
        let looked = self.life.looked.fetch_add(1, Ordering::Relaxed) + 1;
        let is_due = |member: &Member| member.have.look() == Some(Look::Due);
        if !self.pods.members.all().iter().any(is_due) {
            self.log.info("the pods of an earlier agent are verified", &[("pods", &looked)]);
        }
    }

    /// The sandbox is gone. A pod that is being deleted is gone soon, too; of another one the runtime has made a sandbox without telling us.
    pub(super) fn miss_sandbox(&self, member: &Member) {
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

    /// Pods that belong into the mesh and whose namespace is not known, or may be another one by now.
    pub(super) fn without_netns(&self) -> Vec<WantedPod> {
        let index = self.cluster.index();
        let pods: Vec<_> = index.pods().cloned().collect();
        let facts = pods.iter().filter_map(|pod| index.facts(pod.namespace(), pod.name()));
        let wanted =
            facts.filter(|facts| self.config.rules.desired(facts) == Desired::In).filter_map(|facts| {
                let uid = facts.pod.uid()?;
                let member = self.pods.members.get(uid);
                let known =
                    member.is_some_and(|member| member.netns.is_some() && !is_left_by_process(&member));
                let ips = facts.pod.ips();
                (!known && !ips.is_empty()).then(|| Member::of(&facts.pod).0.wanted(&ips, &self.config))
            });
        wanted.collect()
    }
}

/// Whether the pod's namespace was found by a process that has ended since, which says nothing of where the pod is.
fn is_left_by_process(member: &Member) -> bool {
    let found_by = member.found_by();
    let has_ended = |netns: &Arc<Netns>| identity(netns, found_by) != NetnsIdentity::Holds;
    found_by == FoundBy::Process && member.netns.as_ref().is_some_and(has_ended)
}

fn is_leaving(state: MemberState) -> bool {
    matches!(state, MemberState::Leaving | MemberState::Draining)
}
