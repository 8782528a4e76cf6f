//! What rules have counted.

use std::collections::HashMap;
use std::ops::ControlFlow;

use netns::Inside;
use ruleset::TableKind;
use ruleset::listed::ListedAct;

use super::list::{MOST, dump, handle, text};
use super::read::{self, SetRanges};
use super::uapi::{expr, family, message, object, rule};
use super::{Error, question};
use crate::netlink::wire::{Attribute, Attributes, MessageWriter};
use crate::netlink::{self, NetlinkSocket};

/// `NFTA_COUNTER_BYTES`.
const BYTES: u16 = 1;
/// `NFTA_COUNTER_PACKETS`.
const PACKETS: u16 = 2;
/// `NFTA_LOG_PREFIX`.
const PREFIX: u16 = 2;
/// Rules of all tables of a namespace that are looked at: a service proxy has some tens of thousands.
const MOST_RULES: usize = 1 << 20;
/// `NFTA_TARGET_NAME`.
const TARGET_NAME: u16 = 1;

/// Reads counters of an owner's table in one namespace, over a socket that stays there.
#[derive(Debug)]
pub struct LogCounts {
    table: String,
    socket: NetlinkSocket,
}

/// What a rule has counted that stands behind one that logs some of the same packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogCount {
    /// The chain of both, as the kernel has it.
    pub chain: String,
    /// What the entries of the log begin with.
    pub prefix: String,
    /// Since the rule is there.
    pub packets: u64,
}

/// Reads the named counters of an owner's table in one namespace, over a socket that stays there and keeps the namespace alive.
#[derive(Debug)]
pub struct NamedCounts {
    table: String,
    socket: NetlinkSocket,
}

/// What all rules have counted that name a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedCount {
    /// The name.
    pub name: String,
    /// Since the counter is there.
    pub packets: u64,
    /// Of those packets, from the header of the network on.
    pub bytes: u64,
}

/// The handles of all rules of nf_tables in a namespace, in order, by family and table, and chain.
pub type RuleHandles = HashMap<(String, String), Vec<u64>>;

/// Reads them.
///
/// # Errors
/// The kernel could not be asked.
pub fn rule_handles(_: &Inside) -> Result<RuleHandles, Error> {
    all_rules("list rules", |found: &mut RuleHandles, family, attributes| {
        let table = format!("{family} {}", text(attributes, rule::TABLE));
        let of_chain = found.entry((table, text(attributes, rule::CHAIN))).or_default();
        of_chain.push(handle(attributes, rule::HANDLE).unwrap_or_default());
    })
}

/// A rule that drops, and how many packets it has dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropCount {
    /// Family and name, as [`ruleset::listed::ListedTable::name`] has it.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// The rule's number in its table.
    pub handle: u64,
    /// Since it is there.
    pub packets: u64,
    /// The rule.
    pub text: String,
}

/// The rules of all tables in a namespace, whoever made them, that end packets and count them. A rule that answers is one of them; rules of
/// iptables-legacy are not.
///
/// # Errors
/// The kernel could not be asked.
pub fn drop_counts(_: &Inside) -> Result<Vec<DropCount>, Error> {
    all_rules("read counters of rules", |found: &mut Vec<DropCount>, family, attributes| {
        found.extend(dropping(family, attributes));
    })
}

/// What `take` finds in the rules of all tables; a family by its name.
fn all_rules<T: Default>(
    operation: &'static str,
    mut take: impl FnMut(&mut T, &str, Attributes<'_>),
) -> Result<T, Error> {
    let Some(mut socket) = super::open_if_supported()? else { return Ok(T::default()) };
    let (mut found, mut count) = (T::default(), 0);
    let part_of = |part: Option<(u8, Attributes<'_>)>| {
        let Some((family, attributes)) = part else {
            (found, count) = (T::default(), 0);
            return ControlFlow::Continue(());
        };
        if let Some((_, family)) = read::families(family) {
            take(&mut found, family, attributes);
        }
        count += 1;
        if count > MOST_RULES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    match dump(&mut socket, 0, message::GET_RULE, |_| {}, part_of) {
        Ok(true) => Ok(found),
        Ok(false) => {
            Err(question(operation, netlink::Error::TooMany { most: MOST_RULES, what: "nf_tables rules" }))
        }
        Err(error) => Err(question(operation, error)),
    }
}

fn dropping(family: &str, attributes: Attributes<'_>) -> Option<DropCount> {
    let packets = counted(attributes)?;
    let listed = read::rule(attributes.find(rule::EXPRESSIONS)?.nested(), &SetRanges::new());
    let answers =
        || data(attributes, "target").is_some_and(|target| text(target.nested(), TARGET_NAME) == "REJECT");
    (listed.acts.contains(&ListedAct::Drop) || answers()).then(|| DropCount {
        table: format!("{family} {}", text(attributes, rule::TABLE)),
        chain: text(attributes, rule::CHAIN),
        handle: handle(attributes, rule::HANDLE).unwrap_or_default(),
        packets,
        text: listed.to_string(),
    })
}

/// The packets that each of the first rules of a chain has counted, in order; at most so many rules. What does not count has 0.
pub(super) fn packets(
    socket: &mut NetlinkSocket,
    table: &str,
    chain: &str,
    most: usize,
) -> Result<Vec<u64>, netlink::Error> {
    let mut found = Vec::new();
    let of_chain = |w: &mut MessageWriter| {
        w.text(rule::TABLE, table);
        w.text(rule::CHAIN, chain);
    };
    dump(socket, family::INET, message::GET_RULE, of_chain, |part| {
        let Some((_, attributes)) = part else {
            found.clear();
            return ControlFlow::Continue(());
        };
        if found.len() == most {
            return ControlFlow::Break(());
        }
        found.push(counted(attributes).unwrap_or_default());
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// The packets that a rule has counted, if it counts.
fn counted(attributes: Attributes<'_>) -> Option<u64> {
    handle(data(attributes, "counter")?.nested(), PACKETS)
}

/// The prefix by which a rule logs, if it does.
fn logged(attributes: Attributes<'_>) -> Option<String> {
    Some(text(data(attributes, "log")?.nested(), PREFIX))
}

/// Of a rule's first expression of a kind.
fn data<'a>(attributes: Attributes<'a>, kind: &str) -> Option<Attribute<'a>> {
    let mut parts = attributes.find(rule::EXPRESSIONS)?.nested().map(|part| part.nested());
    parts.find(|part| part.find(expr::NAME).is_some_and(|name| name.text() == kind))?.find(expr::DATA)
}

// === impl LogCounts ===

impl LogCounts {
    /// Of the table that an owner has of a kind. It need not be there.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn open(_: &Inside, owner: &str, kind: TableKind) -> Result<Self, Error> {
        Ok(Self { table: kind.nft_table(owner), socket: super::open()? })
    }

    /// What the rules have counted that stand behind a log, of one chain only or of all.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn read(&mut self, chain: Option<&str>) -> Result<Vec<LogCount>, Error> {
        let mut found: Vec<LogCount> = Vec::new();
        // By chain what the rule before logs: a kernel need not list the rules of a chain together.
        let mut before: HashMap<String, String> = HashMap::new();
        let filter = |w: &mut MessageWriter| {
            w.text(rule::TABLE, &self.table);
            chain.iter().for_each(|chain| w.text(rule::CHAIN, chain));
        };
        let whole = dump(&mut self.socket, family::INET, message::GET_RULE, filter, |part| {
            let Some((_, attributes)) = part else {
                found.clear();
                before.clear();
                return ControlFlow::Continue(());
            };
            let of = text(attributes, rule::CHAIN);
            let packets = counted(attributes);
            if let (Some(prefix), Some(packets)) = (before.remove(&of), packets) {
                found.push(LogCount { chain: of.clone(), prefix, packets });
            }
            if let Some(prefix) = logged(attributes) {
                before.insert(of, prefix);
            }
            if found.len() > MOST { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        whole.map_err(|e| question("read counters of rules", e))?;
        // A kernel that does not filter lists other chains, too.
        found.retain(|count| chain.is_none_or(|chain| chain == count.chain));
        Ok(found)
    }
}

// === impl NamedCounts ===

impl NamedCounts {
    /// Of the table that an owner has of a kind. It need not be there.
    ///
    /// # Errors
    /// No descriptor is left, or the kernel has no nf_tables.
    pub fn open(_: &Inside, owner: &str, kind: TableKind) -> Result<Self, Error> {
        Ok(Self { table: kind.nft_table(owner), socket: super::open()? })
    }

    /// What was counted so far, in one list of the kernel; nothing is set back. Without the table there is nothing.
    ///
    /// # Errors
    /// The kernel could not be asked, or there are more counters than anybody of ours makes.
    pub fn read(&mut self) -> Result<Vec<NamedCount>, Error> {
        let mut found: Vec<NamedCount> = Vec::new();
        let filter = |w: &mut MessageWriter| {
            w.text(object::TABLE, &self.table);
            w.be32(object::TYPE, object::COUNTER);
        };
        let whole = dump(&mut self.socket, family::INET, message::GET_OBJECT, filter, |part| {
            let Some((_, attributes)) = part else {
                found.clear();
                return ControlFlow::Continue(());
            };
            // A kernel that does not filter lists those of other tables, too.
            if text(attributes, object::TABLE) == self.table
                && let Some(data) = attributes.find(object::DATA)
            {
                let number = |kind| handle(data.nested(), kind).unwrap_or_default();
                let (packets, bytes) = (number(PACKETS), number(BYTES));
                found.push(NamedCount { name: text(attributes, object::NAME), packets, bytes });
            }
            if found.len() > MOST { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match whole.map_err(|e| question("read named counters", e))? {
            true => Ok(found),
            false => {
                let source = netlink::Error::TooMany { most: MOST, what: "nf_tables counters" };
                Err(question("read named counters", source))
            }
        }
    }
}
