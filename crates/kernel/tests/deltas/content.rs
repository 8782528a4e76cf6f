//! What the kernel has after changes, against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ipnet::IpNet;
use kernel::sets::ElementCounts;
use ruleset::{Contents, Coverage, Element, Family, Key, KeyType, Set, SetDelta, Side};
use testkit::TestNetns;

use crate::support::{Way, address, change, delta, dropped, keys, net, ruleset};

/// Numbers that look random, the same in each run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// Prefixes that often overlap; now and then all of a family.
fn random_net(random: &mut Random, family: Family) -> IpNet {
    let (first, length) =
        (random.below(1 << 12), random.below(12).min(random.below(12)).min(random.below(12)));
    let all = random.below(200) == 0;
    match family {
        Family::V4 => {
            let length = if all { 0 } else { 32 - u8::try_from(length).unwrap() };
            let base = if random.below(2) == 0 { 0xffff_f000 } else { 0 };
            IpNet::new(std::net::Ipv4Addr::from(base + first as u32).into(), length).unwrap().trunc()
        }
        Family::V6 => {
            let length = if all { 0 } else { 128 - u8::try_from(length).unwrap() };
            let base = if random.below(2) == 0 { u128::MAX << 12 } else { 0 };
            IpNet::new(std::net::Ipv6Addr::from(base + u128::from(first)).into(), length).unwrap().trunc()
        }
    }
}

/// Whether two lists of disjoint prefixes have the same addresses, asked of every end.
fn same_addresses(one: &[IpNet], other: &[IpNet]) -> bool {
    let covered = |by: &[IpNet], net: &IpNet| {
        let mut missing = vec![*net];
        for part in by {
            missing.retain(|missing| !part.contains(missing));
            let split: Vec<IpNet> = missing
                .iter()
                .flat_map(|missing| match missing.contains(part) {
                    true => apart(*missing, part),
                    false => vec![*missing],
                })
                .collect();
            missing = split;
        }
        missing.is_empty()
    };
    one.iter().all(|net| covered(other, net)) && other.iter().all(|net| covered(one, net))
}

/// What is left of a prefix without one in it.
fn apart(from: IpNet, part: &IpNet) -> Vec<IpNet> {
    if from == *part {
        return Vec::new();
    }
    let halves = from.subnets(from.prefix_len() + 1).unwrap();
    halves.flat_map(|half| if half.contains(part) { apart(half, part) } else { vec![half] }).collect()
}

#[test]
fn random_prefixes_come_and_go() {
    for way in [Way::Nft, Way::ALL[1]] {
        for family in [Family::V4, Family::V6] {
            let ns = TestNetns::new().unwrap();
            let set = Set::kept("istio-np-nets", KeyType::Prefix(family));
            let rules = vec![dropped(&set, Side::Source)];
            let (mut sets, _) = way.load(&ns, &ruleset(vec![set.clone()], rules, vec![]));
            let mut random = Random(0x2545_f491_4f6c_dd1d);
            let (mut coverage, mut held, mut most) = (Coverage::new(family), Vec::<IpNet>::new(), 0);
            for step in 0..150 {
                // Several at once are one change.
                let mut all = SetDelta::default();
                for _ in 0..=random.below(3) {
                    let changed = if held.is_empty() || random.below(5) > 1 {
                        let net = random_net(&mut random, family);
                        held.push(net);
                        coverage.add(net)
                    } else {
                        let at = usize::try_from(random.below(held.len() as u64)).unwrap();
                        coverage.remove(held.swap_remove(at))
                    };
                    all = all.then(changed.unwrap());
                }
                sets.change(&[(&set.name, &all)])
                    .unwrap_or_else(|error| panic!("{way:?} step {step}: {}: {all:?}", fault::chain(&error)));
                let there: Vec<IpNet> = keys(&mut sets, &set.name)
                    .into_iter()
                    .map(|key| if let Key::Prefix(net) = key { net } else { panic!("{key:?}") })
                    .collect();
                assert!(same_addresses(&there, &held), "{way:?} step {step}: {there:?} is not {held:?}");
                assert_eq!(there, coverage.elements().collect::<Vec<_>>(), "{way:?} step {step}");
                most = most.max(there.len());
            }
            println!("{way:?} {family:?}: at most {most} prefixes of {} held", held.len());
            assert!(most > 20);
            let mut all = SetDelta::default();
            for net in held {
                all = all.then(coverage.remove(net).unwrap());
            }
            change(&mut sets, &set.name, &all);
            assert_eq!(sets.list(&set.name).unwrap(), []);
        }
    }
}

/// A change says what it did and what was so before, and can be made again.
#[test]
fn a_change_may_be_made_again() {
    for way in [Way::Nft, Way::ALL[1]] {
        let ns = TestNetns::new().unwrap();
        let commented = Set { commented: true, ..Set::kept("istio-np-owned", KeyType::Address(Family::V4)) };
        let plain = Set::kept("istio-np-plain", KeyType::Prefix(Family::V4));
        let rules = vec![dropped(&commented, Side::Source), dropped(&plain, Side::Source)];
        let (mut sets, _) = way.load(&ns, &ruleset(vec![commented, plain], rules, vec![]));
        let owned = |last: u32, by: &str| {
            let [_, _, high, low] = last.to_be_bytes();
            Element { comment: by.to_owned(), ..address(&format!("10.0.{high}.{low}")).into() }
        };
        // Few keys and many are looked for in different ways.
        for many in [3, 40] {
            let first = delta((0..many).map(|last| owned(last, "a")), [address("10.9.9.9")]);
            let count = usize::try_from(many).unwrap();
            let done = change(&mut sets, "istio-np-owned", &first);
            assert_eq!(
                done,
                ElementCounts { added: count, as_before: 1, ..ElementCounts::default() },
                "{way:?}"
            );
            let again = change(&mut sets, "istio-np-owned", &first);
            assert_eq!(again, ElementCounts { as_before: count + 1, ..ElementCounts::default() }, "{way:?}");
            let other = delta([owned(0, "b"), owned(many, "b")], [address("10.0.0.1")]);
            let done = change(&mut sets, "istio-np-owned", &other);
            assert_eq!(done, ElementCounts { added: 1, replaced: 1, removed: 1, as_before: 0 }, "{way:?}");
            let by_b: BTreeSet<Key> = sets
                .list("istio-np-owned")
                .unwrap()
                .into_iter()
                .filter_map(|element| (element.comment == "b").then_some(element.key))
                .collect();
            assert_eq!(by_b, BTreeSet::from([owned(0, "b").key, owned(many, "b").key]), "{way:?}");
            let all: Vec<Element> = sets.list("istio-np-owned").unwrap();
            change(&mut sets, "istio-np-owned", &SetDelta::between(&all, &[]));
        }
        let nets = delta([net("10.0.0.0/8").into(), net("9.0.0.0/8").into()], [net("1.0.0.0/8")]);
        let done = change(&mut sets, "istio-np-plain", &nets);
        assert_eq!(done, ElementCounts { added: 2, as_before: 1, ..ElementCounts::default() }, "{way:?}");
        let again = change(&mut sets, "istio-np-plain", &nets);
        assert_eq!(again, ElementCounts { as_before: 3, ..ElementCounts::default() }, "{way:?}");
    }
}

/// nf_tables does all of a change of several sets or nothing.
#[test]
fn a_change_of_several_sets_is_whole_in_nf_tables() {
    let ns = TestNetns::new().unwrap();
    let named = |name: &'static str| Set::kept(name, KeyType::Prefix(Family::V4));
    let (one, two) = (named("istio-np-one"), named("istio-np-two"));
    let rules = vec![dropped(&one, Side::Source), dropped(&two, Side::Source)];
    let (mut sets, _) = Way::Nft.load(&ns, &ruleset(vec![one, two], rules, vec![]));
    // Somebody else's prefix is in the way of one.
    ns.nft(&format!("add element {} istio-np-two {{ 10.0.0.0/8 }}", crate::support::TABLE)).unwrap();
    let add = |text: &str| delta([net(text).into()], []);
    let (first, second) = (add("192.0.2.0/24"), add("10.1.0.0/16"));
    let refused = sets.change(&[("istio-np-one", &first), ("istio-np-two", &second)]).unwrap_err();
    let text = fault::chain(&refused);
    assert!(text.contains("overlaps"), "{text}");
    assert_eq!(sets.list("istio-np-one").unwrap(), []);
    assert_eq!(keys(&mut sets, "istio-np-two"), [net("10.0.0.0/8")]);
}

/// The time of a change among many members; numbers for people.
#[test]
fn one_member_among_ten_thousand() {
    for way in [Way::Nft, Way::ALL[1]] {
        let ns = TestNetns::new().unwrap();
        let set = Set::kept("istio-np-pods", KeyType::Address(Family::V4));
        let (mut sets, _) =
            way.load(&ns, &ruleset(vec![set.clone()], vec![dropped(&set, Side::Source)], vec![]));
        let of = |n: u32| Key::from(std::net::IpAddr::from((0x0a00_0000 + n).to_be_bytes()));
        let start = Instant::now();
        let all = change(&mut sets, &set.name, &delta((0..10_000).map(|n| of(n).into()), []));
        let took = start.elapsed();
        assert_eq!(all.added, 10_000);
        let mut one: BTreeMap<&str, Vec<u128>> = BTreeMap::new();
        for n in 0..500 {
            for (what, delta) in
                [("add", delta([of(20_000 + n).into()], [])), ("remove", delta([], [of(20_000 + n)]))]
            {
                let start = Instant::now();
                assert_eq!(change(&mut sets, &set.name, &delta).count(), 1);
                one.entry(what).or_default().push(start.elapsed().as_nanos());
            }
        }
        let median = |times: &mut Vec<u128>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        let one: BTreeMap<&str, u128> = one.iter_mut().map(|(what, times)| (*what, median(times))).collect();
        println!("{way:?}: 10000 at once {took:?}; one, median in ns: {one:?}");
        assert_eq!(sets.list(&set.name).unwrap().len(), 10_000);
    }
}

/// The evaluator's model of members follows the same deltas.
#[test]
fn the_model_has_what_the_kernel_has() {
    for way in [Way::Nft, Way::ALL[1]] {
        let ns = TestNetns::new().unwrap();
        let set = Set { commented: true, ..Set::kept("istio-np-model", KeyType::Address(Family::V6)) };
        let (mut sets, _) =
            way.load(&ns, &ruleset(vec![set.clone()], vec![dropped(&set, Side::Source)], vec![]));
        let (mut model, mut random) = (Contents::default(), Random(42));
        for _ in 0..60 {
            let mut delta = SetDelta::default();
            for _ in 0..=random.below(20) {
                let key = address(&format!("fd00::{:x}", random.below(40)));
                match random.below(3) {
                    0 => delta.remove(key),
                    by => delta.add(Element { comment: format!("by-{by}"), ..key.into() }),
                }
            }
            model.apply(&set.name, &delta);
            change(&mut sets, &set.name, &delta);
            let mut there = sets.list(&set.name).unwrap();
            there.sort_by_key(|element| element.key);
            assert_eq!(there, model.of(&set.name).cloned().collect::<Vec<_>>(), "{way:?}");
        }
    }
}
