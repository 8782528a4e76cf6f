//! Rules about rules: what a ruleset must satisfy before a backend may load it.

mod sets;

use std::collections::HashSet;
use std::mem::discriminant;

use crate::rule::{
    Action, Base, Chain, Counting, Families, Family, Hook, Limit, Match, Ports, Protocol, RejectWith, Rule,
    Ruleset, Table, TableKind,
};

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

/// Checks references, circles and the parts of each rule.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(ruleset: &Ruleset) -> Result<(), Invalid> {
    let mut tables = HashSet::new();
    for table in &ruleset.tables {
        if !tables.insert(table.kind) {
            return Err(Invalid::Duplicate { what: format!("table {}", table.kind) });
        }
        check_table(table)?;
    }
    sets::check_sets(ruleset)
}

fn check_table(table: &Table) -> Result<(), Invalid> {
    let mut names = HashSet::new();
    for name in table.chains.iter().map(|c| &c.name).chain(table.sets.iter().map(|s| &s.name)) {
        if !names.insert(name) {
            return Err(Invalid::Duplicate { what: format!("{} in table {}", name, table.kind) });
        }
    }
    for chain in &table.chains {
        if chain.base.is_none() && !is_chain_name(&chain.name) {
            return Err(Invalid::Name { table: table.kind.to_string(), chain: chain.name.to_string() });
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
    misplaced_reject(table).map_or(Ok(()), Err)
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

/// Rejects that packets meet where the kernel does not take them (`nft_reject_inet_validate`, xt_REJECT).
fn misplaced_reject(table: &Table) -> Option<Invalid> {
    let rejects = |base: Base| matches!(base.hook, Hook::Input | Hook::Forward | Hook::Output);
    let in_filter = table.kind == TableKind::Filter;
    let bases =
        table.chains.iter().filter(|chain| !in_filter || chain.base.is_some_and(|base| !rejects(base)));
    let mut reached: Vec<&Chain> = bases.collect();
    let mut at = 0;
    while let Some(chain) = reached.get(at).copied() {
        at += 1;
        for (index, rule) in chain.rules.iter().enumerate() {
            if let Action::Reject(_) = rule.action {
                let place = format!("{}/{}", table.kind, chain.name);
                let problem = "a reject outside of the filter table's input, forward and output";
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

fn rule_problem(table: &Table, rule: &Rule) -> Option<&'static str> {
    let mut protocol = None;
    for (at, m) in rule.matches.iter().enumerate() {
        let once =
            matches!(m, Match::SourcePort { .. } | Match::DestinationPort { .. } | Match::IcmpType { .. });
        if once && rule.matches[..at].iter().any(|other| discriminant(other) == discriminant(m)) {
            return Some("two matches of one port or of the type, which iptables lacks");
        }
        if let Some(family) = m.family()
            && rule.families != Families::Only(family)
        {
            return Some("a match of another family than the rule's");
        }
        match m {
            Match::Protocol(_) if protocol.is_some() => return Some("two protocols"),
            Match::Protocol(asked) => protocol = Some(*asked),
            Match::SourcePort { .. }
            | Match::DestinationPort { .. }
            | Match::OriginalPort { .. }
            | Match::WholeHeader
                if !protocol.is_some_and(Protocol::has_ports) =>
            {
                return Some("a match of a port or a header without a protocol with ports before it");
            }
            Match::OriginalPort { ports: Ports::AnyOf(_), .. } => {
                return Some("a set of original ports, which iptables lacks");
            }
            Match::SourcePort { ports, .. }
            | Match::DestinationPort { ports, .. }
            | Match::OriginalPort { ports, .. } => {
                if let Some(problem) = ports_problem(ports) {
                    return Some(problem);
                }
            }
            Match::IcmpType { .. }
                if protocol.is_none_or(|asked| Match::Protocol(asked).family().is_none()) =>
            {
                return Some("a type of ICMP without that protocol before it");
            }
            Match::InInterface { name, .. } | Match::OutInterface { name, .. }
                if name.is_empty() || name.len() > 15 =>
            {
                return Some("an interface name that is empty or longer than 15 bytes");
            }
            // No such name can be given to an interface, or it would be more than a name in the text for iptables.
            Match::InInterface { name, .. } | Match::OutInterface { name, .. }
                if name.contains(|c: char| c.is_whitespace() || c.is_control() || "/\"'`".contains(c)) =>
            {
                return Some("an interface name with blanks, slashes or quotes");
            }
            Match::SourceIn { set, keys, .. } | Match::DestinationIn { set, keys, .. } => {
                let Some(set) = table.sets.iter().find(|s| s.name == *set) else {
                    return Some("a look-up in a set that the table does not have");
                };
                if set.is_map() {
                    return Some("a look-up in a verdict map as in a set");
                }
                if set.family() != keys.family() {
                    return Some("a look-up in a set of the other family");
                }
                if set.keys != *keys {
                    return Some("a look-up in a set with keys of another type");
                }
            }
            Match::Mark { mark, mask, .. } | Match::CtMark { mark, mask, .. } if mark & !mask != 0 => {
                return Some("a mark with bits outside of its mask");
            }
            _ => {}
        }
    }
    action_problem(rule, protocol)
}

fn ports_problem(ports: &Ports) -> Option<&'static str> {
    match ports {
        // As many as `multiport` of iptables holds.
        Ports::AnyOf(list) if list.is_empty() || list.len() > 15 || !list.is_sorted_by(|a, b| a < b) => {
            Some("a port set that is empty, longer than 15, not sorted, or has duplicates")
        }
        Ports::Range(first, last) if first >= last => Some("a range of ports that does not ascend"),
        Ports::Range(0, u16::MAX) => Some("a range of all ports, which is the whole header"),
        _ => None,
    }
}

fn action_problem(rule: &Rule, protocol: Option<Protocol>) -> Option<&'static str> {
    match &rule.counting {
        Counting::Named(name) if !is_name(name) => {
            return Some("the name of a counter is not lower-case letters, digits and hyphens");
        }
        _ => {}
    }
    match rule.action {
        Action::Reject(RejectWith::TcpReset) if protocol != Some(Protocol::Tcp) => {
            Some("a TCP reset without TCP")
        }
        Action::Log { ref prefix, limit, .. } => log_problem(prefix, limit),
        Action::Redirect { .. } if !protocol.is_some_and(Protocol::has_ports) => {
            Some("redirect without a protocol that has ports")
        }
        Action::Tproxy { .. } if !matches!(protocol, Some(Protocol::Tcp | Protocol::Udp)) => {
            Some("tproxy without TCP or UDP")
        }
        Action::Tproxy { .. } if rule.families == Families::Both => {
            Some("tproxy for both families in one rule")
        }
        Action::Snat { to } if rule.families != Families::Only(Family::of_address(to)) => {
            Some("a new source address of another family than the rule's")
        }
        Action::SetCtMark { mark, mask } if mark & !mask != 0 => Some("a mark with bits outside of its mask"),
        _ => None,
    }
}

fn log_problem(prefix: &str, limit: Option<Limit>) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":._/-".contains(c);
    if prefix.is_empty() || prefix.len() > Action::PREFIX_MAX || !prefix.chars().all(plain) {
        return Some(
            "a log prefix that is empty, longer than 63 bytes, or has more than letters, digits and :._/-",
        );
    }
    let Limit { per_second, burst } = limit?;
    // The legacy variant keeps the time between two packets in units of 100 µs (`XT_LIMIT_SCALE`), and shows that as a rate.
    let between = 10_000u32.checked_div(per_second).unwrap_or_default();
    let exact = between > 0 && 10_000 / between == per_second && 10_000 % between <= per_second;
    if !exact || !(1..=10_000).contains(&burst) {
        return Some(
            "a limit that iptables would round: up to 100 each second, and a burst up to 10000, are exact",
        );
    }
    None
}

#[cfg(test)]
mod tests;
