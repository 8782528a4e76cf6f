//! What happens to rules when members change, and to members when rules do.

use kernel::nft::Nftables;
use kernel::{Change, Difference, RuleStore};
use ruleset::{Action, Chain, Element, Family, Key, KeyType, MapVerdict, Protocol, Rule, Set, Side};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Families, Pod, TestNetns};

use crate::support::{
    Way, address, change, delta, dropped, endpoint, every_kind, ip, keys, leads, net, regular, ruleset,
};

const PORT: u16 = 8080;

/// A key of each set's type that no packet of the test has.
fn other_key(set: &Set) -> Key {
    match set.keys {
        KeyType::Address(Family::V4) => address("192.0.2.7"),
        KeyType::Address(Family::V6) => address("2001:db8::7"),
        KeyType::Prefix(Family::V4) => net("192.0.2.0/24"),
        KeyType::Prefix(Family::V6) => net("2001:db8::/32"),
        KeyType::Endpoint(Family::V4) => endpoint(ip("192.0.2.7"), Protocol::Udp, 53),
        KeyType::Endpoint(Family::V6) => endpoint(ip("2001:db8::7"), Protocol::Udp, 53),
        KeyType::Arrival(family) => {
            ruleset::ArrivalKey { family, name: ruleset::InterfaceName::new("nowhere0").unwrap() }.into()
        }
    }
}

/// The same rules with the same handles, and no counter began anew. A late packet of an earlier connection may be counted meanwhile.
fn untouched(before: &[String], after: &[String]) {
    let split = |rule: &String| -> (Vec<u64>, String) {
        let is_count = |word: &&str| word.chars().all(|c| c.is_ascii_digit());
        let (head, tail) = rule.split_once("# handle").unwrap_or((rule, ""));
        let words = || head.split(|c: char| " [:]".contains(c)).filter(|word| !word.is_empty());
        let rest: Vec<&str> = words().filter(|word| !is_count(word)).collect();
        (
            words().filter(is_count).map(|word| word.parse().unwrap()).collect(),
            format!("{} {tail}", rest.join(" ")),
        )
    };
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(after) {
        let ((old, old_rest), (new, new_rest)) = (split(before), split(after));
        assert_eq!(old_rest, new_rest);
        assert!(
            old.len() == new.len() && old.iter().zip(&new).all(|(old, new)| old <= new),
            "{before} {after}"
        );
    }
}

#[test]
fn a_delta_touches_no_rule() {
    for way in Way::ALL {
        for node in [false, true] {
            let pod = Pod::new(Families::Dual).unwrap();
            let _there = Listeners::start(&pod, [Listener::tcp(PORT)]).unwrap();
            let sets = every_kind();
            let rules = sets.iter().map(|set| dropped(set, Side::Source)).collect();
            let rules = ruleset(sets.clone(), rules, vec![]);
            way.load(&pod, &rules);
            let mut opened = way.open(&pod, &rules, node);
            let before = way.rules(&pod);
            // A jump for both families, or for each.
            let jumps = if way == Way::Nft { 1 } else { 2 };
            assert_eq!(before.len(), sets.len() + jumps, "{way:?}: {before:#?}");
            for set in &sets {
                let add = delta([Element::from(other_key(set))], []);
                assert_eq!(change(&mut opened, &set.name, &add).added, 1, "{way:?} {}", set.name);
                assert_eq!(keys(&mut opened, &set.name), [other_key(set)], "{way:?}");
            }
            // A packet that is in no set, so that counters show whether a rule is the same one; then one that is in a set.
            assert_eq!(way.rules(&pod), before, "{way:?} {node}");
            let from = |number: usize| pod.interfaces()[0].peer[number];
            let to = |number: usize| (pod.ips()[number], PORT).into();
            for number in [0, 1] {
                let flow = || Flow::from(pod.peer()).patience(std::time::Duration::from_millis(300));
                assert_eq!(flow().tcp(to(number)).unwrap().port(), Some(PORT), "{way:?}");
                let set = &sets[number * 3];
                change(&mut opened, &set.name, &delta([Key::from(from(number)).into()], []));
                assert_eq!(flow().tcp(to(number)).unwrap().port(), None, "{way:?}");
                let counted = way.rules(&pod);
                assert_ne!(counted, before, "{way:?}");
                let remove = delta([], [Key::from(from(number))]);
                assert_eq!(change(&mut opened, &set.name, &remove).removed, 1, "{way:?}");
                untouched(&counted, &way.rules(&pod));
                assert_eq!(flow().tcp(to(number)).unwrap().port(), Some(PORT), "{way:?}");
            }
        }
    }
}

/// The next plan has another rule, no longer one of the chains that a kept map leads to, and other fixed content.
#[test]
fn a_plan_that_is_loaded_again_keeps_members() {
    for way in Way::ALL {
        let ns = TestNetns::new().unwrap();
        let fixed = |keys: &[&str]| {
            Set::fixed("istio-np-fixed", KeyType::Prefix(Family::V4), keys.iter().map(|text| net(text)))
        };
        let map = Set::kept("istio-np-map", KeyType::Address(Family::V4)).to_verdicts();
        let first = |fixed: Set| {
            let mut sets = every_kind();
            sets.push(fixed);
            let mut rules: Vec<Rule> = sets.iter().map(|set| dropped(set, Side::Source)).collect();
            let mut chains: Vec<Chain> = Vec::new();
            if way == Way::Nft {
                let look_up =
                    Action::VerdictMap { map: map.name.clone(), keys: map.keys, side: Side::Destination };
                rules.push(Rule::new(vec![], look_up, "by class"));
                sets.push(map.clone());
                for name in ["istio-deltas-one", "istio-deltas-two"] {
                    chains.push(regular(name, vec![Rule::new(vec![], Action::Drop, "the end")]));
                }
            }
            ruleset(sets, rules, chains)
        };
        let plan = first(fixed(&["10.0.0.0/8", "10.1.0.0/16"]));
        let (mut sets, loaded) = way.load(&ns, &plan);
        assert_eq!(loaded, Change::Fresh, "{way:?}");
        let kept: Vec<Set> = every_kind();
        for set in &kept {
            change(&mut sets, &set.name, &delta([Element::from(other_key(set))], []));
        }
        if way == Way::Nft {
            let jump = |chain: &'static str| MapVerdict::Jump(chain.into());
            let elements = [
                leads(address("10.0.0.1"), jump("istio-deltas-one")),
                leads(address("10.0.0.2"), jump("istio-deltas-two")),
                leads(address("10.0.0.3"), MapVerdict::Accept),
            ];
            change(&mut sets, &map.name, &delta(elements, []));
        }
        assert_eq!(way.load(&ns, &plan).1, Change::None, "{way:?}: members are no difference");
        let mut next = first(fixed(&["10.0.0.0/8", "11.0.0.0/8", "203.0.113.0/24"]));
        next.tables[0].chains.retain(|chain| chain.name != "istio-deltas-two");
        next.tables[0].chains[0].rules.push(Rule::new(vec![], Action::Accept, "one more"));
        let (mut sets, loaded) = way.load(&ns, &next);
        assert_eq!(loaded, Change::Replaced, "{way:?}");
        for set in &kept {
            assert_eq!(keys(&mut sets, &set.name), [other_key(set)], "{way:?}");
        }
        assert_eq!(keys(&mut sets, "istio-np-fixed"), [net("10.0.0.0/7"), net("203.0.113.0/24")], "{way:?}");
        if way == Way::Nft {
            assert_eq!(keys(&mut sets, &map.name), [address("10.0.0.1"), address("10.0.0.3")]);
            let observed = ns.enter(|inside| Nftables.observe(inside, &[next.clone()])).unwrap().unwrap();
            assert_eq!(observed, []);
        }
    }
}

/// Fixed content that somebody has changed is seen, and put right without a rule noticing.
#[test]
fn fixed_ipsets_are_compared_and_replaced_at_once() {
    for way in &Way::ALL[1..] {
        let ns = TestNetns::new().unwrap();
        let address_set = Set::fixed("istio-np-a", KeyType::Address(Family::V4), [address("10.0.0.1")]);
        let all = Set::fixed("istio-np-all", KeyType::Prefix(Family::V6), [net("::/0")]);
        let port = endpoint(ip("10.0.0.1"), Protocol::Sctp, 80);
        let ports = Set::fixed("istio-np-p", KeyType::Endpoint(Family::V4), [port]);
        let sets = vec![address_set, all, ports, Set::kept("istio-np-kept", KeyType::Prefix(Family::V4))];
        let rules = sets.iter().map(|set| dropped(set, Side::Source)).collect();
        let plan = ruleset(sets, rules, vec![]);
        let mut empty = way.open(&ns, &plan, false);
        let missing = |set: &str| Difference::DifferentIpset { set: set.to_owned(), how: "is missing" };
        let names = ["istio-np-a", "istio-np-all", "istio-np-p", "istio-np-kept"];
        assert_eq!(empty.observe().unwrap(), names.map(missing), "{way:?}");
        let (mut sets, _) = way.load(&ns, &plan);
        assert_eq!(sets.observe().unwrap(), [], "{way:?}");
        let before = way.rules(&ns);
        for (line, set, how) in [
            ("ipset add istio-np-a 10.0.0.9", "istio-np-a", "has other elements"),
            ("ipset del istio-np-all ::/1", "istio-np-all", "has other elements"),
            ("ipset flush istio-np-p", "istio-np-p", "has other elements"),
        ] {
            crate::support::sh(&ns, line);
            let different = Difference::DifferentIpset { set: set.to_owned(), how };
            assert_eq!(sets.observe().unwrap(), [different], "{line}");
            sets.prepare().unwrap();
            assert_eq!(sets.observe().unwrap(), [], "{line}");
        }
        crate::support::sh(&ns, "ipset add istio-np-kept 10.0.0.0/8");
        assert_eq!(sets.observe().unwrap(), [], "members of a kept set are no difference");
        assert_eq!(way.rules(&ns), before);
        let text = crate::support::sh(&ns, "ipset list -n");
        assert_eq!(text.lines().count(), 4, "nothing else is left: {text}");
        // Another type, which no rule refers to.
        let other = Set::kept("istio-np-other", KeyType::Endpoint(Family::V6));
        crate::support::sh(&ns, "ipset create istio-np-other hash:net");
        let mut other = way.open(&ns, &ruleset(vec![other], vec![], vec![]), true);
        let different =
            Difference::DifferentIpset { set: "istio-np-other".to_owned(), how: "is of another type" };
        assert_eq!(other.observe().unwrap(), [different]);
        let error = fault::chain(&other.prepare().unwrap_err());
        assert!(error.contains("another type"), "{error}");
    }
}

#[test]
fn what_a_set_cannot_hold_is_refused_before_the_kernel_is_asked() {
    for way in [Way::Nft, Way::ALL[1]] {
        let ns = TestNetns::new().unwrap();
        let fixed = Set::fixed("istio-np-fixed", KeyType::Address(Family::V4), []);
        let plain = Set::kept("istio-np-plain", KeyType::Address(Family::V4));
        let map = Set::kept("istio-np-map", KeyType::Address(Family::V4)).to_verdicts();
        let mut sets = way.open(&ns, &ruleset(vec![fixed, plain, map], vec![], vec![]), false);
        let one = || address("10.0.0.1");
        let long = Element { comment: "c".repeat(128), ..one().into() };
        for (set, delta, says) in [
            ("gone", delta([one().into()], []), "the plan has no such set"),
            ("istio-np-fixed", delta([one().into()], []), "its content is part of the plan"),
            ("istio-np-plain", delta([address("fd00::1").into()], []), "another type or family"),
            ("istio-np-plain", delta([], [net("10.0.0.0/8")]), "another type or family"),
            ("istio-np-plain", delta([leads(one(), MapVerdict::Drop)], []), "a verdict in a plain set"),
            ("istio-np-map", delta([one().into()], []), "none in a verdict map"),
            ("istio-np-plain", delta([long], []), "more than 127 bytes"),
        ] {
            let error = sets.change(&[(set, &delta)]).unwrap_err().to_string();
            assert!(error.contains(set) && error.contains(says), "{error}");
        }
        if way != Way::Nft {
            let error = sets.prepare().unwrap_err().to_string();
            assert!(error.contains("istio-np-map") && error.contains("no verdict maps"), "{error}");
        }
    }
}

/// The text of the sets, read by the ipset program, makes what we make.
#[test]
fn the_ipset_program_makes_the_same_of_the_text() {
    let (ours, theirs) = (TestNetns::new().unwrap(), TestNetns::new().unwrap());
    let port = |protocol| endpoint(ip("fd00::1"), protocol, 80);
    let owned = Element { comment: "whose it is".to_owned(), ..address("10.0.0.1").into() };
    let keys = KeyType::Address(Family::V4);
    let mut sets = vec![
        Set {
            content: ruleset::Content::Fixed(vec![owned]),
            commented: true,
            ..Set::kept("istio-np-owned", keys)
        },
        Set::fixed("istio-np-all", KeyType::Prefix(Family::V6), ["::/0", "fd00::/8"].map(net)),
        Set::fixed("istio-np-nets", KeyType::Prefix(Family::V4), ["10.0.0.0/9", "10.128.0.0/9"].map(net)),
        Set::fixed(
            "istio-np-ports",
            KeyType::Endpoint(Family::V6),
            [port(Protocol::Tcp), port(Protocol::Udp), port(Protocol::Sctp)],
        ),
    ];
    sets.extend(every_kind());
    let plan = ruleset(sets, vec![], vec![]);
    let mut made = Way::ALL[1].open(&ours, &plan, true);
    made.prepare().unwrap();
    let text = ruleset::iptables::ipset::render_sets(std::slice::from_ref(&plan)).join("\n");
    theirs
        .pipe(std::process::Command::new("ipset").args(["restore", "-exist"]), &format!("{text}\n"))
        .unwrap();
    let saved = |ns: &TestNetns| {
        let text = crate::support::sh(ns, "ipset save -sorted");
        // The program asks for the newest revision, which has a size that ours does not.
        let plain = |line: &str| line.split(" bucketsize ").next().unwrap_or_default().to_owned();
        text.lines().map(plain).collect::<Vec<String>>()
    };
    let (a, b) = (saved(&ours), saved(&theirs));
    assert!(a.len() > 10 && a == b, "{a:#?} {b:#?}");
    let mut theirs = Way::ALL[1].open(&theirs, &plan, false);
    assert_eq!(theirs.observe().unwrap(), []);
}
