mod node;
mod pod;
mod settings;

use ruleset::listed::ListedTable;
use ruleset::{Backend, Plan};

use super::{conflicts, examine};
use crate::sample::ambient;
use crate::{Conflict, ObservedNetns, Severity};

/// Ids and severities, each once.
fn kinds(conflicts: &[Conflict]) -> Vec<String> {
    let mut kinds: Vec<String> =
        conflicts.iter().map(|found| format!("{} {}", found.id, found.severity)).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

fn found(observed: &ObservedNetns, plan: &Plan) -> Vec<String> {
    kinds(&conflicts(observed, plan))
}

/// What others' table does to a pod in ambient mode.
fn with(table: ListedTable) -> Vec<Conflict> {
    let (mut observed, plan) = ambient(Backend::Nftables);
    observed.tables.push(table);
    conflicts(&observed, &plan)
}

fn one(table: ListedTable) -> Conflict {
    let found = with(table);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

fn above_info(conflicts: &[Conflict]) -> Vec<String> {
    let worse: Vec<Conflict> =
        conflicts.iter().filter(|found| found.severity > Severity::Info).cloned().collect();
    kinds(&worse)
}
