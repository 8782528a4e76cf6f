//! What the rules of pods in their own network namespaces are to be, and what of it is loaded. It touches no kernel: whoever does takes a
//! [`PodJob`] and says how it went.

mod booked;
mod job;
mod sets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::services::ClassServices;
use facts::networkpolicy::Isolation;
use policy::compile::{CompiledPod, DenialAnswer, PodPoint, compile_pod};
use policy::index::{
    LocalName, PeerMember, PeerSet, PodClasses, PolicyClass, PolicyEffect, PolicyIndex, TunnelJudge,
};
use ruleset::Backend;

use super::point::PointCharge;
use booked::{BookedPod, PodScope};
pub use job::{PodJob, SetContent, SetJob};
use sets::{BookedSets, members_of};

/// See the module.
#[derive(Debug)]
pub struct PodBook {
    backend: Backend,
    /// The own node's addresses.
    node: Vec<IpAddr>,
    /// Addresses from which the own node's probes of pods in ambient mode seem to come.
    probes: Vec<IpAddr>,
    answer: DenialAnswer,
    answers_arriving: bool,
    sets: BookedSets,
    /// What policies come to for addresses of Services, where that is known.
    services: ClassServices,
    pods: BTreeMap<LocalName, BookedPod>,
    /// How many pods there were.
    last: u64,
}

impl PodBook {
    /// Without pods. `probes`: addresses from which the own node's probes of pods in ambient mode seem to come.
    pub fn new(backend: Backend, probes: Vec<IpAddr>) -> Self {
        Self {
            backend,
            node: Vec::new(),
            probes,
            answer: DenialAnswer::Never,
            answers_arriving: false,
            sets: BookedSets::default(),
            services: ClassServices::new(),
            pods: BTreeMap::new(),
            last: 0,
        }
    }

    /// Which denied packets are answered, and whether the kernel does so where packets arrive.
    #[must_use]
    pub fn answering(self, answer: DenialAnswer, answers_arriving: bool) -> Self {
        Self { answer, answers_arriving, ..self }
    }

    /// How the rules are loaded.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Takes everything from an index: `pods` says which are enforced in their own namespaces; of others what is inside their tunnels is judged there.
    /// Gives the pods with which there is something to do.
    pub fn adopt(
        &mut self,
        index: &PolicyIndex,
        node: Vec<IpAddr>,
        pods: &dyn Fn(&LocalName) -> PointCharge,
    ) -> Vec<LocalName> {
        self.node = node;
        self.sets = BookedSets::default();
        let mut wanted = BTreeMap::new();
        for (name, facts, classes) in index.pods() {
            let scope = self.scope(name, pods(name), facts.tunnel);
            if let Some(scope) = scope.filter(|scope| *scope != PodScope::default()) {
                wanted.insert(name, (classes, scope));
            }
        }
        self.pods.values_mut().for_each(BookedPod::is_let_go);
        for (name, (classes, scope)) in wanted {
            self.set_pod(name, classes, scope, index);
        }
        self.all_unknown()
    }

    /// Everything that pods have is to be compared; whoever waited for the lists of Services until now waits no longer. Gives the pods.
    pub fn look_at_all(&mut self) -> Vec<LocalName> {
        self.pods.values_mut().for_each(BookedPod::loses_patience);
        self.all_unknown()
    }

    fn all_unknown(&mut self) -> Vec<LocalName> {
        self.pods.values_mut().for_each(BookedPod::is_unknown);
        self.pods.keys().cloned().collect()
    }

    /// A pod is to be looked at that may have rules of an earlier time.
    pub fn look_at(&mut self, name: LocalName) {
        self.entry(name).is_unknown();
    }

    /// A pod has another namespace than before, in which nothing is known to be.
    pub fn moved(&mut self, name: &LocalName) {
        self.pods.get_mut(name).into_iter().for_each(BookedPod::is_unknown);
    }

    /// Somebody has changed something in a pod's namespace. Whether it is among the pods.
    pub fn disturbed(&mut self, name: &LocalName) -> bool {
        self.pods.get_mut(name).map(BookedPod::is_unknown).is_some()
    }

    /// From now on it is known whether a pod's policies are enforced in its namespace, whatever was there.
    pub fn settle(&mut self, name: &LocalName, is_its: bool, index: &PolicyIndex) {
        self.look_at(name.clone());
        if let Some((_, facts, classes)) = index.pods().find(|(pod, ..)| *pod == name) {
            self.set_pod(name, classes, PodScope::of(is_its, facts.tunnel), index);
        }
    }

    /// Takes what an event changes; `pods` as in [`Self::adopt`]. Gives the pods with which there is something to do.
    pub fn apply(
        &mut self,
        effects: &[PolicyEffect],
        index: &PolicyIndex,
        pods: &dyn Fn(&LocalName) -> PointCharge,
    ) -> BTreeSet<LocalName> {
        let mut touched = BTreeSet::new();
        for effect in effects {
            match effect {
                PolicyEffect::SetGains(set, members) => self.change_set(set, members, true, &mut touched),
                PolicyEffect::SetLoses(set, members) => self.change_set(set, members, false, &mut touched),
                // Sets come and go with the rules that look into them.
                PolicyEffect::SetGoes(_) => {}
                PolicyEffect::SetAppears(set, _) => self.renew_set(set, index, &mut touched),
                PolicyEffect::ClassChanges(class) => touched.extend(self.change_class(class, index)),
                PolicyEffect::PodChanges { pod, classes, tunnel, .. } => {
                    let scope = self.scope(pod, pods(pod), *tunnel);
                    if scope.is_some_and(|scope| self.set_pod(pod, classes, scope, index)) {
                        touched.insert(pod.clone());
                    }
                }
                // Its namespace goes with it.
                PolicyEffect::PodGoes(pod) => {
                    let gone = self.pods.remove(pod).and_then(|pod| pod.rules);
                    gone.iter().for_each(|rules| self.sets.release(rules));
                }
            }
        }
        touched
    }

    /// Takes what policies come to for addresses of Services. Gives the pods with which there is something to do.
    pub fn set_services(&mut self, services: &ClassServices, index: &PolicyIndex) -> BTreeSet<LocalName> {
        let before = std::mem::replace(&mut self.services, services.clone());
        let mut touched = BTreeSet::new();
        let pods: Vec<LocalName> = self.pods.keys().cloned().collect();
        for name in pods {
            let Some(pod) = self.pods.get_mut(&name) else { continue };
            let Some(class) = pod.classes.egress.clone() else { continue };
            match (before.get(&class), self.services.get(&class)) {
                (Some(one), Some(other)) if one != other => {
                    for set in pod.rules.iter().flat_map(|rules| &rules.services) {
                        let [had, has]: [BTreeSet<PeerMember>; 2] =
                            [one, other].map(|verdicts| members_of(verdicts, set).collect());
                        let pending = pod.pending_services.entry(set.name.clone()).or_default();
                        pending.extend(has.difference(&had).map(|one| (*one, true)));
                        pending.extend(had.difference(&has).map(|one| (*one, false)));
                    }
                    touched.insert(name);
                }
                (None, Some(_)) | (Some(_), None) => {
                    let (classes, scope) = (pod.classes.clone(), pod.scope);
                    self.set_pod(&name, &classes, scope, index);
                    touched.insert(name);
                }
                _ => {}
            }
        }
        touched
    }

    /// A job was done: the pod has its rules. Not where the pod was to be looked at again meanwhile, or has moved.
    pub fn done(&mut self, name: &LocalName, job: &PodJob) -> bool {
        let Some(pod) = self.pods.get_mut(name) else { return false };
        if !pod.is_at_work || pod.number != job.number {
            return false;
        }
        pod.is_at_work = false;
        (pod.loaded, pod.last) = (Some(job.rules.clone()), job.rules.clone());
        if pod.rules.is_none() && job.rules.is_none() {
            self.pods.remove(name);
        }
        true
    }

    /// Whether a job is still of the pod of that name: it may have gone meanwhile, and another one may have come.
    pub fn is_of(&self, name: &LocalName, job: &PodJob) -> bool {
        self.pods.get(name).is_some_and(|pod| pod.number == job.number)
    }

    fn entry(&mut self, name: LocalName) -> &mut BookedPod {
        let last = &mut self.last;
        self.pods.entry(name).or_insert_with(|| {
            *last += 1;
            BookedPod { number: *last, ..BookedPod::default() }
        })
    }

    /// The pods that have rules, or are to have them, and whether what leaves them is judged there only.
    pub fn inside(&self) -> impl Iterator<Item = (&LocalName, bool)> {
        let inside = self.pods.iter().filter(|(_, pod)| pod.rules.is_some());
        inside.map(|(name, pod)| (name, pod.scope.all && pod.isolation.egress))
    }

    /// How many pods are to have rules that they are not known to have.
    pub fn waiting(&self) -> usize {
        self.pods.values().filter(|pod| pod.waits()).count()
    }

    /// Whether a pod is one of them.
    pub fn waits(&self, pod: &LocalName) -> bool {
        self.pods.get(pod).is_some_and(BookedPod::waits)
    }

    /// What of a pod is judged in its namespace; nothing where that is not known yet, so that what is there stays.
    fn scope(&self, name: &LocalName, charge: PointCharge, tunnel: TunnelJudge) -> Option<PodScope> {
        let is_unsettled = charge == PointCharge::Unsettled;
        let all = if is_unsettled { self.pods.get(name)?.scope.all } else { charge == PointCharge::Its };
        Some(PodScope::of(all, tunnel))
    }

    /// Says what a pod is to have. Whether that is something else than before.
    fn set_pod(
        &mut self,
        name: &LocalName,
        classes: &PodClasses,
        scope: PodScope,
        index: &PolicyIndex,
    ) -> bool {
        let is_judged = scope != PodScope::default() && classes.iter().next().is_some();
        if !is_judged && !self.pods.contains_key(name) {
            return false;
        }
        let rules = is_judged.then(|| self.compiled(index, classes, scope)).flatten();
        // In this order, so that what both look into stays.
        rules.iter().for_each(|rules| self.sets.take(rules, index));
        let before = self.pods.get(name).and_then(|pod| pod.rules.as_ref());
        before.iter().for_each(|rules| self.sets.release(rules));
        let guards =
            |class: &Option<Arc<PolicyClass>>| class.as_ref().is_some_and(|class| index.guards(class));
        let isolation = Isolation { ingress: guards(&classes.ingress), egress: guards(&classes.egress) };
        let pod = self.entry(name.clone());
        pod.isolation = isolation;
        pod.set(classes, scope, rules)
    }

    fn change_class(&mut self, class: &Arc<PolicyClass>, index: &PolicyIndex) -> Vec<LocalName> {
        let having = self.pods.iter().filter(|(_, pod)| pod.classes.iter().any(|its| its == class));
        let having: Vec<(LocalName, PodClasses, PodScope)> =
            having.map(|(name, pod)| (name.clone(), pod.classes.clone(), pod.scope)).collect();
        for (name, classes, scope) in &having {
            self.set_pod(name, classes, *scope, index);
        }
        having.into_iter().map(|(name, ..)| name).collect()
    }

    fn compiled(
        &self,
        index: &PolicyIndex,
        classes: &PodClasses,
        scope: PodScope,
    ) -> Option<Arc<CompiledPod>> {
        let enrolled = scope.tunnel.then_some(&*self.probes);
        // Until Services are known their addresses are judged as any other.
        let services = classes.egress.as_ref().is_some_and(|class| self.services.contains_key(class));
        let (answer, answers_arriving) = (self.answer, self.answers_arriving);
        let (node, inner) = (&*self.node, !scope.all);
        let point = PodPoint { node, services, enrolled, inner, answer, answers_arriving };
        let compiled = compile_pod(index, classes, &point, self.backend);
        (!compiled.rules.tables.is_empty()).then(|| Arc::new(compiled))
    }

    fn change_set(
        &mut self,
        set: &Arc<PeerSet>,
        members: &[PeerMember],
        is_there: bool,
        touched: &mut BTreeSet<LocalName>,
    ) {
        if !self.sets.change(set, members, is_there) {
            return;
        }
        for (name, pod) in &mut self.pods {
            if pod.looks_into(set) {
                let pending = pod.pending.entry(set.clone()).or_default();
                pending.extend(members.iter().map(|member| (*member, is_there)));
                touched.insert(name.clone());
            }
        }
    }

    /// A set is there anew: what rules that look into it already had of it says nothing.
    fn renew_set(&mut self, set: &Arc<PeerSet>, index: &PolicyIndex, touched: &mut BTreeSet<LocalName>) {
        if !self.sets.renew(set, index) {
            return;
        }
        for (name, pod) in &mut self.pods {
            if pod.writes_anew(set) {
                touched.insert(name.clone());
            }
        }
    }
}
