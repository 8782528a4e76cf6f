//! Prefixes that overlap, as the disjoint ones that a kernel takes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Key, SetDelta};
use crate::rule::Family;

/// Prefixes with how often each is held, and the fewest prefixes that have the same addresses: two that overlap or that are the halves of a third
/// are one. nf_tables refuses prefixes that overlap, and a prefix of ipset knows nothing of others.
///
/// Adding and removing gives the change of the fewest prefixes. A prefix that is removed leaves what others cover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    family: Family,
    held: BTreeMap<Block, u32>,
    elements: BTreeSet<Block>,
}

/// A prefix that cannot be added or removed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CoverageError {
    /// A set has one family.
    #[error("prefix {0} is of the other family than its set")]
    OtherFamily(IpNet),
    /// It was not added as often as it is removed.
    #[error("prefix {0} is removed and was not added")]
    NotHeld(IpNet),
}

/// A prefix of either family; addresses are in the upper bits, and those below are zero. A prefix stands before all that it contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    bits: u128,
    len: u8,
}

// === impl Coverage ===

impl Coverage {
    /// An empty one.
    #[must_use]
    pub fn new(family: Family) -> Self {
        Self { family, held: BTreeMap::new(), elements: BTreeSet::new() }
    }

    /// Adds a prefix, whose host bits do not count, or counts it once more.
    ///
    /// # Errors
    /// It is of the other family.
    pub fn add(&mut self, net: IpNet) -> Result<SetDelta, CoverageError> {
        let block = self.block(net)?;
        let count = self.held.entry(block).or_default();
        *count += 1;
        let mut delta = SetDelta::default();
        if *count > 1 || self.element_with(block).is_some() {
            return Ok(delta);
        }
        for inner in self.elements_in(block) {
            self.take(inner, &mut delta);
        }
        let mut whole = block;
        while let Some(sibling) = whole.sibling().filter(|sibling| self.elements.contains(sibling)) {
            self.take(sibling, &mut delta);
            whole = whole.parent();
        }
        self.put(whole, &mut delta);
        Ok(delta)
    }

    /// Takes back one addition of a prefix.
    ///
    /// # Errors
    /// It is of the other family, or not held.
    pub fn remove(&mut self, net: IpNet) -> Result<SetDelta, CoverageError> {
        let block = self.block(net)?;
        let mut delta = SetDelta::default();
        match self.held.get_mut(&block) {
            None => return Err(CoverageError::NotHeld(net)),
            Some(1) => self.held.remove(&block),
            Some(count) => {
                *count -= 1;
                return Ok(delta);
            }
        };
        let Some(element) = self.element_with(block) else { return Ok(delta) };
        let rest = self.cover(block);
        let covered = || block.parents().take_while(|parent| parent.len >= element.len);
        if rest == [block] || covered().any(|parent| self.held.contains_key(&parent)) {
            return Ok(delta);
        }
        self.take(element, &mut delta);
        let path = std::iter::once(block).chain(covered()).take_while(|part| part.len > element.len);
        let beside: Vec<Block> = path.filter_map(Block::sibling).collect();
        for part in beside.into_iter().chain(rest) {
            self.put(part, &mut delta);
        }
        Ok(delta)
    }

    /// The fewest prefixes with the same addresses, in order.
    pub fn elements(&self) -> impl Iterator<Item = IpNet> {
        self.elements.iter().map(|block| block.net(self.family))
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    fn put(&mut self, block: Block, delta: &mut SetDelta) {
        self.elements.insert(block);
        delta.add(Key::Prefix(block.net(self.family)));
    }

    fn take(&mut self, block: Block, delta: &mut SetDelta) {
        self.elements.remove(&block);
        delta.remove(Key::Prefix(block.net(self.family)));
    }

    /// The element that has the whole block.
    fn element_with(&self, block: Block) -> Option<Block> {
        // Elements are disjoint: only the last one before can reach so far.
        self.elements.range(..=block).next_back().copied().filter(|element| element.contains(block))
    }

    fn elements_in(&self, block: Block) -> Vec<Block> {
        self.elements.range(block..).take_while(|element| block.contains(**element)).copied().collect()
    }

    /// The fewest prefixes for what is held inside of a block.
    fn cover(&self, block: Block) -> Vec<Block> {
        let inside = self.held.range(block..).map(|(inner, _)| *inner);
        merge(inside.take_while(|inner| block.contains(*inner)))
    }

    fn block(&self, net: IpNet) -> Result<Block, CoverageError> {
        if Family::of(&net) != self.family {
            return Err(CoverageError::OtherFamily(net));
        }
        Ok(Block::of(net))
    }
}

/// The fewest prefixes with the same addresses. Those of the other family do not count.
pub(super) fn merged(nets: impl Iterator<Item = IpNet>, family: Family) -> Vec<IpNet> {
    let mut blocks: Vec<Block> = nets.filter(|net| Family::of(net) == family).map(Block::of).collect();
    blocks.sort_unstable();
    merge(blocks.into_iter()).into_iter().map(|block| block.net(family)).collect()
}

/// As [`merged`], of blocks in their order.
fn merge(blocks: impl Iterator<Item = Block>) -> Vec<Block> {
    let mut all: Vec<Block> = Vec::new();
    for block in blocks {
        if all.last().is_some_and(|last| last.contains(block)) {
            continue;
        }
        let mut whole = block;
        while all.last().is_some_and(|last| Some(*last) == whole.sibling()) {
            all.pop();
            whole = whole.parent();
        }
        all.push(whole);
    }
    all
}

// === impl Block ===

impl Block {
    fn of(net: IpNet) -> Self {
        match net.trunc() {
            IpNet::V4(v4) => Self { bits: u128::from(u32::from(v4.addr())) << 96, len: v4.prefix_len() },
            IpNet::V6(v6) => Self { bits: v6.addr().into(), len: v6.prefix_len() },
        }
    }

    fn contains(self, other: Self) -> bool {
        self.len <= other.len && (self.bits ^ other.bits) & mask(self.len) == 0
    }

    /// The other half of the parent; none of what has no parent.
    fn sibling(self) -> Option<Self> {
        let last = 128_u32.checked_sub(self.len.into()).filter(|_| self.len > 0)?;
        Some(Self { bits: self.bits ^ (1 << last), len: self.len })
    }

    /// Itself where there is none.
    fn parent(self) -> Self {
        let len = self.len.saturating_sub(1);
        Self { bits: self.bits & mask(len), len }
    }

    /// The blocks around it, smallest first.
    fn parents(self) -> impl Iterator<Item = Self> {
        (0..self.len).rev().map(move |len| Self { bits: self.bits & mask(len), len })
    }

    fn net(self, family: Family) -> IpNet {
        // A block of IPv4 has at most 32 bits: it was made of such a prefix, and its parents and siblings are no longer.
        match family {
            Family::V4 => {
                // The upper half of the upper half: nothing is lost.
                let address = Ipv4Addr::from((self.bits >> 96) as u32);
                Ipv4Net::new_assert(address, self.len).into()
            }
            Family::V6 => Ipv6Net::new_assert(Ipv6Addr::from(self.bits), self.len).into(),
        }
    }
}

/// The first `len` bits.
fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
