//! What tables should hold, in the kernel's form: of a ruleset, or of the bytes that once loaded one.
//!
//! The bytes are the record of what was applied. They are compared as they are, so that a program that would plan or write the same
//! rules in another way finds no difference where nobody has changed anything.

use std::borrow::Cow;
use std::collections::HashMap;

use ruleset::{Base, Rule, Ruleset, Set, Table, listed};

use super::expr::Expr;
use super::list::{self, HEADER};
use super::lower::{self, Lowered};
use super::read::{self, SetRanges};
use super::set::{self as sets, SetType, WireElement};
use super::uapi::{chain, element, expr, message, rule, set, table};
use crate::netlink::wire::{Attributes, Messages};

/// A table.
pub(super) struct ExpectedTable<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) sets: Vec<ExpectedSet<'a>>,
    pub(super) chains: Vec<ExpectedChain<'a>>,
}

/// A named set.
pub(super) struct ExpectedSet<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) kind: SetType,
    /// In the order of keys. Empty for a set whose members are kept by somebody else.
    pub(super) elements: Vec<WireElement>,
}

/// A chain.
pub(super) struct ExpectedChain<'a> {
    pub(super) name: Cow<'a, str>,
    /// Type, hook number, priority.
    pub(super) base: Option<(Cow<'a, str>, u32, i32)>,
    pub(super) rules: Vec<ExpectedRule<'a>>,
}

/// A rule.
pub(super) struct ExpectedRule<'a> {
    pub(super) lowered: Lowered<'a>,
    words: Words<'a>,
}

enum Words<'a> {
    Planned(&'a Rule),
    Recorded { rule: ruleset::listed::ListedRule, why: String },
}

impl ExpectedRule<'_> {
    /// For messages.
    pub(super) fn text(&self) -> String {
        match &self.words {
            Words::Planned(rule) => ruleset::nft::render_statements(rule),
            Words::Recorded { rule, .. } => rule.to_string(),
        }
    }

    /// The rule's reason.
    pub(super) fn why(&self) -> String {
        match &self.words {
            Words::Planned(rule) => rule.why.to_string(),
            Words::Recorded { why, .. } => why.clone(),
        }
    }
}

/// The same in the form that rules of others have.
pub(super) fn listed(tables: Vec<ExpectedTable<'static>>) -> Vec<listed::ListedTable> {
    tables.into_iter().map(listed_table).collect()
}

fn listed_table(table: ExpectedTable<'static>) -> listed::ListedTable {
    let chains = table.chains.into_iter().map(|chain| listed::ListedChain {
        name: chain.name.into_owned(),
        base: chain.base.and_then(|(kind, hook, priority)| read::base(&kind, hook, priority)),
        drops: false,
        rules: chain
            .rules
            .into_iter()
            .map(|rule| match rule.words {
                Words::Recorded { rule, why } => listed::ListedRule { why: Some(why.into()), ..rule },
                Words::Planned(_) => listed::ListedRule::default(),
            })
            .collect(),
    });
    let name = format!("inet {}", table.name);
    listed::ListedTable {
        ours: true,
        chains: chains.collect(),
        ..listed::ListedTable::nft(name, ruleset::Families::Both)
    }
}

/// What a ruleset asks for.
pub(super) fn planned(ruleset: &Ruleset) -> Vec<ExpectedTable<'_>> {
    let tables = ruleset.tables.iter().map(|table| planned_table(ruleset.nft_table(table.kind), table));
    tables.collect()
}

fn planned_table(name: String, table: &Table) -> ExpectedTable<'_> {
    let chains = ruleset::nft::chains(table).map(|chain| ExpectedChain {
        name: Cow::Borrowed(&chain.name),
        base: chain
            .base
            .map(|Base { kind, hook, priority }| (kind.name().into(), lower::hook_number(hook), priority)),
        rules: chain
            .rules
            .iter()
            .map(|rule| ExpectedRule { lowered: lower::lower(rule), words: Words::Planned(rule) })
            .collect(),
    });
    ExpectedTable {
        name: name.into(),
        sets: table.sets.iter().map(planned_set).collect(),
        chains: chains.collect(),
    }
}

fn planned_set(planned: &Set) -> ExpectedSet<'_> {
    let mut elements = sets::fixed(planned);
    sets::sort(&mut elements);
    ExpectedSet { name: Cow::Borrowed(&planned.name), kind: SetType::of(planned), elements }
}

/// What the bytes of a transaction load ([`super::encode`]). Absent: they have something that such bytes of a pod's rules never have.
pub(super) fn recorded(transaction: &[u8]) -> Option<Vec<ExpectedTable<'static>>> {
    let mut tables: Vec<ExpectedTable<'static>> = Vec::new();
    // Anonymous sets by their number in the transaction: ports.
    let mut ports: HashMap<u32, Vec<u16>> = HashMap::new();
    let mut length = 0;
    for part in Messages::new(transaction) {
        length += part.payload.len().next_multiple_of(4) + crate::netlink::HEADER;
        let a = part.attributes(HEADER);
        match part.kind {
            // A counter is named by the rules that count there.
            message::BATCH_BEGIN | message::BATCH_END | message::NEW_OBJECT => {}
            message::NEW_TABLE => tables.push(ExpectedTable {
                name: list::text(a, table::NAME).into(),
                sets: Vec::new(),
                chains: Vec::new(),
            }),
            message::NEW_SET if list::text(a, set::NAME) == set::ANONYMOUS_NAME => {
                ports.insert(list::number(a, set::ID), Vec::new());
            }
            message::NEW_SET => table_of(&mut tables, a, set::TABLE)?.sets.push(ExpectedSet {
                name: list::text(a, set::NAME).into(),
                kind: SetType::listed(a),
                elements: Vec::new(),
            }),
            message::NEW_ELEMENTS if list::text(a, element::LIST_SET) == set::ANONYMOUS_NAME => {
                ports.get_mut(&list::number(a, element::LIST_SET_ID))?.extend(elements(a)?);
            }
            message::NEW_ELEMENTS => {
                let name = list::text(a, element::LIST_SET);
                let sets = &mut table_of(&mut tables, a, element::LIST_TABLE)?.sets;
                let set = sets.iter_mut().find(|set| set.name == name)?;
                let items = a.find(element::LIST_ELEMENTS)?.nested();
                set.elements.extend(items.map(|item| WireElement::read(&item)));
                sets::sort(&mut set.elements);
            }
            message::NEW_CHAIN => table_of(&mut tables, a, chain::TABLE)?.chains.push(ExpectedChain {
                name: list::text(a, chain::NAME).into(),
                base: list::base(a).map(|(kind, hook, priority, _)| (kind.into(), hook, priority)),
                rules: Vec::new(),
            }),
            message::NEW_RULE => {
                let name = list::text(a, rule::CHAIN);
                let chains = &mut table_of(&mut tables, a, rule::TABLE)?.chains;
                chains.iter_mut().find(|chain| chain.name == name)?.rules.push(recorded_rule(a, &ports)?);
            }
            _ => return None,
        }
    }
    (length == transaction.len()).then_some(tables)
}

fn table_of<'t>(
    tables: &'t mut [ExpectedTable<'static>],
    a: Attributes<'_>,
    kind: u16,
) -> Option<&'t mut ExpectedTable<'static>> {
    let name = list::text(a, kind);
    tables.iter_mut().find(|table| table.name == name)
}

fn elements(a: Attributes<'_>) -> Option<Vec<u16>> {
    let items = a.find(element::LIST_ELEMENTS)?.nested();
    let port = |item: crate::netlink::wire::Attribute<'_>| {
        let key = item.nested().find(element::KEY)?.nested().find(expr::DATA_VALUE)?;
        key.data.try_into().ok().map(u16::from_be_bytes)
    };
    items.map(port).collect()
}

fn recorded_rule(a: Attributes<'_>, known: &HashMap<u32, Vec<u16>>) -> Option<ExpectedRule<'static>> {
    const LOOKUP_SET_ID: u16 = 4;
    let items = || a.find(rule::EXPRESSIONS).into_iter().flat_map(|a| a.nested());
    let exprs: Vec<Expr<'static>> = items().map(|item| Expr::decode(&item)).collect();
    let mut ports = Vec::new();
    let mut sets = SetRanges::new();
    for (item, _) in items().zip(&exprs).filter(|(_, e)| matches!(e, Expr::Lookup { .. })) {
        let operands = item.nested().find(expr::DATA)?.nested();
        // A named set has no number here, and its members no part in the rule.
        let Some(id) = operands.find(LOOKUP_SET_ID).and_then(|id| id.be32()) else { continue };
        let of = known.get(&id)?.clone();
        let keys = of.iter().map(|port| (port.to_be_bytes().to_vec(), port.to_be_bytes().to_vec()));
        // A rule of ours has one set at most for each port, and words need no more than one.
        sets.insert(set::ANONYMOUS_NAME.to_owned(), Some(keys.collect()));
        ports.push(of);
    }
    let words = read::rule(a.find(rule::EXPRESSIONS)?.nested(), &sets);
    let why = a.find(rule::USERDATA).and_then(|a| list::comment(a.data)).unwrap_or_default();
    Some(ExpectedRule { lowered: Lowered { exprs, ports }, words: Words::Recorded { rule: words, why } })
}
