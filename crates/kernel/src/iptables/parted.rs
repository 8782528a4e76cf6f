//! Chains of ours in a table of iptables and the ipsets that their rules look into, on the node and changed by parts: chains and sets come and go while
//! everything else stays as it is.
//!
//! Members of sets change by netlink. A program runs where chains change, once for each family in which they do, and each run is one commit. It also
//! reads what is there, but only where netlink tells that it may be other than before.
//!
//! ipset has no transactions, and the two families are two commits. So everything is done in an order: sets have what rules look for before these do,
//! and lose it afterwards.

mod compare;
mod missing;
mod seen;

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use netns::{Host, Inside};
use ruleset::{Family, KeptMembers, Key, Ruleset, Set, SetDelta, TableDelta, TableKind};

use super::job;
use super::probe::Present;
use super::program::Programs;
use super::{Error, FAMILIES, Iptables, Outcome, VARIANTS};
use crate::ipset::IpSets;
use crate::netlink::NetlinkSocket;
use crate::nft::Thoroughness;
use crate::watch::{Noticed, open_netfilter, read_commits};
use crate::{Change, sets, watch};
use compare::{ChainDifference, PlannedChain};
use seen::SeenRules;

/// How often another variant is tried where the kernel lacks that of the first programs.
const TRIES: usize = 2;

/// What could not be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// The node's namespace cannot be entered.
    #[error(transparent)]
    Enter(#[from] netns::Error),
    /// Rules.
    #[error(transparent)]
    Rules(#[from] Error),
    /// Sets.
    #[error(transparent)]
    Sets(#[from] sets::Error),
    /// The kernel does not tell whether something has changed.
    #[error(transparent)]
    Watch(#[from] watch::Error),
    /// It does not tell of commits.
    #[error("read events of nf_tables")]
    Events(#[source] crate::netlink::Error),
}

/// A table of the node's, as far as it is one owner's.
pub struct PartedIptables {
    host: Host,
    iptables: Iptables,
    /// The owner without tables.
    of: Ruleset,
    kind: TableKind,
    sets: IpSets,
    /// Of transactions of nf_tables; absent where the kernel has none.
    hears: Option<NetlinkSocket>,
    families: [FamilySide; 2],
    /// The kernel's rules when they were found as they are in `families`.
    seen: Option<SeenRules>,
    /// The kernel's rules when nothing was missing of them.
    whole: Option<SeenRules>,
    /// Sets that had members when it was looked what is missing.
    filled: BTreeSet<String>,
}

/// What a family has.
#[derive(Default)]
struct FamilySide {
    /// Those that wrote it.
    programs: Option<Programs>,
    /// The rules of each chain, as a number.
    written: HashMap<String, u64>,
}

/// What is to be done in a family.
struct FamilyWork {
    family: Family,
    programs: Programs,
    /// Whether the variant has no table here yet, so that nobody has shown that it works.
    unproven: bool,
    difference: ChainDifference,
    planned: Vec<PlannedChain>,
}

// === impl PartsError ===

impl PartsError {
    /// Whether there are no programs that could work on this kernel.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Rules(error) if error.is_missing())
    }
}

// === impl PartedIptables ===

impl PartedIptables {
    /// Opens the sockets. Nothing is made or changed; transactions are heard from now on. `of` is the owner, whose names of chains begin as those of its
    /// sets do, without tables.
    ///
    /// # Errors
    /// The namespace cannot be entered, or no descriptor is left.
    pub fn open(host: Host, iptables: Iptables, of: Ruleset, kind: TableKind) -> Result<Self, PartsError> {
        let (hears, sets) = host.enter(|inside| {
            let hears = match open_netfilter(inside.inside()) {
                Err(error) if crate::nft::is_absent(&error) => None,
                opened => Some(opened.map_err(PartsError::Events)?),
            };
            Ok::<_, PartsError>((hears, IpSets::new(inside.inside())?))
        })??;
        let (families, filled) = (Default::default(), BTreeSet::new());
        Ok(Self { host, iptables, of, kind, sets, hears, families, seen: None, whole: None, filled })
    }

    /// To wait for: readable when somebody has committed something to nf_tables. Nothing tells of iptables-legacy.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.hears.as_ref().map(AsFd::as_fd)
    }

    /// What was committed since the last call. Never waits.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn heard(&mut self) -> Result<Noticed, PartsError> {
        let Some(hears) = &mut self.hears else { return Ok(Noticed::default()) };
        let heard = hears.hear();
        hears.rest();
        heard.map(|events| read_commits(&events)).map_err(PartsError::Events)
    }

    /// Whether the rules are those that were found as they should be, or of which nothing was missing, as far as netlink tells. No program runs.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn is_as_seen(&self) -> Result<bool, PartsError> {
        let Some(seen) = self.seen.as_ref().or(self.whole.as_ref()) else { return Ok(false) };
        let now = self.host.enter(|inside| SeenRules::look(inside.inside(), self.kind))??;
        Ok(now == *seen)
    }

    /// What the programs said that was no failure.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        self.iptables.take_warnings()
    }

    /// Makes what the kernel has equal to the only table of `wanted` with these members, whatever is there. What is equal already is not touched. New
    /// sets and members come first, then the rules of each family change in one commit, and last members and sets go.
    ///
    /// # Errors
    /// The kernel or a program refused; or it could not be asked. A part may be done.
    pub fn ensure(
        &mut self,
        wanted: &Ruleset,
        contents: &dyn KeptMembers,
        thoroughness: Thoroughness,
    ) -> Result<Change, PartsError> {
        let Some(table) = wanted.table(self.kind) else { return self.remove() };
        self.whole = None;
        let (seen, works) = self.works(wanted, thoroughness, &[], false)?;
        let has_rules = works.iter().all(|work| work.difference.is_empty());
        if has_rules && thoroughness == Thoroughness::Rules {
            self.seen = seen;
            return Ok(Change::None);
        }
        let names: BTreeSet<String> = self.sets.names()?.into_iter().collect();
        let is_fresh = !works.iter().any(|work| work.difference.has_ours)
            && self.seen.is_none()
            && !names.iter().any(|name| sets::is_owned(&self.of, name));
        let mut changed = false;
        for set in &table.sets {
            match self.sets.difference(set)? {
                None => continue,
                // It would not be looked into as the rules do.
                Some(how) if names.contains(&*set.name) && how.contains("type") => {
                    self.remove()?;
                    return self.ensure(wanted, contents, thoroughness);
                }
                Some(_) => self.sets.prepare(set)?,
            }
            changed = true;
        }
        let mut losses = Vec::new();
        for set in table.sets.iter().filter(|set| set.is_kept()) {
            let members: Vec<_> = contents.of(&set.name).collect();
            let delta = SetDelta::between(&self.sets.list(set)?, &members);
            changed |= !delta.is_empty();
            self.sets.add(set, &delta.added().collect::<Vec<_>>())?;
            losses.push((set, delta.removed().collect::<Vec<Key>>()));
        }
        changed |= !has_rules;
        self.write(wanted, thoroughness, works)?;
        for (set, keys) in losses {
            self.sets.remove(set, &keys)?;
        }
        let planned: BTreeSet<&str> = table.sets.iter().map(|set| &*set.name).collect();
        let is_gone = |name: &&String| sets::is_owned(&self.of, name) && !planned.contains(name.as_str());
        for gone in names.iter().filter(is_gone) {
            self.sets.destroy(gone)?;
            changed = true;
        }
        self.seen = seen.filter(|_| has_rules);
        Ok(match changed {
            false => Change::None,
            true if is_fresh => Change::Fresh,
            true => Change::Replaced,
        })
    }

    /// Whether there are sets of the owner's: rules of an earlier program look into them.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn has_sets(&mut self) -> Result<bool, PartsError> {
        Ok(self.sets.names()?.iter().any(|name| sets::is_owned(&self.of, name)))
    }

    /// Changes a part: sets appear and gain members, then chains change, then sets lose members and go.
    ///
    /// # Errors
    /// As [`Self::ensure`].
    pub fn change(&mut self, delta: &TableDelta) -> Result<(), PartsError> {
        for set in &delta.sets {
            self.sets.prepare(set)?;
            if set.is_kept() {
                self.sets.flush(&set.name)?;
            }
        }
        for (name, change) in &delta.members {
            if let Some(set) = change.added().next().map(|element| kept(name, &element.key)) {
                self.sets.add(&set, &change.added().collect::<Vec<_>>())?;
            }
        }
        self.rewrite(delta)?;
        for (name, change) in &delta.members {
            if let Some(set) = change.removed().next().map(|key| kept(name, &key)) {
                self.sets.remove(&set, &change.removed().collect::<Vec<_>>())?;
            }
        }
        delta.gone_sets.iter().try_for_each(|set| self.sets.destroy(set)).map_err(PartsError::from)
    }

    /// Removes everything of the owner's.
    ///
    /// # Errors
    /// Something is there still.
    pub fn remove(&mut self) -> Result<Change, PartsError> {
        self.forget();
        let layers = std::slice::from_ref(&self.of);
        let mut change = self.host.enter(|inside| self.iptables.try_cleanup(inside.inside(), layers))??;
        if sets::destroy_owned(&mut self.sets, &self.of)? {
            change = Change::Fresh;
        }
        Ok(change)
    }

    fn forget(&mut self) {
        (self.seen, self.whole, self.families) = (None, None, Default::default());
    }

    /// What differs in each family, and the rules that were looked at. Programs look only where something may have changed.
    fn works(
        &self,
        wanted: &Ruleset,
        thoroughness: Thoroughness,
        failed: &[(Family, PathBuf)],
        only_missing: bool,
    ) -> Result<(Option<SeenRules>, Vec<FamilyWork>), PartsError> {
        let table = wanted.table(self.kind);
        self.host.enter(|inside| {
            // Whatever changes while it is compared is found to have changed.
            let seen = SeenRules::look(inside.inside(), self.kind)?;
            let is_same = self.seen.as_ref() == Some(&seen);
            let mut works = Vec::new();
            for (family, side) in FAMILIES.into_iter().zip(&self.families) {
                let planned = table.map(|table| PlannedChain::all(table, family)).unwrap_or_default();
                let is_written = side.written.len() == planned.len()
                    && planned.iter().all(|chain| side.written.get(&chain.name) == Some(&chain.number));
                if let Some(programs) = side.programs.clone().filter(|_| is_same && is_written) {
                    let difference = ChainDifference::none();
                    works.push(FamilyWork { family, programs, unproven: false, difference, planned });
                    continue;
                }
                let present = Present::ask(family)?;
                let layers = std::slice::from_ref(wanted);
                let (programs, saved) = self.iptables.choose(layers, family, &present, failed)?;
                let saved = saved.as_ref().and_then(|saved| saved.table(self.kind));
                let how = [thoroughness == Thoroughness::Everything, only_missing];
                let difference = ChainDifference::of(saved, table, &planned, (wanted, self.kind), how);
                let unproven = !present.has(programs.variant);
                works.push(FamilyWork { family, programs, unproven, difference, planned });
            }
            Ok((Some(seen), works))
        })?
    }

    /// Writes what differs, each family in one commit, then removes what the other variant has.
    fn write(
        &mut self,
        wanted: &Ruleset,
        thoroughness: Thoroughness,
        mut works: Vec<FamilyWork>,
    ) -> Result<(), PartsError> {
        let mut failed = Vec::new();
        for tries in 1.. {
            let Err((work, failure)) = self.run(&works) else { break };
            self.forget();
            if !work.unproven || tries == TRIES {
                return Err(Error::from(failure).into());
            }
            self.iptables.warn(format!("{failure}; trying another variant"));
            failed.push((work.family, super::end_of_links(&work.programs.restore)));
            works = self.works(wanted, thoroughness, &failed, false)?.1;
        }
        let is_other = works.iter().any(|work| !work.difference.is_empty());
        for (side, work) in self.families.iter_mut().zip(works) {
            let chains = work.planned.into_iter().map(|chain| (chain.name, chain.number));
            *side = FamilySide { programs: Some(work.programs), written: chains.collect() };
        }
        if is_other || thoroughness == Thoroughness::Everything && self.seen.is_none() {
            self.clean_other_variants()?;
        }
        Ok(())
    }

    fn run<'w>(&self, works: &'w [FamilyWork]) -> Result<(), (&'w FamilyWork, super::Failure)> {
        let around = self.iptables.surroundings();
        for work in works.iter().filter(|work| !work.difference.text.is_empty()) {
            let program = (&*work.programs.restore, work.programs.variant);
            let restore =
                |_: &netns::InsideHost<'_>| job::restore(program, &work.difference.text, &around, false);
            let failed = |cause: String| super::Failure {
                program: work.programs.restore.clone(),
                cause: super::ProgramFailure::Start(cause),
                said: String::new(),
                left: Vec::new(),
            };
            let done = self.host.enter(restore).unwrap_or_else(|error| Err(failed(error.to_string())));
            done.map_err(|failure| (work, failure))?;
        }
        Ok(())
    }

    fn clean_other_variants(&self) -> Result<(), PartsError> {
        let layers = std::slice::from_ref(&self.of);
        let clean = |inside: &Inside| -> Result<(), Error> {
            let mut works = Vec::new();
            for (family, side) in FAMILIES.into_iter().zip(&self.families) {
                let present = Present::ask(family)?;
                let used = side.programs.as_ref().map(|programs| programs.variant);
                for variant in VARIANTS.into_iter().filter(|variant| Some(*variant) != used) {
                    let left_over = self.iptables.left_over(layers, family, &present, variant);
                    works.extend(self.iptables.if_known(variant, left_over)?);
                }
            }
            match self.iptables.apply(inside, &works, None)? {
                Outcome::Failed { failure, .. } => Err(failure.into()),
                Outcome::Equal | Outcome::Done => Ok(()),
            }
        };
        Ok(self.host.enter(|inside| clean(inside.inside()))??)
    }

    /// Writes the chains of a change, in each family where they are other than before.
    fn rewrite(&mut self, delta: &TableDelta) -> Result<(), PartsError> {
        let mut works = Vec::new();
        for (family, side) in FAMILIES.into_iter().zip(&self.families) {
            let planned = delta.chains.iter().map(|chain| PlannedChain::of(chain, family));
            let is_other = |chain: &PlannedChain| side.written.get(&chain.name) != Some(&chain.number);
            let planned: Vec<PlannedChain> = planned.filter(is_other).collect();
            let difference = ChainDifference::by_event(&planned, &delta.gone_chains, self.kind);
            let Some(programs) = side.programs.clone() else { continue };
            works.push(FamilyWork { family, programs, unproven: false, difference, planned });
        }
        if works.iter().all(|work| work.difference.is_empty()) {
            return Ok(());
        }
        // The kernel's rules are others from now on, whether or not this succeeds.
        self.seen = None;
        if let Err((_, failure)) = self.run(&works) {
            self.forget();
            return Err(Error::from(failure).into());
        }
        for work in works {
            let side = &mut self.families[usize::from(work.family == Family::V6)];
            side.written.extend(work.planned.into_iter().map(|chain| (chain.name, chain.number)));
            for gone in &delta.gone_chains {
                side.written.remove(&ruleset::iptables::own_chain_name(gone));
            }
        }
        Ok(())
    }
}

/// A set that has such keys.
fn kept(name: &str, key: &Key) -> Set {
    Set::kept(name.to_owned(), key.key_type())
}
