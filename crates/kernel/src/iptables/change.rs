//! What must change in a table, as differences and as text for iptables-restore.
//!
//! A table that differs is written anew, in one commit: jumps to our chains are deleted, the chains are emptied, filled and
//! hooked up again. No packet sees the time in between. Rules and chains of others keep their places.

use std::fmt::Write;

use ruleset::iptables::{
    Names, canonical, chain_name, own_chains, parse_rule, render_rule, render_rules, rules,
};
use ruleset::{Action, Family, Rule, Ruleset, Table, TableKind};

use super::error::Error;
use super::job::TableStep;
use super::saved::{Saved, SavedRule, SavedTable};
use crate::Difference;
use crate::difference::{Edit, align};

/// Chains of sidecar rules that ambient rules never have, in the nat table, where both have [`SHARED_NAME`]; and the other way
/// round.
const SIDECAR_ONLY: [&str; 2] = ["ISTIO_INBOUND", "ISTIO_REDIRECT"];
const AMBIENT_ONLY: &str = "ISTIO_PRERT";
/// The one name that chains of both have.
const SHARED_NAME: &str = "ISTIO_OUTPUT";

const KINDS: [TableKind; 4] = [TableKind::Filter, TableKind::Mangle, TableKind::Nat, TableKind::Raw];

/// What is there and what should be, of one family in one variant.
#[derive(Debug)]
pub(super) struct Side<'a> {
    pub(super) ruleset: &'a Ruleset,
    pub(super) family: Family,
    /// Whether the ruleset's rules belong here. Otherwise nothing of ours does.
    pub(super) planned: bool,
    /// Absent where it was not listed, as no chain of ours is there.
    pub(super) saved: Option<Saved>,
    /// Ends the name of the table in differences, where the family alone does not say enough.
    pub(super) label: &'static str,
}

/// One table of a side.
struct View<'a> {
    side: &'a Side<'a>,
    kind: TableKind,
    saved: Option<&'a SavedTable>,
    /// What should be.
    plan: Option<&'a Table>,
    /// What the ruleset says about the table, also when it does not belong here: by it our rules are known.
    model: Option<&'a Table>,
    /// The names of chains that are the owner's.
    own: Names,
}

impl Side<'_> {
    /// Every way in which what is there differs.
    pub(super) fn differences(&self) -> Vec<Difference> {
        KINDS.into_iter().flat_map(|kind| View::new(self, kind).differences()).collect()
    }

    /// The steps for the tables that differ, or for all tables of the ruleset.
    pub(super) fn steps(&self) -> Result<Vec<TableStep>, Error> {
        let mut steps = Vec::new();
        for kind in KINDS {
            let view = View::new(self, kind);
            if !view.differences().is_empty() {
                steps.push(view.step()?);
            }
        }
        Ok(steps)
    }

    /// Whether anything of ours is there.
    pub(super) fn holds_ours(&self) -> bool {
        KINDS.into_iter().any(|kind| {
            let view = View::new(self, kind);
            view.saved.is_some_and(|saved| {
                saved.chains.iter().any(|chain| view.is_own(chain))
                    || !view.own_shared_rules(saved).is_empty()
            })
        })
    }
}

impl<'a> View<'a> {
    fn new(side: &'a Side<'a>, kind: TableKind) -> Self {
        let model = side.ruleset.table(kind);
        let saved = side.saved.as_ref().and_then(|saved| saved.table(kind));
        let mut own = Names::of(side.ruleset, kind);
        if kind == TableKind::Nat && !saved.is_none_or(|saved| shared_name_is_own(&own, saved)) {
            own.remove(SHARED_NAME);
        }
        Self { side, kind, saved, plan: model.filter(|_| side.planned), model, own }
    }

    fn is_own(&self, chain: &str) -> bool {
        self.own.contain(chain)
    }

    fn planned_chains(&self) -> Vec<String> {
        self.plan.map_or_else(Vec::new, |table| own_chains(table, self.side.family).map(chain_name).collect())
    }

    fn saved_own_chains(&self) -> Vec<&'a str> {
        let chains = self.saved.map_or(&[][..], |saved| &saved.chains);
        chains.iter().map(String::as_str).filter(|chain| self.is_own(chain)).collect()
    }

    /// The rules of a chain in a table of the ruleset.
    fn rules_of(&self, table: Option<&'a Table>, chain: &str) -> Vec<&'a Rule> {
        let chain = table.and_then(|table| table.chains.iter().find(|c| chain_name(c) == chain));
        chain.map_or_else(Vec::new, |chain| rules(chain, self.side.family).collect())
    }

    /// The rules of ours, by number, in chains that are not: every jump to a chain of ours, and of the other rules that the
    /// ruleset has as many as it has. What is there more often, somebody else has put there. One pass: a node's own tables may
    /// have tens of thousands of rules of others.
    fn own_shared_rules(&self, saved: &SavedTable) -> Vec<usize> {
        // Jumps are known by where they go; the same text may be one to somebody else's chain of that name.
        let mut model: Vec<(String, Vec<Rule>)> = Vec::new();
        for chain in self.model.map_or(&[][..], |table| &table.chains) {
            let rules = rules(chain, self.side.family).filter(|rule| !matches!(rule.action, Action::Jump(_)));
            model.push((chain_name(chain), rules.map(canonical).collect()));
        }
        model.retain(|(chain, rules)| !rules.is_empty() && !self.is_own(chain));
        let mut own = Vec::new();
        for (number, rule) in saved.rules.iter().enumerate().filter(|(_, rule)| !self.is_own(&rule.chain)) {
            if rule.target().is_some_and(|target| self.is_own(target)) {
                own.push(number);
            } else if let Some((_, planned)) = model.iter_mut().find(|(chain, _)| *chain == rule.chain)
                && let Some(parsed) = parse_rule(&rule.text)
                && let Some(position) = planned.iter().position(|planned| *planned == parsed)
            {
                planned.swap_remove(position);
                own.push(number);
            }
        }
        own
    }

    fn differences(&self) -> Vec<Difference> {
        let table = self.label();
        let mut found = Vec::new();
        let (planned, saved) = (self.planned_chains(), self.saved_own_chains());
        for chain in planned.iter().filter(|chain| !saved.contains(&chain.as_str())) {
            found.push(Difference::MissingChain { table: table.clone(), chain: chain.clone() });
        }
        for chain in saved.iter().filter(|chain| planned.iter().all(|planned| planned != *chain)) {
            found.push(Difference::UnexpectedChain { table: table.clone(), chain: (*chain).to_owned() });
        }
        let there = self.own_rules();
        let planned = self.plan.map_or(&[][..], |table| &table.chains);
        let mut chains: Vec<String> = Vec::new();
        for chain in planned.iter().map(chain_name).chain(there.iter().map(|rule| rule.chain.clone())) {
            if !chains.contains(&chain) {
                chains.push(chain);
            }
        }
        for chain in chains {
            let there: Vec<&SavedRule> = there.iter().copied().filter(|rule| rule.chain == chain).collect();
            self.compare(&chain, &there, &self.rules_of(self.plan, &chain), &mut found);
        }
        found
    }

    /// The rules that are there and ours, in chains of ours and in others.
    fn own_rules(&self) -> Vec<&'a SavedRule> {
        let Some(saved) = self.saved else { return Vec::new() };
        let mut shared = self.own_shared_rules(saved).into_iter().peekable();
        let rules = saved.rules.iter().enumerate();
        rules
            .filter(|(n, rule)| shared.next_if_eq(n).is_some() || self.is_own(&rule.chain))
            .map(|(_, rule)| rule)
            .collect()
    }

    fn compare(&self, chain: &str, there: &[&SavedRule], planned: &[&Rule], found: &mut Vec<Difference>) {
        let parsed: Vec<Option<Rule>> = there.iter().map(|rule| parse_rule(&rule.text)).collect();
        let wanted: Vec<Option<Rule>> = planned.iter().map(|rule| Some(canonical(rule))).collect();
        for edit in align(wanted.len(), parsed.len(), |w, p| wanted[w] == parsed[p]) {
            let (table, chain) = (self.label(), chain.to_owned());
            found.push(match edit {
                Edit::Missing(number) => {
                    let (rule, why) =
                        (render_rule(planned[number], self.side.family), planned[number].why.to_string());
                    Difference::MissingRule { table, chain, rule, why }
                }
                Edit::Unexpected(number) => {
                    Difference::UnexpectedRule { table, chain, rule: there[number].text.clone() }
                }
            });
        }
    }

    fn label(&self) -> String {
        let family = match self.side.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        format!("{family} {}{}", self.kind, self.side.label)
    }

    fn step(&self) -> Result<TableStep, Error> {
        let (forward, backward) = (self.forward()?, self.backward());
        let before = self.side.saved.as_ref().map(|saved| saved.content(self.kind));
        Ok(TableStep { kind: self.kind, forward, backward, before })
    }

    fn forward(&self) -> Result<String, Error> {
        let (planned, there) = (self.planned_chains(), self.saved_own_chains());
        let mut text = String::with_capacity(4096);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "*{}", self.kind);
        if let Some(saved) = self.saved {
            for rule in self.own_shared_rules(saved).into_iter().filter_map(|n| saved.rules.get(n)) {
                let _ = writeln!(text, "-D {} {}", rule.chain, rule.text);
            }
        }
        for chain in &there {
            let _ = writeln!(text, "-F {chain}");
        }
        for chain in planned.iter().filter(|chain| !there.contains(&chain.as_str())) {
            let _ = writeln!(text, "-N {chain}");
        }
        if let Some(plan) = self.plan {
            text.push_str(&render_rules(plan, self.side.family, |_| 0)?);
        }
        for chain in there.iter().filter(|chain| planned.iter().all(|planned| planned != *chain)) {
            let _ = writeln!(text, "-X {chain}");
        }
        text.push_str("COMMIT\n");
        Ok(text)
    }

    fn backward(&self) -> String {
        let (planned, there) = (self.planned_chains(), self.saved_own_chains());
        let mut text = format!("*{}\n", self.kind);
        for chain in self.plan.map_or(&[][..], |plan| &plan.chains).iter().filter(|c| c.base.is_some()) {
            for rule in rules(chain, self.side.family) {
                let _ = writeln!(text, "-D {} {}", chain_name(chain), render_rule(rule, self.side.family));
            }
        }
        for chain in &planned {
            let _ = writeln!(text, "-F {chain}");
        }
        for chain in there.iter().filter(|chain| planned.iter().all(|planned| planned != *chain)) {
            let _ = writeln!(text, "-N {chain}");
        }
        if let Some(saved) = self.saved {
            for rule in saved.rules.iter().filter(|rule| self.is_own(&rule.chain)) {
                let _ = writeln!(text, "-A {} {}", rule.chain, rule.text);
            }
            for number in self.own_shared_rules(saved) {
                let rule = &saved.rules[number];
                // In rising order each rule finds those before it in place already.
                let before = saved.rules[..number].iter().filter(|r| r.chain == rule.chain).count();
                let _ = writeln!(text, "-I {} {} {}", rule.chain, before + 1, rule.text);
            }
        }
        for chain in planned.iter().filter(|chain| !there.contains(&chain.as_str())) {
            let _ = writeln!(text, "-X {chain}");
        }
        text.push_str("COMMIT\n");
        text
    }
}

/// [`SHARED_NAME`] is a name of sidecar and of ambient rules. It is the other's where the other's chains are and none of the owner's.
fn shared_name_is_own(own: &Names, saved: &SavedTable) -> bool {
    let has = |name: &str| saved.chains.iter().any(|chain| chain == name);
    let sidecar = SIDECAR_ONLY.into_iter().any(has);
    if own.contain(AMBIENT_ONLY) { !sidecar } else { sidecar || !has(AMBIENT_ONLY) }
}
