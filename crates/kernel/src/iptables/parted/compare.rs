//! What is there and what is wanted, as text for iptables-restore.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{Hash as _, Hasher as _};

use ruleset::iptables::{Names, canonical, chain_name, own_chain_name, parse_rule, render_rule, rules};
use ruleset::{Action, Chain, Family, Rule, Ruleset, Table, TableKind};

use super::super::saved::{SavedRule, SavedTable};

/// A regular chain as a family has it.
pub(super) struct PlannedChain {
    /// In iptables.
    pub(super) name: String,
    rules: Vec<Rule>,
    /// As the program gets them.
    lines: Vec<String>,
    /// The lines as a number.
    pub(super) number: u64,
}

/// What is to be written.
pub(super) struct ChainDifference {
    /// Whether anything of ours is there.
    pub(super) has_ours: bool,
    /// For iptables-restore; empty where nothing differs.
    pub(super) text: String,
}

// === impl PlannedChain ===

impl PlannedChain {
    /// All of a table. Each is in both families, also without rules in one.
    pub(super) fn all(table: &Table, family: Family) -> Vec<Self> {
        let regular = table.chains.iter().filter(|chain| chain.base.is_none());
        regular.map(|chain| Self::of(chain, family)).collect()
    }

    pub(super) fn of(chain: &Chain, family: Family) -> Self {
        let name = chain_name(chain);
        let rules: Vec<&Rule> = rules(chain, family).collect();
        let line = |rule: &&Rule| format!("-A {name} {}", render_rule(rule, family));
        let lines: Vec<String> = rules.iter().map(line).collect();
        let mut hasher = crate::keyed::hasher();
        lines.hash(&mut hasher);
        let rules = rules.into_iter().cloned().collect();
        Self { number: hasher.finish(), name, rules, lines }
    }

    fn is(&self, saved: &[&SavedRule]) -> bool {
        let same = |(planned, saved): (&Rule, &&SavedRule)| {
            parse_rule(&saved.text).is_some_and(|saved| saved == canonical(planned))
        };
        saved.len() == self.rules.len() && self.rules.iter().zip(saved).all(same)
    }
}

// === impl ChainDifference ===

impl ChainDifference {
    pub(super) fn none() -> Self {
        Self { has_ours: true, text: String::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// What these chains have instead, and those that are gone.
    pub(super) fn by_event(changed: &[PlannedChain], gone: &[String], kind: TableKind) -> Self {
        let gone: Vec<String> = gone.iter().map(|name| own_chain_name(name)).collect();
        Self { has_ours: true, text: text(kind, &changed.iter().collect::<Vec<_>>(), &[], &gone) }
    }

    /// What leads from what is there to what is wanted. `is_first`: a rule of others before ours in a built-in chain is a difference, too.
    /// `only_missing`: what has rules stays, whatever these are.
    pub(super) fn of(
        saved: Option<&SavedTable>,
        table: Option<&Table>,
        planned: &[PlannedChain],
        (owner, kind): (&Ruleset, TableKind),
        [is_first, only_missing]: [bool; 2],
    ) -> Self {
        let names = Names::of(owner, kind);
        let mut there: BTreeMap<&str, Vec<&SavedRule>> = BTreeMap::new();
        let mut others: BTreeMap<&str, Vec<&SavedRule>> = BTreeMap::new();
        for chain in saved.iter().flat_map(|saved| &saved.chains).filter(|chain| names.contain(chain)) {
            there.insert(chain, Vec::new());
        }
        for rule in saved.iter().flat_map(|saved| &saved.rules) {
            match there.get_mut(&*rule.chain) {
                Some(rules) => rules.push(rule),
                None => others.entry(&rule.chain).or_default().push(rule),
            }
        }
        let is_wrong = |chain: &PlannedChain, saved: &Vec<&SavedRule>| match only_missing {
            true => saved.is_empty() && !chain.rules.is_empty(),
            false => !chain.is(saved),
        };
        let is_other =
            |chain: &&PlannedChain| there.get(&*chain.name).is_none_or(|saved| is_wrong(chain, saved));
        let changed: Vec<&PlannedChain> = planned.iter().filter(is_other).collect();
        let wanted: BTreeSet<&str> = planned.iter().map(|chain| &*chain.name).collect();
        let is_gone = |chain: &&&str| !only_missing && !wanted.contains(**chain);
        let gone = there.keys().filter(is_gone).map(ToString::to_string);
        let jumps = jumps(table, &others, &names, is_first);
        let text = text(kind, &changed, &jumps, &gone.collect::<Vec<_>>());
        Self { has_ours: !there.is_empty(), text }
    }
}

/// The lines by which built-in chains lead to ours as they should: one rule, before all others.
fn jumps(
    table: Option<&Table>,
    others: &BTreeMap<&str, Vec<&SavedRule>>,
    names: &Names,
    is_first: bool,
) -> Vec<String> {
    let base = table.into_iter().flat_map(|table| &table.chains).filter(|chain| chain.base.is_some());
    let wanted: BTreeMap<String, String> = base
        .filter_map(|chain| {
            let Action::Jump(to) = &chain.rules.first()?.action else { return None };
            Some((chain_name(chain), format!("-j {}", own_chain_name(to))))
        })
        .collect();
    let mut lines = Vec::new();
    let is_ours = |rule: &&SavedRule| rule.target().is_some_and(|target| names.contain(target));
    for (chain, rules) in others {
        let ours: Vec<&str> = rules.iter().copied().filter(is_ours).map(|rule| &*rule.text).collect();
        let leads = rules.first().is_some_and(is_ours) || !is_first;
        if wanted.get(*chain).is_some_and(|jump| ours == [jump]) && leads {
            continue;
        }
        lines.extend(ours.iter().map(|rule| format!("-D {chain} {rule}")));
        lines.extend(wanted.get(*chain).map(|jump| format!("-I {chain} 1 {jump}")));
    }
    let bare = wanted.iter().filter(|(chain, _)| !others.contains_key(chain.as_str()));
    lines.extend(bare.map(|(chain, jump)| format!("-I {chain} 1 {jump}")));
    lines
}

/// Chains are made or emptied before anything leads to them, and go when nothing does.
fn text(kind: TableKind, changed: &[&PlannedChain], jumps: &[String], gone: &[String]) -> String {
    if changed.is_empty() && jumps.is_empty() && gone.is_empty() {
        return String::new();
    }
    let mut text = format!("*{kind}\n");
    let names = changed.iter().map(|chain| &*chain.name).chain(gone.iter().map(String::as_str));
    for name in names {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, ":{name} - [0:0]");
    }
    for line in changed.iter().flat_map(|chain| &chain.lines).chain(jumps) {
        let _ = writeln!(text, "{line}");
    }
    for name in gone {
        let _ = writeln!(text, "-X {name}");
    }
    text.push_str("COMMIT\n");
    text
}
