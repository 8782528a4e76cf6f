//! Lists with any content.

use ruleset::Family;

use super::{branch, has_loopback_address, routes, rules};
use crate::fuzz::{Open, Read};

/// Addresses, rules and routes, those of the node's secondary interfaces too.
pub(crate) fn read(open: Open<'_>) -> Vec<Read> {
    let there = |found: Result<bool, _>| found.ok().map(usize::from);
    let of_branch = branch::list(&mut open(), Family::V4);
    vec![
        rules(&mut open()).ok().map(|rules| rules.len()),
        routes(&mut open()).ok().map(|routes| routes.len()),
        there(has_loopback_address(&mut open(), std::net::Ipv6Addr::from_bits(6))),
        of_branch.ok().map(|listed| listed.rules.len() + listed.routes.len()),
    ]
}
