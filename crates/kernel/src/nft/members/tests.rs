//! Lists with any content.

use ruleset::{Family, Key, KeyType, Set};

use super::NftSets;
use crate::fuzz::{Open, Read};
use crate::sets::SetPlace;

/// The members of sets of each type, and one of them.
pub(crate) fn read(open: Open<'_>) -> Vec<Read> {
    let types = [KeyType::Address(Family::V4), KeyType::Prefix(Family::V6), KeyType::Endpoint(Family::V4)];
    let places = types.map(|keys| SetPlace { table: "t".to_owned(), set: Set::kept("s", keys) });
    let lists = places.each_ref().map(|at| NftSets { socket: open() }.list(at).ok().map(|all| all.len()));
    let one = NftSets { socket: open() }.get(&places[0], &Key::Address([10, 0, 0, 1].into()));
    [&lists[..], &[one.ok().map(|found| usize::from(found.is_some()))]].concat()
}
