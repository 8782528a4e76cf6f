//! The counters of a pod's traffic in its network namespace.

use std::sync::Arc;

use kernel::nft::{NamedCounts, Nftables};
use kernel::sets::Sets;
use kernel::{Change, RuleStore as _};
use netns::Inside;
use ruleset::{Backend, Element, SetDelta};
use usage::{CounterCount, PodReading, USAGE_OWNER, USAGE_TABLE, UsagePlan};

/// What counts in one namespace, and sockets there by which it is read and told of members from anywhere. They keep the namespace alive: what a pod counted
/// that has ended can still be read.
pub struct UsageMeter {
    plan: Arc<UsagePlan>,
    counts: NamedCounts,
    sets: Sets,
    is_fresh: bool,
}

/// What a plan has otherwise than an earlier one with the same classes. Pods of a tenant share it: it costs as much as there are members.
pub struct MemberNews {
    before: Arc<UsagePlan>,
    now: Arc<UsagePlan>,
    deltas: Vec<(SetDelta, String)>,
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
    /// A defect.
    #[error(
        "tell the rules that count whose an address is: they have other members than was thought; this is a defect, please report it"
    )]
    OtherPlan,
}

// === impl MemberNews ===

impl MemberNews {
    /// Compares them.
    pub fn between(before: &Arc<UsagePlan>, now: &Arc<UsagePlan>) -> Self {
        let (old, none) = (before.members(), &[] as &[Element]);
        let delta = |(name, wanted): (String, Vec<Element>)| {
            (SetDelta::between(old.get(&name).map_or(none, Vec::as_slice), &wanted), name)
        };
        let deltas = now.members().into_iter().map(delta).collect();
        Self { before: before.clone(), now: now.clone(), deltas }
    }
}

// === impl UsageMeter ===

impl UsageMeter {
    /// Makes what counts, or takes over what an earlier agent made, whose counters go on.
    ///
    /// # Errors
    /// The kernel does not do it, or has no nf_tables.
    pub fn open(inside: &Inside, plan: &Arc<UsagePlan>) -> Result<Self, MeterError> {
        let rules = plan.rules();
        let change = Nftables.setup(inside, std::slice::from_ref(&rules))?;
        let mut sets = Sets::open(inside, Backend::Nftables, &rules)?;
        let mut deltas = Vec::new();
        for (name, wanted) in plan.members() {
            deltas.push((SetDelta::between(&sets.list(&name)?, &wanted), name));
        }
        change_sets(&mut sets, &deltas)?;
        let counts = NamedCounts::open(inside, USAGE_OWNER, USAGE_TABLE)?;
        Ok(Self { plan: plan.clone(), counts, sets, is_fresh: change == Change::Fresh })
    }

    /// Whether [`Self::open`] found nothing there.
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// What it counts by.
    pub fn plan(&self) -> &Arc<UsagePlan> {
        &self.plan
    }

    /// Whether another plan only has other members of the same classes, which [`Self::follow`] tells the kernel.
    pub fn can_follow(&self, plan: &UsagePlan) -> bool {
        let [own, other] = [&self.plan.classes, &plan.classes].map(|all| all.iter().map(|one| &one.class));
        own.eq(other)
    }

    /// Counts by other members of the same classes. Nobody has to be inside. A plan with other classes is one for [`Self::open`]: counters of classes that
    /// both have go on, and what others say is to be read before.
    ///
    /// # Errors
    /// The kernel does not do it; [`Self::open`] begins anew.
    pub fn follow(&mut self, news: &MemberNews) -> Result<(), MeterError> {
        if !Arc::ptr_eq(&self.plan, &news.before) {
            return Err(MeterError::OtherPlan);
        }
        change_sets(&mut self.sets, &news.deltas)?;
        self.plan = news.now.clone();
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

/// What is new comes into the sets of rules that are there, at once.
fn change_sets(sets: &mut Sets, deltas: &[(SetDelta, String)]) -> Result<(), MeterError> {
    let deltas = deltas.iter().filter(|(delta, _)| !delta.is_empty());
    let deltas: Vec<(&str, &SetDelta)> = deltas.map(|(delta, name)| (name.as_str(), delta)).collect();
    if !deltas.is_empty() {
        sets.change(&deltas)?;
    }
    Ok(())
}
