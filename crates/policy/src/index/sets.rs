//! The sets that rules look packets up in, and who is in them.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use facts::Selector;
use facts::networkpolicy::PolicyProtocol;
use ruleset::{Family, Key, Protocol, TransportAddress};

use super::PolicyEffect;
use super::anchors::{self, Anchors};
use crate::meaning::Meaning;
use crate::terms::{NamespaceTerm, PodTerm};
use crate::world::{PolicyPod, World};

/// A set, by what it means. Rules that say the same share it, also rules of different policies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerSet {
    /// The addresses of pods.
    Pods(PodTerm),
    /// Addresses and ports: what pods call a port. Without a term it is what any pod calls so.
    Ports(Option<PodTerm>, Box<str>, PolicyProtocol),
    /// The same of the pods of this node.
    OwnPorts(Box<str>, PolicyProtocol),
}

/// A member of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerMember {
    /// An address of a pod.
    pub address: IpAddr,
    /// In a set of ports, protocol and number.
    pub port: Option<(PolicyProtocol, u16)>,
}

/// All sets that are needed.
#[derive(Debug, Default)]
pub(super) struct PeerSets {
    numbers: HashMap<Arc<PeerSet>, u32>,
    /// Whose the names in the kernel are, by their hashes.
    names: HashMap<u64, u32>,
    /// Sets that are not there because others have their names, and places of rules that would look into each.
    refused: HashMap<PeerSet, usize>,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    anchors: Anchors,
    /// Sets of ports of this node's pods.
    own: BTreeSet<u32>,
    /// Addresses of this node's pods, and how many have each.
    local: HashMap<IpAddr, usize>,
    /// The sets that have an address.
    holding: HashMap<IpAddr, Box<[u32]>>,
}

#[derive(Debug)]
struct Slot {
    set: Arc<PeerSet>,
    name: u64,
    /// Places of rules that look into it.
    uses: usize,
    members: BTreeSet<PeerMember>,
}

/// The protocol of packets.
pub(crate) fn protocol(of: PolicyProtocol) -> Protocol {
    match of {
        PolicyProtocol::Tcp => Protocol::Tcp,
        PolicyProtocol::Udp => Protocol::Udp,
        PolicyProtocol::Sctp => Protocol::Sctp,
    }
}

/// What comes into sets, and goes.
#[derive(Debug, Default)]
pub(super) struct SetChanges(BTreeMap<u32, [Vec<PeerMember>; 2]>);

impl From<PeerMember> for Key {
    fn from(member: PeerMember) -> Self {
        let PeerMember { address, port } = member;
        match port {
            None => Self::Address(address),
            Some((of, port)) => Self::Endpoint(TransportAddress { address, protocol: protocol(of), port }),
        }
    }
}

// === impl PeerSet ===

impl PeerSet {
    /// Its name in the kernel, of its members of a family. It says what the set means: one that means something else has another name.
    pub fn kernel_name(&self, family: Family) -> String {
        let family = if family == Family::V4 { "v4" } else { "v6" };
        format!("istio-np-{:016x}-{family}", self.hash())
    }

    fn hash(&self) -> u64 {
        let (kind, named) = match self {
            Self::Pods(_) => (0, None),
            Self::Ports(_, name, protocol) => (1, Some((name, protocol))),
            Self::OwnPorts(name, protocol) => (2, Some((name, protocol))),
        };
        let mut meaning = Meaning::of(kind);
        meaning.pods(self.term());
        if let Some((name, protocol)) = named {
            meaning.text(name);
            meaning.protocol(*protocol);
        }
        meaning.hash()
    }

    /// The pods that it is about, other than all of them.
    fn term(&self) -> Option<&PodTerm> {
        match self {
            Self::Pods(term) | Self::Ports(Some(term), ..) => Some(term),
            Self::Ports(None, ..) | Self::OwnPorts(..) => None,
        }
    }

    /// What it has at an address of a pod that it is about.
    fn at(&self, address: IpAddr, pod: &impl PolicyPod) -> Vec<PeerMember> {
        match self {
            Self::Pods(_) => vec![PeerMember { address, port: None }],
            Self::Ports(_, name, protocol) | Self::OwnPorts(name, protocol) => {
                let numbers = pod.ports(name, *protocol);
                numbers.map(|number| PeerMember { address, port: Some((*protocol, number)) }).collect()
            }
        }
    }
}

// === impl PeerSets ===

impl PeerSets {
    /// One more rule looks into each of these. One whose name another one has in the kernel is not taken: who is in it would be in the other one.
    pub(super) fn take<W: World>(
        &mut self,
        world: &W,
        wanted: impl IntoIterator<Item = PeerSet>,
        effects: &mut Vec<PolicyEffect>,
    ) {
        for set in wanted {
            if let Some(slot) =
                self.numbers.get(&set).and_then(|number| self.slots[*number as usize].as_mut())
            {
                slot.uses += 1;
                continue;
            }
            let name = set.hash();
            if self.names.contains_key(&name) || self.refused.contains_key(&set) {
                *self.refused.entry(set).or_default() += 1;
                continue;
            }
            let number = self.insert(Arc::new(set), name);
            self.fill(world, number);
            if let Some(Slot { set, members, .. }) = &self.slots[number as usize] {
                effects.push(PolicyEffect::SetAppears(set.clone(), members.iter().copied().collect()));
            }
        }
    }

    /// One rule less looks into each of these.
    pub(super) fn release(&mut self, released: Vec<PeerSet>, effects: &mut Vec<PolicyEffect>) {
        for set in released {
            let Some(&number) = self.numbers.get(&set) else {
                self.release_refused(&set);
                continue;
            };
            let Some(slot) = self.slots[number as usize].as_mut() else { continue };
            slot.uses -= 1;
            if slot.uses > 0 {
                continue;
            }
            if let Some(Slot { set, name, members, .. }) = self.slots[number as usize].take() {
                self.anchor(&set, number, false);
                for member in members {
                    self.hold(member.address, number, false);
                }
                self.numbers.remove(&set);
                self.names.remove(&name);
                self.free.push(number);
                effects.push(PolicyEffect::SetGoes(set));
            }
        }
    }

    fn release_refused(&mut self, set: &PeerSet) {
        if let Some(uses) = self.refused.get_mut(set) {
            *uses -= 1;
            if *uses == 0 {
                self.refused.remove(set);
            }
        }
    }

    /// Pods of this node have addresses, or do not have them any more.
    pub(super) fn local(&mut self, before: &[IpAddr], after: &[IpAddr]) {
        for address in after {
            *self.local.entry(*address).or_default() += 1;
        }
        for address in before {
            if let Some(count) = self.local.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.local.remove(address);
                }
            }
        }
    }

    /// Finds again which sets have an address, by whose it is now.
    pub(super) fn refresh<W: World>(&mut self, world: &W, address: IpAddr, changes: &mut SetChanges) {
        let owner = world.pod_at(address);
        let mut meant = owner.as_ref().map(|pod| self.meaning(world, address, pod)).unwrap_or_default();
        meant.sort_unstable();
        let mut touched: Vec<u32> = self.holding.get(&address).map(|held| held.to_vec()).unwrap_or_default();
        touched.extend(&meant);
        touched.sort_unstable();
        touched.dedup();
        let mut holding = Vec::new();
        for number in touched {
            let Some(slot) = self.slots[number as usize].as_mut() else { continue };
            let wanted = owner.as_ref().filter(|_| meant.binary_search(&number).is_ok());
            let wanted = wanted.map(|pod| slot.set.at(address, pod)).unwrap_or_default();
            let first = PeerMember { address, port: None };
            let held = slot.members.range(first..).take_while(|one| one.address == address);
            let gone: Vec<PeerMember> = held.filter(|one| !wanted.contains(one)).copied().collect();
            let [added, removed] = changes.0.entry(number).or_default();
            for one in &gone {
                slot.members.remove(one);
            }
            added.extend(wanted.iter().filter(|one| slot.members.insert(**one)));
            removed.extend(gone);
            if !wanted.is_empty() {
                holding.push(number);
            }
        }
        if holding.is_empty() {
            self.holding.remove(&address);
        } else {
            self.holding.insert(address, holding.into());
        }
    }

    /// Members that a set had as an earlier index knew them. Nothing where no rule looks into it.
    pub(super) fn remember(&mut self, set: &PeerSet, members: impl Iterator<Item = PeerMember>) {
        let Some(&number) = self.numbers.get(set) else { return };
        for member in members {
            if let Some(slot) = self.slots[number as usize].as_mut() {
                slot.members.insert(member);
            }
            self.hold(member.address, number, true);
        }
    }

    /// What changes as effects.
    pub(super) fn effects(&self, changes: SetChanges) -> Vec<PolicyEffect> {
        let mut found = Vec::new();
        for (number, [added, removed]) in changes.0 {
            let Some(Slot { set, .. }) = &self.slots[number as usize] else { continue };
            let parts =
                [PolicyEffect::SetGains(set.clone(), added), PolicyEffect::SetLoses(set.clone(), removed)];
            found.extend(parts.into_iter().filter(|part| !part.is_nothing()));
        }
        found
    }

    /// Whether a set is about pods by labels of their namespaces.
    pub(super) fn go_by_namespace_labels(&self) -> bool {
        self.anchors.labelled > 0
    }

    /// A set that is needed.
    pub(super) fn get(&self, set: &PeerSet) -> Option<&Arc<PeerSet>> {
        self.numbers.get_key_value(set).map(|(set, _)| set)
    }

    pub(super) fn members(&self, set: &PeerSet) -> impl Iterator<Item = PeerMember> + '_ {
        let slot = self.numbers.get(set).and_then(|number| self.slots[*number as usize].as_ref());
        slot.into_iter().flat_map(|slot| slot.members.iter().copied())
    }

    pub(super) fn iter(
        &self,
    ) -> impl Iterator<Item = (&Arc<PeerSet>, impl Iterator<Item = PeerMember> + '_)> {
        self.slots.iter().flatten().map(|slot| (&slot.set, slot.members.iter().copied()))
    }

    /// The sets that a pod belongs to at one of its addresses.
    fn meaning<W: World>(&self, world: &W, address: IpAddr, pod: &W::Pod<'_>) -> Vec<u32> {
        let mut found = self.anchors.candidates(pod, world.namespace_labels(pod.namespace()));
        found.retain(|number| {
            let term = self.slots[*number as usize].as_ref().and_then(|slot| slot.set.term());
            term.is_none_or(|term| world.selects(term, pod))
        });
        found.extend(self.own.iter().filter(|_| self.local.contains_key(&address)));
        found
    }

    fn insert(&mut self, set: Arc<PeerSet>, name: u64) -> u32 {
        let slot = Some(Slot { set: set.clone(), name, uses: 1, members: BTreeSet::new() });
        let number = if let Some(number) = self.free.pop() {
            self.slots[number as usize] = slot;
            number
        } else {
            self.slots.push(slot);
            // Each takes more than a byte, so there are never as many.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        };
        self.anchor(&set, number, true);
        self.names.insert(name, number);
        self.numbers.insert(set, number);
        number
    }

    fn anchor(&mut self, set: &PeerSet, number: u32, is_there: bool) {
        match set {
            PeerSet::OwnPorts(..) => anchors::set(&mut self.own, number, is_there),
            _ => self.anchors.set(set.term(), number, is_there),
        }
    }

    /// Finds all members of a new set.
    fn fill<W: World>(&mut self, world: &W, number: u32) {
        let Some(set) = self.slots[number as usize].as_ref().map(|slot| slot.set.clone()) else { return };
        let mut members = Vec::new();
        if let PeerSet::OwnPorts(..) = &*set {
            for address in self.local.keys() {
                members.extend(world.pod_at(*address).iter().flat_map(|pod| set.at(*address, pod)));
            }
        } else {
            let everything = Selector::default();
            let labels = set.term().map_or(&everything, |term| &term.labels);
            for namespace in meant_namespaces(world, set.term()) {
                for pod in world.pods_in(namespace, labels) {
                    let its = pod.addresses().iter().filter(|address| is_owner(world, &pod, **address));
                    members.extend(its.flat_map(|address| set.at(*address, &pod)));
                }
            }
        }
        for member in &members {
            self.hold(member.address, number, true);
        }
        if let Some(slot) = self.slots[number as usize].as_mut() {
            // Made at once its nodes are full.
            slot.members = members.into_iter().collect();
        }
    }

    /// Notes that a set has an address, or has it no more.
    fn hold(&mut self, address: IpAddr, number: u32, has: bool) {
        let held = self.holding.get(&address).map(|held| &**held).unwrap_or_default();
        if held.contains(&number) == has {
            return;
        }
        let others = held.iter().copied().filter(|one| *one != number);
        let now: Box<[u32]> = others.chain(has.then_some(number)).collect();
        if now.is_empty() {
            self.holding.remove(&address);
        } else {
            self.holding.insert(address, now);
        }
    }
}

/// Whether an address is a pod's, and not that of one with a better claim to it.
fn is_owner<W: World>(world: &W, pod: &W::Pod<'_>, address: IpAddr) -> bool {
    let owner = world.pod_at(address);
    owner.is_some_and(|owner| (owner.namespace(), owner.name()) == (pod.namespace(), pod.name()))
}

/// The namespaces in which a term can mean pods.
fn meant_namespaces<'a, W: World>(world: &'a W, term: Option<&'a PodTerm>) -> Vec<&'a str> {
    match term.map(|term| &term.namespaces) {
        None | Some(NamespaceTerm::Any) => world.namespaces().collect(),
        Some(NamespaceTerm::Named(name)) => vec![name],
        Some(NamespaceTerm::Labelled(selector)) => world.namespaces_with(selector),
    }
}
