//! One commit: a table of a family with everything that changes in it, as text for iptables-restore, and the text that takes it back.

use std::fmt::Write;

use ruleset::iptables::{Placement, chain_name, leading, render_rule, render_rules, rules};
use ruleset::{Chain, Family, TableKind};

use super::change::LayerView;
use super::error::Error;

/// Both texts.
pub(super) struct Commit {
    pub(super) forward: String,
    pub(super) backward: String,
}

/// A built-in chain while it is written: whose each rule is, and whether it is one of those that precede the rules of others. Absent: somebody
/// else's.
struct Shared(Vec<Option<(usize, bool)>>);

impl Commit {
    /// Of the layers of a table, those that differ.
    pub(super) fn of(
        kind: TableKind,
        views: &[LayerView<'_>],
        differs: &[bool],
        family: Family,
    ) -> Result<Self, Error> {
        let changed: Vec<&LayerView<'_>> =
            views.iter().zip(differs).filter_map(|(view, differs)| differs.then_some(view)).collect();
        let head = format!("*{kind}\n");
        let forward = head.clone() + &forward(views, differs, family)? + "COMMIT\n";
        Ok(Self { forward, backward: head + &backward(&changed, family) + "COMMIT\n" })
    }
}

fn forward(views: &[LayerView<'_>], differs: &[bool], family: Family) -> Result<String, Error> {
    let changed =
        || views.iter().enumerate().zip(differs).filter(|(_, differs)| **differs).map(|(view, _)| view);
    let mut text = String::with_capacity(4096);
    // Writing to a String cannot fail, here and below.
    for (_, view) in changed() {
        let saved = view.saved.map_or(&[][..], |saved| &saved.rules);
        for rule in view.shared.iter().filter_map(|number| saved.get(*number)) {
            let _ = writeln!(text, "-D {} {}", rule.chain, rule.text);
        }
    }
    for (_, view) in changed() {
        let (planned, there) = (view.planned_chains(), view.saved_own_chains());
        for chain in &there {
            let _ = writeln!(text, "-F {chain}");
        }
        for chain in planned.iter().filter(|chain| !there.contains(&chain.as_str())) {
            let _ = writeln!(text, "-N {chain}");
        }
    }
    for (number, view) in changed() {
        if let Some(plan) = view.plan {
            let place = |chain: &Chain| place(views, differs, number, chain, family);
            text.push_str(&render_rules(plan, family, place)?);
        }
    }
    for (_, view) in changed() {
        let planned = view.planned_chains();
        for chain in
            view.saved_own_chains().iter().filter(|chain| planned.iter().all(|other| other != *chain))
        {
            let _ = writeln!(text, "-X {chain}");
        }
    }
    Ok(text)
}

/// Where the rules of a layer go in a chain: between those of the layers before and behind it.
fn place(
    views: &[LayerView<'_>],
    differs: &[bool],
    number: usize,
    chain: &Chain,
    family: Family,
) -> Placement {
    if chain.base.is_none() {
        return Placement::default();
    }
    let name = chain_name(chain);
    let mut shared = Shared::unchanged(views, differs, &name, family);
    // The changed layers before this one are written already.
    for (earlier, view) in views.iter().enumerate().take(number).filter(|(at, _)| differs[*at]) {
        let own = view.plan.and_then(|plan| plan.chain(&chain.name)).filter(|chain| chain.base.is_some());
        if let Some(own) = own {
            shared.write(earlier, leading(own, family), rules(own, family).count());
        }
    }
    shared.write(number, leading(chain, family), rules(chain, family).count())
}

impl Shared {
    /// Without the rules of the layers that change.
    fn unchanged(views: &[LayerView<'_>], differs: &[bool], chain: &str, family: Family) -> Self {
        let saved = views.iter().find_map(|view| view.saved).map_or(&[][..], |saved| &saved.rules);
        let mut leads: Vec<usize> = views.iter().map(|view| view.leading(chain, family)).collect();
        let mut rules = Vec::new();
        for (number, _) in saved.iter().enumerate().filter(|(_, rule)| rule.chain == chain) {
            let of = views.iter().position(|view| view.shared.binary_search(&number).is_ok());
            rules.push(match of {
                Some(layer) if differs[layer] => continue,
                Some(layer) => {
                    let is_leading = leads[layer] > 0;
                    leads[layer] = leads[layer].saturating_sub(1);
                    Some((layer, is_leading))
                }
                None => None,
            });
        }
        Self(rules)
    }

    fn write(&mut self, layer: usize, leading: usize, all: usize) -> Placement {
        let leads_before = |rule: &Option<(usize, bool)>| matches!(rule, Some((of, true)) if *of < layer);
        let after = self.0.iter().rposition(leads_before).map_or(0, |last| last + 1);
        self.0.splice(after..after, (0..leading).map(|_| Some((layer, true))));
        let is_behind = |rule: &Option<(usize, bool)>| matches!(rule, Some((of, false)) if *of > layer);
        let before = self.0.iter().position(is_behind);
        let at = before.unwrap_or(self.0.len());
        self.0.splice(at..at, (leading..all).map(|_| Some((layer, false))));
        Placement { leading_after: after, rest_after: before }
    }
}

fn backward(changed: &[&LayerView<'_>], family: Family) -> String {
    let mut text = String::new();
    for view in changed {
        for chain in view.plan.map_or(&[][..], |plan| &plan.chains).iter().filter(|c| c.base.is_some()) {
            for rule in rules(chain, family) {
                let _ = writeln!(text, "-D {} {}", chain_name(chain), render_rule(rule, family));
            }
        }
    }
    for view in changed {
        let (planned, there) = (view.planned_chains(), view.saved_own_chains());
        for chain in &planned {
            let _ = writeln!(text, "-F {chain}");
        }
        for chain in there.iter().filter(|chain| planned.iter().all(|planned| planned != *chain)) {
            let _ = writeln!(text, "-N {chain}");
        }
    }
    if let Some(saved) = changed.iter().find_map(|view| view.saved) {
        let is_own = |chain: &str| changed.iter().any(|view| view.is_own(chain));
        for rule in saved.rules.iter().filter(|rule| is_own(&rule.chain)) {
            let _ = writeln!(text, "-A {} {}", rule.chain, rule.text);
        }
        let is_shared = |number: &usize| changed.iter().any(|view| view.shared.binary_search(number).is_ok());
        for (number, rule) in saved.rules.iter().enumerate().filter(|(number, _)| is_shared(number)) {
            // In rising order each rule finds those before it in place already.
            let before = saved.rules[..number].iter().filter(|r| r.chain == rule.chain).count();
            let _ = writeln!(text, "-I {} {} {}", rule.chain, before + 1, rule.text);
        }
    }
    for view in changed {
        let there = view.saved_own_chains();
        for chain in view.planned_chains().iter().filter(|chain| !there.contains(&chain.as_str())) {
            let _ = writeln!(text, "-X {chain}");
        }
    }
    text
}
