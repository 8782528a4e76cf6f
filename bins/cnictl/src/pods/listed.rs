//! Rules in one form for plan and kernel, and which of the kernel's are the plan's.

use kernel::RuleStore;
use ruleset::Plan;
use ruleset::listed::{ListedAct, ListedChain, ListedRule, ListedTable};

/// The plan's tables.
pub(super) fn planned(store: &dyn RuleStore, plan: &Plan) -> Vec<ListedTable> {
    // Bytes of this version's own.
    let mut tables = store.tables(&plan.layers, &store.recorded(&plan.layers)).unwrap_or_default();
    // iptables has the tables of both families, whatever is planned.
    tables.retain(|table| table.chains.iter().any(|chain| !chain.rules.is_empty()));
    tables
}

/// Of the kernel's tables, what is the plan's, or has one of the names.
pub(super) fn of_plan(
    tables: Vec<ListedTable>,
    store: &dyn RuleStore,
    plan: &Plan,
    names: &[&str],
) -> Vec<ListedTable> {
    let planned = planned(store, plan);
    tables.into_iter().filter_map(|table| ours(table, &planned, names)).collect()
}

/// The part of a table of the kernel that is the plan's, or has the name of something that is not planned.
fn ours(mut table: ListedTable, planned: &[ListedTable], names: &[&str]) -> Option<ListedTable> {
    let plain = table.name.rsplit(' ').next().unwrap_or_default();
    if names.contains(&plain) {
        return Some(table);
    }
    let plan = planned.iter().find(|plan| plan.name == table.name)?;
    if !table.lister.is_iptables() {
        return Some(table);
    }
    // A table of iptables is everybody's.
    let is_ours =
        |chain: &str| plan.chain(chain).is_some_and(|chain| chain.base.is_none()) || names.contains(&chain);
    let leads_to_ours = |rule: &ListedRule| {
        rule.acts
            .iter()
            .any(|act| matches!(act, ListedAct::Jump(chain) | ListedAct::Goto(chain) if is_ours(chain)))
    };
    for chain in &mut table.chains {
        if let Some(planned) = plan.chain(&chain.name).filter(|_| !is_ours(&chain.name)) {
            chain.rules.retain(|rule| {
                leads_to_ours(rule) || planned.rules.iter().any(|one| means_the_same(one, rule))
            });
        }
    }
    table.chains.retain(|chain| is_ours(&chain.name) || plan.chain(&chain.name).is_some());
    Some(table)
}

/// Whether two rules do the same, however they are written.
pub(super) fn means_the_same(one: &ListedRule, other: &ListedRule) -> bool {
    one.conditions == other.conditions && one.acts == other.acts
}

/// Where packets meet a chain, such as `nat output, priority -100`; empty for one that others lead to.
pub(crate) fn attached(chain: &ListedChain) -> String {
    let Some(base) = &chain.base else { return String::new() };
    format!("{} {}, priority {}", base.kind.name(), base.hook.name(), base.priority)
}

/// A chain's name, and where packets meet it, for people.
pub(crate) fn chain_text(name: &str, attached: &str) -> String {
    if attached.is_empty() { name.to_owned() } else { format!("{name} ({attached})") }
}
