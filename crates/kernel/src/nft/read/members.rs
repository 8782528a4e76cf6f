//! What sets of others hold.

use super::super::set::{WireElement, sort};
use super::super::uapi::set;
use crate::netlink::wire::Attribute;

/// The most members of a set that are looked at.
const MAX_MEMBERS: usize = 1024;

/// The members of a set of plain keys; absent for maps, and for keys of several parts.
pub(in crate::nft) fn members(flags: u32, elements: &[Attribute<'_>]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    /// `NFT_SET_MAP`, `NFT_SET_CONCAT`; `NFTA_SET_ELEM_KEY_END`.
    const ODD: u32 = 8 | 0x80;
    const KEY_END: u16 = 10;
    if flags & ODD != 0 || elements.len() > MAX_MEMBERS {
        return None;
    }
    let mut keys = Vec::new();
    for item in elements {
        if item.nested().find(KEY_END).is_some() {
            return None;
        }
        keys.push(Some(WireElement::read(item)).filter(|element| !element.key.is_empty())?);
    }
    if flags & set::INTERVAL == 0 {
        return Some(keys.into_iter().map(|WireElement { key, .. }| (key.clone(), key)).collect());
    }
    sort(&mut keys);
    let mut ranges: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut open: Option<Vec<u8>> = None;
    for WireElement { key, end, .. } in keys {
        if let Some(first) = open.take() {
            ranges.push((first, before(&key)));
        }
        open = (!end).then_some(key);
    }
    ranges.extend(open.map(|first| (first.clone(), vec![0xff; first.len()])));
    Some(ranges)
}

/// The number before, as bytes.
fn before(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (less, borrowed) = byte.overflowing_sub(1);
        *byte = less;
        if !borrowed {
            break;
        }
    }
    key
}
