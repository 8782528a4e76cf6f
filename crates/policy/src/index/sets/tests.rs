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

/// Names outlive the process that wrote them, so these stay.
#[test]
fn what_a_set_means_is_its_name() {
    let (tcp, udp) = (PolicyProtocol::Tcp, PolicyProtocol::Udp);
    let selector = |text: &str| match text {
        "" => Selector::default(),
        _ => facts::labels::parse_selector(text).unwrap(),
    };
    let named = |name: &str, labels| PodTerm {
        namespaces: NamespaceTerm::Named(name.into()),
        labels: selector(labels),
    };
    let labelled = |all, labels| PodTerm {
        namespaces: NamespaceTerm::Labelled(selector(all)),
        labels: selector(labels),
    };
    let sets = [
        PeerSet::Pods(named("x", "")),
        PeerSet::Pods(named("x", "a=b")),
        PeerSet::Pods(named("x", "a!=b")),
        PeerSet::Pods(named("x", "a in (b,c)")),
        PeerSet::Pods(named("x", "a=b,c")),
        PeerSet::Pods(named("x", "a=b,!c")),
        PeerSet::Pods(labelled("a=b", "")),
        PeerSet::Pods(labelled("", "a=b")),
        PeerSet::Ports(Some(named("x", "")), "http".into(), tcp),
        PeerSet::Ports(Some(named("xh", "")), "ttp".into(), tcp),
        PeerSet::Ports(None, "http".into(), tcp),
        PeerSet::OwnPorts("http".into(), tcp),
        PeerSet::OwnPorts("http".into(), udp),
    ];
    let names: BTreeSet<String> = sets.iter().map(|set| set.kernel_name(Family::V6)).collect();
    assert_eq!(names.len(), sets.len(), "{names:?}");
    assert!(names.iter().all(|name| name.len() == 28 && name.len() <= ruleset::Set::MAX_NAME));
    let found = [&sets[1], &sets[6], &sets[8]].map(|set| set.kernel_name(Family::V4));
    assert_eq!(
        found,
        ["istio-np-66be8c7566508acc-v4", "istio-np-c2457da57b0939a2-v4", "istio-np-e68a801698d2d8a7-v4"]
    );
}
