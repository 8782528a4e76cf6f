//! What a named set must satisfy.

use std::collections::HashSet;

use super::Invalid;
use crate::rule::{Action, Families, Rule, Ruleset, Table};
use crate::set::{Key, KeyType, Set};

/// Checks every set by itself, and that no two of them have one name: ipsets belong to no table.
pub(super) fn check_sets(ruleset: &Ruleset) -> Result<(), Invalid> {
    let mut names = HashSet::new();
    for (table, set) in ruleset.tables.iter().flat_map(|table| table.sets.iter().map(move |set| (table, set)))
    {
        if !names.insert(&set.name) {
            return Err(Invalid::Duplicate { what: format!("set {}", set.name) });
        }
        if let Some(problem) = problem(table, set) {
            return Err(Invalid::Set { place: format!("{}/{}", table.kind, set.name), problem });
        }
    }
    Ok(())
}

/// What is wrong with a rule's look-up in a verdict map.
pub(super) fn map_problem(table: &Table, rule: &Rule) -> Option<&'static str> {
    let Action::VerdictMap { map, keys, .. } = &rule.action else { return None };
    match table.sets.iter().find(|set| set.name == *map) {
        Some(set) if set.is_map() && set.keys != *keys => Some("a verdict map with keys of another type"),
        Some(set) if set.is_map() && rule.families == Families::Only(keys.family()) => None,
        Some(set) if set.is_map() => Some("a verdict map of another family than the rule's"),
        _ => Some("a verdict map that the table does not have"),
    }
}

fn problem(table: &Table, set: &Set) -> Option<&'static str> {
    // A dot is in the names of sets that take another's place.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if set.name.is_empty() || set.name.len() > Set::MAX_NAME || !set.name.chars().all(plain) {
        return Some("a name that is empty, longer than 31 bytes, or more than letters, digits, '-' and '_'");
    }
    if set.is_map() && matches!(set.keys, KeyType::Prefix(_)) {
        return Some("a verdict map of prefixes, of which two that overlap could lead to two verdicts");
    }
    if !set.is_map() && matches!(set.keys, KeyType::Arrival(_)) {
        return Some("a plain set of interfaces, which ipset lacks");
    }
    let mut keys = HashSet::new();
    for element in set.fixed_elements() {
        if !set.keys.takes(&element.key) {
            return Some("an element of another type or family than the set's keys");
        }
        if matches!(element.key, Key::Endpoint(endpoint) if !endpoint.protocol.has_ports()) {
            return Some("a port of a protocol that has none");
        }
        if element.verdict.is_some() != set.is_map() {
            return Some("a verdict in a plain set, or none in a verdict map");
        }
        if !keys.insert(element.key) {
            return Some("an element that stands twice");
        }
        let target = element.verdict.as_ref().and_then(|verdict| verdict.chain());
        if target.is_some_and(|target| table.chain(target).is_none_or(|chain| chain.base.is_some())) {
            return Some("a verdict that leads to no regular chain of the table");
        }
    }
    None
}
