//! A job of the book carried out inside a pod's namespace.

use enforcement::{PodJob, SetContent};
use kernel::sets::Sets;
use kernel::{Change, Choice, Kernel};
use netns::Inside;
use policy::compile::CompiledPod;
use ruleset::{Backend, Plan, Ruleset, SetDelta};

use super::PodPointFailure;

/// Does a job: what is new comes into the sets, then the rules change in one transaction, then what is not wanted any more leaves the sets.
pub(super) fn load(
    inside: &Inside,
    kernel: Kernel<'_>,
    backend: Backend,
    job: &PodJob,
) -> Result<Change, PodPointFailure> {
    let Some(compiled) = &job.rules else { return unload(inside, kernel, backend, job) };
    let setup = |rules: &Ruleset| {
        let plan = |backend| Plan::of_layer(backend, rules.clone());
        kernel.apply(inside, Choice::Only(backend), plan).map(|applied| applied.rules)
    };
    let mut sets = Sets::open(inside, backend, &compiled.rules)?;
    sets.prepare()?;
    let is_other = job.before.as_ref().is_none_or(|before| before.rules != compiled.rules);
    let mut change = Change::None;
    if backend == Backend::Nftables && is_other {
        // The rules before with the sets of both: a packet that both allow meets no empty set.
        let first = job
            .before
            .as_ref()
            .map_or_else(|| compiled.rules.clone(), |before| with_sets_of(before, compiled));
        change = setup(&first)?;
    }
    let (mut gains, mut loses) = (Vec::new(), Vec::new());
    for set in &job.sets {
        let delta = match &set.content {
            SetContent::Changes(delta) => delta.clone(),
            SetContent::Whole(all) => SetDelta::between(&sets.list(&set.name)?, all),
        };
        let (mut more, mut less) = (SetDelta::default(), SetDelta::default());
        delta.added().for_each(|element| more.add(element));
        delta.removed().for_each(|key| less.remove(key));
        gains.push((set.name.as_str(), more));
        loses.push((set.name.as_str(), less));
    }
    let mut count = change_sets(&mut sets, &gains)?;
    if is_other {
        let last = setup(&compiled.rules)?;
        change = if change == Change::None { last } else { change };
        if let Some(before) = &job.before {
            Sets::open(inside, backend, &sets_beside(before, compiled))?.destroy()?;
        }
    }
    count += change_sets(&mut sets, &loses)?;
    let has_repaired = job.is_whole && job.before.is_none() && change == Change::None && count > 0;
    Ok(if has_repaired { Change::Replaced } else { change })
}

/// How many elements are other than before.
fn change_sets(sets: &mut Sets, changes: &[(&str, SetDelta)]) -> Result<usize, PodPointFailure> {
    let changes: Vec<(&str, &SetDelta)> =
        changes.iter().filter(|(_, delta)| !delta.is_empty()).map(|(name, delta)| (*name, delta)).collect();
    if changes.is_empty() {
        return Ok(0);
    }
    Ok(sets.change(&changes)?.count())
}

fn unload(
    inside: &Inside,
    kernel: Kernel<'_>,
    backend: Backend,
    job: &PodJob,
) -> Result<Change, PodPointFailure> {
    // In iptables a rule of ours is known by a chain of ours that it leads to, or by the plan.
    let rules = job.last.as_ref().map_or_else(policy::guard::no_rules, |last| last.rules.clone());
    let plan = Plan::of_layer(backend, rules);
    let change = kernel.cleanup(inside, &plan)?;
    if backend == Backend::Iptables {
        // Where that fails, because a rule that is gone has not let go of them yet, it is tried again.
        kernel::sets::destroy_of(inside, &plan.layers[0])?;
    }
    Ok(change)
}

/// The rules before, with the sets of those that follow beside their own.
fn with_sets_of(before: &CompiledPod, next: &CompiledPod) -> Ruleset {
    let mut rules = before.rules.clone();
    for table in &mut rules.tables {
        let more =
            next.rules.tables.iter().filter(|other| other.kind == table.kind).flat_map(|other| &other.sets);
        let more: Vec<_> =
            more.filter(|set| table.sets.iter().all(|own| own.name != set.name)).cloned().collect();
        table.sets.extend(more);
    }
    rules
}

/// The rules before, with those of their sets that the ones that follow do not have.
fn sets_beside(before: &CompiledPod, next: &CompiledPod) -> Ruleset {
    let mut rules = before.rules.clone();
    let has = |name: &str| next.rules.tables.iter().flat_map(|table| &table.sets).any(|set| set.name == name);
    rules.tables.iter_mut().for_each(|table| table.sets.retain(|set| !has(&set.name)));
    rules
}
