//! The policies of all pods of a node as rules in the node's own network namespace, for both backends.
//!
//! Packets of pods pass there after a service proxy has chosen their destination and before their source is changed. In nf_tables a verdict map for
//! each direction and family leads the addresses of isolated pods to the chain of their class, and egress and ingress are base chains of their own, one
//! after the other at one hook: what accepts in the first does not end the second. iptables has no maps, and its rules stand in front of those of
//! others: there a set says who is isolated, each class has a set of its pods' addresses with a rule that leads to its chain, and what is allowed
//! returns. In both, a pod that no policy selects costs a look-up.
//! A pod of ambient mode whose tunnel is judged inside has a chain that opens the tunnel's port to whoever may come to some port.

mod base;
mod changes;
mod class;
mod members;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ruleset::{
    Backend, Chain, Contents, Element, Family, KeptMembers as _, Key, MapVerdict, Ruleset, Set, SetDelta,
    Table, TableKind,
};

use super::answer::{ChainRole, DenialAnswer};
use super::rules::key_type;
use super::{KNOWN_CHAINS, LeftOut, POLICY_OWNER};
use crate::index::{
    LocalName, PeerMember, PeerSet, PodClasses, PolicyClass, PolicyEffect, PolicyIndex, TunnelJudge,
};
use crate::terms::TrafficDirection;
use class::NodeClass;
pub use members::NodeMembers;

/// How policies are enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnforcementSettings {
    /// For which backend the rules are.
    pub backend: Backend,
    /// What becomes of connections that are open when policies change.
    pub established: Established,
    /// What pods may reach of their own node.
    pub egress_to_own_node: EgressToOwnNode,
    /// Which denied packets are answered.
    pub answer: DenialAnswer,
}

impl Default for EnforcementSettings {
    /// For nf_tables.
    fn default() -> Self {
        Self {
            backend: Backend::Nftables,
            established: Established::default(),
            egress_to_own_node: EgressToOwnNode::default(),
            answer: DenialAnswer::default(),
        }
    }
}

/// What becomes of connections that are open when policies change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Established {
    /// Each packet from the end that began it is judged.
    #[default]
    Cut,
    /// They go on.
    Keep,
}

/// What pods may reach of their own node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EgressToOwnNode {
    /// It is judged like anything else.
    #[default]
    Judge,
    /// Everything.
    Allow,
}

/// Rules for all pods of a node, and what is in their sets and maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledNode {
    /// The rules.
    pub rules: Ruleset,
    /// The members of sets that follow pods, and where the maps lead.
    pub contents: Contents,
    /// What the policies say and the rules do not.
    pub left_out: Vec<LeftOut>,
    /// Classes whose names in the kernel others have. Everything is denied to their pods.
    pub refused: Vec<Arc<PolicyClass>>,
}

/// What a node's rules are, kept up to date by the effects of events. It says for each event what is to change in the kernel.
#[derive(Debug, Default)]
pub struct NodeRules {
    settings: EnforcementSettings,
    pods: BTreeMap<LocalName, NodePod>,
    /// The pods that have an address.
    claims: BTreeMap<IpAddr, BTreeSet<LocalName>>,
    /// Where addresses of isolated pods lead.
    leads: BTreeMap<LeadPlace, MapVerdict>,
    classes: BTreeMap<Arc<PolicyClass>, NodeClass>,
    /// Whose the names in the kernel are.
    names: BTreeMap<u64, Arc<PolicyClass>>,
    /// Sets of blocks by their names, and in how many classes each is.
    blocks: BTreeMap<Cow<'static, str>, (Set, usize)>,
}

/// Which chains, in which direction, an address of a pod leads to. In iptables the same sets lead to those that answer as to the others.
type LeadPlace = (ChainRole, TrafficDirection, IpAddr);

#[derive(Debug, Clone, PartialEq, Eq)]
struct NodePod {
    addresses: Box<[IpAddr]>,
    classes: PodClasses,
    tunnel: TunnelJudge,
}

/// Everything at once: what a starting agent compares the kernel with.
pub fn compile_node(index: &PolicyIndex, settings: EnforcementSettings) -> CompiledNode {
    let node = NodeRules::of(index, settings, &|_| true);
    CompiledNode {
        rules: node.rules(index),
        contents: node.contents(index),
        left_out: node.left_out().cloned().collect(),
        refused: node.refused().cloned().collect(),
    }
}

// === impl NodeRules ===

impl NodeRules {
    /// Without pods.
    pub fn new(settings: EnforcementSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// As an index has it, with those pods for which `is_judged` holds.
    pub fn of(
        index: &PolicyIndex,
        settings: EnforcementSettings,
        is_judged: &dyn Fn(&LocalName) -> bool,
    ) -> Self {
        let mut node = Self::new(settings);
        let pods = index.pods().filter(|(pod, ..)| is_judged(pod)).map(|(pod, facts, classes)| {
            PolicyEffect::PodChanges {
                pod: pod.clone(),
                addresses: facts.addresses.clone(),
                classes: classes.clone(),
                tunnel: facts.tunnel,
            }
        });
        node.apply(&pods.collect::<Vec<_>>(), index);
        node
    }

    /// Whether there is a pod.
    pub fn has_pods(&self) -> bool {
        !self.pods.is_empty()
    }

    /// The rules, for an index whose events were all applied.
    pub fn rules(&self, index: &PolicyIndex) -> Ruleset {
        let mut sets: Vec<Set> = base::sets(self.settings).collect();
        sets.extend(self.entries().flat_map(|(_, entry)| base::entry_sets(entry)));
        sets.extend(index.sets().flat_map(|(set, _)| peer_sets(set)));
        sets.extend(self.blocks.values().map(|(set, _)| set.clone()));
        let mut chains = base::chains(self.settings);
        chains.extend(self.dispatches());
        chains.extend(self.classes.values().flat_map(|class| class.chains().cloned()));
        let tables = vec![Table { kind: TableKind::Mangle, sets, chains }];
        Ruleset { owner: POLICY_OWNER.into(), known_chains: KNOWN_CHAINS.into(), ipv6: true, tables }
    }

    /// The members of kept sets, for such an index.
    pub fn contents(&self, index: &PolicyIndex) -> Contents {
        let members = self.members(index);
        let mut contents = Contents::default();
        for set in members.names() {
            let mut delta = SetDelta::default();
            members.of(&set).for_each(|member| delta.add(member));
            contents.apply(&set, &delta);
        }
        contents
    }

    /// The same, of which no more than a set is in memory a second time.
    pub fn members<'a>(&self, index: &'a PolicyIndex) -> NodeMembers<'a> {
        NodeMembers::new(index, self.own_contents())
    }

    /// The members of the sets and maps that are about pods of the node.
    fn own_contents(&self) -> Contents {
        let mut contents = Contents::default();
        let mut deltas: BTreeMap<String, SetDelta> = BTreeMap::new();
        for ((role, direction, address), verdict) in &self.leads {
            let (family, backend) = (Family::of_address(*address), self.settings.backend);
            let isolated = deltas.entry(base::isolated(*role, *direction, family).into()).or_default();
            match backend {
                Backend::Nftables => isolated.add(lead(*address, verdict.clone())),
                Backend::Iptables => {
                    isolated.add(Key::from(*address));
                    let leads_by = base::leads_by(*direction, family, verdict);
                    deltas.entry(leads_by).or_default().add(Key::from(*address));
                }
            }
        }
        for address in self.claims.keys() {
            let set = base::local_set(Family::of_address(*address));
            deltas.entry(set.into()).or_default().add(Key::from(*address));
        }
        deltas.iter().for_each(|(set, delta)| contents.apply(set, delta));
        contents
    }

    /// What policies say and the rules do not.
    pub fn left_out(&self) -> impl Iterator<Item = &LeftOut> {
        self.classes.values().flat_map(NodeClass::left_out)
    }

    /// Classes whose names others have.
    pub fn refused(&self) -> impl Iterator<Item = &Arc<PolicyClass>> {
        self.classes.iter().filter(|(_, class)| class.rules.is_none()).map(|(class, _)| class)
    }

    /// The chains by which classes are entered, in the order of their names. Only iptables needs rules that lead there.
    fn entries(&self) -> impl Iterator<Item = (TrafficDirection, &Cow<'static, str>)> {
        let is_led = self.settings.backend == Backend::Iptables;
        let classes = self.names.values().filter(move |_| is_led);
        classes.flat_map(|class| {
            let known = self.classes.get(class);
            known.into_iter().flat_map(|known| known.entries().map(|entry| (class.direction, entry)))
        })
    }

    /// The chains that lead to these.
    fn dispatches(&self) -> impl Iterator<Item = Chain> {
        let directions = [TrafficDirection::Egress, TrafficDirection::Ingress].into_iter();
        directions.filter(|_| self.settings.backend == Backend::Iptables).flat_map(|direction| {
            let entries = self.entries().filter(|(of, _)| *of == direction);
            let deciding = base::dispatch(direction, entries.map(|(_, entry)| entry));
            let answers = self.settings.answer != DenialAnswer::Never;
            let answering = answers.then(|| base::answering_dispatch(direction, self.answering(direction)));
            std::iter::once(deciding).chain(answering)
        })
    }

    /// The chains by which classes of a direction are entered whose denials are answered, each with the one that answers.
    fn answering(
        &self,
        direction: TrafficDirection,
    ) -> impl Iterator<Item = (&Cow<'static, str>, &Cow<'static, str>)> {
        let classes = self.names.values().filter(move |class| class.direction == direction);
        classes.filter_map(|class| self.classes.get(class)).flat_map(NodeClass::answering)
    }

    /// Gives the name of a class to another one.
    #[cfg(test)]
    pub(super) fn claim_name_for_test(&mut self, of: &PolicyClass, by: &Arc<PolicyClass>) {
        self.names.insert(of.hash(), by.clone());
    }

    /// Where an address of a pod leads in a direction; nothing where no policy isolates it. Of pods that claim the same address those count that are
    /// isolated.
    fn lead_of(&self, (role, direction, address): LeadPlace) -> Option<MapVerdict> {
        if role == ChainRole::Answer && self.settings.backend == Backend::Iptables {
            return None;
        }
        let claimants = self.claims.get(&address)?.iter().rev();
        let mut leads = claimants.filter_map(|pod| {
            let pod = self.pods.get(pod)?;
            let class = self.classes.get(pod.classes.of_direction(direction)?);
            Some(class.map_or_else(
                || (role == ChainRole::Decide).then_some(MapVerdict::Drop),
                |class| class.lead(role, pod.tunnel),
            ))
        });
        leads.next().flatten()
    }
}

/// The sets of both families.
fn peer_sets(set: &PeerSet) -> [Set; 2] {
    [Family::V4, Family::V6].map(|family| Set::kept(set.kernel_name(family), key_type(set, family)))
}

fn peer_names(set: &PeerSet) -> [String; 2] {
    [Family::V4, Family::V6].map(|family| set.kernel_name(family))
}

/// Which of [`peer_names`] and [`peer_sets`] a member is in.
fn family_of(member: &PeerMember) -> usize {
    usize::from(member.address.is_ipv6())
}

fn lead(address: IpAddr, verdict: MapVerdict) -> Element {
    Element { verdict: Some(verdict), ..Element::from(Key::from(address)) }
}
