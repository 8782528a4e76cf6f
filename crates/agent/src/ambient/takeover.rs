//! What an agent before this one left: records, annotations, rules.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::verification::{DriftAction, Drifted};
use facts::{Object, PodRef};
use intent::{Act, Look, Observation, RedirectionMark};
use netns::Netns;
use tokio::task::JoinSet;

use super::Ambient;
use super::desired::{REDIRECTION, mark_of};
use super::failure::AmbientFailure;
use super::members::{GivenNetns, Member, MemberState};
use super::record::{Place, PodRecord, Stage};
use crate::finder;
use crate::policy::PolicyTunnels;

/// Namespaces that are looked at at once.
const AT_ONCE: usize = 4;
/// How long the others wait for one of them. It is looked at to its end all the same.
const PATIENCE: Duration = Duration::from_secs(1);

/// A record, and the namespace of it if that is still where it was.
type Kept = (PodRecord, Option<Netns>);

impl Ambient {
    /// The pods that an earlier agent enrolled: every one of them is a member before the first ztunnel is served, with its
    /// namespace if it can be found and without it otherwise, so that no failure makes a ztunnel let go of a pod. None is in the mesh by that:
    /// its rules are looked at here, and a ztunnel is to take it.
    pub(super) async fn take_over(self: &Arc<Self>) {
        let mut lost = self.known_before().await;
        let _ = self.life.known_before.set(());
        self.pods.policies.get().into_iter().for_each(PolicyTunnels::known);
        lost.retain(|member| member.netns.is_none());
        self.find_lost(lost).await;
        if !self.verify_host().await {
            for member in self.pods.members.all() {
                self.pods
                    .members
                    .change(&member.key.uid, |member| member.have.see(Observation::ProbesInDoubt));
            }
        }
        // Switched off, the option keeps nobody waiting: each pod is looked at when its turn comes.
        let (looked, repaired) = if self.reconciles() { self.put_all_right().await } else { (0, 0) };
        let labels: [telemetry::Label<'_>; 3] =
            [("pods", &self.pods.members.all().len()), ("verified", &looked), ("repaired", &repaired)];
        self.log.info("the pods of an earlier agent are taken over", &labels);
    }

    /// Whether rules of an earlier agent are put right at the start.
    fn reconciles(&self) -> bool {
        self.config.reconcile && self.config.repairs
    }

    /// Puts right what differs in the rules of every pod; gives how many were looked at and how many were repaired.
    async fn put_all_right(self: &Arc<Self>) -> (usize, usize) {
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
            tasks.spawn(async move { ambient.put_right_in_time(member.key).await });
        }
        while let Some(done) = tasks.join_next().await {
            repaired += usize::from(matches!(done, Ok(true)));
        }
        (looked, repaired)
    }

    /// As [`Self::put_right_now`], which goes on alone where it takes longer than the other pods wait for it.
    async fn put_right_in_time(self: Arc<Self>, pod: PodRef) -> bool {
        let (ambient, uid) = (self.clone(), pod.uid.clone());
        let put_right = tokio::spawn(async move { ambient.put_right_now(&uid).await });
        let is_repaired = matches!(tokio::time::timeout(PATIENCE, put_right).await, Ok(Ok(Ok(Some(true)))));
        if is_repaired {
            self.log.warn("the rules of a pod differed and are put right", &[("pod", &pod)]);
            self.metrics.drift(Drifted::Rules, DriftAction::Repaired, 1);
        }
        is_repaired
    }

    /// Looks among the node's processes for the namespaces of these.
    pub(super) async fn find_lost(&self, lost: Vec<Member>) {
        let wanted = lost.iter().map(|lost| lost.wanted(lost.ips(), &self.config)).collect();
        let found = match self.roots() {
            Ok(roots) => self.node.finder.find_all(&roots, wanted).await.map_err(AmbientFailure::from),
            Err(failure) => Err(failure),
        };
        match found {
            Ok(mut found) => {
                for member in lost {
                    let netns = std::cell::Cell::new(found.remove(&member.key.uid));
                    self.pods.members.change(&member.key.uid, |member| {
                        netns.take().into_iter().for_each(|netns| member.move_to_keeping(netns));
                    });
                }
            }
            Err(error) => self.log.error(&error, &[]),
        }
    }

    /// Pods of which an earlier agent kept a record, and those that carry the mark of one that kept none. Each is noted.
    pub(super) async fn known_before(self: &Arc<Self>) -> Vec<Member> {
        let ambient = self.clone();
        let read = tokio::task::spawn_blocking(move || ambient.read_records()).await;
        let mut records = read.unwrap_or_else(|error| {
            self.log.error(AmbientFailure::from(error), &[]);
            HashMap::new()
        });
        let pods: Vec<_> = self.cluster.index().pods().cloned().collect();
        let mut members = Vec::new();
        for pod in pods.iter().filter(|pod| !self.config.rules.is_ztunnel(pod)) {
            let kept = records.remove(pod.uid().unwrap_or_default());
            if let Some(member) = self.known_pod(pod, kept) {
                self.pods.members.insert(member.clone());
                members.push(member);
            }
        }
        members
    }

    fn known_pod(&self, pod: &Object, kept: Option<Kept>) -> Option<Member> {
        let facts = self.cluster.index().facts(pod.namespace(), pod.name());
        let refused = facts.is_some_and(|facts| self.refuse(&facts, &pod.ips()).is_err());
        let kept = kept.filter(|(record, netns)| {
            let is_over = record.stage == Stage::Announced && netns.is_none();
            if is_over && let Err(error) = self.kept.records.remove(&record.uid) {
                self.log.warn(&error, &[]);
            }
            !is_over
        });
        let mut member = match kept {
            Some((record, netns)) => {
                let mut member = Member::recorded(pod, &record);
                if let Ok(host) = self.host() {
                    host.remember_branches(record.branches.into_iter().map(Into::into));
                }
                if let Some(netns) = netns {
                    member.move_to_keeping(netns);
                    if record.netns.is_some_and(|place| place.given) {
                        member.given = GivenNetns::Path;
                    }
                }
                member
            }
            // An annotation is a reason to look, and no more.
            None if is_marked(pod) && !pod.is_terminal() && !refused => {
                let mut member = Member::left_by_another(pod, pod.ips());
                member.state = MemberState::Unconfirmed;
                member
            }
            None => return None,
        };
        if refused && member.state == MemberState::Unconfirmed {
            member.state = MemberState::Pending;
            member.have.see(Observation::RulesInDoubt);
        }
        if !pod.is_terminal() && !member.announced {
            member.have.begin(&Act::TellZtunnel);
        }
        if member.state == MemberState::Unconfirmed && !self.reconciles() {
            member.have.see(Observation::Rules(Look::Due));
        }
        // The node's sets are made so before anything else is done.
        if !member.ips().is_empty() && member.state == MemberState::Unconfirmed {
            member.have.after(&Act::AddProbes, 0);
        }
        Some(member)
    }

    /// What the agent before has kept, with the namespace of each pod that is still where it was. Records of pods that are gone are removed.
    fn read_records(&self) -> HashMap<String, Kept> {
        let (records, mut errors) = self.kept.records.read();
        let known: HashSet<String> =
            self.cluster.index().pods().filter_map(|pod| pod.uid().map(str::to_owned)).collect();
        let (records, gone): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| known.contains(&record.uid));
        // What the API server has not listed yet may be there.
        if self.is_listed() {
            gone.iter().for_each(|record| self.forget_gone(record));
            errors.extend(self.kept.records.sweep(|uid| known.contains(uid)));
        }
        errors.iter().for_each(|error| self.log.warn(error, &[]));
        let records = records.into_iter();
        let reopened = records.map(|record| {
            let netns = record.netns.as_ref().and_then(|place| self.reopen(place, &record.ips));
            (record.uid.clone(), (record, netns))
        });
        reopened.collect()
    }

    /// Removes records of pods that are gone, as the API server has just said.
    pub(super) async fn sweep_records(self: &Arc<Self>) {
        let ambient = self.clone();
        let sweep = tokio::task::spawn_blocking(move || {
            let known: HashSet<String> =
                ambient.cluster.index().pods().filter_map(|pod| pod.uid().map(str::to_owned)).collect();
            // A pod that went meanwhile needs its record until nothing of ours is left of it.
            let known = |uid: &str| known.contains(uid) || ambient.pods.members.get(uid).is_some();
            let (records, _) = ambient.kept.records.read();
            let gone = records.iter().filter(|record| !known(&record.uid));
            gone.for_each(|record| ambient.forget_gone(record));
            ambient.kept.records.sweep(known).iter().for_each(|error| ambient.log.warn(error, &[]));
        });
        if let Err(error) = sweep.await {
            self.log.error(AmbientFailure::from(error), &[]);
        }
    }

    /// Removes what the node has of a pod that is gone: nobody else knows it by now.
    fn forget_gone(&self, record: &PodRecord) {
        let removed = self.host().and_then(|host| {
            host.remember_branches(record.branches.iter().cloned().map(Into::into));
            host.remove(&record.ips, &record.uid)
        });
        let evidence = record.netns.as_ref().and_then(|place| self.kept.evidence.forget(place.id()));
        let errors = removed.err().map(|error| error.to_string()).into_iter().chain(evidence);
        let pod = format!("{}/{}", record.namespace, record.name);
        errors.for_each(|error| self.log.warn(error, &[("pod", &pod)]));
    }

    /// The namespace of a record, if its path still leads there and it is still the pod's.
    fn reopen(&self, place: &Place, ips: &[IpAddr]) -> Option<Netns> {
        let netns = Netns::open(&place.path).ok().filter(|netns| netns.id() == place.id())?;
        let host = self.host().ok()?.id();
        netns::find::belongs_to(&netns, host, ips, &finder::addresses).ok()?;
        Some(netns)
    }
}

/// Whether the pod says of itself that it is in the mesh.
fn is_marked(pod: &Object) -> bool {
    pod.annotation(REDIRECTION).and_then(mark_of) == Some(RedirectionMark::Enabled)
}
