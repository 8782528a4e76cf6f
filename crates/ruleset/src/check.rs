//! Rules about rules: what a ruleset must satisfy for both backends to load it and mean the same. Tests hold every plan to it.

mod parts;
mod sets;

use std::collections::HashSet;

use crate::plan::Backend;
use crate::rule::{Action, Base, Chain, Hook, Ruleset, Table, TableKind};
use parts::rule_problem;

/// Why a ruleset is not valid. The place is `table/chain` and the rule's position from 0.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Invalid {
    /// A rule jumps to a chain that the table does not have, or to a base chain.
    #[error("rule {index} of {place} jumps to chain {target:?}, which is no regular chain of that table")]
    Target {
        /// Place.
        place: String,
        /// Position.
        index: usize,
        /// Target.
        target: String,
    },
    /// Regular chains jump in a circle.
    #[error("the chains of table {table} call one another in a circle through {chain:?}")]
    Loop {
        /// Table.
        table: String,
        /// A chain of the circle.
        chain: String,
    },
    /// Two tables, chains or sets have one name.
    #[error("{what} stands twice")]
    Duplicate {
        /// Which.
        what: String,
    },
    /// A regular chain has a name that a backend could not hold, or not give back.
    #[error(
        "the name of chain {chain:?} in table {table} is not \"istio-\" with lower-case letters, digits and hyphens, 28 bytes in all"
    )]
    Name {
        /// Table.
        table: String,
        /// Chain.
        chain: String,
    },
    /// A base chain is not named by its hook, as the built-in chain that it is in iptables; or it is a late one without a greater priority.
    #[error(
        "the base chain {chain:?} of table {table} is at the hook {hook} and must have its name, or end with \"-late\" and have a greater priority",
        hook = hook.name()
    )]
    BaseName {
        /// Table.
        table: String,
        /// Chain.
        chain: String,
        /// Where it is attached.
        hook: Hook,
    },
    /// A set cannot be made, or has what does not fit it.
    #[error("set {place}: {problem}")]
    Set {
        /// Table and name.
        place: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The rule's parts contradict one another.
    #[error("rule {index} of {place}: {problem}")]
    Rule {
        /// Place.
        place: String,
        /// Position.
        index: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Checks references, circles and the parts of each rule, for both backends.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(ruleset: &Ruleset) -> Result<(), Invalid> {
    // Where it takes a reject, nf_tables does so, too.
    check_for(ruleset, Backend::Iptables)
}

/// The same for a ruleset that is made for one backend.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_for(ruleset: &Ruleset, backend: Backend) -> Result<(), Invalid> {
    let mut tables = HashSet::new();
    for table in &ruleset.tables {
        if !tables.insert(table.kind) {
            return Err(Invalid::Duplicate { what: format!("table {}", table.kind) });
        }
        check_table(table, backend)?;
    }
    sets::check_sets(ruleset)
}

fn check_table(table: &Table, backend: Backend) -> Result<(), Invalid> {
    let mut names = HashSet::new();
    for name in table.chains.iter().map(|c| &c.name).chain(table.sets.iter().map(|s| &s.name)) {
        if !names.insert(name) {
            return Err(Invalid::Duplicate { what: format!("{} in table {}", name, table.kind) });
        }
    }
    for chain in &table.chains {
        let (table_name, name) = (|| table.kind.to_string(), || chain.name.to_string());
        match chain.base {
            None if !is_chain_name(&chain.name) => {
                return Err(Invalid::Name { table: table_name(), chain: name() });
            }
            Some(Base { hook, priority, .. })
                if chain.name != hook.name() && !(chain.is_late() && priority > before_late(table, hook)) =>
            {
                return Err(Invalid::BaseName { table: table_name(), chain: name(), hook });
            }
            _ => {}
        }
        let place = || format!("{}/{}", table.kind, chain.name);
        for (index, rule) in chain.rules.iter().enumerate() {
            if let Action::Jump(target) = &rule.action
                && table.chain(target).is_none_or(|c| c.base.is_some())
            {
                return Err(Invalid::Target { place: place(), index, target: target.to_string() });
            }
            if let Some(problem) = rule_problem(table, rule).or_else(|| sets::map_problem(table, rule)) {
                return Err(Invalid::Rule { place: place(), index, problem });
            }
        }
    }
    let mut done = HashSet::new();
    for chain in &table.chains {
        if let Some(name) = circle(table, &chain.name, &mut Vec::new(), &mut done) {
            return Err(Invalid::Loop { table: table.kind.to_string(), chain: name.to_owned() });
        }
    }
    misplaced_reject(table, backend).map_or(Ok(()), Err)
}

/// The priority that a late chain at a hook exceeds: that of the table's other chain there, if there is one.
fn before_late(table: &Table, hook: Hook) -> i32 {
    let others = table.chains.iter().filter(|chain| !chain.is_late()).filter_map(|chain| chain.base);
    others
        .filter(|base| base.hook == hook)
        .map(|base| base.priority)
        .next()
        .unwrap_or(table.kind.priority(hook))
}

/// Names may come from data. iptables holds 28 bytes (`XT_EXTENSION_MAXNAMELEN`), and shows them in capitals.
fn is_chain_name(name: &str) -> bool {
    name.starts_with("istio-") && name.len() <= 28 && is_name(name)
}

/// Whether each backend holds it and shows it as it is, without quotes.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= 63 && name.bytes().all(plain)
}

/// Rejects that packets meet where the kernel does not take them (`nft_reject_inet_validate`, xt_REJECT). nf_tables has no tables for some purpose, and
/// since Linux 5.9 takes a reject where packets arrive.
fn misplaced_reject(table: &Table, backend: Backend) -> Option<Invalid> {
    let rejects = |base: Base| match base.hook {
        Hook::Input | Hook::Forward | Hook::Output => true,
        Hook::Prerouting => backend == Backend::Nftables,
        Hook::Postrouting => false,
    };
    let in_filter = table.kind == TableKind::Filter || backend == Backend::Nftables;
    let bases =
        table.chains.iter().filter(|chain| !in_filter || chain.base.is_some_and(|base| !rejects(base)));
    let mut reached: Vec<&Chain> = bases.collect();
    let mut at = 0;
    while let Some(chain) = reached.get(at).copied() {
        at += 1;
        for (index, rule) in chain.rules.iter().enumerate() {
            if let Action::Reject(_) = rule.action {
                let place = format!("{}/{}", table.kind, chain.name);
                let problem = match backend {
                    Backend::Nftables => "a reject where packets leave",
                    Backend::Iptables => "a reject outside of the filter table's input, forward and output",
                };
                return Some(Invalid::Rule { place, index, problem });
            }
            for next in table.targets(rule).into_iter().filter_map(|target| table.chain(target)) {
                if reached.iter().all(|chain| chain.name != next.name) {
                    reached.push(next);
                }
            }
        }
    }
    None
}

/// A chain that can be reached from itself, among those that `from` leads to. Chains in `done` lead to none.
fn circle<'a>(
    table: &'a Table,
    from: &'a str,
    callers: &mut Vec<&'a str>,
    done: &mut HashSet<&'a str>,
) -> Option<&'a str> {
    if callers.contains(&from) {
        return Some(from);
    }
    if done.contains(from) {
        return None;
    }
    callers.push(from);
    let rules = table.chain(from).into_iter().flat_map(|chain| &chain.rules);
    let found = rules.flat_map(|rule| table.targets(rule));
    let found = found.map(|target| circle(table, target, callers, done)).find(Option::is_some).flatten();
    callers.pop();
    done.insert(from);
    found
}

#[cfg(test)]
mod tests;
