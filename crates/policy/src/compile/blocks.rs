//! Blocks without their exceptions.

use std::collections::BTreeSet;

use facts::networkpolicy::Block;
use ipnet::IpNet;
use ruleset::{Family, Key, KeyType, Set};

use crate::meaning::Meaning;

/// The set of some prefixes. Its name says which, so that rules with the same addresses share it and its content never changes.
pub(super) fn set(family: Family, prefixes: &BTreeSet<IpNet>) -> Set {
    let keys = KeyType::Prefix(family);
    let merged = Set::fixed("", keys, prefixes.iter().copied().map(Key::from)).merged_prefixes().into_iter();
    let (mut meaning, mut keyed) = (Meaning::of(4), Vec::with_capacity(merged.len()));
    for net in merged {
        meaning.text(&net.to_string());
        keyed.push(Key::from(net));
    }
    let version = if family == Family::V4 { "v4" } else { "v6" };
    Set::fixed(format!("istio-np-b{:016x}-{version}", meaning.hash()), keys, keyed)
}

/// The prefixes that have the addresses of a block. `room` is how many there may be, less these afterwards; nothing if they would be more.
pub(super) fn prefixes(block: &Block, room: &mut usize) -> Option<Vec<IpNet>> {
    let mut found = Vec::new();
    without(block.net, &block.except, &mut found, *room)?;
    *room -= found.len();
    Some(found)
}

/// Halves a prefix until each part is in an exception or outside of all; nothing as soon as more than `most` are found.
fn without(net: IpNet, except: &[IpNet], found: &mut Vec<IpNet>, most: usize) -> Option<()> {
    if except.iter().any(|part| part.contains(&net)) {
        return Some(());
    }
    let inside: Vec<IpNet> = except.iter().filter(|part| net.contains(*part)).copied().collect();
    if inside.is_empty() {
        found.push(net);
        return (found.len() <= most).then_some(());
    }
    // A prefix with a smaller part can be halved.
    net.subnets(net.prefix_len() + 1)
        .into_iter()
        .flatten()
        .try_for_each(|half| without(half, &inside, found, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_cut_out() {
        for (net, except, expected) in [
            ("10.0.0.0/8", vec![], vec!["10.0.0.0/8"]),
            ("10.0.0.0/30", vec!["10.0.0.1/32"], vec!["10.0.0.0/32", "10.0.0.2/31"]),
            ("10.0.0.0/31", vec!["10.0.0.0/32", "10.0.0.1/32"], vec![]),
            ("10.0.0.0/29", vec!["10.0.0.0/30", "10.0.0.1/32"], vec!["10.0.0.4/30"]),
            ("::/0", vec!["8000::/1"], vec!["::/1"]),
        ] {
            let except: Vec<String> = except.into_iter().map(String::from).collect();
            let block = Block::parse(net, &except).unwrap();
            let found: Vec<String> =
                prefixes(&block, &mut 10).unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{net} without {except:?}");
        }
        let all: Vec<String> = (0..1000u32).map(|n| format!("10.{}.{}.1/32", n / 256, n % 256)).collect();
        let block = Block::parse("10.0.0.0/8", &all).unwrap();
        let mut room = 20_000;
        let cut = prefixes(&block, &mut room).unwrap();
        assert_eq!(room, 20_000 - cut.len());
        let size: u32 = cut.iter().map(|net| 1 << (32 - net.prefix_len())).sum();
        assert_eq!(size, (1 << 24) - 1000);
        assert!(!block.except.iter().any(|part| cut.iter().any(|net| net.contains(part))));
    }

    #[test]
    fn a_block_that_would_be_too_many_prefixes_is_none() {
        // Each exception leaves a prefix of each length beside it.
        let all: Vec<String> = (0..40_000u32).map(|n| format!("2001:db8:{n:x}::1/128")).collect();
        let block = Block::parse("2001:db8::/32", &all).unwrap();
        let mut room = 65_536;
        assert_eq!(prefixes(&block, &mut room), None);
        assert_eq!(room, 65_536, "what is left out takes no room");
        let block = Block::parse("10.0.0.0/8", &["10.0.0.1/32".to_owned()]).unwrap();
        assert_eq!(prefixes(&block, &mut 23), None);
        let mut room = 24;
        assert_eq!(prefixes(&block, &mut room).map(|found| (found.len(), room)), Some((24, 0)));
    }
}
