//! What rules have counted.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use netns::Inside;
use ruleset::TableKind;

use super::list::{MOST, dump, handle, text};
use super::uapi::{expr, family, message, rule};
use super::{Error, question};
use crate::netlink::wire::{Attributes, MessageWriter};
use crate::netlink::{self, NetlinkSocket};

/// `NFTA_COUNTER_PACKETS`.
const PACKETS: u16 = 2;

/// Reads counters of an owner's table in one namespace, over a socket that stays there.
#[derive(Debug)]
pub struct ChainCounts {
    table: String,
    socket: NetlinkSocket,
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
    let mut parts = attributes.find(rule::EXPRESSIONS)?.nested().map(|part| part.nested());
    let counter = parts.find(|part| part.find(expr::NAME).is_some_and(|name| name.text() == "counter"))?;
    handle(counter.find(expr::DATA)?.nested(), PACKETS)
}

// === impl ChainCounts ===

impl ChainCounts {
    /// Of the table that an owner has of a kind. It need not be there.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or no descriptor is left.
    pub fn open(_: &Inside, owner: &str, kind: TableKind) -> Result<Self, Error> {
        Ok(Self { table: kind.nft_table(owner), socket: super::open()? })
    }

    /// What the last rule of each chain has counted since it is there, or that of one chain only. A chain whose last rule does not count is left out.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn of_last_rules(&mut self, chain: Option<&str>) -> Result<BTreeMap<String, u64>, Error> {
        let mut found: BTreeMap<String, u64> = BTreeMap::new();
        let filter = |w: &mut MessageWriter| {
            w.text(rule::TABLE, &self.table);
            chain.iter().for_each(|chain| w.text(rule::CHAIN, chain));
        };
        let whole = dump(&mut self.socket, family::INET, message::GET_RULE, filter, |part| {
            let Some((_, attributes)) = part else {
                found.clear();
                return ControlFlow::Continue(());
            };
            let of = text(attributes, rule::CHAIN);
            match counted(attributes) {
                Some(packets) => _ = found.insert(of, packets),
                None => _ = found.remove(&of),
            }
            if found.len() > MOST { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        whole.map_err(|e| question("read counters of rules", e))?;
        // A kernel that does not filter lists other chains, too.
        found.retain(|of, _| chain.is_none_or(|chain| chain == of));
        Ok(found)
    }
}
