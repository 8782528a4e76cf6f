//! What must change in a table, as differences and as text for iptables-restore.
//!
//! A layer that differs in a table is written anew, all such layers in one commit: jumps to their chains are deleted, the chains are
//! emptied, filled and hooked up again. No packet sees the time in between. Rules and chains of others, the layers that do not differ among
//! them, keep their places.

use ruleset::iptables::{Names, canonical, chain_name, leading, own_chains, parse_rule, render_rule, rules};
use ruleset::{Action, Chain, Family, Rule, Ruleset, Table, TableKind};

use super::KINDS;
use super::commit::Commit;
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

/// What is there and what should be, of one family in one variant.
#[derive(Debug)]
pub(super) struct TableSide<'a> {
    pub(super) layers: &'a [Ruleset],
    /// Layers whose place they take. Their rules are known as the owners' still.
    pub(super) before: &'a [Ruleset],
    pub(super) family: Family,
    /// Whether the layers' rules belong here. Otherwise nothing of ours does.
    pub(super) planned: bool,
    /// Absent where it was not listed, as no chain of ours is there.
    pub(super) saved: Option<Saved>,
    /// Whether a rule of others before those that must lead is a difference.
    pub(super) ordered: bool,
    /// Ends the name of the table in differences, where the family alone does not say enough.
    pub(super) label: &'static str,
}

/// What one layer has in a table of a side.
pub(super) struct LayerView<'a> {
    side: &'a TableSide<'a>,
    layer: &'a Ruleset,
    pub(super) kind: TableKind,
    pub(super) saved: Option<&'a SavedTable>,
    /// What should be.
    pub(super) plan: Option<&'a Table>,
    /// What the layer says about the table, also when it does not belong here: by it its rules are known.
    model: Option<&'a Table>,
    /// The names of chains that are the owner's.
    own: Names,
    /// The layer's rules, by number, in chains that are not its own.
    pub(super) shared: Vec<usize>,
    /// Those of the layers before it, and behind it.
    earlier: Vec<usize>,
    later: Vec<usize>,
}

impl TableSide<'_> {
    /// Every way in which what is there differs.
    pub(super) fn differences(&self) -> Vec<Difference> {
        KINDS.into_iter().flat_map(|kind| self.views(kind)).flat_map(|view| view.differences()).collect()
    }

    /// The steps for the tables that differ, in a fixed order; nat comes last where other layers are replaced.
    pub(super) fn steps(&self) -> Result<Vec<TableStep>, Error> {
        let mut steps = Vec::new();
        for kind in KINDS {
            let views = self.views(kind);
            let differs: Vec<bool> = views.iter().map(|view| !view.differences().is_empty()).collect();
            if differs.contains(&true) {
                let Commit { forward, backward } = Commit::of(kind, &views, &differs, self.family)?;
                let before = self.saved.as_ref().map(|saved| saved.content(kind));
                steps.push(TableStep { kind, forward, backward, before });
            }
        }
        if !self.before.is_empty() {
            // Packets are under way: what the new rules redirect is to find the rest in place.
            steps.sort_by_key(|step| step.kind == TableKind::Nat);
        }
        Ok(steps)
    }

    /// Whether anything of ours is there.
    pub(super) fn holds_ours(&self) -> bool {
        KINDS.into_iter().flat_map(|kind| self.views(kind)).any(|view| {
            !view.shared.is_empty()
                || view.saved.is_some_and(|saved| saved.chains.iter().any(|chain| view.is_own(chain)))
        })
    }

    /// What each layer has in a table.
    fn views(&self, kind: TableKind) -> Vec<LayerView<'_>> {
        let mut views: Vec<LayerView<'_>> = Vec::new();
        for layer in self.layers {
            let mut view = LayerView::new(self, layer, kind);
            if let Some(saved) = view.saved {
                view.earlier = views.iter().flat_map(|earlier| earlier.shared.iter().copied()).collect();
                view.shared = view.own_shared_rules(saved, |number| view.earlier.contains(&number));
            }
            views.push(view);
        }
        for at in 0..views.len() {
            views[at].later = views[at + 1..].iter().flat_map(|later| later.shared.iter().copied()).collect();
        }
        views
    }
}

impl<'a> LayerView<'a> {
    fn new(side: &'a TableSide<'a>, layer: &'a Ruleset, kind: TableKind) -> Self {
        let model = layer.table(kind);
        let saved = side.saved.as_ref().and_then(|saved| saved.table(kind));
        let mut own = Names::of(layer, kind);
        if kind == TableKind::Nat && !saved.is_none_or(|saved| shared_name_is_own(&own, saved)) {
            own.remove(SHARED_NAME);
        }
        let planned = side.planned && layer.families().contains(&side.family);
        let plan = model.filter(|_| planned);
        let (shared, earlier, later) = (Vec::new(), Vec::new(), Vec::new());
        Self { side, layer, kind, saved, plan, model, own, shared, earlier, later }
    }

    pub(super) fn is_own(&self, chain: &str) -> bool {
        self.own.contain(chain)
    }

    pub(super) fn planned_chains(&self) -> Vec<String> {
        self.plan.map_or_else(Vec::new, |table| own_chains(table, self.side.family).map(chain_name).collect())
    }

    pub(super) fn saved_own_chains(&self) -> Vec<&'a str> {
        let chains = self.saved.map_or(&[][..], |saved| &saved.chains);
        chains.iter().map(String::as_str).filter(|chain| self.is_own(chain)).collect()
    }

    /// How many of the layer's rules in a built-in chain precede those of others.
    pub(super) fn leading(&self, chain: &str, family: Family) -> usize {
        let chains = self.plan.map_or(&[][..], |plan| &plan.chains);
        let chain = chains.iter().find(|own| own.base.is_some() && chain_name(own) == chain);
        chain.map_or(0, |chain| leading(chain, family))
    }

    /// The rules of a chain in a table of the layer.
    fn rules_of(&self, table: Option<&'a Table>, chain: &str) -> Vec<&'a Rule> {
        let chains = table.map_or(&[][..], |table| &table.chains).iter();
        // A late chain's rules are in the same built-in chain.
        chains.filter(|c| chain_name(c) == chain).flat_map(|chain| rules(chain, self.side.family)).collect()
    }

    /// The rules of the layer, by number, in chains that are not its own: every jump to a chain of its own, and of the other rules that it
    /// has as many as it has, but for those that an earlier layer has. What is there more often, somebody else has put there. One pass: a
    /// node's own tables may have tens of thousands of rules of others.
    fn own_shared_rules(&self, saved: &SavedTable, of_earlier: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut model = self.rules_by_text(self.model);
        for before in self.side.before.iter().filter(|before| before.owner == self.layer.owner) {
            for (chain, rules) in self.rules_by_text(before.table(self.kind)) {
                match model.iter_mut().find(|(known, _)| *known == chain) {
                    Some((_, known)) => add_absent(known, rules),
                    None => model.push((chain, rules)),
                }
            }
        }
        model.retain(|(chain, rules)| !rules.is_empty() && !self.is_own(chain));
        let mut own = Vec::new();
        for (number, rule) in saved.rules.iter().enumerate().filter(|(_, rule)| !self.is_own(&rule.chain)) {
            if rule.target().is_some_and(|target| self.is_own(target)) {
                own.push(number);
            } else if let Some((_, planned)) = model.iter_mut().find(|(chain, _)| *chain == rule.chain)
                && !of_earlier(number)
                && let Some(parsed) = parse_rule(&rule.text)
                && let Some(position) = planned.iter().position(|planned| *planned == parsed)
            {
                planned.swap_remove(position);
                own.push(number);
            }
        }
        own
    }

    /// The rules of each chain of a table that are known by their text. Jumps are known by where they go; the same text may be one to somebody
    /// else's chain of that name.
    fn rules_by_text(&self, table: Option<&Table>) -> Vec<(String, Vec<Rule>)> {
        let chains = table.map_or(&[][..], |table| &table.chains).iter();
        let rules_of = |chain: &Chain| {
            let rules = rules(chain, self.side.family).filter(|rule| !matches!(rule.action, Action::Jump(_)));
            (chain_name(chain), rules.map(canonical).collect())
        };
        chains.map(rules_of).collect()
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
        if found.is_empty() {
            found.extend(self.preceding());
            found.extend(self.following());
        }
        found
    }

    /// Rules of others before or among those of the layer that must lead: the first one of each chain. Where it has rules after those of others, too, that is
    /// always looked at.
    fn preceding(&self) -> Vec<Difference> {
        let Some((saved, plan)) = self.saved.zip(self.plan) else { return Vec::new() };
        if !self.side.ordered && !plan.chains.iter().any(Chain::is_late) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for chain in &plan.chains {
            let (name, leading) = (chain_name(chain), leading(chain, self.side.family));
            let there = saved.rules.iter().enumerate().filter(|(_, rule)| rule.chain == name);
            let mut first = there.filter(|(number, _)| !self.earlier.contains(number)).take(leading);
            if let Some((_, other)) = first.find(|(number, _)| !self.shared.contains(number)) {
                found.push(Difference::Preceded { table: self.label(), chain: name, by: other.text.clone() });
            }
        }
        found
    }

    /// Rules of others behind those of the layer that must be the last: the last of each chain.
    fn following(&self) -> Vec<Difference> {
        let Some((saved, plan)) = self.saved.zip(self.plan) else { return Vec::new() };
        let mut found = Vec::new();
        for chain in plan.chains.iter().filter(|chain| chain.is_late()) {
            let name = chain_name(chain);
            let there = saved.rules.iter().enumerate().rfind(|(_, rule)| rule.chain == name);
            if let Some((number, last)) = there
                && !self.shared.contains(&number)
                && !self.later.contains(&number)
            {
                found.push(Difference::Followed { table: self.label(), chain: name, by: last.text.clone() });
            }
        }
        found
    }

    /// The rules that are there and ours, in chains of ours and in others.
    fn own_rules(&self) -> Vec<&'a SavedRule> {
        let Some(saved) = self.saved else { return Vec::new() };
        let mut shared = self.shared.iter().peekable();
        let rules = saved.rules.iter().enumerate();
        rules
            .filter(|(n, rule)| shared.next_if_eq(&n).is_some() || self.is_own(&rule.chain))
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
        let table = format!("{family} {}{}", self.kind, self.side.label);
        // Of several layers, it says whose.
        if self.side.layers.len() > 1 { format!("{table} of {}", self.layer.owner) } else { table }
    }
}

/// Adds what is not known yet, each rule as often as it is there.
fn add_absent(known: &mut Vec<Rule>, rules: Vec<Rule>) {
    let mut counted = known.clone();
    for rule in rules {
        match counted.iter().position(|known| *known == rule) {
            Some(position) => {
                counted.swap_remove(position);
            }
            None => known.push(rule),
        }
    }
}

/// [`SHARED_NAME`] is a name of sidecar and of ambient rules. It is the other's where the other's chains are and none of the owner's.
fn shared_name_is_own(own: &Names, saved: &SavedTable) -> bool {
    let has = |name: &str| saved.chains.iter().any(|chain| chain == name);
    let sidecar = SIDECAR_ONLY.into_iter().any(has);
    if own.contain(AMBIENT_ONLY) { !sidecar } else { sidecar || !has(AMBIENT_ONLY) }
}
