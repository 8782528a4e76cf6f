//! Changes of a table whose chains and sets come and go by parts.

use std::collections::BTreeMap;

use crate::rule::{Chain, Table};
use crate::set::{Contents, Key, Set, SetDelta};

/// What is to be different in a table, all in one transaction. Regular chains and sets are named by what they mean, so that what is not named here
/// stays as it is, with its counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableDelta {
    /// Sets that are made; those that are part of the plan with their content.
    pub sets: Vec<Set>,
    /// Chains that have these rules afterwards, regular ones whether or not they are there before.
    pub chains: Vec<Chain>,
    /// What comes into kept sets and leaves them.
    pub members: BTreeMap<String, SetDelta>,
    /// Keys of kept verdict maps that are among the added ones and lead elsewhere before.
    pub replaced: BTreeMap<String, Vec<Key>>,
    /// Chains that go. Nothing leads to them afterwards.
    pub gone_chains: Vec<String>,
    /// Sets that go. No rule looks into them afterwards.
    pub gone_sets: Vec<String>,
}

// === impl TableDelta ===

impl TableDelta {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { sets, chains, members, replaced: _, gone_chains, gone_sets } = self;
        sets.is_empty()
            && chains.is_empty()
            && members.values().all(SetDelta::is_empty)
            && gone_chains.is_empty()
            && gone_sets.is_empty()
    }

    /// The change of a kept set's members.
    pub fn of(&mut self, set: impl Into<String>) -> &mut SetDelta {
        self.members.entry(set.into()).or_default()
    }

    /// Does to a table and the members of its kept sets what the kernel does. Chains and sets that are new come last.
    pub fn apply(&self, table: &mut Table, contents: &mut Contents) {
        for set in &self.sets {
            match table.sets.iter_mut().find(|known| known.name == set.name) {
                Some(known) => *known = set.clone(),
                None => table.sets.push(set.clone()),
            }
        }
        for chain in &self.chains {
            match table.chains.iter_mut().find(|known| known.name == chain.name) {
                Some(known) => *known = chain.clone(),
                None => table.chains.push(chain.clone()),
            }
        }
        self.members.iter().for_each(|(set, delta)| contents.apply(set, delta));
        table.chains.retain(|chain| !self.gone_chains.iter().any(|gone| *gone == chain.name));
        table.sets.retain(|set| !self.gone_sets.iter().any(|gone| *gone == set.name));
        self.gone_sets.iter().for_each(|set| contents.forget(set));
    }
}
