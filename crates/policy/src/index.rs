//! What the policies of a cluster come to on one node: the class of each of its pods, and the sets that the rules of these classes look
//! packets up in. Only those are kept: a policy that selects no pod of the node costs its own terms.
//!
//! Each event gives what it changes, as values. The world is asked for pods and namespaces, and has to be as it is after the event.

mod anchors;
mod class;
mod sets;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use facts::{LabelSet, Selector};

use crate::terms::{PolicyName, PolicyTerms, RuleAction, Section};
use crate::world::{PolicyPod, World};
pub use class::{PodClasses, PolicyClass, classes_in};
use sets::PeerSets;
pub(crate) use sets::protocol;
pub use sets::{PeerMember, PeerSet};
pub(crate) use wanted::NamedRoom;

/// See the module.
#[derive(Debug, Default)]
pub struct PolicyIndex {
    policies: BTreeMap<PolicyName, Arc<PolicyTerms>>,
    pods: BTreeMap<LocalName, LocalPod>,
    /// Pods of the node by the classes that they have.
    classes: BTreeMap<Arc<PolicyClass>, usize>,
    sets: PeerSets,
}

/// A pod of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFacts {
    /// Its labels.
    pub labels: LabelSet,
    /// Its addresses in the cluster's network; not those that another pod has the better claim to ([`World::pod_at`]).
    pub addresses: Box<[IpAddr]>,
    /// What becomes of the tunnel of ambient mode to it.
    pub tunnel: TunnelJudge,
}

/// Who judges what comes to a pod, or leaves it, through the tunnel of ambient mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelJudge {
    /// Nobody inside: the tunnel's port is a port as any other.
    #[default]
    Port,
    /// Rules in the pod are to judge what is inside. They may not be there yet, so that to others the tunnel's port is a port still.
    Coming,
    /// Rules in the pod judge it, so that the tunnel itself is open to whoever may come to some port.
    Inside,
}

/// Namespace and name of a pod of the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalName {
    /// `metadata.namespace`
    pub namespace: Box<str>,
    /// `metadata.name`
    pub name: Box<str>,
}

#[derive(Debug)]
struct LocalPod {
    facts: LocalFacts,
    classes: PodClasses,
}

/// Something that an event changes.
///
/// First sets appear and gain members, then pods and classes change, then sets lose members, last sets go. Applied in that order no connection that
/// rules of NetworkPolicies allow before and after the event is denied in between, if what changes of pods and classes is one transaction: these
/// effects of an event stand beside one another, and none of them is right without the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyEffect {
    /// A set is needed from now on, with these members.
    SetAppears(Arc<PeerSet>, Vec<PeerMember>),
    /// Members come into a set.
    SetGains(Arc<PeerSet>, Vec<PeerMember>),
    /// The rules of a class that pods have are other ones. In one transaction with all that changes of pods and classes in the event.
    ClassChanges(Arc<PolicyClass>),
    /// A pod of the node comes, or has other classes or addresses. In one transaction with all that changes of pods and classes in the event.
    PodChanges {
        /// Which.
        pod: LocalName,
        /// Its addresses.
        addresses: Box<[IpAddr]>,
        /// The policies that select it.
        classes: PodClasses,
        /// Who judges its tunnel.
        tunnel: TunnelJudge,
    },
    /// A pod of the node is gone.
    PodGoes(LocalName),
    /// Members of a set go.
    SetLoses(Arc<PeerSet>, Vec<PeerMember>),
    /// No rule looks into a set any more.
    SetGoes(Arc<PeerSet>),
}

// === impl PolicyIndex ===

impl PolicyIndex {
    /// A policy is added, replaced or gone. `after` is what it says now.
    pub fn policy<W: World>(
        &mut self,
        world: &W,
        name: &PolicyName,
        after: Option<PolicyTerms>,
    ) -> Vec<PolicyEffect> {
        let before = match after {
            Some(after) if self.policies.get(name).is_some_and(|known| **known == after) => {
                return Vec::new();
            }
            Some(after) => self.policies.insert(name.clone(), Arc::new(after)),
            None => self.policies.remove(name),
        };
        let held = |classes: &BTreeMap<Arc<PolicyClass>, usize>| -> Vec<Arc<PolicyClass>> {
            classes.keys().filter(|class| class.policies.contains(name)).cloned().collect()
        };
        let touched = held(&self.classes);
        // What its classes look up is let go last: they may need the same again.
        let released: Vec<PeerSet> = before
            .iter()
            .flat_map(|terms| touched.iter().flat_map(|class| wanted::of(terms, class.direction)))
            .collect();
        let mut effects = Vec::new();
        if let Some(terms) = self.policies.get(name) {
            let wanted = touched.iter().flat_map(|class| wanted::of(terms, class.direction));
            self.sets.take(world, wanted, &mut effects);
        }
        let mut late = Vec::new();
        let selects_the_same = before.as_ref().zip(self.policies.get(name));
        if !selects_the_same.is_some_and(|(before, now)| before.selects_as(now)) {
            self.classify_all(world, name.only_namespace(), &mut effects, &mut late);
        }
        let now = self.policies.get(name);
        let says_other = |direction| {
            before.as_ref().map(|terms| terms.direction(direction))
                != now.map(|terms| terms.direction(direction))
        };
        effects.extend(
            touched
                .into_iter()
                .filter(|class| self.classes.contains_key(class) && says_other(class.direction))
                .map(PolicyEffect::ClassChanges),
        );
        late.extend(released);
        self.sets.release(late, &mut effects);
        ordered(effects)
    }

    /// A pod of the node is added or changed, or is gone or not live any more.
    pub fn local_pod<W: World>(
        &mut self,
        world: &W,
        pod: &LocalName,
        after: Option<LocalFacts>,
    ) -> Vec<PolicyEffect> {
        let before = self.pods.get(pod).map(|known| known.facts.clone());
        if before == after {
            return Vec::new();
        }
        let [had, has] =
            [&before, &after].map(|facts| facts.as_ref().map(|facts| &*facts.addresses).unwrap_or_default());
        self.sets.local(had, has);
        let mut effects = self.pod(world, &[had, has].concat());
        let mut late = Vec::new();
        if let Some(facts) = after {
            self.classify(world, pod, Some(facts), &mut effects, &mut late);
        } else if let Some(gone) = self.pods.remove(pod) {
            effects.push(PolicyEffect::PodGoes(pod.clone()));
            gone.classes.iter().for_each(|class| self.leave(class, &mut late));
        }
        self.sets.release(late, &mut effects);
        ordered(effects)
    }

    /// A pod of the cluster is added, changed or gone: `addresses` are all that it had or has. Of a pod of this node [`Self::local_pod`] comes
    /// before, because its own rules change before what others know of it.
    pub fn pod<W: World>(&mut self, world: &W, addresses: &[IpAddr]) -> Vec<PolicyEffect> {
        let mut changes = sets::SetChanges::default();
        for address in addresses {
            self.sets.refresh(world, *address, &mut changes);
        }
        ordered(self.sets.effects(changes))
    }

    /// A namespace is added, gone, or has other labels.
    pub fn namespace<W: World>(&mut self, world: &W, name: &str) -> Vec<PolicyEffect> {
        let mut changes = sets::SetChanges::default();
        if self.sets.go_by_namespace_labels() {
            for pod in world.pods_in(name, &Selector::default()) {
                pod.addresses().iter().for_each(|address| self.sets.refresh(world, *address, &mut changes));
            }
        }
        let mut effects = self.sets.effects(changes);
        // NetworkPolicies select the pods of their own namespace, whatever its labels.
        if self.others().next().is_some() {
            let mut late = Vec::new();
            self.classify_all(world, Some(name), &mut effects, &mut late);
            self.sets.release(late, &mut effects);
        }
        ordered(effects)
    }

    /// Adds members of a set as an earlier index knew them: of pods of which the world knows nothing. They stay until an event is about their
    /// addresses. Nothing where no rule looks into the set.
    pub fn remember(&mut self, set: &PeerSet, members: impl Iterator<Item = PeerMember>) {
        self.sets.remember(set, members);
    }

    /// The policies that select a pod of the node.
    pub fn classes_of(&self, pod: &LocalName) -> Option<&PodClasses> {
        self.pods.get(pod).map(|pod| &pod.classes)
    }

    /// What is known of a pod of the node.
    pub fn facts_of(&self, pod: &LocalName) -> Option<&LocalFacts> {
        self.pods.get(pod).map(|pod| &pod.facts)
    }

    /// The classes that pods of the node have.
    pub fn classes(&self) -> impl Iterator<Item = &Arc<PolicyClass>> {
        self.classes.keys()
    }

    /// The pods of the node with the policies that select them.
    pub fn pods(&self) -> impl Iterator<Item = (&LocalName, &LocalFacts, &PodClasses)> {
        self.pods.iter().map(|(name, pod)| (name, &pod.facts, &pod.classes))
    }

    /// All policies, in the order of their names.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<PolicyTerms>> {
        self.policies.values()
    }

    /// A policy that is known.
    pub fn terms(&self, name: &PolicyName) -> Option<&Arc<PolicyTerms>> {
        self.policies.get(name)
    }

    /// Whether the policies of a class isolate its pods: not all of them are only tried out.
    pub fn isolates(&self, class: &PolicyClass) -> bool {
        let terms = class.policies.iter().filter_map(|name| self.policies.get(name));
        terms.into_iter().any(|terms| terms.direction(class.direction).isolates(&terms.name))
    }

    /// Whether pods of a class are guarded until their rules are there.
    pub fn guards(&self, class: &PolicyClass) -> bool {
        let terms = class.policies.iter().filter_map(|name| self.policies.get(name));
        terms.into_iter().any(|terms| terms.direction(class.direction).guards(&terms.name))
    }

    /// The policies of a class that are only tried out, and would deny something.
    pub fn tried_out<'i>(&'i self, class: &'i PolicyClass) -> impl Iterator<Item = &'i PolicyTerms> {
        let isolates = self.isolates(class);
        let terms = class.policies.iter().filter_map(|name| self.terms(name)).map(|terms| &**terms);
        terms.filter(move |terms| {
            let said = terms.direction(class.direction);
            let audits = said.rules.iter().any(|rule| rule.action == RuleAction::Audit);
            audits || (said.is_tried_out && !isolates)
        })
    }

    /// The sets that rules look into, with their members.
    pub fn sets(&self) -> impl Iterator<Item = (&Arc<PeerSet>, impl Iterator<Item = PeerMember> + '_)> {
        self.sets.iter()
    }

    /// The members of a set; none where no rule looks into it.
    pub fn members(&self, set: &PeerSet) -> impl Iterator<Item = PeerMember> + '_ {
        self.sets.members(set)
    }

    /// A set that rules look into; nothing where there is no such set, or another one has its name in the kernel.
    pub fn set(&self, set: &PeerSet) -> Option<&Arc<PeerSet>> {
        self.sets.get(set)
    }

    /// Finds the classes of all pods of a namespace anew, or of all.
    fn classify_all<W: World>(
        &mut self,
        world: &W,
        namespace: Option<&str>,
        effects: &mut Vec<PolicyEffect>,
        late: &mut Vec<PeerSet>,
    ) {
        let is_meant = |pod: &&LocalName| namespace.is_none_or(|namespace| *pod.namespace == *namespace);
        let pods: Vec<LocalName> = self.pods.keys().filter(is_meant).cloned().collect();
        for pod in pods {
            self.classify(world, &pod, None, effects, late);
        }
    }

    /// Finds the classes of a pod anew, with other facts where they are given. Sets that are not needed any more come into `late`.
    fn classify<W: World>(
        &mut self,
        world: &W,
        name: &LocalName,
        facts: Option<LocalFacts>,
        effects: &mut Vec<PolicyEffect>,
        late: &mut Vec<PeerSet>,
    ) {
        let known = self.pods.get(name);
        let Some(now) = facts.as_ref().or(known.map(|pod| &pod.facts)) else { return };
        let classes = self.select(world, name, &now.labels);
        let is_same = known.is_some_and(|pod| pod.classes == classes);
        let place = |facts: &LocalFacts| (facts.addresses.clone(), facts.tunnel);
        let same_place =
            known.is_some_and(|pod| facts.as_ref().is_none_or(|facts| place(facts) == place(&pod.facts)));
        let ((addresses, tunnel), before) = (place(now), known.map(|pod| pod.classes.clone()));
        if let Some(facts) = facts {
            self.pods.insert(name.clone(), LocalPod { facts, classes: classes.clone() });
        } else if let Some(pod) = self.pods.get_mut(name) {
            pod.classes = classes.clone();
        }
        if !is_same {
            classes.iter().for_each(|class| self.enter(world, class, effects));
            before.iter().flat_map(PodClasses::iter).for_each(|class| self.leave(class, late));
        }
        if !is_same || !same_place {
            effects.push(PolicyEffect::PodChanges { pod: name.clone(), addresses, classes, tunnel });
        }
    }

    fn select<W: World>(&self, world: &W, pod: &LocalName, labels: &LabelSet) -> PodClasses {
        let namespace_labels = world.namespace_labels(&pod.namespace);
        let selects = |terms: &PolicyTerms| {
            let namespace_label = namespace_labels.map(|labels| |key: &str| labels.get(key));
            terms.subjects.selects(&pod.namespace, namespace_label, |key| labels.get(key))
        };
        let selecting: Vec<&PolicyTerms> =
            self.about(&pod.namespace).filter(|terms| selects(terms)).collect();
        PodClasses::of(&selecting)
    }

    /// The policies that may be about pods of a namespace, in order.
    fn about(&self, namespace: &str) -> impl Iterator<Item = &PolicyTerms> {
        let own = self.policies.range(first_of(Section::NetworkPolicy, namespace)..);
        let own = own.take_while(|(name, _)| name.only_namespace() == Some(namespace));
        let mut all: Vec<(&PolicyName, &PolicyTerms)> = own.map(|(name, terms)| (name, &**terms)).collect();
        all.extend(self.others());
        all.sort_unstable_by_key(|(name, _)| *name);
        all.into_iter().map(|(_, terms)| terms)
    }

    /// The policies of other kinds, which may be about pods of any namespace.
    fn others(&self) -> impl Iterator<Item = (&PolicyName, &PolicyTerms)> {
        let before = self.policies.range(..first_of(Section::NetworkPolicy, ""));
        let after = self.policies.range(first_of(Section::Baseline, "")..);
        before.chain(after).map(|(name, terms)| (name, &**terms))
    }

    /// A pod has a class.
    fn enter<W: World>(&mut self, world: &W, class: &Arc<PolicyClass>, effects: &mut Vec<PolicyEffect>) {
        let count = self.classes.entry(class.clone()).or_default();
        *count += 1;
        if *count == 1 {
            let policies = class.policies.iter().filter_map(|name| self.policies.get(name));
            let wanted: Vec<PeerSet> =
                policies.flat_map(|terms| wanted::of(terms, class.direction)).collect();
            self.sets.take(world, wanted, effects);
        }
    }

    /// A pod does not have it any more.
    fn leave(&mut self, class: &Arc<PolicyClass>, late: &mut Vec<PeerSet>) {
        let Some(count) = self.classes.get_mut(class) else { return };
        *count -= 1;
        if *count == 0 {
            self.classes.remove(class);
            let policies = class.policies.iter().filter_map(|name| self.policies.get(name));
            late.extend(policies.flat_map(|terms| wanted::of(terms, class.direction)));
        }
    }
}

// === impl PolicyEffect ===

impl PolicyEffect {
    /// When it is to be applied.
    fn step(&self) -> u8 {
        match self {
            Self::SetAppears(..) | Self::SetGains(..) => 0,
            Self::ClassChanges(_) | Self::PodChanges { .. } | Self::PodGoes(_) => 1,
            Self::SetLoses(..) => 2,
            Self::SetGoes(_) => 3,
        }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::SetGains(_, members) | Self::SetLoses(_, members) if members.is_empty())
    }
}

/// The effects of an event as they are to be applied.
fn ordered(mut effects: Vec<PolicyEffect>) -> Vec<PolicyEffect> {
    effects.sort_by_key(PolicyEffect::step);
    effects
}

/// What stands before all policies of a namespace in a section.
fn first_of(section: Section, namespace: &str) -> PolicyName {
    PolicyName { section, namespace: namespace.into(), name: "".into() }
}
