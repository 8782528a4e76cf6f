//! What the evaluator asks of sets: a world that knows their members.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{
    ArrivalKey, Content, Element, InterfaceName, Key, KeyType, MapVerdict, Set, SetDelta, Side,
    TransportAddress,
};
use crate::eval::Packet;

/// Who knows the members of kept sets. Fixed ones are in the plan, and are not asked for.
pub trait Members {
    /// Whether a kept set has the key; a set of prefixes, whether one of them has the address `key`.
    fn contains(&self, set: &Set, key: &Key) -> bool;

    /// Where a kept verdict map leads the key.
    fn verdict(&self, map: &Set, key: &Key) -> Option<MapVerdict>;
}

/// Who knows all members of kept sets. Of many sets only one needs to be in memory as elements at a time.
pub trait KeptMembers {
    /// The members of a set, each once.
    fn of<'a>(&'a self, set: &str) -> Box<dyn Iterator<Item = Element> + 'a>;

    /// How many they are.
    fn count(&self, set: &str) -> usize;

    /// Whether what the kernel has of a set may be newer than these, so that an empty one may be right.
    fn may_be_older(&self, _set: &str) -> bool {
        false
    }
}

/// Kept sets have no members.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMembers;

/// The members of kept sets by the sets' names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    sets: BTreeMap<String, BTreeMap<Key, Element>>,
}

// === impl NoMembers ===

impl Members for NoMembers {
    fn contains(&self, _: &Set, _: &Key) -> bool {
        false
    }

    fn verdict(&self, _: &Set, _: &Key) -> Option<MapVerdict> {
        None
    }
}

// === impl Contents ===

impl Contents {
    /// Changes a set, as a kernel would.
    pub fn apply(&mut self, set: &str, delta: &SetDelta) {
        let members = self.sets.entry(set.to_owned()).or_default();
        delta.removed().for_each(|key| drop(members.remove(&key)));
        members.extend(delta.added().map(|element| (element.key, element)));
    }

    /// Forgets a set.
    pub fn forget(&mut self, set: &str) {
        self.sets.remove(set);
    }

    /// The names of sets that have, or had, members.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sets.keys().map(String::as_str)
    }

    /// The members of a set in the order of their keys.
    pub fn of<'a>(&'a self, set: &str) -> impl Iterator<Item = &'a Element> + use<'a> {
        self.sets.get(set).into_iter().flat_map(BTreeMap::values)
    }
}

impl KeptMembers for Contents {
    fn of<'a>(&'a self, set: &str) -> Box<dyn Iterator<Item = Element> + 'a> {
        Box::new(Self::of(self, set).cloned())
    }

    fn count(&self, set: &str) -> usize {
        self.sets.get(set).map_or(0, BTreeMap::len)
    }
}

impl Members for Contents {
    fn contains(&self, set: &Set, key: &Key) -> bool {
        let Some(members) = self.sets.get(set.name.as_ref()) else { return false };
        match (set.keys, key) {
            (KeyType::Prefix(_), Key::Address(address)) => {
                let whole = IpNet::from(*address);
                let around = std::iter::successors(Some(whole), IpNet::supernet);
                around.into_iter().any(|net| members.contains_key(&Key::Prefix(net)))
            }
            _ => members.contains_key(key),
        }
    }

    fn verdict(&self, map: &Set, key: &Key) -> Option<MapVerdict> {
        self.sets.get(map.name.as_ref())?.get(key)?.verdict.clone()
    }
}

// === impl Set ===

impl Set {
    /// The key by which a packet is looked up; absent where the packet is of the other family.
    fn key_of(&self, packet: &Packet, side: Side) -> Option<Key> {
        let (address, port) = match side {
            Side::Source => (packet.source, packet.source_port),
            Side::Destination => (packet.destination, packet.destination_port),
        };
        if packet.family() != self.family() {
            return None;
        }
        Some(match self.keys {
            KeyType::Address(_) | KeyType::Prefix(_) => Key::Address(address),
            KeyType::Endpoint(_) => {
                Key::Endpoint(TransportAddress { address, protocol: packet.protocol, port })
            }
            KeyType::Arrival(family) => {
                ArrivalKey { family, name: InterfaceName::new(&packet.in_interface)? }.into()
            }
        })
    }

    /// Whether it has what a packet is looked up by.
    pub(crate) fn has(&self, packet: &Packet, side: Side, members: &dyn Members) -> bool {
        self.key_of(packet, side).is_some_and(|key| match &self.content {
            Content::Kept => members.contains(self, &key),
            Content::Fixed(elements) => elements.iter().any(|element| covers(&element.key, &key)),
        })
    }

    /// Where a verdict map leads a packet.
    pub(crate) fn leads(&self, packet: &Packet, side: Side, members: &dyn Members) -> Option<MapVerdict> {
        let key = self.key_of(packet, side)?;
        match &self.content {
            Content::Kept => members.verdict(self, &key),
            Content::Fixed(elements) => elements.iter().find(|e| e.key == key)?.verdict.clone(),
        }
    }
}

/// Whether a member is what is looked up, or the prefix of it.
fn covers(member: &Key, key: &Key) -> bool {
    match (member, key) {
        (Key::Prefix(net), Key::Address(address)) => net.contains(address),
        _ => member == key,
    }
}
