//! What is missing is made, and all else stays.

use std::collections::BTreeSet;

use ruleset::{KeptMembers, Ruleset};

use super::{PartedIptables, PartsError};
use crate::Change;
use crate::iptables::Error;
use crate::nft::Thoroughness;

impl PartedIptables {
    /// Makes what is missing of the only table of `wanted`: chains and sets that are not there or were emptied, and what leads to them. All else stays. Sets
    /// of which the kernel may have something newer are known to have been emptied where they had members in an earlier call.
    ///
    /// # Errors
    /// As of [`Self::ensure`].
    pub(crate) fn supplement(
        &mut self,
        wanted: &Ruleset,
        contents: &dyn KeptMembers,
        thoroughness: Thoroughness,
    ) -> Result<Change, PartsError> {
        let Some(table) = wanted.table(self.kind) else { return Ok(Change::None) };
        self.forget();
        let (seen, works) = self.works(wanted, thoroughness, &[], true)?;
        let names: BTreeSet<String> = self.sets.names()?.into_iter().collect();
        let mut has_changed = false;
        for set in &table.sets {
            let is_missing = !names.contains(&*set.name);
            if is_missing {
                self.sets.prepare(set)?;
            } else if !set.is_kept() || thoroughness != Thoroughness::Everything {
                continue;
            }
            let is_empty = is_missing || self.sets.list(set)?.is_empty();
            if !is_empty {
                self.filled.insert(set.name.to_string());
            }
            let is_emptied =
                is_missing || !contents.may_be_older(&set.name) || self.filled.contains(&*set.name);
            if is_empty && set.is_kept() && is_emptied {
                let members: Vec<_> = contents.of(&set.name).collect();
                self.sets.add(set, &members)?;
                has_changed |= is_missing || !members.is_empty();
            }
            has_changed |= is_missing;
        }
        if works.iter().all(|work| work.difference.is_empty()) {
            self.whole = seen;
        } else {
            self.run(&works).map_err(|(_, failure)| Error::from(failure))?;
            has_changed = true;
        }
        Ok(if has_changed { Change::Replaced } else { Change::None })
    }
}
