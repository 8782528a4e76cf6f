//! A table as the kernel has it, in the form of plans, so that it can be evaluated.

use std::collections::HashMap;

use netns::Inside;
use ruleset::{Chain, Contents, Rule, Ruleset, Set, SetDelta, Table, TableKind};

use super::batch::TableOf;
use super::expected::{self, ExpectedTable};
use super::list::{self, ListedSet, NetlinkChain, NetlinkRule};
use super::observe::same_base;
use super::set::members_of;
use super::uapi::{family, set as set_uapi};
use super::{Error, lower, question};
use crate::netlink::{self, NetlinkSocket};

/// How many rules, and how many sets, are read at most.
const MOST: usize = 1 << 17;
/// The same of elements of all sets together.
const MOST_ELEMENTS: usize = 1 << 21;

/// What an owner has in a table. Rules and sets are those of plans that the kernel has; what no plan has is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldTable {
    /// The rules that are there, chain by chain.
    pub rules: Ruleset,
    /// Who is in the sets.
    pub contents: Contents,
    /// Rules, chains and sets that are not read, for people: they may do anything.
    pub unread: Vec<String>,
}

/// Reads a table. `plans` are all that an owner may have there: rules of any of them are found.
///
/// Nothing where the table is not there, or is asleep.
///
/// # Errors
/// The kernel could not be asked.
pub fn held(_: &Inside, plans: &[Ruleset], kind: TableKind) -> Result<Option<HeldTable>, Error> {
    let Some(plan) = plans.first() else { return Ok(None) };
    let mut socket = super::open()?;
    let name = TableOf { owner: &plan.owner, kind }.name();
    read(&mut socket, plans, kind, &name).map_err(|error| question("read a table", error))
}

fn read(
    socket: &mut NetlinkSocket,
    plans: &[Ruleset],
    kind: TableKind,
    name: &str,
) -> Result<Option<HeldTable>, netlink::Error> {
    let is_it = |table: &list::NetlinkTable| table.name == name && !table.dormant;
    if !list::tables(socket, family::INET)?.iter().any(is_it) {
        return Ok(None);
    }
    let mut unread = Vec::new();
    let mut chains = list::chains(socket)?;
    chains.retain(|chain| chain.table == name);
    let (messages, all_rules) = list::rules(socket, Some(name), MOST)?;
    let (sets, all_sets) = list::sets(socket, name, (MOST, MOST_ELEMENTS), |_| true)?;
    if !(all_rules && all_sets) {
        unread.push(format!("table {name} has more than is read"));
    }
    let held = list::read_rules(messages.iter(), &sets);
    let known = KnownParts::of(plans, kind);
    let chains = chains.iter().filter_map(|chain| known.chain(chain, &held, &mut unread)).collect();
    let (sets, contents) = known.sets(sets, &mut unread);
    let table = Table { kind, sets, chains };
    let rules = Ruleset { tables: vec![table], ..plans[0].clone() };
    Ok(Some(HeldTable { rules, contents, unread }))
}

/// What plans have, by names.
struct KnownParts<'a> {
    expected: Vec<ExpectedTable<'a>>,
    chains: HashMap<&'a str, Vec<&'a Chain>>,
    sets: HashMap<&'a str, &'a Set>,
}

// === impl KnownParts ===

impl<'a> KnownParts<'a> {
    fn of(plans: &'a [Ruleset], kind: TableKind) -> Self {
        let tables = || plans.iter().flat_map(|plan| &plan.tables).filter(move |table| table.kind == kind);
        let mut chains: HashMap<&str, Vec<&Chain>> = HashMap::new();
        for chain in tables().flat_map(|table| &table.chains) {
            chains.entry(&chain.name).or_default().push(chain);
        }
        let sets = tables().flat_map(|table| &table.sets).map(|set| (&*set.name, set)).collect();
        Self { expected: plans.iter().flat_map(expected::planned).collect(), chains, sets }
    }

    /// A chain with its rules, as far as plans have them.
    fn chain(&self, listed: &NetlinkChain, held: &[NetlinkRule], unread: &mut Vec<String>) -> Option<Chain> {
        let named = self.expected.iter().flat_map(|table| &table.chains);
        let is_known = named.filter(|chain| chain.name == listed.name).any(|chain| same_base(chain, listed));
        let planned = self.chains.get(listed.name.as_str()).filter(|_| is_known);
        let Some(planned) = planned else {
            // Without a base packets come there by rules only, which are not read either.
            if listed.base.is_some() {
                unread.push(format!("chain {}", listed.name));
            }
            return None;
        };
        let mut rules: Vec<Rule> = Vec::new();
        for (number, rule) in held.iter().filter(|rule| rule.chain == listed.name).enumerate() {
            let mut same = planned.iter().flat_map(|chain| &chain.rules);
            match same.find(|planned| lower::lower(planned) == rule.lowered) {
                Some(planned) => rules.push(planned.clone()),
                None => unread.push(format!("rule {} of chain {}", number + 1, listed.name)),
            }
        }
        planned.first().map(|chain| Chain { rules, ..(*chain).clone() })
    }

    /// The sets, and who is in those that others fill.
    fn sets(&self, listed: Vec<ListedSet>, unread: &mut Vec<String>) -> (Vec<Set>, Contents) {
        let (mut sets, mut contents) = (Vec::new(), Contents::default());
        let expected: HashMap<&str, _> =
            self.expected.iter().flat_map(|table| &table.sets).map(|set| (&*set.name, set)).collect();
        for set in listed.into_iter().filter(|set| set.kind.flags & set_uapi::ANONYMOUS == 0) {
            let known = self.sets.get(set.name.as_str()).zip(expected.get(set.name.as_str()));
            let Some((planned, expected)) = known.filter(|(_, expected)| expected.kind == set.kind) else {
                unread.push(format!("set {}", set.name));
                continue;
            };
            sets.push((*planned).clone());
            if planned.is_kept() {
                let mut delta = SetDelta::default();
                members_of(planned.keys, set.elements).into_iter().for_each(|member| delta.add(member));
                contents.apply(&set.name, &delta);
                continue;
            }
            let compared = |elements: &[super::set::WireElement]| -> Vec<_> {
                elements.iter().map(|one| format!("{:?}", one.compared())).collect()
            };
            if compared(&set.elements) != compared(&expected.elements) {
                unread.push(format!("elements of set {}", set.name));
            }
        }
        (sets, contents)
    }
}
