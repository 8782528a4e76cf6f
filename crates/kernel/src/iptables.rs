//! iptables and ip6tables, by their programs.
//!
//! # How a setup works
//!
//! 1. The kernel is asked what the variants hold in this namespace: `/proc/thread-self/net/ip_tables_names` for legacy, a netlink list of
//!    chains for nft. Where neither has a table, or nft none but those of others, no program but the last one is run.
//! 2. Else what is there is read by `iptables-save` and compared with the plan, rule by rule.
//! 3. In each table the layers that differ are written anew by one text of `iptables-restore --noflush`: IPv4 before IPv6, and in each
//!    family filter, mangle, nat and raw. The variant is legacy where legacy has
//!    tables, else nft, else whatever `iptables-restore` is. If one cannot do it, the next is tried and a warning kept.
//! 4. What we have in the other variant is removed after the new rules are in force.
//!
//! # What is atomic, and what is not
//!
//! Each table of a family is one commit in the kernel, and is replaced in it without a gap. **Two tables, or two families, are two
//! commits:** in between, for some milliseconds, the first is new and the second old. If a later part fails, the earlier ones
//! are taken back by texts made beforehand, for those tables that the kernel shows to have changed.
//!
//! The caller may be killed at any time. A single run of iptables-restore has all its input in a memory file and its own process
//! group, so it finishes by itself. Several runs are done by a supervisor, this same program in another session
//! ([`run_supervisor_if_asked`]), which finishes or takes back alone. What the killing of both leaves is repaired by the next
//! setup. Two that change the rules of one namespace take turns by a [`netns::Lock`], which whatever is at
//! work holds, a supervisor and a program from before included ([`Iptables::locking`]). Looking takes no lock.
//!
//! The lock of iptables itself is private to each call, so that the host's is never waited for, except in the node's own namespace
//! ([`Iptables::on_the_node`]).
//!
//! A table is never without rules, so nothing has to stop traffic while they are replaced, as upstream's guardrails do.
//!
//! # User namespaces
//!
//! A pod with `hostUsers: false` has a network namespace that another user namespace owns. Rules with an owner match are accepted
//! only from a process in that user namespace, so the programs join it before they start. Needs a kernel from 4.9 on.

mod build;
mod change;
mod child;
mod commit;
mod counts;
mod error;
mod job;
mod others;
mod parted;
mod private;
mod probe;
mod program;
mod saved;
mod supervisor;
#[cfg(test)]
mod tests;
mod wire;
mod work;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use netns::{Inside, Lock};
use ruleset::{Family, Ruleset, TableKind, listed};

pub use error::{Error, Failure, ProgramFailure};
pub use parted::{PartedIptables, PartsError};
pub use program::Variant;
pub use supervisor::{Supervisor, run_supervisor_if_asked};

use crate::watch::KeptSockets;
use crate::{Change, Difference, Listing, RuleStore};
use child::Surroundings;
use job::{IptablesJob, ProgramRun, on_a_thread, share};
use probe::Present;
pub(crate) use probe::{LEGACY_NAMES, legacy_tables};
use program::Search;
use work::{Work, all_leading, end_of_links, may_hold_ours};

/// The longest that one program may run, if nothing else is said: the original lets it wait as long for a lock.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a setup waits for one before it that is still at work.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const VARIANTS: [Variant; 2] = [Variant::Legacy, Variant::Nft];
/// In the order of their commits.
const KINDS: [TableKind; 4] = [TableKind::Filter, TableKind::Mangle, TableKind::Nat, TableKind::Raw];

/// The iptables backend.
#[derive(Debug)]
pub struct Iptables {
    forced: Option<Variant>,
    search: Search,
    timeout: Duration,
    supervisor: Option<Supervisor>,
    run_dir: Option<PathBuf>,
    node: bool,
    before: Vec<Ruleset>,
    warnings: Mutex<Vec<String>>,
}

/// Whether a rule of others before ours that must lead counts as a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Any,
    Leading,
}

/// What came of the runs.
enum Outcome {
    /// There was nothing to do.
    Equal,
    /// All is done.
    Done,
    /// A run failed, and what was done before is taken back as far as `failure` says.
    Failed {
        failure: Failure,
        /// The program in whose place another may be tried.
        instead_of: Option<(Family, PathBuf)>,
    },
}

// === impl Iptables ===

impl Iptables {
    /// What was not as it should be, but did not make a call fail, since the last time that this was asked.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// On the node, others put their rules before ours at any time.
    fn order(&self) -> Order {
        if self.node { Order::Leading } else { Order::Any }
    }

    fn warn(&self, warning: String) {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(warning);
    }

    fn surroundings(&self) -> Surroundings {
        let environment = vec![("PATH".to_owned(), self.search.joined())];
        Surroundings { environment, timeout: self.timeout, ..Surroundings::default() }
    }

    /// Waits for whoever is at work in this namespace, and keeps others waiting while the result is held.
    fn lock(&self, inside: &Inside) -> Option<Lock> {
        match Lock::take(self.run_dir.as_deref()?, inside.id(), LOCK_TIMEOUT) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => {
                self.warn(format!(
                    "another process has been at work on this namespace's iptables rules for {} s; going on",
                    LOCK_TIMEOUT.as_secs()
                ));
                None
            }
            Err(error) => {
                self.warn(format!("others may change the same iptables rules meanwhile: {error}"));
                None
            }
        }
    }

    fn run(
        &self,
        inside: &Inside,
        runs: Vec<ProgramRun>,
        lock: Option<&Lock>,
    ) -> Result<Option<(usize, Failure)>, Error> {
        let job = IptablesJob { timeout: self.timeout, path: self.search.joined(), node: self.node, runs };
        let report = match self.supervisor {
            Some(_) if job.runs.len() > 1 => supervisor::delegate(&job, lock)?,
            _ if job.hides_files() && !inside.thread_ends() => on_a_thread(&job, lock)?,
            _ => job.execute(share(lock)?),
        };
        for warning in report.warnings {
            self.warn(warning);
        }
        Ok(report.failure)
    }

    /// Does what the works ask for.
    fn apply(&self, inside: &Inside, works: &[Work<'_>], lock: Option<&Lock>) -> Result<Outcome, Error> {
        let mut runs = Vec::new();
        let mut of = Vec::new();
        for work in works {
            let tables = work.side.steps()?;
            if !tables.is_empty() {
                runs.push(ProgramRun {
                    save: work.programs.save.clone(),
                    restore: work.programs.restore.clone(),
                    family: work.side.family,
                    variant: work.programs.variant,
                    unproven: work.unproven,
                    tables,
                });
                of.push(work);
            }
        }
        if runs.is_empty() {
            return Ok(Outcome::Equal);
        }
        let Some((number, failure)) = self.run(inside, runs, lock)? else {
            return Ok(Outcome::Done);
        };
        // Where the variant has tables it works, and the other one would not be looked at next time. A program that hangs would
        // only make the next one wait for what hangs; and on what could not be taken back nothing more should be built.
        let another = self.forced.is_none()
            && failure.left.is_empty()
            && !matches!(failure.cause, ProgramFailure::Timeout(_))
            && of.get(number).is_some_and(|work| work.unproven);
        let tried = of.get(number).map(|w| (w.side.family, end_of_links(&w.programs.restore)));
        Ok(Outcome::Failed { failure, instead_of: tried.filter(|_| another) })
    }

    fn try_setup(&self, inside: &Inside, layers: &[Ruleset], order: Order) -> Result<Change, Error> {
        let lock = self.lock(inside);
        let mut failed: Vec<(Family, PathBuf)> = Vec::new();
        let mut last: Option<Failure> = None;
        loop {
            let works = match (self.works(layers, &failed, order), last.take()) {
                (Ok(works), Some(failure)) => {
                    self.warn(format!("{failure}; trying another variant"));
                    works
                }
                (Ok(works), None) => works,
                (Err(_), Some(failure)) => return Err(failure.into()),
                (Err(e), None) => return Err(e),
            };
            let held = works.iter().any(|work| work.side.holds_ours());
            match self.apply(inside, &works, lock.as_ref())? {
                Outcome::Equal => return Ok(Change::None),
                Outcome::Done => return Ok(if held { Change::Replaced } else { Change::Fresh }),
                Outcome::Failed { failure, instead_of: None } => return Err(failure.into()),
                Outcome::Failed { failure, instead_of: Some(tried) } => {
                    failed.push(tried);
                    last = Some(failure);
                }
            }
        }
    }

    fn try_cleanup(&self, inside: &Inside, layers: &[Ruleset]) -> Result<Change, Error> {
        let lock = self.lock(inside);
        let mut works = Vec::new();
        for family in FAMILIES {
            let present = Present::ask(family)?;
            for variant in VARIANTS {
                let left_over = self.left_over(layers, family, &present, variant);
                works.extend(self.if_known(variant, left_over)?);
            }
        }
        match self.apply(inside, &works, lock.as_ref())? {
            Outcome::Equal => Ok(Change::None),
            Outcome::Done => Ok(Change::Fresh),
            Outcome::Failed { failure, .. } => Err(failure.into()),
        }
    }

    /// As [`RuleStore::observe`], in the variant that has the rules. Which one a setup would take now says nothing about what is lost: a
    /// mere look by a legacy program makes tables, and the variant the next setup's.
    fn observe_anywhere(&self, inside: &Inside, layers: &[Ruleset]) -> Result<Vec<Difference>, crate::Error> {
        let mut best = self.observe(inside, layers);
        for variant in VARIANTS.into_iter().filter(|_| self.forced.is_none()) {
            if best.as_ref().is_ok_and(Vec::is_empty) {
                break;
            }
            let search = self.search.clone();
            let forced = Self { search, timeout: self.timeout, node: self.node, ..Self::forced(variant) };
            if let Ok(found) = forced.observe(inside, layers)
                && best.as_ref().map_or(usize::MAX, Vec::len) > found.len()
            {
                best = Ok(found);
            }
        }
        best
    }

    fn try_exists(&self, layers: &[Ruleset]) -> Result<bool, Error> {
        for family in FAMILIES {
            let present = Present::ask(family)?;
            if may_hold_ours(layers, family, &present, Variant::Nft) {
                return Ok(true);
            }
            let left_over = self.left_over(layers, family, &present, Variant::Legacy);
            if self.if_known(Variant::Legacy, left_over)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A rule that is in a chain of others, and no chain of ours in the same table, is found only where the table has a chain of
/// ours too: [`RuleStore::exists`] and [`RuleStore::cleanup`] look for chains first. The rulesets of this project have none such.
impl RuleStore for Iptables {
    fn setup(&self, inside: &Inside, layers: &[Ruleset]) -> Result<Change, crate::Error> {
        Ok(self.try_setup(inside, layers, self.order())?)
    }

    fn put_first(&self, inside: &Inside, layers: &[Ruleset]) -> Result<Change, crate::Error> {
        Ok(self.try_setup(inside, &all_leading(layers), Order::Leading)?)
    }

    fn cleanup(&self, inside: &Inside, layers: &[Ruleset]) -> Result<Change, crate::Error> {
        Ok(self.try_cleanup(inside, layers)?)
    }

    fn exists(&self, _inside: &Inside, layers: &[Ruleset]) -> Result<bool, crate::Error> {
        Ok(self.try_exists(layers)?)
    }

    fn exists_over(&self, kept: &mut KeptSockets, layers: &[Ruleset]) -> Result<Option<bool>, crate::Error> {
        let mut legacy = FAMILIES.into_iter().any(|family| kept.has_legacy(family));
        if kept.is_nft_as_before() {
            return Ok((!legacy || kept.is_legacy_as_before()).then_some(false));
        }
        for (family, present) in FAMILIES.into_iter().zip(Present::over(kept)?) {
            if may_hold_ours(layers, family, &present, Variant::Nft) {
                return Ok(Some(true));
            }
            legacy |= present.has(Variant::Legacy);
        }
        Ok((!legacy || kept.is_legacy_as_before()).then_some(false))
    }

    fn observe(&self, _inside: &Inside, layers: &[Ruleset]) -> Result<Vec<Difference>, crate::Error> {
        let mut all = Vec::new();
        for work in self.works(layers, &[], self.order())? {
            all.extend(work.side.differences());
        }
        Ok(all)
    }

    fn observe_over(
        &self,
        kept: &mut KeptSockets,
        _: &[Ruleset],
    ) -> Result<Option<Vec<Difference>>, crate::Error> {
        Ok(kept.is_as_before().then(Vec::new))
    }

    fn recorded(&self, layers: &[Ruleset]) -> Vec<u8> {
        ruleset::iptables::write_record(layers).into_bytes()
    }

    fn observe_recorded(
        &self,
        inside: &Inside,
        owners: &[Ruleset],
        record: &[u8],
    ) -> Result<Option<Vec<Difference>>, crate::Error> {
        let text = std::str::from_utf8(record).ok();
        match text.and_then(|text| ruleset::iptables::read_record(text, owners)) {
            Some(layers) => self.observe_anywhere(inside, &layers).map(Some),
            None => Ok(None),
        }
    }

    fn tables(&self, owners: &[Ruleset], record: &[u8]) -> Option<Vec<listed::ListedTable>> {
        let layers = ruleset::iptables::read_record(std::str::from_utf8(record).ok()?, owners)?;
        Some(FAMILIES.into_iter().flat_map(|family| ruleset::listed::planned(&layers, family)).collect())
    }

    fn others(&self, _: &Inside, _: &[Ruleset]) -> Result<Listing, crate::Error> {
        Ok(self.list_all()?)
    }
}
