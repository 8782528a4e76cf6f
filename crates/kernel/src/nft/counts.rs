//! What the rules of a chain have counted.

use std::ops::ControlFlow;

use super::list::{dump, handle};
use super::uapi::{expr, family, message, rule};
use crate::netlink::{Error, NetlinkSocket};

/// `NFTA_COUNTER_PACKETS`.
const PACKETS: u16 = 2;

/// The packets that each of the first rules of a chain has counted, in order; at most so many rules. What does not count has 0.
pub(super) fn packets(
    socket: &mut NetlinkSocket,
    table: &str,
    chain: &str,
    most: usize,
) -> Result<Vec<u64>, Error> {
    let mut found = Vec::new();
    let of_chain = |w: &mut crate::netlink::wire::MessageWriter| {
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
        let parts = attributes.find(rule::EXPRESSIONS).into_iter().flat_map(|parts| parts.nested());
        let counter = parts
            .map(|part| part.nested())
            .find(|part| part.find(expr::NAME).is_some_and(|name| name.text() == "counter"));
        let counter = counter.and_then(|counter| counter.find(expr::DATA));
        found.push(counter.and_then(|data| handle(data.nested(), PACKETS)).unwrap_or_default());
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
