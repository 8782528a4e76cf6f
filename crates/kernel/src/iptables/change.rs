//! What must change in a table, as differences and as text for iptables-restore.
//!
//! A table that differs is written anew, in one commit: jumps to our chains are deleted, the chains are emptied, filled and
//! hooked up again. No packet sees the time in between. Rules and chains of others keep their places.

use std::fmt::Write;

use ruleset::iptables::{
    canonical, chain_name, own_chain_name, own_chains, parse_rule, render_rule, render_rules, rules,
};
use ruleset::{Action, Family, Rule, Ruleset, Table, TableKind};

use super::error::Error;
use super::job::TableStep;
use super::saved::{Saved, SavedRule, SavedTable};
use crate::Difference;
use crate::difference::{Edit, align};

/// The chains that the sidecar rules of any configuration may have. Others have chains with the same prefix in a pod: ambient
/// mode's `ISTIO_PRERT` and `ISTIO_OUTPUT` are not ours.
pub const SIDECAR_CHAINS: [(TableKind, &str); 11] = [
    (TableKind::Nat, "ISTIO_INBOUND"),
    (TableKind::Nat, "ISTIO_REDIRECT"),
    (TableKind::Nat, "ISTIO_IN_REDIRECT"),
    (TableKind::Nat, "ISTIO_OUTPUT"),
    (TableKind::Nat, "ISTIO_OUTPUT_DNS"),
    (TableKind::Mangle, "ISTIO_INBOUND"),
    (TableKind::Mangle, "ISTIO_DIVERT"),
    (TableKind::Mangle, "ISTIO_TPROXY"),
    (TableKind::Mangle, "ISTIO_DROP"),
    (TableKind::Raw, "ISTIO_INBOUND"),
    (TableKind::Raw, "ISTIO_OUTPUT_DNS"),
];

const KINDS: [TableKind; 4] = [TableKind::Filter, TableKind::Mangle, TableKind::Nat, TableKind::Raw];

/// What is there and what should be, of one family in one variant.
#[derive(Debug)]
pub(super) struct Side<'a> {
    pub(super) ruleset: &'a Ruleset,
    pub(super) family: Family,
    /// Whether the ruleset's rules belong here. Otherwise nothing of ours does.
    pub(super) planned: bool,
    pub(super) saved: Saved,
    /// Chains that the owner may have besides those of the ruleset.
    pub(super) known_chains: &'a [(TableKind, &'a str)],
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
}

impl Side<'_> {
    /// Every way in which what is there differs.
    pub(super) fn differences(&self) -> Result<Vec<Difference>, Error> {
        let mut all = Vec::new();
        for kind in KINDS {
            all.extend(View::new(self, kind).differences()?);
        }
        Ok(all)
    }

    /// The steps for the tables that differ, or for all tables of the ruleset.
    pub(super) fn steps(&self) -> Result<Vec<TableStep>, Error> {
        let mut steps = Vec::new();
        for kind in KINDS {
            let view = View::new(self, kind);
            if !view.differences()?.is_empty() {
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
        let saved = side.saved.table(kind);
        Self { side, kind, saved, plan: model.filter(|_| side.planned), model }
    }

    fn is_own(&self, chain: &str) -> bool {
        let in_ruleset = self.model.is_some_and(|table| {
            table.chains.iter().any(|c| c.base.is_none() && own_chain_name(&c.name) == chain)
        });
        let known = self.side.known_chains.iter().any(|(kind, name)| *kind == self.kind && *name == chain);
        (in_ruleset || known) && !self.is_of_ambient(chain)
    }

    /// `ISTIO_OUTPUT` is a name of ambient mode too. It is ambient's where ambient's other chain is and no other of ours.
    fn is_of_ambient(&self, chain: &str) -> bool {
        let has = |name: &str| self.saved.is_some_and(|saved| saved.chains.iter().any(|c| c == name));
        chain == "ISTIO_OUTPUT" && has("ISTIO_PRERT") && !has("ISTIO_INBOUND") && !has("ISTIO_REDIRECT")
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
    /// ruleset has as many as it has. What is there more often, somebody else has put there.
    fn own_shared_rules(&self, saved: &SavedTable) -> Vec<usize> {
        let mut own = Vec::new();
        let mut chains: Vec<&str> = saved.rules.iter().map(|rule| rule.chain.as_str()).collect();
        chains.sort_unstable();
        chains.dedup();
        for chain in chains.into_iter().filter(|chain| !self.is_own(chain)) {
            // Jumps are known by where they go; the same text may be one to somebody else's chain of that name.
            let model = self.rules_of(self.model, chain).into_iter();
            let mut model: Vec<Rule> =
                model.filter(|rule| !matches!(rule.action, Action::Jump(_))).map(canonical).collect();
            for (number, rule) in saved.rules.iter().enumerate().filter(|(_, rule)| rule.chain == chain) {
                if rule.target().is_some_and(|target| self.is_own(target)) {
                    own.push(number);
                } else if let Some(parsed) = parse_rule(&rule.text)
                    && let Some(position) = model.iter().position(|planned| *planned == parsed)
                {
                    model.swap_remove(position);
                    own.push(number);
                }
            }
        }
        own.sort_unstable();
        own
    }

    fn differences(&self) -> Result<Vec<Difference>, Error> {
        let table = self.label();
        let mut found = Vec::new();
        let (planned, saved) = (self.planned_chains(), self.saved_own_chains());
        for chain in planned.iter().filter(|chain| !saved.contains(&chain.as_str())) {
            found.push(Difference::MissingChain { table: table.clone(), chain: chain.clone() });
        }
        for chain in saved.iter().filter(|chain| planned.iter().all(|planned| planned != *chain)) {
            found.push(Difference::UnexpectedChain { table: table.clone(), chain: (*chain).to_owned() });
        }
        let shared = self.saved.map_or_else(Vec::new, |saved| self.own_shared_rules(saved));
        for chain in self.chains_with_rules() {
            let own = self.is_own(&chain);
            let there: Vec<&SavedRule> = self.saved.map_or_else(Vec::new, |saved| {
                let rules = saved.rules.iter().enumerate();
                let ours = rules.filter(|(n, rule)| rule.chain == chain && (own || shared.contains(n)));
                ours.map(|(_, rule)| rule).collect()
            });
            self.compare(&chain, &there, &self.rules_of(self.plan, &chain), &mut found)?;
        }
        Ok(found)
    }

    /// Every chain that has a rule, there or in the plan.
    fn chains_with_rules(&self) -> Vec<String> {
        let planned = self.plan.map_or(&[][..], |table| &table.chains);
        let saved = self.saved.map_or(&[][..], |saved| &saved.rules);
        let mut chains: Vec<String> = Vec::new();
        for chain in planned.iter().map(chain_name).chain(saved.iter().map(|rule| rule.chain.clone())) {
            if !chains.contains(&chain) {
                chains.push(chain);
            }
        }
        chains
    }

    fn compare(
        &self,
        chain: &str,
        there: &[&SavedRule],
        planned: &[&Rule],
        found: &mut Vec<Difference>,
    ) -> Result<(), Error> {
        let parsed: Vec<Option<Rule>> = there.iter().map(|rule| parse_rule(&rule.text)).collect();
        let wanted: Vec<Option<Rule>> = planned.iter().map(|rule| Some(canonical(rule))).collect();
        for edit in align(wanted.len(), parsed.len(), |w, p| wanted[w] == parsed[p]) {
            let (table, chain) = (self.label(), chain.to_owned());
            found.push(match edit {
                Edit::Missing(number) => {
                    let (rule, why) = (render_rule(planned[number])?, planned[number].why.to_string());
                    Difference::MissingRule { table, chain, rule, why }
                }
                Edit::Unexpected(number) => {
                    Difference::UnexpectedRule { table, chain, rule: there[number].text.clone() }
                }
            });
        }
        Ok(())
    }

    fn label(&self) -> String {
        let family = match self.side.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        format!("{family} {}{}", self.kind, self.side.label)
    }

    fn step(&self) -> Result<TableStep, Error> {
        let (forward, backward) = (self.forward()?, self.backward()?);
        Ok(TableStep { kind: self.kind, forward, backward, before: self.side.saved.content(self.kind) })
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
            text.push_str(&render_rules(plan, self.side.family)?);
        }
        for chain in there.iter().filter(|chain| planned.iter().all(|planned| planned != *chain)) {
            let _ = writeln!(text, "-X {chain}");
        }
        text.push_str("COMMIT\n");
        Ok(text)
    }

    fn backward(&self) -> Result<String, Error> {
        let (planned, there) = (self.planned_chains(), self.saved_own_chains());
        let mut text = format!("*{}\n", self.kind);
        for chain in self.plan.map_or(&[][..], |plan| &plan.chains).iter().filter(|c| c.base.is_some()) {
            for rule in rules(chain, self.side.family) {
                let _ = writeln!(text, "-D {} {}", chain_name(chain), render_rule(rule)?);
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
        Ok(text)
    }
}
