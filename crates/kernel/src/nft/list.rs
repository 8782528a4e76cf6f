//! What the kernel has: tables, chains, sets and rules, as it lists them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::ControlFlow;

use ruleset::listed::ListedAct;

use super::expr::Expr;
use super::lower::Lowered;
use super::read::{self, SetRanges};
use super::set::{SetType, WireElement};
use super::uapi::{chain, element, family, header, message, object, rule, set, table};
use crate::netlink::wire::{Attributes, Message, MessageWriter};
use crate::netlink::{Error, NetlinkSocket, flags};

/// Length of `struct nfgenmsg`.
pub(super) const HEADER: usize = 4;

/// How many tables, and chains of all tables together, are read. What a namespace has in use is some hundred.
pub(super) const MOST: usize = 16 << 10;

/// A table as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NetlinkTable {
    pub(super) family: u8,
    pub(super) name: String,
    /// The kernel's number of it, greater for tables that were made later.
    pub(super) handle: u64,
    /// Its chains are not attached.
    pub(super) dormant: bool,
    /// The netlink port of the program that keeps it for itself; 0 if none does.
    pub(super) holder: u32,
}

/// A chain as listed.
#[derive(Debug)]
pub(super) struct NetlinkChain {
    pub(super) table: String,
    pub(super) name: String,
    /// Type, hook number, priority, policy.
    pub(super) base: Option<(String, u32, i32, u32)>,
}

/// A chain that is attached to the packet path, of any family.
#[derive(Debug)]
pub(super) struct AttachedChain {
    pub(super) family: u8,
    pub(super) table: String,
    pub(super) name: String,
    /// The kernel's number of it in its table.
    pub(super) handle: u64,
    /// Type, hook number, priority, policy.
    pub(super) base: (String, u32, i32, u32),
}

/// A rule as listed.
#[derive(Debug)]
pub(super) struct NetlinkRule {
    pub(super) chain: String,
    pub(super) lowered: Lowered<'static>,
    pub(super) comment: Option<String>,
}

/// A rule as it came: what it means needs the sets of its table.
#[derive(Debug)]
pub(super) struct RuleMessage {
    pub(super) table: String,
    attributes: Vec<u8>,
}

/// A set as listed.
#[derive(Debug)]
pub(super) struct ListedSet {
    pub(super) table: String,
    pub(super) name: String,
    pub(super) kind: SetType,
    pub(super) elements: Vec<WireElement>,
}

/// The tables of a family (0: all families).
pub(super) fn tables(socket: &mut NetlinkSocket, family: u8) -> Result<Vec<NetlinkTable>, Error> {
    let mut found = Vec::new();
    let whole = dump(
        socket,
        family,
        message::GET_TABLE,
        |_| {},
        |part| match part {
            None => cleared(&mut found),
            Some((family, attributes)) => {
                let listed = NetlinkTable {
                    family,
                    name: text(attributes, table::NAME),
                    handle: handle(attributes, table::HANDLE).unwrap_or_default(),
                    dormant: number(attributes, table::FLAGS) & table::DORMANT != 0,
                    holder: number(attributes, table::OWNER),
                };
                push(&mut found, listed, MOST)
            }
        },
    )?;
    if whole { Ok(found) } else { Err(Error::TooMany { most: MOST, what: "nf_tables tables" }) }
}

/// `filter` writes attributes that narrow the list; `take` gets the family and the attributes of each object until it has enough. Whether it
/// got everything.
pub(super) fn dump(
    socket: &mut NetlinkSocket,
    family: u8,
    kind: u16,
    filter: impl FnOnce(&mut MessageWriter),
    mut take: impl FnMut(Option<(u8, Attributes<'_>)>) -> ControlFlow<()>,
) -> Result<bool, Error> {
    let mut request = MessageWriter::default();
    request.message(kind, flags::REQUEST | flags::DUMP, 1, &header(family), filter);
    socket.dump_until(request.bytes(), |part: Option<&Message<'_>>| {
        take(part.map(|m| (m.payload.first().copied().unwrap_or_default(), m.attributes(HEADER))))
    })
}

/// Puts one more into a list that is to have `most`, and has enough when there are more.
fn push<T>(found: &mut Vec<T>, one: T, most: usize) -> ControlFlow<()> {
    if found.len() >= most {
        return ControlFlow::Break(());
    }
    found.push(one);
    ControlFlow::Continue(())
}

fn cleared<T>(found: &mut Vec<T>) -> ControlFlow<()> {
    found.clear();
    ControlFlow::Continue(())
}

pub(super) fn text(attributes: Attributes<'_>, kind: u16) -> String {
    attributes.find(kind).map(|a| a.text().into_owned()).unwrap_or_default()
}

pub(super) fn number(attributes: Attributes<'_>, kind: u16) -> u32 {
    attributes.find(kind).and_then(|a| a.be32()).unwrap_or_default()
}

/// A number of 64 bits.
pub(super) fn handle(attributes: Attributes<'_>, kind: u16) -> Option<u64> {
    attributes.find(kind)?.data.try_into().ok().map(u64::from_be_bytes)
}

pub(super) fn chains(socket: &mut NetlinkSocket) -> Result<Vec<NetlinkChain>, Error> {
    let mut found = Vec::new();
    let whole = dump(
        socket,
        family::INET,
        message::GET_CHAIN,
        |_| {},
        |part| match part {
            None => cleared(&mut found),
            Some((_, attributes)) => {
                let (table, name) = (text(attributes, chain::TABLE), text(attributes, chain::NAME));
                push(&mut found, NetlinkChain { table, name, base: base(attributes) }, MOST)
            }
        },
    )?;
    if whole { Ok(found) } else { Err(Error::TooMany { most: MOST, what: "nf_tables chains" }) }
}

/// The base chains of all families.
pub(super) fn attached(socket: &mut NetlinkSocket) -> Result<Vec<AttachedChain>, Error> {
    let mut found = Vec::new();
    let whole = dump(
        socket,
        0,
        message::GET_CHAIN,
        |_| {},
        |part| match part {
            None => cleared(&mut found),
            Some((family, attributes)) => {
                let Some(base) = base(attributes) else { return ControlFlow::Continue(()) };
                let (table, name) = (text(attributes, chain::TABLE), text(attributes, chain::NAME));
                let handle = handle(attributes, chain::HANDLE).unwrap_or_default();
                push(&mut found, AttachedChain { family, table, name, handle, base }, MOST)
            }
        },
    )?;
    if whole { Ok(found) } else { Err(Error::TooMany { most: MOST, what: "nf_tables base chains" }) }
}

/// The names of a table's counters.
pub(super) fn counters(socket: &mut NetlinkSocket, table: &str) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let filter = |w: &mut MessageWriter| {
        w.text(object::TABLE, table);
        w.be32(object::TYPE, object::COUNTER);
    };
    let whole = dump(socket, family::INET, message::GET_OBJECT, filter, |part| match part {
        None => cleared(&mut found),
        Some((_, attributes)) => push(&mut found, text(attributes, object::NAME), MOST),
    })?;
    if whole { Ok(found) } else { Err(Error::TooMany { most: MOST, what: "nf_tables counters" }) }
}

/// Type, hook number, priority and policy of a chain that is attached.
pub(super) fn base(attributes: Attributes<'_>) -> Option<(String, u32, i32, u32)> {
    attributes.find(chain::HOOK).map(|hook| {
        (
            text(attributes, chain::TYPE),
            number(hook.nested(), chain::HOOK_NUMBER),
            number(hook.nested(), chain::HOOK_PRIORITY).cast_signed(),
            number(attributes, chain::POLICY),
        )
    })
}

/// The sets of a table, at most so many, with the elements of those that `with_elements` holds for, at most so many of all of them; and whether
/// that is everything.
pub(super) fn sets(
    socket: &mut NetlinkSocket,
    table: &str,
    (most, most_elements): (usize, usize),
    with_elements: impl Fn(&str) -> bool,
) -> Result<(Vec<ListedSet>, bool), Error> {
    let (mut found, whole) = empty_sets(socket, Some(table), most)?;
    let filled = fill(socket, table, &mut found, most_elements, with_elements)?;
    Ok((found, whole && filled))
}

/// The sets of a table, or of all tables, without elements.
pub(super) fn empty_sets(
    socket: &mut NetlinkSocket,
    table: Option<&str>,
    most: usize,
) -> Result<(Vec<ListedSet>, bool), Error> {
    let mut found = Vec::new();
    let of_table = |w: &mut MessageWriter| table.iter().for_each(|table| w.text(set::TABLE, table));
    let whole = dump(socket, family::INET, message::GET_SET, of_table, |part| match part {
        None => cleared(&mut found),
        Some((_, attributes)) => {
            let listed = ListedSet {
                table: text(attributes, set::TABLE),
                name: text(attributes, set::NAME),
                kind: SetType::listed(attributes),
                elements: Vec::new(),
            };
            push(&mut found, listed, most)
        }
    })?;
    Ok((found, whole))
}

/// Reads the elements of those sets of a table that `with_elements` holds for, at most so many of all of them; and whether that is everything.
pub(super) fn fill(
    socket: &mut NetlinkSocket,
    table: &str,
    sets: &mut [ListedSet],
    mut most: usize,
    with_elements: impl Fn(&str) -> bool,
) -> Result<bool, Error> {
    for set in sets.iter_mut().filter(|set| with_elements(&set.name)) {
        let all;
        (set.elements, all) = elements(socket, table, &set.name, most)?;
        most -= set.elements.len();
        if !all {
            return Ok(false);
        }
        super::set::sort(&mut set.elements);
    }
    Ok(true)
}

fn elements(
    socket: &mut NetlinkSocket,
    table: &str,
    set: &str,
    most: usize,
) -> Result<(Vec<WireElement>, bool), Error> {
    let mut found = Vec::new();
    let filter = |w: &mut MessageWriter| {
        w.text(element::LIST_TABLE, table);
        w.text(element::LIST_SET, set);
    };
    let whole = dump(socket, family::INET, message::GET_ELEMENTS, filter, |part| match part {
        None => cleared(&mut found),
        Some((_, attributes)) => {
            let mut items = attributes.find(element::LIST_ELEMENTS).into_iter().flat_map(|a| a.nested());
            items.try_for_each(|item| push(&mut found, WireElement::read(&item), most))
        }
    })?;
    Ok((found, whole))
}

/// The acts of the rules in a chain of any family, until `take` has enough.
pub(super) fn acts_in(
    socket: &mut NetlinkSocket,
    of: &AttachedChain,
    mut take: impl FnMut(Vec<ListedAct>) -> ControlFlow<()>,
) -> Result<(), Error> {
    let in_chain = |w: &mut MessageWriter| {
        w.text(rule::TABLE, &of.table);
        w.text(rule::CHAIN, &of.name);
    };
    dump(socket, of.family, message::GET_RULE, in_chain, |part| {
        let Some((_, attributes)) = part else { return ControlFlow::Continue(()) };
        let parts = attributes.find(rule::EXPRESSIONS).map(|parts| parts.nested());
        take(parts.map_or_else(Vec::new, |parts| read::rule(parts, &SetRanges::new()).acts))
    })?;
    Ok(())
}

/// The rules of a table, or of all tables, the first `most` of them; and whether that is everything.
pub(super) fn rules(
    socket: &mut NetlinkSocket,
    table: Option<&str>,
    most: usize,
) -> Result<(Vec<RuleMessage>, bool), Error> {
    let mut found = Vec::new();
    let of_table = |w: &mut MessageWriter| table.iter().for_each(|table| w.text(rule::TABLE, table));
    let whole = dump(socket, family::INET, message::GET_RULE, of_table, |part| match part {
        None => cleared(&mut found),
        Some((_, attributes)) => {
            let listed =
                RuleMessage { table: text(attributes, rule::TABLE), attributes: attributes.bytes().to_vec() };
            push(&mut found, listed, most)
        }
    })?;
    Ok((found, whole))
}

/// What rules are, with the help of the sets of their table.
pub(super) fn read_rules<'a>(
    messages: impl Iterator<Item = &'a RuleMessage>,
    sets: &[ListedSet],
) -> Vec<NetlinkRule> {
    let anonymous: HashMap<&str, Option<Vec<u16>>> = sets
        .iter()
        .filter(|s| s.kind.flags & set::ANONYMOUS != 0)
        .map(|s| (s.name.as_str(), port_set(s)))
        .collect();
    messages.map(|message| listed_rule(Attributes::new(&message.attributes), &anonymous)).collect()
}

fn listed_rule(attributes: Attributes<'_>, anonymous: &HashMap<&str, Option<Vec<u16>>>) -> NetlinkRule {
    let parts = attributes.find(rule::EXPRESSIONS);
    let mut exprs: Vec<Expr<'static>> =
        parts.iter().flat_map(|a| a.nested()).map(|item| Expr::decode(&item)).collect();
    let ports = resolve(&mut exprs, anonymous);
    if attributes.find(rule::COMPAT).is_some() {
        exprs.push(Expr::Raw { name: "compat".into(), operands: Vec::new() });
    }
    NetlinkRule {
        chain: text(attributes, rule::CHAIN),
        lowered: Lowered { exprs, ports },
        comment: attributes.find(rule::USERDATA).and_then(|a| comment(a.data)),
    }
}

/// The ports of an anonymous set; `None` when it is not a plain set of ports.
fn port_set(listed: &ListedSet) -> Option<Vec<u16>> {
    let plain = listed.kind.flags == set::ANONYMOUS | set::CONSTANT && listed.kind.key_type == set::TYPE_PORT;
    let port =
        |e: &WireElement| e.key[..].try_into().ok().filter(|_| plain && !e.end).map(u16::from_be_bytes);
    listed.elements.iter().map(port).collect()
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

pub(super) fn comment(userdata: &[u8]) -> Option<String> {
    let (&[kind, len], rest) = userdata.split_first_chunk::<2>()?;
    let text = rest.get(..usize::from(len).checked_sub(1)?)?;
    (kind == rule::USERDATA_COMMENT).then(|| String::from_utf8_lossy(text).into_owned())
}

impl std::fmt::Display for NetlinkRule {
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
