//! What a table lacks, and has too much, as changes of its parts.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ruleset::{Chain, Element, KeptMembers, Ruleset, Set, SetDelta, Table, TableDelta};

use super::super::batch::TableOf;
use super::super::expected::{self, ExpectedTable};
use super::super::list::{self, ListedSet, NetlinkRule};
use super::super::observe::{MORE, same_base};
use super::super::set::{WireElement, members_of};
use super::super::uapi::{family, set as set_uapi};
use crate::netlink::{Error, NetlinkSocket};

/// How many more elements than are wanted are read, before the table is made anew.
const MORE_ELEMENTS: usize = 1 << 16;

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thoroughness {
    /// All.
    Everything,
    /// All but the members of sets. What is flushed or deleted whole is found, in a time that does not go by the number of members.
    Rules,
}

/// What is to be done.
pub(super) enum TableComparison {
    /// The table is not there.
    Missing,
    /// It is attached in another way, asleep, or has so much in it that it is not worth while to say what.
    Anew,
    /// These transactions, one after the other.
    Parts(Vec<TableDelta>),
}

/// What the kernel has.
struct Held {
    chains: Vec<String>,
    rules: HashMap<String, Vec<NetlinkRule>>,
    sets: Vec<ListedSet>,
}

pub(super) fn compare(
    socket: &mut NetlinkSocket,
    wanted: &Ruleset,
    table: &Table,
    contents: &dyn KeptMembers,
    thoroughness: Thoroughness,
) -> Result<TableComparison, Error> {
    if let Some(found) = whole(socket, wanted, table)? {
        return Ok(found);
    }
    let Some(expected) = expected::planned(wanted).pop() else { return Ok(TableComparison::Anew) };
    let Some(mut held) = held(socket, &expected, table, thoroughness)? else {
        return Ok(TableComparison::Anew);
    };
    let [mut gains, mut changes, mut losses] = <[TableDelta; 3]>::default();
    if !compare_chains(&expected, table, &held, &mut changes)
        || !compare_sets(&expected, table, &held, [&mut gains, &mut changes, &mut losses], contents)
    {
        return Ok(TableComparison::Anew);
    }
    if thoroughness == Thoroughness::Everything {
        // One set after the other: as elements the members of all of them take much memory.
        let kept: Vec<&Set> = table.sets.iter().filter(|set| set.is_kept()).collect();
        let mut more = MORE_ELEMENTS;
        for set in kept {
            let Some(listed) = held.sets.iter_mut().find(|listed| listed.name == set.name) else { continue };
            let wanted = contents.count(&set.name);
            if !list::fill(socket, &expected.name, std::slice::from_mut(listed), wanted + more, |_| true)? {
                return Ok(TableComparison::Anew);
            }
            let there = std::mem::take(&mut listed.elements);
            more -= there.len().saturating_sub(wanted);
            let there = members_of(set.keys, there);
            let wanted: Vec<Element> = contents.of(&set.name).collect();
            compare_members(set, &there, &wanted, [&mut gains, &mut changes, &mut losses]);
        }
    }
    let deltas = [gains, changes, losses].into_iter().filter(|delta| !delta.is_empty());
    Ok(TableComparison::Parts(deltas.collect()))
}

/// What may be missing.
pub(super) struct Gaps<'a> {
    /// Whether members of sets are looked at.
    pub(super) thoroughness: Thoroughness,
    /// What sets say of these is as it is wanted.
    pub(super) addresses: &'a BTreeSet<IpAddr>,
    /// Sets that had members when they were looked at last: without any they were emptied since.
    pub(super) filled: &'a mut BTreeSet<String>,
}

/// What the table lacks, whatever else it has: chains and sets that are not there or were emptied, and what sets say of some addresses. A chain that has
/// rules stays as it is, and so do the other members of a set.
pub(super) fn lacking(
    socket: &mut NetlinkSocket,
    wanted: &Ruleset,
    table: &Table,
    contents: &dyn KeptMembers,
    gaps: &mut Gaps<'_>,
) -> Result<TableComparison, Error> {
    if let Some(found) = whole(socket, wanted, table)? {
        return Ok(found);
    }
    let Some(expected) = expected::planned(wanted).pop() else { return Ok(TableComparison::Anew) };
    let name = &*expected.name;
    let chains = list::chains(socket)?.into_iter().filter(|chain| chain.table == name);
    let there: BTreeSet<String> = chains.map(|chain| chain.name).collect();
    let (messages, all_rules) = list::rules(socket, Some(name), MORE_ELEMENTS)?;
    let (mut sets, _) = list::empty_sets(socket, Some(name), expected.sets.len() + MORE_ELEMENTS)?;
    let with_rules: BTreeSet<String> =
        list::read_rules(messages.iter(), &sets).into_iter().map(|rule| rule.chain).collect();
    // Each chain of ours has rules.
    let is_empty = |chain: &Chain| all_rules && !chain.rules.is_empty() && !with_rules.contains(&*chain.name);
    let is_missing = |chain: &&Chain| !there.contains(&*chain.name) || is_empty(chain);
    sets.retain(|set| !is_anonymous(set));
    let [mut gains, mut changes, mut losses] = <[TableDelta; 3]>::default();
    let missing = table.chains.iter().filter(is_missing);
    changes.chains.extend(missing.cloned());
    let held = Held { chains: Vec::new(), rules: HashMap::new(), sets };
    // Nothing that is there already goes.
    let goes = &mut TableDelta::default();
    let is_attached = changes.chains.iter().all(|chain| chain.base.is_none() || there.contains(&*chain.name));
    if !is_attached || !compare_sets(&expected, table, &held, [&mut gains, &mut changes, goes], contents) {
        return Ok(TableComparison::Anew);
    }
    let mut sets = held.sets;
    let Gaps { thoroughness, addresses, filled } = gaps;
    let looks = *thoroughness == Thoroughness::Everything || !addresses.is_empty();
    for set in table.sets.iter().filter(|set| set.is_kept() && looks) {
        let Some(listed) = sets.iter_mut().find(|listed| listed.name == set.name) else { continue };
        let most = contents.count(&set.name) + MORE_ELEMENTS;
        // Of a set that is larger than all that can be read, the rest stays.
        list::fill(socket, name, std::slice::from_mut(listed), most, |_| true)?;
        let about = |element: &Element| element.key.address().is_some_and(|one| addresses.contains(&one));
        let there = members_of(set.keys, std::mem::take(&mut listed.elements));
        // Members of which the kernel may have something newer may have gone before this began.
        let was_emptied =
            there.is_empty() && (!contents.may_be_older(&set.name) || filled.contains(&*set.name));
        if !there.is_empty() {
            filled.insert(set.name.to_string());
        }
        let there: Vec<Element> = there.into_iter().filter(about).collect();
        let wanted: Vec<Element> =
            contents.of(&set.name).filter(|element| was_emptied || about(element)).collect();
        compare_members(set, &there, &wanted, [&mut gains, &mut changes, &mut losses]);
    }
    let deltas = [gains, changes, losses].into_iter().filter(|delta| !delta.is_empty());
    Ok(TableComparison::Parts(deltas.collect()))
}

/// What is to be done where the table is not there, or does nothing.
fn whole(
    socket: &mut NetlinkSocket,
    wanted: &Ruleset,
    table: &Table,
) -> Result<Option<TableComparison>, Error> {
    let place = TableOf { owner: &wanted.owner, kind: table.kind };
    let listed = list::tables(socket, family::INET)?.into_iter().find(|listed| listed.name == place.name());
    Ok(match listed {
        None => Some(TableComparison::Missing),
        Some(listed) => listed.dormant.then_some(TableComparison::Anew),
    })
}

/// What there is, but for the members of kept sets; nothing where that is too much, or a base chain is not as it should be.
fn held(
    socket: &mut NetlinkSocket,
    expected: &ExpectedTable<'_>,
    table: &Table,
    thoroughness: Thoroughness,
) -> Result<Option<Held>, Error> {
    let name = &*expected.name;
    let mut chains = list::chains(socket)?;
    chains.retain(|chain| chain.table == name);
    let is_wanted = |listed: &list::NetlinkChain| {
        let planned = expected.chains.iter().find(|chain| chain.name == listed.name);
        planned.map_or(listed.base.is_none(), |planned| same_base(planned, listed))
    };
    let rules: usize = expected.chains.iter().map(|chain| chain.rules.len()).sum();
    let (messages, all_rules) = list::rules(socket, Some(name), rules + MORE)?;
    let (mut sets, all_sets) = list::empty_sets(socket, Some(name), expected.sets.len() + rules + MORE)?;
    if !(chains.iter().all(is_wanted) && all_rules && all_sets) {
        return Ok(None);
    }
    // The elements of anonymous sets are parts of rules.
    let anonymous: BTreeSet<String> =
        sets.iter().filter(|set| is_anonymous(set)).map(|set| set.name.clone()).collect();
    // What is in a set that is not wanted any more does not matter.
    let planned: BTreeSet<&str> =
        table.sets.iter().filter(|set| !set.is_kept()).map(|set| &*set.name).collect();
    let is_read = |set: &str| {
        anonymous.contains(set) || (thoroughness == Thoroughness::Everything && planned.contains(set))
    };
    let fixed: usize = expected.sets.iter().map(|set| set.elements.len()).sum();
    if !list::fill(socket, name, &mut sets, fixed + MORE_ELEMENTS, is_read)? {
        return Ok(None);
    }
    let mut by_chain: HashMap<String, Vec<NetlinkRule>> = HashMap::new();
    for rule in list::read_rules(messages.iter(), &sets) {
        by_chain.entry(rule.chain.clone()).or_default().push(rule);
    }
    let chains = chains.into_iter().map(|chain| chain.name).collect();
    Ok(Some(Held { chains, rules: by_chain, sets }))
}

/// Whether parts of the table are enough: a base chain is there, or the table is made anew.
fn compare_chains(
    expected: &ExpectedTable<'_>,
    table: &Table,
    held: &Held,
    changes: &mut TableDelta,
) -> bool {
    let there: BTreeSet<&str> = held.chains.iter().map(String::as_str).collect();
    for planned in &expected.chains {
        let rules = held.rules.get(&*planned.name).map(Vec::as_slice).unwrap_or_default();
        let is_same = rules.len() == planned.rules.len()
            && rules.iter().zip(&planned.rules).all(|(held, planned)| held.lowered == planned.lowered);
        let is_there = there.contains(&*planned.name);
        if is_there && is_same {
            continue;
        }
        if planned.base.is_some() && !is_there {
            return false;
        }
        let of_plan = |chain: &&Chain| chain.name == planned.name;
        changes.chains.extend(table.chains.iter().find(of_plan).cloned());
    }
    let planned: BTreeSet<&str> = expected.chains.iter().map(|chain| &*chain.name).collect();
    let gone = held.chains.iter().filter(|chain| !planned.contains(chain.as_str()));
    changes.gone_chains.extend(gone.cloned());
    true
}

/// Whether parts of the table are enough: no set is of another type or content than its name says.
fn compare_sets(
    expected: &ExpectedTable<'_>,
    table: &Table,
    held: &Held,
    [gains, changes, losses]: [&mut TableDelta; 3],
    contents: &dyn KeptMembers,
) -> bool {
    let named: HashMap<&str, &ListedSet> = held.sets.iter().map(|set| (set.name.as_str(), set)).collect();
    let same = |one: &[WireElement], other: &[WireElement]| {
        one.iter().map(WireElement::compared).eq(other.iter().map(WireElement::compared))
    };
    for (planned, set) in expected.sets.iter().zip(&table.sets) {
        match named.get(&*planned.name) {
            Some(listed) if listed.kind != planned.kind => return false,
            // Nobody changes them without the rules, which are compared; they are read where everything is.
            Some(listed) if planned.kind.is_fixed() && !listed.elements.is_empty() => {
                if !same(&listed.elements, &planned.elements) {
                    return false;
                }
            }
            Some(_) => {}
            None if planned.kind.is_fixed() || set.is_map() => changes.sets.push(set.clone()),
            None => gains.sets.push(set.clone()),
        }
        if !named.contains_key(&*planned.name) && set.is_kept() {
            let delta = if set.is_map() { &mut *changes } else { &mut *gains };
            contents.of(&set.name).for_each(|member| delta.of(&*set.name).add(member));
        }
    }
    let planned: BTreeSet<&str> = expected.sets.iter().map(|set| &*set.name).collect();
    let gone = held.sets.iter().filter(|set| !is_anonymous(set) && !planned.contains(set.name.as_str()));
    losses.gone_sets.extend(gone.map(|set| set.name.clone()));
    true
}

fn compare_members(
    set: &Set,
    held: &[Element],
    wanted: &[Element],
    [gains, changes, losses]: [&mut TableDelta; 3],
) {
    let delta = SetDelta::between(held, wanted);
    if delta.is_empty() {
        return;
    }
    if set.is_map() {
        let there: BTreeSet<_> = held.iter().map(|element| element.key).collect();
        let replaced = delta.added().map(|element| element.key).filter(|key| there.contains(key));
        changes.replaced.insert(set.name.to_string(), replaced.collect());
        changes.members.insert(set.name.to_string(), delta);
        return;
    }
    delta.added().for_each(|element| gains.of(&*set.name).add(element));
    delta.removed().for_each(|key| losses.of(&*set.name).remove(key));
}

fn is_anonymous(set: &ListedSet) -> bool {
    set.kind.flags & set_uapi::ANONYMOUS != 0
}
