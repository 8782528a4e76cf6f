//! What the kernel holds against what it should hold: once at the start for every pod, and then again and again.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use capture::ambient::plan_pod;
use cluster::PodKey;
use kernel::Change;
use netns::Netns;
use netns::find::Wanted;
use tokio::task::JoinSet;

use super::Ambient;
use super::desired::{Desired, ENABLED, REDIRECTION};
use super::enrol::pod_text;
use super::evidence::Subject;
use super::failure::Failure;
use super::finder;
use super::members::{Member, State};
use super::record::{Place, Record};

/// Namespaces that are looked at at once.
const AT_ONCE: usize = 4;

impl Ambient {
    /// The pods that an earlier agent enrolled (AA-60 to AA-64): every one of them is a member before the first ztunnel is served, with its
    /// namespace if it can be found and without it otherwise, so that no failure makes a ztunnel let go of a pod.
    pub(super) async fn take_over(self: &Arc<Self>) {
        let mut lost = self.known_before().await;
        lost.retain(|member| member.netns.is_none());
        match self.finder.find_all(self, lost.iter().map(|lost| lost.wanted(&lost.ips)).collect()).await {
            Ok(mut found) => {
                for mut member in lost {
                    if let Some(netns) = found.remove(&member.key.uid) {
                        member.move_to_keeping(netns);
                        self.note(&member);
                    }
                }
            }
            Err(error) => self.log.error(&error, &[]),
        }
        self.verify_host().await;
        let (looked, repaired) = self.verify_pods(true).await;
        let labels: [telemetry::Label<'_>; 3] =
            [("pods", &self.members.all().len()), ("verified", &looked), ("repaired", &repaired)];
        self.log.info("the pods of an earlier agent are taken over", &labels);
    }

    /// Pods of which an earlier agent kept a record, and those that carry the mark of one that kept none. Each is noted.
    async fn known_before(self: &Arc<Self>) -> Vec<Member> {
        let ambient = self.clone();
        let read = tokio::task::spawn_blocking(move || ambient.read_records()).await;
        let mut records = read.unwrap_or_else(|error| {
            self.log.error(Failure::from(error), &[]);
            HashMap::new()
        });
        let pods: Vec<_> = self.cluster.index().pods().cloned().collect();
        let mut members = Vec::new();
        for pod in pods.iter().filter(|pod| !self.config.rules.is_ztunnel(pod)) {
            let enabled = pod.annotation(REDIRECTION) == Some(ENABLED) && !pod.is_terminal();
            let mut member = match records.remove(pod.uid().unwrap_or_default()) {
                Some((record, netns)) => {
                    let mut member = Member::recorded(pod, &record);
                    if let Some(netns) = netns {
                        member.move_to_keeping(netns);
                        member.given = record.netns.is_some_and(|place| place.given);
                    }
                    member
                }
                None if enabled => {
                    let (mut member, _) = Member::of(pod);
                    member.set_ips(pod.ips());
                    member.state = State::Enrolled;
                    member
                }
                None => continue,
            };
            member.listed = !pod.is_terminal();
            let done = member.state == State::Enrolled;
            member.ruled = done || member.state == State::Leaving;
            (member.acked, member.probed) = (done, done && !member.ips.is_empty());
            self.note(&member);
            members.push(member);
        }
        members
    }

    /// What the agent before has kept, with the namespace of each pod that is still where it was. Records of pods that are gone are removed.
    fn read_records(&self) -> HashMap<String, (Record, Option<Netns>)> {
        let (records, mut errors) = self.records.read();
        let known: HashSet<String> =
            self.cluster.index().pods().filter_map(|pod| pod.uid().map(str::to_owned)).collect();
        errors.extend(self.records.sweep(|uid| known.contains(uid)));
        errors.iter().for_each(|error| self.log.warn(error, &[]));
        let records = records.into_iter().filter(|record| known.contains(&record.uid));
        let reopened = records.map(|record| {
            let netns = record.netns.as_ref().and_then(|place| self.reopen(place, &record.ips));
            (record.uid.clone(), (record, netns))
        });
        reopened.collect()
    }

    /// The namespace of a record, if its path still leads there and it is still the pod's.
    fn reopen(&self, place: &Place, ips: &[IpAddr]) -> Option<Netns> {
        let netns = Netns::open(&place.path).ok().filter(|netns| netns.id() == place.id())?;
        let host = self.host().ok()?.id();
        netns::find::belongs_to(&netns, host, ips, &finder::addresses).ok()?;
        Some(netns)
    }

    /// Verifies until the task is aborted.
    pub(super) async fn verify(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.config.verify_every).await;
            self.look_again().await;
            self.verify_host().await;
            self.verify_pods(false).await;
            if let Some(error) = self.evidence.sweep(&self.members) {
                self.log.warn(&error, &[]);
            }
            self.finder.forget().await;
        }
    }

    /// Looks for what could not be found or done before.
    async fn look_again(&self) {
        let lost: Vec<Member> =
            self.members.all().into_iter().filter(|member| member.netns.is_none()).collect();
        if !lost.is_empty()
            && let Ok(mut found) =
                self.finder.find_all(self, lost.iter().map(|lost| lost.wanted(&lost.ips)).collect()).await
        {
            for member in lost {
                let Some(netns) = found.remove(&member.key.uid) else { continue };
                let _turn = self.members.turn(&member.key.uid).await;
                let Some(mut member) = self.members.get(&member.key.uid) else { continue };
                member.move_to_keeping(netns);
                self.note(&member);
                self.log
                    .info("the namespace of a pod in the mesh is found", &[("pod", &pod_text(&member.key))]);
                if let Some(netns) = member.netns.clone()
                    && let Err(error) = self.ztunnels.add(member.workload(), netns).await
                {
                    self.log.warn(&error, &[("pod", &pod_text(&member.key))]);
                }
            }
        }
        self.push_misplaced();
    }

    /// Asks for work on all pods.
    pub(super) fn push_all(&self) {
        let keys: Vec<_> = self.cluster.index().pods().map(|pod| super::key_of(pod)).collect();
        // And those that went while the earlier ones were taken over.
        let members = self.members.all().into_iter().map(|member| member.key);
        for key in keys.into_iter().chain(members) {
            self.queue.push(key);
        }
    }

    /// Asks for work on every pod that is not where it belongs: what failed for want of a change may succeed by now.
    fn push_misplaced(&self) {
        let mut keys: Vec<PodKey> = Vec::new();
        {
            let index = self.cluster.index();
            let pods: Vec<_> = index.pods().cloned().collect();
            for facts in pods.iter().filter_map(|pod| index.facts(pod.namespace(), pod.name())) {
                let key = super::key_of(&facts.pod);
                let member = self.members.get(&key.uid);
                let state = member.as_ref().map(|member| member.state);
                let shown = facts.pod.annotation(REDIRECTION);
                let settled = match self.config.rules.desired(&facts) {
                    Desired::In => state == Some(State::Enrolled) && shown == Some(ENABLED),
                    Desired::Out(_) => matches!(state, None | Some(State::Draining)) && shown.is_none(),
                    Desired::Ended => state.is_none() && shown.is_none(),
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
            keys.extend(self.members.all().into_iter().filter(gone).map(|member| member.key));
        }
        for key in keys {
            self.queue.push(key);
        }
    }

    async fn verify_host(self: &Arc<Self>) {
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
            }
            Ok(Ok(Err(error))) => self.log.error(&error, &[]),
            Ok(Err(error)) => self.log.error(&error, &[]),
            Err(error) => self.log.error(&error, &[]),
        }
    }

    /// What the host's sets should hold, and whether that is all: somebody may be in them whose address is not known any more (AA-61).
    fn addresses(&self) -> (Vec<(IpAddr, String)>, bool) {
        let mut members = self.members.all();
        // An address may be another pod's before the API server says that the pod before has ended: the last one counts.
        members.sort_unstable_by_key(|member| member.addressed);
        // What leaves keeps its addresses until its rules are gone.
        let inside = members
            .iter()
            .filter(|member| member.probed || !matches!(member.state, State::Leaving | State::Draining));
        let owners: HashMap<IpAddr, &str> =
            inside.flat_map(|member| member.ips.iter().map(|ip| (*ip, &*member.key.uid))).collect();
        let wanted = owners.into_iter().map(|(ip, uid)| (ip, uid.to_owned())).collect();
        (wanted, members.iter().all(|member| !member.ips.is_empty()))
    }

    /// Compares the rules of every pod; gives how many were looked at and how many were repaired.
    async fn verify_pods(self: &Arc<Self>, starting: bool) -> (usize, usize) {
        let members: Vec<Member> =
            self.members.all().into_iter().filter(|member| member.ruled && member.netns.is_some()).collect();
        let looked = members.len();
        let mut repaired = 0;
        let mut tasks = JoinSet::new();
        for member in members {
            if tasks.len() >= AT_ONCE {
                repaired += usize::from(matches!(tasks.join_next().await, Some(Ok(true))));
            }
            let ambient = self.clone();
            tasks.spawn(async move { ambient.verify_pod(member.key.uid, starting).await });
        }
        while let Some(done) = tasks.join_next().await {
            repaired += usize::from(matches!(done, Ok(true)));
        }
        (looked, repaired)
    }

    /// Whether something differed and was put right.
    async fn verify_pod(&self, uid: String, starting: bool) -> bool {
        let _turn = self.members.turn(&uid).await;
        let Some(mut member) = self.members.get(&uid).filter(|member| member.ruled && member.netns.is_some())
        else {
            return false;
        };
        // What is on its way out, or was when an agent before this one ended, gets nothing back.
        if Self::is_gone(&member) || !self.belongs_in(&member) {
            return false;
        }
        let pod = pod_text(&member.key);
        if starting && !self.config.reconcile {
            match self.differences(&member).await {
                Ok(0) => {}
                Ok(count) => {
                    self.metrics.drifted();
                    let text = "the rules of a pod differ; AMBIENT_RECONCILE_POD_RULES_ON_STARTUP is off";
                    self.log.warn(text, &[("pod", &pod), ("differences", &count)]);
                }
                Err(error) => self.log.error(&error, &[("pod", &pod)]),
            }
            return false;
        }
        match self.repair(&mut member).await {
            Ok(Some(applied)) if applied.rules != Change::None || applied.moved || applied.routing > 0 => {
                self.metrics.repaired("pod-rules", 1);
                self.log.warn("the rules of a pod differed and are put right", &[("pod", &pod)]);
                true
            }
            Ok(_) => {
                self.log.settled(&[("pod", &pod)]);
                false
            }
            Err(error) => {
                self.log.error(&error, &[("pod", &pod)]);
                false
            }
        }
    }

    fn belongs_in(&self, member: &Member) -> bool {
        let PodKey { namespace, name, uid } = &member.key;
        let facts = self.cluster.index().facts(namespace, name);
        let facts = facts.filter(|facts| facts.pod.uid() == Some(uid));
        facts.is_some_and(|facts| matches!(self.config.rules.desired(&facts), Desired::In | Desired::Unknown))
    }

    /// How many differences there are between a pod's namespace and its plan. Where there is none the plan is what was applied.
    pub(super) async fn differences(&self, member: &Member) -> Result<usize, Failure> {
        let Some(netns) = member.netns.clone() else { return Ok(0) };
        let (backends, backend) = (self.backends.clone(), self.host()?.backend());
        let plan = plan_pod(&self.config.node, &member.options, backend);
        let (evidence, subject) = (self.evidence.clone(), Subject::of(member));
        let found = self.in_kernel(move || {
            let observe = |inside: &netns::Inside| {
                let found = backends.kernel().observe(inside, &plan)?.len();
                let as_planned =
                    (found == 0).then(|| evidence.record(inside, backends.kernel(), &plan, &subject));
                Ok((found, as_planned.flatten()))
            };
            netns.enter(observe)?.map_err(|error: kernel::Error| Failure::Rules(kernel::chain_text(&error)))
        });
        let (found, unrecorded) = found.await??;
        if let Some(unrecorded) = unrecorded {
            self.log.warn(&unrecorded, &[("pod", &pod_text(&member.key))]);
        }
        self.backends.log_warnings(&self.log);
        Ok(found)
    }

    /// Pods that belong into the mesh and whose namespace is not known.
    pub(super) fn homeless(&self) -> Vec<Wanted> {
        let index = self.cluster.index();
        let pods: Vec<_> = index.pods().cloned().collect();
        let facts = pods.iter().filter_map(|pod| index.facts(pod.namespace(), pod.name()));
        let wanted =
            facts.filter(|facts| self.config.rules.desired(facts) == Desired::In).filter_map(|facts| {
                let uid = facts.pod.uid()?;
                let known = self.members.get(uid).is_some_and(|member| member.netns.is_some());
                let ips = facts.pod.ips();
                (!known && !ips.is_empty()).then(|| finder::wanted(&facts.pod, ips))
            });
        wanted.collect()
    }
}
