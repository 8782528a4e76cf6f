//! What is to be done in a pod's namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use facts::networkpolicy::Isolation;
use policy::ServiceVerdicts;
use policy::compile::{ClusterInterface, CompiledPod};
use policy::guard::{Admitted, plan_guard};
use policy::index::{LocalName, PeerMember, PolicyClass};
use ruleset::{Element, Family, Key, SetDelta};

use super::PodBook;
use super::booked::{BookedPod, ServicesWait};
use super::sets::{BookedSets, members_of};

/// What is to be done in a pod's namespace.
#[derive(Debug, Clone)]
pub struct PodJob {
    /// By which the book knows the pod.
    pub(super) number: u64,
    /// The rules that it is to have; nothing: none.
    pub rules: Option<Arc<CompiledPod>>,
    /// Those that it is known to have.
    pub before: Option<Arc<CompiledPod>>,
    /// Those that it had when that was known last: something of them may be left.
    pub last: Option<Arc<CompiledPod>>,
    /// What becomes of its sets, those that are new among them.
    pub sets: Vec<SetJob>,
    /// How many elements its sets have then.
    pub elements: usize,
    /// Whether everything is to be compared with what is there.
    pub is_whole: bool,
    /// Whether all of it was loaded already, so that whatever differs was changed by others.
    pub is_repeat: bool,
    /// Whether the rules are to judge what is inside the pod's tunnel.
    pub judges_tunnel: bool,
    /// Whether the rules judge addresses of Services as any other, because the lists of Services were waited for long enough.
    pub lacks_services: bool,
}

/// What becomes of a set.
#[derive(Debug, Clone)]
pub struct SetJob {
    /// Its name in the kernel.
    pub name: String,
    /// The whole of it, where what is there is not known; else what changes.
    pub content: SetContent,
}

/// See [`SetJob`].
#[derive(Debug, Clone)]
pub enum SetContent {
    /// All members.
    Whole(Vec<Element>),
    /// Some come or go.
    Changes(SetDelta),
}

// === impl PodJob ===

impl PodJob {
    /// Only what is of the cluster's network is judged, which is behind this interface; it was that one when it was done last. Without one it is all.
    pub fn judge_only(&mut self, interface: Option<&ClusterInterface>, last: Option<&ClusterInterface>) {
        let only = |rules: &mut Option<Arc<CompiledPod>>, at: Option<&ClusterInterface>| {
            if let (Some(compiled), Some(at)) = (&rules, at) {
                *rules = Some(Arc::new(compiled.of_interface(at)));
            }
        };
        only(&mut self.rules, interface);
        only(&mut self.before, last);
        only(&mut self.last, last);
    }
}

// === impl PodBook ===

impl PodBook {
    /// What is to be done for a pod now; nothing if it is not known any more. What changes from here on is the next job's.
    pub fn job(&mut self, name: &LocalName) -> Option<PodJob> {
        let pod = self.pods.get_mut(name)?;
        let is_unlisted = |class: &Arc<PolicyClass>| pod.scope.all && !self.services.contains_key(class);
        let lacks_services = pod.rules.is_some() && pod.classes.egress.as_ref().is_some_and(is_unlisted);
        match (lacks_services, pod.services) {
            (false, _) => pod.services = ServicesWait::Not,
            (true, ServicesWait::Over) => {}
            (true, ServicesWait::Not | ServicesWait::Waits) => {
                // Addresses of Services are not judged yet, and whatever denies some of them is left in its place. They make a new job.
                pod.services = ServicesWait::Waits;
                return None;
            }
        }
        let is_same = pod.fresh.is_empty() && pod.pending.is_empty() && pod.pending_services.is_empty();
        let is_same = is_same && !pod.is_at_work;
        let is_repeat = is_same && pod.loaded.is_none() && pod.last.is_some() && pod.last == pod.rules;
        let before = pod.loaded.clone().flatten();
        let verdicts = pod.classes.egress.as_ref().and_then(|class| self.services.get(class));
        let sets = pod.set_jobs(before.as_deref(), &self.sets, verdicts.map(|verdicts| &**verdicts));
        let kept = pod.rules.iter().flat_map(|rules| &rules.kept);
        let of_peers: usize = kept.map(|(_, family, set)| self.sets.count(set, *family)).sum();
        let services = pod.rules.iter().flat_map(|rules| &rules.services);
        let of_services = services.flat_map(|set| verdicts.map(|verdicts| members_of(verdicts, set).count()));
        let elements = of_peers + of_services.sum::<usize>();
        let is_whole = pod.loaded.is_none();
        // Until it is said how it went, nobody knows.
        pod.loaded = None;
        pod.is_at_work = true;
        Some(PodJob {
            number: pod.number,
            rules: pod.rules.clone(),
            before,
            last: pod.last.clone(),
            sets,
            elements,
            is_whole,
            is_repeat,
            judges_tunnel: pod.scope.tunnel,
            lacks_services,
        })
    }

    /// The same where the pod may not have its rules: it is isolated in the directions in which these would isolate it, without sets.
    pub fn closed(&self, name: &LocalName, job: &PodJob) -> PodJob {
        let pod = self.pods.get(name).filter(|pod| pod.number == job.number);
        let isolation = pod.map_or(Isolation::BOTH, |pod| pod.isolation);
        let probes = if job.judges_tunnel { &*self.probes } else { &[] };
        let rules = plan_guard(isolation, Admitted { node: &self.node, probes }, self.backend);
        let (kept, services, left_out) = (Vec::new(), Vec::new(), Vec::new());
        let closed = CompiledPod { rules, kept, services, left_out };
        let rules = (!closed.rules.tables.is_empty()).then(|| Arc::new(closed));
        PodJob { rules, sets: Vec::new(), ..job.clone() }
    }
}

// === impl BookedPod ===

impl BookedPod {
    /// What becomes of its sets: those are written as a whole that were not loaded, or that its rules have not looked into ever since.
    fn set_jobs(
        &mut self,
        before: Option<&CompiledPod>,
        booked: &BookedSets,
        verdicts: Option<&ServiceVerdicts>,
    ) -> Vec<SetJob> {
        let fresh = std::mem::take(&mut self.fresh);
        let pending = std::mem::take(&mut self.pending);
        let mut sets = Vec::new();
        for (name, family, set) in self.rules.iter().flat_map(|rules| &rules.kept) {
            let was_loaded = before.is_some_and(|before| before.kept.iter().any(|(known, ..)| known == name));
            let content = if !was_loaded || fresh.contains(name) {
                SetContent::Whole(booked.of(set, *family))
            } else {
                match pending.get(set) {
                    Some(changes) => SetContent::Changes(delta(changes, *family)),
                    None => continue,
                }
            };
            sets.push(SetJob { name: name.clone(), content });
        }
        let pending = std::mem::take(&mut self.pending_services);
        for set in self.rules.iter().flat_map(|rules| &rules.services) {
            let was_loaded = before.is_some_and(|before| before.services.contains(set));
            let content = if !was_loaded || fresh.contains(&set.name) {
                let members = verdicts.into_iter().flat_map(|verdicts| members_of(verdicts, set));
                SetContent::Whole(members.map(|one| Element::from(Key::from(one))).collect())
            } else {
                match pending.get(&set.name) {
                    Some(changes) => SetContent::Changes(delta(changes, set.family)),
                    None => continue,
                }
            };
            sets.push(SetJob { name: set.name.clone(), content });
        }
        sets
    }
}

/// The changes of one family.
fn delta(changes: &BTreeMap<PeerMember, bool>, family: Family) -> SetDelta {
    let mut delta = SetDelta::default();
    for (member, is_there) in changes {
        if Family::of_address(member.address) != family {
            continue;
        }
        if *is_there {
            delta.add(Key::from(*member));
        } else {
            delta.remove(Key::from(*member));
        }
    }
    delta
}
