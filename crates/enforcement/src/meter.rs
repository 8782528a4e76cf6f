//! The counters of a pod's traffic in its network namespace.

use std::collections::BTreeMap;

use kernel::nft::{NamedCounts, Nftables};
use kernel::sets::Sets;
use kernel::{Change, RuleStore as _};
use netns::Inside;
use ruleset::{Backend, Element, SetDelta};
use usage::{CounterCount, PodReading, USAGE_OWNER, USAGE_TABLE, UsagePlan};

/// What counts in one namespace, and a socket there by which it is read from anywhere. The socket keeps the namespace alive: what a pod counted that has
/// ended can still be read.
#[derive(Debug)]
pub struct UsageMeter {
    plan: UsagePlan,
    counts: NamedCounts,
    is_fresh: bool,
}

/// Counters that are not made, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// The rules.
    #[error("make the rules that count: {0}")]
    Rules(#[from] kernel::Error),
    /// The sets.
    #[error("tell the rules that count whose an address is: {0}")]
    Sets(#[from] kernel::sets::Error),
    /// The counters.
    #[error(transparent)]
    Counters(#[from] kernel::nft::Error),
    /// Somebody took the table.
    #[error("the counters are gone: somebody removed table istio-usage-raw")]
    Gone,
}

// === impl UsageMeter ===

impl UsageMeter {
    /// Makes what counts, or takes over what an earlier agent made, whose counters go on.
    ///
    /// # Errors
    /// The kernel does not do it, or has no nf_tables.
    pub fn open(inside: &Inside, plan: &UsagePlan) -> Result<Self, MeterError> {
        let change = load(inside, plan)?;
        let counts = NamedCounts::open(inside, USAGE_OWNER, USAGE_TABLE)?;
        Ok(Self { plan: plan.clone(), counts, is_fresh: change == Change::Fresh })
    }

    /// Whether [`Self::open`] found nothing there.
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// What it counts by.
    pub fn plan(&self) -> &UsagePlan {
        &self.plan
    }

    /// Counts by another plan. Counters of classes that both have go on; what others say is to be read before.
    ///
    /// # Errors
    /// The kernel does not do it; the next call begins anew.
    pub fn follow(&mut self, inside: &Inside, plan: &UsagePlan) -> Result<(), MeterError> {
        load(inside, plan)?;
        self.plan = plan.clone();
        Ok(())
    }

    /// What was counted since the counters are there. Nobody has to be inside.
    ///
    /// # Errors
    /// The kernel could not be asked, or somebody removed the counters.
    pub fn read(&mut self) -> Result<PodReading, MeterError> {
        let all = self.counts.read()?;
        if all.is_empty() {
            return Err(MeterError::Gone);
        }
        let count = |one: kernel::nft::NamedCount| CounterCount {
            name: one.name,
            packets: one.packets,
            bytes: one.bytes,
        };
        Ok(PodReading::new(&self.plan, all.into_iter().map(count)))
    }

    /// Removes what counts in a namespace. Nothing there is success.
    ///
    /// # Errors
    /// It is there still.
    pub fn remove(inside: &Inside) -> Result<Change, MeterError> {
        Ok(Nftables.cleanup(inside, &[UsagePlan::no_rules()])?)
    }
}

/// Rules and members: what is new comes into the sets of rules that are there already, at once.
fn load(inside: &Inside, plan: &UsagePlan) -> Result<Change, MeterError> {
    let rules = plan.rules();
    let change = Nftables.setup(inside, std::slice::from_ref(&rules))?;
    let mut sets = Sets::open(inside, Backend::Nftables, &rules)?;
    let members: BTreeMap<String, Vec<Element>> = plan.members();
    let mut deltas = Vec::new();
    for (name, wanted) in &members {
        let delta = SetDelta::between(&sets.list(name)?, wanted);
        if !delta.is_empty() {
            deltas.push((name.as_str(), delta));
        }
    }
    let deltas: Vec<(&str, &SetDelta)> = deltas.iter().map(|(name, delta)| (*name, delta)).collect();
    if !deltas.is_empty() {
        sets.change(&deltas)?;
    }
    Ok(change)
}
