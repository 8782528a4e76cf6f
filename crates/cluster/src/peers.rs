//! The pods of the whole cluster as policies see them, in few bytes each.
//!
//! What many pods share is kept once: names of namespaces, keys and values of labels, sets of labels (replicas have the same), sets of named
//! ports. Applying an object gives what changes by it, with the pod as it was and as it is.

mod effect;
mod hold;
mod intern;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use facts::Selector;
use facts::labels::LabelSet;
use facts::networkpolicy::PolicyProtocol;
use facts::peer::{NamedPort, Peer, Phase};
use hashbrown::HashTable;

use crate::news::{ObjectKey, Uid};
use crate::rounds::{RoundMark, Rounds};
pub use effect::Effect;
use intern::{Id, Interned};
pub use view::PeerView;

/// See the module.
#[derive(Debug, Default)]
pub struct Peers {
    /// Names of namespaces, pods and nodes, keys and values of labels, names of ports.
    texts: Interned<str>,
    labels: Interned<[Label]>,
    ports: Interned<[Port]>,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
    by_address: HashTable<Claim>,
    /// Every pod beside others of its namespace with the same labels.
    groups: BTreeSet<Group>,
    hasher: RandomState,
    rounds: Rounds,
}

/// A key and a value.
type Label = (Id<str>, Id<str>);
/// A name, its protocol and its number.
type Port = (Id<str>, PolicyProtocol, u16);
/// Namespace, labels, and the pod's slot.
type Group = (Id<str>, Id<[Label]>, u32);

/// A pod.
#[derive(Debug)]
struct Slot {
    uid: Uid,
    created: u64,
    addresses: Addresses,
    namespace: Id<str>,
    name: Id<str>,
    node: Id<str>,
    labels: Id<[Label]>,
    ports: Id<[Port]>,
    mark: RoundMark,
    phase: Phase,
    host_network: bool,
    is_deleting: bool,
}

/// Nearly all pods have one or two.
#[derive(Debug)]
enum Addresses {
    None,
    One(IpAddr),
    Two([IpAddr; 2]),
    More(Box<[IpAddr]>),
}

/// An address of a pod, by its place among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    slot: u32,
    nth: u32,
}

// === impl Peers ===

impl Peers {
    /// Adds or replaces a pod. Nothing is given if it is as it was.
    pub fn apply(&mut self, key: ObjectKey, uid: Uid, peer: Peer) -> Option<Effect> {
        let before = match self.find(&key) {
            Some(number) => {
                let rounds = &self.rounds;
                let slot = self.slots.get_mut(number as usize).and_then(Option::as_mut)?;
                rounds.see(&mut slot.mark);
                let is_other = slot.uid.differs(uid);
                slot.uid = uid;
                let mark = slot.mark;
                if !is_other && self.view(number)?.is(&peer) {
                    return None;
                }
                Some((mark, self.remove(number)?))
            }
            None => None,
        };
        let (mark, before) = before.map_or((self.rounds.mark(), None), |(mark, peer)| (mark, Some(peer)));
        self.insert(&key, uid, mark, &peer);
        Some(Effect { key, before, after: Some(peer) })
    }

    /// Forgets a pod. `uid` keeps a late message about an earlier pod from removing its successor.
    pub fn delete(&mut self, key: ObjectKey, uid: Uid) -> Option<Effect> {
        let number = self.find(&key)?;
        let is_other = self.slot(number)?.uid.differs(uid);
        let before = if is_other { None } else { self.remove(number) }?;
        Some(Effect { key, before: Some(before), after: None })
    }

    /// A pod, if it is known.
    pub fn get(&self, namespace: &str, name: &str) -> Option<PeerView<'_>> {
        self.view(self.find(&ObjectKey::new(namespace, name))?)
    }

    /// Whose address it is. Of several pods that claim it, that has it which has not ended, then which is not being deleted, then which is younger.
    pub fn by_address(&self, address: IpAddr) -> Option<PeerView<'_>> {
        self.claims(address).max_by_key(PeerView::right)
    }

    /// All pods that claim an address.
    pub fn claims(&self, address: IpAddr) -> impl Iterator<Item = PeerView<'_>> {
        let claims = self.by_address.iter_hash(self.hasher.hash_one(address));
        let has_it = move |claim: &&Claim| self.claimed(**claim) == Some(address);
        claims.filter(has_it).filter_map(|claim| self.view(claim.slot))
    }

    /// The pods of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = PeerView<'_>> {
        let namespace = self.texts.find(namespace);
        let all = namespace.map(|namespace| self.groups.range(all_of(namespace)));
        all.into_iter().flatten().filter_map(|(_, _, number)| self.view(*number))
    }

    /// The pods of a namespace that a selector selects, whether or not they live. Labels that pods share are looked at once.
    pub fn select(&self, namespace: &str, selector: &Selector) -> impl Iterator<Item = PeerView<'_>> {
        let mut judged: Option<(Id<[Label]>, bool)> = None;
        let namespace = self.texts.find(namespace);
        let all = namespace.map(|namespace| self.groups.range(all_of(namespace)));
        all.into_iter().flatten().filter_map(move |(_, labels, number)| {
            let view = self.view(*number)?;
            let selected = match judged {
                Some((known, selected)) if known == *labels => selected,
                _ => selector.selects(|key| view.label(key)),
            };
            judged = Some((*labels, selected));
            selected.then_some(view)
        })
    }

    /// Names of the namespaces that have pods.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        let mut next = self.groups.first().map(|group| group.0);
        std::iter::from_fn(move || {
            let this = next?;
            let beyond = (this, Id::LAST, u32::MAX);
            let after = (std::ops::Bound::Excluded(beyond), std::ops::Bound::Unbounded);
            next = self.groups.range(after).next().map(|group| group.0);
            Some(self.texts.get(this))
        })
    }

    /// All pods.
    pub fn iter(&self) -> impl Iterator<Item = PeerView<'_>> {
        self.slots.iter().flatten().map(|slot| PeerView::new(self, slot))
    }

    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all of them were listed once.
    pub fn is_listed(&self) -> bool {
        self.rounds.is_complete()
    }

    fn slot(&self, number: u32) -> Option<&Slot> {
        self.slots.get(number as usize)?.as_ref()
    }

    fn view(&self, number: u32) -> Option<PeerView<'_>> {
        self.slot(number).map(|slot| PeerView::new(self, slot))
    }

    fn claimed(&self, claim: Claim) -> Option<IpAddr> {
        self.slot(claim.slot)?.addresses.all().get(claim.nth as usize).copied()
    }

    fn find(&self, key: &ObjectKey) -> Option<u32> {
        let (namespace, name) = (self.texts.find(&key.namespace)?, self.texts.find(&key.name)?);
        let is_it = |number: &u32| {
            self.slot(*number).is_some_and(|slot| (slot.namespace, slot.name) == (namespace, name))
        };
        self.by_name.find(self.hasher.hash_one((namespace, name)), is_it).copied()
    }

    fn insert(&mut self, key: &ObjectKey, uid: Uid, mark: RoundMark, peer: &Peer) {
        let (namespace, name) = (self.texts.take(&*key.namespace), self.texts.take(&*key.name));
        let node = self.texts.take(&*peer.node);
        let (labels, ports) = (self.take_labels(&peer.labels), self.take_ports(&peer.ports));
        let Peer { phase, host_network, is_deleting, created, .. } = *peer;
        let addresses = Addresses::new(&peer.addresses);
        let slot = Slot {
            uid,
            created,
            addresses,
            namespace,
            name,
            node,
            labels,
            ports,
            mark,
            phase,
            host_network,
            is_deleting,
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = Some(slot);
                number
            }
            None => {
                self.slots.push(Some(slot));
                // Each takes more than a byte, so there are never as many.
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.groups.insert((namespace, labels, number));
        self.index(number, peer);
    }

    /// Makes a pod found by its name and its addresses.
    fn index(&mut self, number: u32, peer: &Peer) {
        let Self { by_name, by_address, slots, hasher, .. } = self;
        let slot_of = |number: u32| slots.get(number as usize).and_then(Option::as_ref);
        let name_of = |number: &u32| slot_of(*number).map(|slot| (slot.namespace, slot.name));
        let hash_of = |number: &u32| name_of(number).map(|name| hasher.hash_one(name)).unwrap_or_default();
        by_name.insert_unique(hash_of(&number), number, hash_of);
        for (nth, address) in (0..).zip(&peer.addresses) {
            let claimed = |claim: &Claim| slot_of(claim.slot)?.addresses.all().get(claim.nth as usize);
            let hash_of = |claim: &Claim| claimed(claim).map(|one| hasher.hash_one(one)).unwrap_or_default();
            by_address.insert_unique(hasher.hash_one(address), Claim { slot: number, nth }, hash_of);
        }
    }

    /// Forgets a pod; gives what it was.
    fn remove(&mut self, number: u32) -> Option<Peer> {
        let before = self.view(number)?.to_peer();
        let slot = self.slots.get_mut(number as usize)?.take()?;
        let hash = self.hasher.hash_one((slot.namespace, slot.name));
        if let Ok(found) = self.by_name.find_entry(hash, |one| *one == number) {
            found.remove();
        }
        for (nth, address) in (0..).zip(slot.addresses.all()) {
            let claim = Claim { slot: number, nth };
            if let Ok(found) = self.by_address.find_entry(self.hasher.hash_one(address), |one| *one == claim)
            {
                found.remove();
            }
        }
        self.groups.remove(&(slot.namespace, slot.labels, number));
        self.free.push(number);
        self.texts.release(slot.namespace);
        self.texts.release(slot.name);
        self.texts.release(slot.node);
        for (key, value) in self.labels.release(slot.labels).iter().flatten() {
            self.texts.release(*key);
            self.texts.release(*value);
        }
        for (name, ..) in self.ports.release(slot.ports).iter().flatten() {
            self.texts.release(*name);
        }
        Some(before)
    }

    fn take_labels(&mut self, labels: &LabelSet) -> Id<[Label]> {
        let texts = &mut self.texts;
        let taken: Vec<Label> =
            labels.iter().map(|(key, value)| (texts.take(key), texts.take(value))).collect();
        let (known, id) = (self.labels.find(&taken).is_some(), self.labels.take(&*taken));
        if known {
            // The set uses its texts, however many pods use the set.
            for (key, value) in taken {
                self.texts.release(key);
                self.texts.release(value);
            }
        }
        id
    }

    fn take_ports(&mut self, ports: &[NamedPort]) -> Id<[Port]> {
        let texts = &mut self.texts;
        let one = |port: &NamedPort| (texts.take(&*port.name), port.protocol, port.number);
        let taken: Vec<Port> = ports.iter().map(one).collect();
        let (known, id) = (self.ports.find(&taken).is_some(), self.ports.take(&*taken));
        if known {
            taken.into_iter().for_each(|(name, ..)| drop(self.texts.release(name)));
        }
        id
    }
}

/// The groups of a namespace.
fn all_of(namespace: Id<str>) -> std::ops::RangeInclusive<Group> {
    (namespace, Id::FIRST, 0)..=(namespace, Id::LAST, u32::MAX)
}

// === impl Addresses ===

impl Addresses {
    fn new(all: &[IpAddr]) -> Self {
        match *all {
            [] => Self::None,
            [one] => Self::One(one),
            [one, other] => Self::Two([one, other]),
            _ => Self::More(all.into()),
        }
    }

    fn all(&self) -> &[IpAddr] {
        match self {
            Self::None => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Two(both) => both,
            Self::More(all) => all,
        }
    }
}
