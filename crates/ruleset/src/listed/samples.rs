//! Packets made up from rules: for each rule, such as it would meet.

use super::walk::FirstPacket;
use super::{Condition, Field, ListedAct, ListedRule, ListedTable};

/// The most rules, counted for each way that leads to them, for which packets are made up.
const MAX_WAYS: usize = 20_000;
/// How deep chains are followed to see what a rule in them would meet.
const MAX_DEPTH: usize = 8;

/// Packets that rules would meet.
#[derive(Debug)]
pub struct Samples<'a> {
    bases: &'a [FirstPacket],
    /// Those that were made, after the ones to begin with.
    pub packets: Vec<FirstPacket>,
    /// Digests of the packets: one in 2⁶⁴ is left out.
    known: Vec<u64>,
    most: usize,
    ways: usize,
    /// There are more than are made.
    pub full: bool,
}

impl<'a> Samples<'a> {
    /// Begins with the packets that others are made of; `most` is how many there may be.
    pub fn new(bases: &'a [FirstPacket], most: usize) -> Self {
        let known = bases.iter().map(FirstPacket::digest).collect();
        Self { bases, packets: bases.to_vec(), known, most, ways: 0, full: false }
    }

    /// Adds those that the rules of a chain would meet, and of the chains that it leads to.
    pub fn of_chain(
        &mut self,
        table: &'a ListedTable,
        rules: &'a [ListedRule],
        way: &mut Vec<&'a ListedRule>,
    ) {
        for rule in rules {
            self.ways += 1;
            self.full |= self.ways > MAX_WAYS;
            if self.full {
                return;
            }
            way.push(rule);
            if !way.iter().all(|rule| rule.conditions.is_empty()) {
                self.of_way(way);
            }
            for act in &rule.acts {
                if let ListedAct::Jump(target) | ListedAct::Goto(target) = act
                    && let Some(chain) = table.chain(target).filter(|_| way.len() < MAX_DEPTH)
                {
                    self.of_chain(table, &chain.rules, way);
                }
            }
            way.pop();
        }
    }

    fn of_way(&mut self, way: &[&ListedRule]) {
        for base in self.bases {
            let mut packet = base.clone();
            let conditions = way.iter().flat_map(|rule| &rule.conditions);
            if !conditions.into_iter().all(|condition| packet.adapt(condition)) {
                continue;
            }
            let digest = packet.digest();
            if !self.known.contains(&digest) {
                self.known.push(digest);
                self.packets.push(packet);
                self.full = self.packets.len() >= self.most;
            }
        }
    }
}

impl FirstPacket {
    /// What differs between packets of one look, in one number (the FNV-1a hash).
    fn digest(&self) -> u64 {
        let (uid, gid) = self.owner.unwrap_or_default();
        let parts = [
            self.source,
            self.destination,
            u128::from(self.protocol) << 64
                | u128::from(self.source_port) << 32
                | u128::from(self.destination_port),
            u128::from(uid) << 64 | u128::from(gid),
        ];
        let bytes = parts.iter().flat_map(|part| part.to_be_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Changes what the packet may have otherwise so that the condition holds; `false` where it cannot.
    fn adapt(&mut self, condition: &Condition) -> bool {
        let Condition::In { field, mask, ranges, not } = condition else { return true };
        let inbound = self.owner.is_none();
        let inside = |value: u128| ranges.iter().any(|(low, high)| (*low..=*high).contains(&(value & mask)));
        // Inverted, nearly everything fits; what does not is left as it is.
        let fitting = |value: u128| match ranges.first() {
            _ if inside(value) != *not => Some(value),
            Some((low, high)) if !not => Some(if *mask == u128::MAX && high > low { low + 1 } else { *low }),
            Some((_, high)) => high.checked_add(1).filter(|next| !inside(*next)),
            None => None,
        };
        match field {
            Field::DestinationPort | Field::OriginalPort => {
                let value = self.destination_port.into();
                fitting(value).map(|value| self.destination_port = value as u16).is_some()
            }
            Field::SourcePort => {
                fitting(self.source_port.into()).map(|value| self.source_port = value as u16).is_some()
            }
            Field::Destination(family) | Field::OriginalDestination(family)
                if *family == self.family && !inbound =>
            {
                fitting(self.destination).map(|value| self.destination = value).is_some()
            }
            Field::Source(family) if *family == self.family && inbound => {
                fitting(self.source).map(|value| self.source = value).is_some()
            }
            Field::Uid if !inbound => {
                let (uid, gid) = self.owner.unwrap_or_default();
                fitting(uid.into()).map(|uid| self.owner = Some((uid as u32, gid))).is_some()
            }
            Field::Gid if !inbound => {
                let (uid, gid) = self.owner.unwrap_or_default();
                fitting(gid.into()).map(|gid| self.owner = Some((uid, gid as u32))).is_some()
            }
            // What a packet cannot have otherwise, and marks, which rules before may have set.
            _ => true,
        }
    }
}
