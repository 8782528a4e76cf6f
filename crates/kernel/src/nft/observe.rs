//! What the kernel has, and how that differs from a plan.

use std::borrow::Cow;
use std::collections::HashMap;

use ruleset::{Base, Chain, Ruleset, Set, Table, TableKind};

use super::expr::{Expr, Value};
use super::lower::{self, Lowered};
use super::uapi::{chain, element, expr, family, header, message, rule, set, table};
use crate::Difference;
use crate::netlink::wire::{Attributes, Message, Writer};
use crate::netlink::{Error, Socket, flags};

/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// A table as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedTable {
    pub(super) family: u8,
    pub(super) name: String,
    /// Its chains are not attached.
    dormant: bool,
}

/// A chain as listed.
#[derive(Debug)]
struct ListedChain {
    table: String,
    name: String,
    /// Type, hook number, priority, policy.
    base: Option<(String, u32, i32, u32)>,
}

/// A rule as listed.
#[derive(Debug)]
struct ListedRule {
    chain: String,
    lowered: Lowered<'static>,
    comment: Option<String>,
}

/// A set as listed.
#[derive(Debug)]
struct ListedSet {
    name: String,
    flags: u32,
    key_type: u32,
    key_len: u32,
    elements: Vec<(Value, bool)>,
}

/// The tables of a family (0: all families).
pub(super) fn tables(socket: &mut Socket, family: u8) -> Result<Vec<ListedTable>, Error> {
    let mut found = Vec::new();
    dump(
        socket,
        family,
        message::GET_TABLE,
        |_| {},
        |part| match part {
            None => found.clear(),
            Some((family, attributes)) => found.push(ListedTable {
                family,
                name: text(attributes, table::NAME),
                dormant: number(attributes, table::FLAGS) & table::DORMANT != 0,
            }),
        },
    )?;
    Ok(found)
}

/// The kinds of those tables that the owner has.
pub(super) fn owned(ruleset: &Ruleset, listed: &[ListedTable]) -> Vec<TableKind> {
    [TableKind::Raw, TableKind::Mangle, TableKind::Nat, TableKind::Filter]
        .into_iter()
        .filter(|kind| listed.iter().any(|t| t.name == ruleset.nft_table(*kind)))
        .collect()
}

/// Every difference between the owner's tables and the ruleset.
pub(super) fn differences(
    socket: &mut Socket,
    ruleset: &Ruleset,
    listed: &[ListedTable],
) -> Result<Vec<Difference>, Error> {
    let mut out = Vec::new();
    for kind in owned(ruleset, listed) {
        if ruleset.table(kind).is_none() {
            out.push(Difference::UnexpectedTable { table: ruleset.nft_table(kind) });
        }
    }
    let mut chains = None;
    for planned in &ruleset.tables {
        let name = ruleset.nft_table(planned.kind);
        match listed.iter().find(|t| t.name == name) {
            None => out.push(Difference::MissingTable { table: name }),
            // Everything may be in it, and none of it works.
            Some(ListedTable { dormant: true, .. }) => out.push(Difference::MissingTable { table: name }),
            Some(_) => {
                let chains = match &mut chains {
                    Some(chains) => chains,
                    none => none.insert(list_chains(socket)?),
                };
                table_differences(socket, &name, planned, chains, &mut out)?;
            }
        }
    }
    Ok(out)
}

fn table_differences(
    socket: &mut Socket,
    name: &str,
    planned: &Table,
    chains: &[ListedChain],
    out: &mut Vec<Difference>,
) -> Result<(), Error> {
    let sets = list_sets(socket, name)?;
    let rules = list_rules(socket, name, &sets)?;
    set_differences(name, planned, &sets, out);
    for chain in ruleset::nft::chains(planned) {
        match chains.iter().find(|c| c.table == name && c.name == chain.name) {
            Some(listed) if same_base(chain, listed) => {}
            _ => out.push(Difference::MissingChain { table: name.to_owned(), chain: chain.name.to_string() }),
        }
        let listed: Vec<&ListedRule> = rules.iter().filter(|r| r.chain == chain.name).collect();
        rule_differences(name, chain, &listed, out);
    }
    for listed in chains.iter().filter(|c| c.table == name) {
        if !ruleset::nft::chains(planned).any(|c| c.name == listed.name) {
            let chain = listed.name.clone();
            out.push(Difference::UnexpectedChain { table: name.to_owned(), chain });
        }
    }
    Ok(())
}

fn same_base(planned: &Chain, listed: &ListedChain) -> bool {
    match (&planned.base, &listed.base) {
        (None, None) => true,
        (Some(Base { kind, hook, priority }), Some((listed_kind, listed_hook, listed_priority, policy))) => {
            lower::chain_type(*kind) == listed_kind
                && lower::hook_number(*hook) == *listed_hook
                && priority == listed_priority
                && *policy == chain::POLICY_ACCEPT
        }
        _ => false,
    }
}

fn set_differences(name: &str, planned: &Table, listed: &[ListedSet], out: &mut Vec<Difference>) {
    let mut differs = |set: &str, how| {
        out.push(Difference::DifferentSet { table: name.to_owned(), set: set.to_owned(), how });
    };
    for set in &planned.sets {
        let how = match listed.iter().find(|l| l.name == set.name) {
            None => "is missing",
            Some(l) if (l.flags, l.key_type, l.key_len) != type_of(set) => "is of another type",
            Some(l) if l.elements != sorted_elements(set) => "has other elements",
            Some(_) => continue,
        };
        differs(&set.name, how);
    }
    for l in listed.iter().filter(|l| l.flags & set::ANONYMOUS == 0) {
        if !planned.sets.iter().any(|set| set.name == l.name) {
            differs(&l.name, "is not planned");
        }
    }
}

fn type_of(set: &Set) -> (u32, u32, u32) {
    let (key_type, key_len) = lower::key_type(set);
    (set::INTERVAL, key_type, key_len)
}

fn sorted_elements(set: &Set) -> Vec<(Value, bool)> {
    let mut elements = lower::elements(set).iter().map(|e| (e.key, e.end)).collect();
    sort(&mut elements);
    elements
}

fn sort(elements: &mut Vec<(Value, bool)>) {
    elements.sort_by(|(a, a_end), (b, b_end)| (a.as_slice(), a_end).cmp(&(b.as_slice(), b_end)));
    // "Nothing up to the first address" is an aid of nft for itself: the kernel may or may not keep it.
    if elements.first().is_some_and(|(key, end)| *end && key.as_slice().iter().all(|b| *b == 0)) {
        elements.remove(0);
    }
}

/// Planned rules that are not in the longest common subsequence are missing, listed ones that are not are unexpected.
fn rule_differences(table: &str, chain: &Chain, listed: &[&ListedRule], out: &mut Vec<Difference>) {
    let planned: Vec<Lowered<'_>> = chain.rules.iter().map(lower::lower).collect();
    if planned.len() == listed.len() && planned.iter().zip(listed).all(|(p, l)| *p == l.lowered) {
        return;
    }
    // longest[i][j]: of planned[i..] and listed[j..].
    let mut longest = vec![vec![0usize; listed.len() + 1]; planned.len() + 1];
    for i in (0..planned.len()).rev() {
        for j in (0..listed.len()).rev() {
            longest[i][j] = if planned[i] == listed[j].lowered {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (table, name) = (|| table.to_owned(), || chain.name.to_string());
    let (mut i, mut j) = (0, 0);
    while i < planned.len() || j < listed.len() {
        if i < planned.len() && j < listed.len() && planned[i] == listed[j].lowered {
            (i, j) = (i + 1, j + 1);
        } else if j == listed.len() || (i < planned.len() && longest[i + 1][j] >= longest[i][j + 1]) {
            let (rule, why) = (ruleset::nft::render_rule(&chain.rules[i]), chain.rules[i].why.to_string());
            out.push(Difference::MissingRule { table: table(), chain: name(), rule, why });
            i += 1;
        } else {
            // A rule that is only at the wrong place is shown in words.
            let words = planned.iter().position(|p| *p == listed[j].lowered);
            let rule =
                words.map_or_else(|| listed[j].to_string(), |at| ruleset::nft::render_rule(&chain.rules[at]));
            out.push(Difference::UnexpectedRule { table: table(), chain: name(), rule });
            j += 1;
        }
    }
}

// === listing ===

/// `filter` writes attributes that narrow the list; `take` gets the family and the attributes of each object.
fn dump(
    socket: &mut Socket,
    family: u8,
    kind: u16,
    filter: impl FnOnce(&mut Writer),
    mut take: impl FnMut(Option<(u8, Attributes<'_>)>),
) -> Result<(), Error> {
    let mut request = Writer::default();
    request.message(kind, flags::REQUEST | flags::DUMP, 1, &header(family), filter);
    socket.dump(request.bytes(), |part: Option<&Message<'_>>| {
        take(part.map(|m| (m.payload.first().copied().unwrap_or_default(), m.attributes(HEADER))));
    })
}

fn text(attributes: Attributes<'_>, kind: u16) -> String {
    attributes.find(kind).map(|a| a.text().into_owned()).unwrap_or_default()
}

fn number(attributes: Attributes<'_>, kind: u16) -> u32 {
    attributes.find(kind).and_then(|a| a.be32()).unwrap_or_default()
}

fn list_chains(socket: &mut Socket) -> Result<Vec<ListedChain>, Error> {
    let mut found = Vec::new();
    dump(
        socket,
        family::INET,
        message::GET_CHAIN,
        |_| {},
        |part| match part {
            None => found.clear(),
            Some((_, attributes)) => found.push(ListedChain {
                table: text(attributes, chain::TABLE),
                name: text(attributes, chain::NAME),
                base: attributes.find(chain::HOOK).map(|hook| {
                    (
                        text(attributes, chain::TYPE),
                        number(hook.nested(), chain::HOOK_NUMBER),
                        number(hook.nested(), chain::HOOK_PRIORITY).cast_signed(),
                        number(attributes, chain::POLICY),
                    )
                }),
            }),
        },
    )?;
    Ok(found)
}

fn list_sets(socket: &mut Socket, table: &str) -> Result<Vec<ListedSet>, Error> {
    let mut found = Vec::new();
    dump(
        socket,
        family::INET,
        message::GET_SET,
        |w| w.text(set::TABLE, table),
        |part| match part {
            None => found.clear(),
            Some((_, attributes)) => found.push(ListedSet {
                name: text(attributes, set::NAME),
                flags: number(attributes, set::FLAGS),
                key_type: number(attributes, set::KEY_TYPE),
                key_len: number(attributes, set::KEY_LEN),
                elements: Vec::new(),
            }),
        },
    )?;
    for set in &mut found {
        set.elements = list_elements(socket, table, &set.name)?;
    }
    Ok(found)
}

fn list_elements(socket: &mut Socket, table: &str, set: &str) -> Result<Vec<(Value, bool)>, Error> {
    let mut found = Vec::new();
    let filter = |w: &mut Writer| {
        w.text(element::LIST_TABLE, table);
        w.text(element::LIST_SET, set);
    };
    dump(socket, family::INET, message::GET_ELEMENTS, filter, |part| match part {
        None => found.clear(),
        Some((_, attributes)) => {
            for item in attributes.find(element::LIST_ELEMENTS).iter().flat_map(|a| a.nested()) {
                let key = item.nested().find(element::KEY).and_then(|k| k.nested().find(expr::DATA_VALUE));
                let end = number(item.nested(), element::FLAGS) & element::INTERVAL_END != 0;
                // A key that is longer than any of ours must not vanish: it makes the set differ.
                found.push((key.and_then(|k| Value::new(k.data)).unwrap_or([0; 1].into()), end));
            }
        }
    })?;
    sort(&mut found);
    Ok(found)
}

fn list_rules(socket: &mut Socket, table: &str, sets: &[ListedSet]) -> Result<Vec<ListedRule>, Error> {
    let anonymous: HashMap<&str, Option<Vec<u16>>> = sets
        .iter()
        .filter(|s| s.flags & set::ANONYMOUS != 0)
        .map(|s| (s.name.as_str(), port_set(s)))
        .collect();
    let mut found = Vec::new();
    dump(
        socket,
        family::INET,
        message::GET_RULE,
        |w| w.text(rule::TABLE, table),
        |part| match part {
            None => found.clear(),
            Some((_, attributes)) => {
                let mut exprs: Vec<Expr<'static>> = attributes
                    .find(rule::EXPRESSIONS)
                    .iter()
                    .flat_map(|a| a.nested())
                    .map(|item| Expr::decode(&item))
                    .collect();
                let ports = resolve(&mut exprs, &anonymous);
                if attributes.find(rule::COMPAT).is_some() {
                    exprs.push(Expr::Other { name: "compat".to_owned() });
                }
                found.push(ListedRule {
                    chain: text(attributes, rule::CHAIN),
                    lowered: Lowered { exprs, ports },
                    comment: attributes.find(rule::USERDATA).and_then(|a| comment(a.data)),
                });
            }
        },
    )?;
    Ok(found)
}

/// The ports of an anonymous set; `None` when it is not a plain set of ports.
fn port_set(listed: &ListedSet) -> Option<Vec<u16>> {
    let plain = listed.flags == set::ANONYMOUS | set::CONSTANT && listed.key_type == set::TYPE_PORT;
    listed
        .elements
        .iter()
        .map(|(key, end)| key.as_slice().try_into().ok().filter(|_| plain && !end).map(u16::from_be_bytes))
        .collect()
}

/// Gives lookups in anonymous sets the name that lowering uses, and returns the ports of the sets.
fn resolve(exprs: &mut [Expr<'static>], anonymous: &HashMap<&str, Option<Vec<u16>>>) -> Vec<Vec<u16>> {
    let mut all = Vec::new();
    for expr in exprs {
        let Expr::Lookup { set, .. } = expr else { continue };
        // An anonymous set unlike ours keeps its own name, which no planned rule has.
        if let Some(Some(ports)) = anonymous.get(set.as_ref()) {
            all.push(ports.clone());
            *set = Cow::Borrowed(super::uapi::set::ANONYMOUS_NAME);
        }
    }
    all
}

fn comment(userdata: &[u8]) -> Option<String> {
    let (&[kind, len], rest) = userdata.split_first_chunk::<2>()?;
    let text = rest.get(..usize::from(len).checked_sub(1)?)?;
    (kind == rule::USERDATA_COMMENT).then(|| String::from_utf8_lossy(text).into_owned())
}

impl std::fmt::Display for ListedRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, expr) in self.lowered.exprs.iter().enumerate() {
            write!(f, "{}{expr}", if i == 0 { "" } else { " " })?;
        }
        for ports in &self.lowered.ports {
            write!(f, " {ports:?}")?;
        }
        self.comment.iter().try_for_each(|comment| write!(f, " comment \"{comment}\""))
    }
}
