use super::*;
use crate::PlainWorld;

/// Nobody finds two sets with one name within a test, so that one is given the other's.
#[test]
fn of_two_sets_with_one_name_in_the_kernel_the_second_is_not_there() {
    let set = |name: &str| PeerSet::OwnPorts(name.into(), PolicyProtocol::Tcp);
    let (mut sets, mut effects, world) = (PeerSets::default(), Vec::new(), PlainWorld::default());
    sets.take(&world, [set("a")], &mut effects);
    sets.names.insert(set("b").hash(), 0);
    sets.take(&world, [set("b"), set("c")], &mut effects);
    let there = |sets: &PeerSets| ["a", "b", "c"].map(|name| sets.get(&set(name)).is_some());
    assert_eq!((there(&sets), effects.len()), ([true, false, true], 2));
    sets.release(vec![set("a")], &mut effects);
    sets.names.remove(&set("b").hash());
    sets.take(&world, [set("b")], &mut effects);
    assert_eq!((there(&sets), effects.len()), ([false, false, true], 3), "rules go by its absence");
    sets.release(vec![set("b"), set("b")], &mut effects);
    sets.take(&world, [set("b")], &mut effects);
    assert_eq!((there(&sets), effects.len()), ([false, true, true], 4));
}
