//! How what the kernel has differs from a plan.

use ruleset::{Ruleset, Set, Table, TableKind};

use super::batch::{KeptTable, TableOf};
use super::expected::{ExpectedChain, ExpectedRule, ExpectedSet, ExpectedTable};
use super::list::{self, ListedSet, NetlinkChain, NetlinkRule, NetlinkTable, RuleMessage};
use super::set::{SetType, WireElement};
use super::uapi::{chain, set};
use crate::Difference;
use crate::difference::{Edit, align};
use crate::netlink::{Error, NetlinkSocket};

/// How many rules, sets and elements more than expected are read of a table: that it differs is certain then, and each takes time.
pub(super) const MORE: usize = 1000;

/// How many elements of the verdict maps that stay are read, to find those that lead to chains which do not: more than the pods of any node.
const MOST_VERDICTS: usize = 1 << 17;

/// Those tables that the owner has.
pub(super) fn owned<'a>(ruleset: &'a Ruleset, listed: &[NetlinkTable]) -> Vec<TableOf<'a>> {
    [TableKind::Raw, TableKind::Mangle, TableKind::Nat, TableKind::Filter]
        .into_iter()
        .map(|kind| TableOf { owner: &ruleset.owner, kind })
        .filter(|of| listed.iter().any(|table| table.name == of.name()))
        .collect()
}

/// The owner's tables that must stay, because others fill sets in them, with what is in them now.
pub(super) fn kept<'a>(
    socket: &mut NetlinkSocket,
    ruleset: &'a Ruleset,
    listed: &[NetlinkTable],
) -> Result<Vec<KeptTable<'a>>, Error> {
    let mut all = Vec::new();
    for table in ruleset.tables.iter().filter(|table| table.sets.iter().any(Set::is_kept)) {
        let of = TableOf { owner: &ruleset.owner, kind: table.kind };
        // A dormant table cannot get chains while it wakes up; it is replaced, and who fills the sets must do so again.
        if listed.iter().any(|t| t.name == of.name() && !t.dormant) {
            all.push(kept_table(socket, table, of)?);
        }
    }
    Ok(all)
}

fn kept_table<'a>(
    socket: &mut NetlinkSocket,
    table: &Table,
    of: TableOf<'a>,
) -> Result<KeptTable<'a>, Error> {
    let name = of.name();
    let kept_maps = |set: &str| table.sets.iter().any(|s| s.name == set && s.is_kept() && s.is_map());
    let maps = table.sets.iter().any(|set| kept_maps(&set.name));
    let is_regular = |c: &NetlinkChain| {
        c.base.is_none() && table.chain(&c.name).is_some_and(|planned| planned.base.is_none())
    };
    let chains = list::chains(socket)?.into_iter().filter(|c| c.table == name);
    let (chains, other_chains): (Vec<_>, Vec<_>) = chains.partition(|c| maps && is_regular(c));
    let stays = |l: &ListedSet| {
        let mut planned = table.sets.iter().filter(|set| set.is_kept());
        planned.any(|set| set.name == l.name && SetType::of(set) == l.kind)
    };
    let (named, whole) = list::sets(socket, &name, (list::MOST, MOST_VERDICTS), kept_maps)?;
    if !whole {
        return Err(Error::TooMany { most: list::MOST, what: "nf_tables sets, or elements of verdict maps" });
    }
    let (sets, other_sets): (Vec<_>, Vec<_>) =
        named.into_iter().filter(|l| l.kind.flags & set::ANONYMOUS == 0).partition(stays);
    let names =
        |chains: Vec<NetlinkChain>| chains.into_iter().map(|chain| chain.name).collect::<Vec<String>>();
    let (chains, other_chains) = (names(chains), names(other_chains));
    let goes = |element: &WireElement| {
        let target = element.verdict.as_ref().and_then(|verdict| verdict.chain.as_ref());
        target.is_some_and(|target| other_chains.contains(target))
    };
    let elements = sets.iter().filter(|set| set.kind.is_map()).map(|map| {
        (map.name.clone(), map.elements.iter().filter(|element| goes(element)).cloned().collect())
    });
    let elements = elements.collect();
    let names = |sets: Vec<ListedSet>| sets.into_iter().map(|set| set.name).collect();
    let planned = table.counters();
    let mut other_counters = list::counters(socket, &name)?;
    other_counters.retain(|counter| !planned.contains(&counter.as_str()));
    let (sets, other_sets) = (names(sets), names(other_sets));
    Ok(KeptTable { table: of, chains, other_chains, sets, other_sets, other_counters, elements })
}

/// What the kernel has, asked for once.
pub(super) struct FoundTables<'a> {
    pub(super) tables: &'a [NetlinkTable],
    /// Whether all tables are of the owners, so that what is in them is asked for in one go.
    only_ours: bool,
    chains: Option<Vec<NetlinkChain>>,
    all: Option<InTables>,
}

/// Sets without elements, and rules.
struct InTables {
    sets: Vec<ListedSet>,
    rules: Vec<RuleMessage>,
}

impl<'a> FoundTables<'a> {
    /// `owners` are those whose tables will be asked for.
    pub(super) fn new(tables: &'a [NetlinkTable], owners: &[Ruleset]) -> Self {
        let is_ours =
            |table: &NetlinkTable| owners.iter().any(|owner| super::is_owners(&owner.owner, &table.name));
        Self { tables, only_ours: tables.iter().all(is_ours), chains: None, all: None }
    }

    fn chains(&mut self, socket: &mut NetlinkSocket) -> Result<&[NetlinkChain], Error> {
        if self.chains.is_none() {
            self.chains = Some(list::chains(socket)?);
        }
        Ok(self.chains.as_deref().unwrap_or_default())
    }

    /// What is in a table, at most so many sets and rules; and whether that is everything.
    fn in_table(
        &mut self,
        socket: &mut NetlinkSocket,
        table: &str,
        (sets, rules): (usize, usize),
    ) -> Result<(InTables, bool), Error> {
        if self.only_ours && self.all.is_none() {
            let (sets, all_sets) = list::empty_sets(socket, None, MORE)?;
            let (rules, all_rules) = list::rules(socket, None, MORE)?;
            // So much is not ours alone: each table for itself says which.
            self.only_ours = all_sets && all_rules;
            self.all = Some(InTables { sets, rules });
        }
        if let Some(InTables { sets, rules }) = self.all.as_mut().filter(|_| self.only_ours) {
            let sets = sets.extract_if(.., |set| set.table == table).collect();
            let rules = rules.extract_if(.., |rule| rule.table == table).collect();
            return Ok((InTables { sets, rules }, true));
        }
        let (sets, all_sets) = list::empty_sets(socket, Some(table), sets)?;
        let (rules, all_rules) = list::rules(socket, Some(table), rules)?;
        Ok((InTables { sets, rules }, all_sets && all_rules))
    }
}

/// Every difference between the owner's tables and what is expected of them.
pub(super) fn differences(
    socket: &mut NetlinkSocket,
    owner: &Ruleset,
    expected: &[&ExpectedTable<'_>],
    found: &mut FoundTables<'_>,
) -> Result<Vec<Difference>, Error> {
    let mut out = Vec::new();
    let listed = found.tables;
    for name in owned(owner, listed).iter().map(TableOf::name) {
        if expected.iter().all(|expected| expected.name != name) {
            out.push(Difference::UnexpectedTable { table: name });
        }
    }
    for expected in expected {
        match listed.iter().find(|t| t.name == expected.name) {
            None => out.push(Difference::MissingTable { table: expected.name.to_string() }),
            // Everything may be in it, and none of it works.
            Some(NetlinkTable { dormant: true, .. }) => {
                out.push(Difference::MissingTable { table: expected.name.to_string() });
            }
            Some(_) => table_differences(socket, expected, found, &mut out)?,
        }
    }
    Ok(out)
}

fn table_differences(
    socket: &mut NetlinkSocket,
    expected: &ExpectedTable<'_>,
    found: &mut FoundTables<'_>,
    out: &mut Vec<Difference>,
) -> Result<(), Error> {
    let name = expected.name.as_ref();
    let is_kept = |set: &str| expected.sets.iter().any(|s| !s.kind.is_fixed() && s.name == set);
    let planned = expected.chains.iter().flat_map(|chain| &chain.rules);
    let ports: Vec<usize> = planned.clone().flat_map(|rule| &rule.lowered.ports).map(Vec::len).collect();
    let elements =
        expected.sets.iter().map(|set| set.elements.len()).sum::<usize>() + ports.iter().sum::<usize>();
    let most = (expected.sets.len() + ports.len() + MORE, planned.count() + MORE);
    let (InTables { mut sets, rules }, all) = found.in_table(socket, name, most)?;
    let filled = list::fill(socket, name, &mut sets, elements + MORE, |set| !is_kept(set))?;
    let rules = list::read_rules(rules.iter(), &sets);
    if !(all && filled) {
        out.push(Difference::Crowded { table: name.to_owned() });
    }
    set_differences(name, &expected.sets, &sets, out);
    let chains = found.chains(socket)?;
    for chain in &expected.chains {
        match chains.iter().find(|c| c.table == name && c.name == chain.name) {
            Some(listed) if same_base(chain, listed) => {}
            _ => out.push(Difference::MissingChain { table: name.to_owned(), chain: chain.name.to_string() }),
        }
        let listed: Vec<&NetlinkRule> = rules.iter().filter(|r| r.chain == chain.name).collect();
        rule_differences(name, chain, &listed, out);
    }
    for listed in chains.iter().filter(|c| c.table == name) {
        if expected.chains.iter().all(|c| c.name != listed.name) {
            let chain = listed.name.clone();
            out.push(Difference::UnexpectedChain { table: name.to_owned(), chain });
        }
    }
    Ok(())
}

pub(super) fn same_base(expected: &ExpectedChain<'_>, listed: &NetlinkChain) -> bool {
    match (&expected.base, &listed.base) {
        (None, None) => true,
        (Some((kind, hook, priority)), Some((listed_kind, listed_hook, listed_priority, policy))) => {
            kind == listed_kind
                && hook == listed_hook
                && priority == listed_priority
                && *policy == chain::POLICY_ACCEPT
        }
        _ => false,
    }
}

fn set_differences(
    name: &str,
    expected: &[ExpectedSet<'_>],
    listed: &[ListedSet],
    out: &mut Vec<Difference>,
) {
    let mut differs = |set: &str, how| {
        out.push(Difference::DifferentSet { table: name.to_owned(), set: set.to_owned(), how });
    };
    let same = |l: &[WireElement], e: &[WireElement]| {
        l.iter().map(WireElement::compared).eq(e.iter().map(WireElement::compared))
    };
    for set in expected {
        let how = match listed.iter().find(|l| l.name == set.name) {
            None => "is missing",
            Some(l) if l.kind != set.kind => "is of another type",
            Some(l) if set.kind.is_fixed() && !same(&l.elements, &set.elements) => "has other elements",
            Some(_) => continue,
        };
        differs(&set.name, how);
    }
    for l in listed.iter().filter(|l| l.kind.flags & set::ANONYMOUS == 0) {
        if !expected.iter().any(|set| set.name == l.name) {
            differs(&l.name, "is not planned");
        }
    }
}

/// Expected rules that are not in the common subsequence are missing, listed ones that are not are unexpected.
fn rule_differences(
    table: &str,
    chain: &ExpectedChain<'_>,
    listed: &[&NetlinkRule],
    out: &mut Vec<Difference>,
) {
    let expected = &chain.rules;
    for edit in align(expected.len(), listed.len(), |e, l| expected[e].lowered == listed[l].lowered) {
        let (table, name) = (table.to_owned(), chain.name.to_string());
        out.push(match edit {
            Edit::Missing(number) => {
                let (rule, why) = (expected[number].text(), expected[number].why());
                Difference::MissingRule { table, chain: name, rule, why }
            }
            Edit::Unexpected(number) => {
                // A rule that is only at the wrong place is shown in words.
                let words = expected.iter().find(|rule| rule.lowered == listed[number].lowered);
                let rule = words.map_or_else(|| listed[number].to_string(), ExpectedRule::text);
                Difference::UnexpectedRule { table, chain: name, rule }
            }
        });
    }
}
