//! Lists with any content.

use std::collections::HashMap;

use ruleset::{Family, Key, KeyType, Set};

use super::IpSets;
use crate::fuzz::{Open, Read};

/// The members of sets of each type, one of them, and what a set is.
pub(crate) fn read(open: Open<'_>) -> Vec<Read> {
    let sets = || IpSets { socket: open(), comments: HashMap::new() };
    let types = [KeyType::Address(Family::V4), KeyType::Prefix(Family::V6), KeyType::Endpoint(Family::V4)];
    let known = types.map(|keys| Set { commented: true, ..Set::kept("s", keys) });
    let lists = known.each_ref().map(|set| sets().list(set).ok().map(|members| members.len()));
    let there = |is_there: bool| usize::from(is_there);
    let one =
        sets().get(&known[0], &Key::Address([10, 0, 0, 3].into())).ok().map(|found| there(found.is_some()));
    let differs = sets().difference(&known[0]).ok().map(|difference| there(difference.is_some()));
    [&lists[..], &[one, differs]].concat()
}
