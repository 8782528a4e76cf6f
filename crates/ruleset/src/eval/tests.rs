use std::slice::from_ref;

use super::*;

use crate::rule::{ALL_BITS, Base, ChainKind, Families, Family, Limit, Ports, Protocol};
use crate::set::{Content, Contents, Element, Key, KeyType, NoMembers, SetDelta, TransportAddress};

const APP: Owner = Owner { uid: 1000, gid: 2000 };

fn packet() -> Packet {
    let (source, destination) = (([10, 0, 0, 1], 40_000).into(), ([10, 0, 0, 2], 80).into());
    Packet {
        out_interface: "eth0".to_owned(),
        owner: Some(APP),
        mark: 7,
        ct_mark: 9,
        ..Packet::new(Protocol::Tcp, source, destination)
    }
}

fn packet_v6() -> Packet {
    let address = |last| IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
    Packet { source: address(1), destination: address(2), ..packet() }
}

fn rule(matches: Vec<Match>, action: Action) -> Rule {
    Rule::new(matches, action, "a test")
}

fn jump(target: &'static str) -> Rule {
    rule(vec![], Action::Jump(target.into()))
}

fn regular(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base: None, rules, leading: 0 }
}

fn base(hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    let base = Base { kind: ChainKind::Filter, hook, priority };
    Chain { name: hook.name().into(), base: Some(base), rules, leading: 0 }
}

fn output(rules: Vec<Rule>) -> Chain {
    base(Hook::Output, 0, rules)
}

fn ruleset(tables: Vec<(TableKind, Vec<Chain>)>) -> Ruleset {
    let table = |(kind, chains)| Table { kind, sets: Vec::new(), chains };
    Ruleset {
        owner: "test".into(),
        known_chains: Vec::new().into(),
        ipv6: true,
        tables: tables.into_iter().map(table).collect(),
    }
}

fn filter(chains: Vec<Chain>) -> Ruleset {
    ruleset(vec![(TableKind::Filter, chains)])
}

fn outcome<'a>(ruleset: &'a Ruleset, packet: &Packet) -> Evaluation<'a> {
    evaluate(from_ref(ruleset), Backend::Nftables, packet, Hook::Output, true, &NoMembers)
}

fn verdict(ruleset: &Ruleset, packet: &Packet) -> Verdict {
    outcome(ruleset, packet).verdict
}

/// Whether a rule with this match, and with a protocol where one is needed, sees the packet.
fn holds(m: &Match, packet: &Packet) -> bool {
    let mut matches = vec![m.clone()];
    if matches!(m, Match::SourcePort { .. } | Match::DestinationPort { .. } | Match::IcmpType { .. }) {
        matches.insert(0, Match::Protocol(packet.protocol));
    }
    verdict(&filter(vec![output(vec![rule(matches, Action::Drop)])]), packet) == Verdict::Drop
}

/// The match as it is, its opposite, and packets for which the first holds or not.
type Line = (fn(bool) -> Match, &'static [fn(&mut Packet)], &'static [fn(&mut Packet)]);

const MATCHES: &[Line] = &[
    (
        |not| Match::InInterface { name: "eth0".into(), not },
        &[|p| p.in_interface = "eth0".to_owned()],
        &[|_| (), |p| p.in_interface = "eth01".to_owned(), |p| p.in_interface = "eth".to_owned()],
    ),
    (
        |not| Match::OutInterface { name: "eth0".into(), not },
        &[|_| ()],
        &[|p| p.out_interface = "eth1".to_owned(), |p| p.out_interface = String::new()],
    ),
    (
        // Host bits are ignored.
        |not| Match::Source { net: "10.0.0.9/24".parse().unwrap(), not },
        &[|_| (), |p| p.source = [10, 0, 0, 255].into()],
        &[|p| p.source = [10, 0, 1, 1].into()],
    ),
    (
        |not| Match::Destination { net: "10.0.0.2/32".parse().unwrap(), not },
        &[|_| ()],
        &[|p| p.destination = [10, 0, 0, 3].into()],
    ),
    (
        |not| Match::Destination { net: "0.0.0.0/0".parse().unwrap(), not },
        &[|_| (), |p| p.destination = [255, 255, 255, 255].into()],
        &[],
    ),
    (
        |not| Match::SourcePort { ports: Ports::One(40_000), not },
        &[|_| (), |p| p.protocol = Protocol::Udp],
        &[|p| p.source_port = 80],
    ),
    (
        |not| Match::DestinationPort { ports: Ports::AnyOf(vec![53, 80]), not },
        &[|_| (), |p| p.destination_port = 53],
        &[|p| p.destination_port = 54],
    ),
    (|not| Match::Uid { uid: 1000, not }, &[|_| ()], &[|p| p.owner = Some(Owner { uid: 2000, gid: 1000 })]),
    (|not| Match::Gid { gid: 2000, not }, &[|_| ()], &[|p| p.owner = Some(Owner { uid: 2000, gid: 1000 })]),
    (|not| Match::Mark { mark: 7, mask: ALL_BITS, not }, &[|_| ()], &[|p| p.mark = 9, |p| p.mark = 0]),
    (|not| Match::CtMark { mark: 9, mask: ALL_BITS, not }, &[|_| ()], &[|p| p.ct_mark = 7]),
    (|not| Match::Mark { mark: 7, mask: 0xff, not }, &[|_| (), |p| p.mark = 0x1007], &[|p| p.mark = 0x1008]),
    (|not| Match::CtMark { mark: 1, mask: 1, not }, &[|_| (), |p| p.ct_mark = 3], &[|p| p.ct_mark = 4]),
    (
        |not| Match::DestinationPort { ports: Ports::Range(80, 90), not },
        &[|_| (), |p| p.destination_port = 90, |p| p.protocol = Protocol::Sctp],
        &[|p| p.destination_port = 79, |p| p.destination_port = 91],
    ),
    (
        |not| Match::OriginalDestination { net: "10.0.0.0/24".parse().unwrap(), not },
        &[|_| (), |p| (p.destination, p.original) = ([127, 0, 0, 1].into(), Some(([10, 0, 0, 9], 1).into()))],
        &[|p| p.original = Some(([10, 0, 1, 2], 80).into())],
    ),
    (
        |not| Match::OriginalPort { ports: Ports::Range(80, 81), not },
        &[|_| (), |p| (p.destination_port, p.original) = (15006, Some(([10, 0, 0, 2], 81).into()))],
        &[|p| p.original = Some(([10, 0, 0, 2], 82).into())],
    ),
];

#[test]
fn each_match_and_its_opposite() {
    for (make, yes, no) in MATCHES {
        for (changes, expected) in [(yes, true), (no, false)] {
            for change in *changes {
                let mut packet = packet();
                change(&mut packet);
                assert_eq!(holds(&make(false), &packet), expected, "{:?} {packet:?}", make(false));
                assert_eq!(holds(&make(true), &packet), !expected, "{:?} {packet:?}", make(true));
            }
        }
    }
}

#[test]
fn matches_that_have_no_opposite() {
    for (m, states) in [
        (CtState::Invalid, &[State::Invalid][..]),
        (CtState::RelatedOrEstablished, &[State::Related, State::Established]),
        (CtState::Related, &[State::Related]),
        (CtState::Established, &[State::Established]),
    ] {
        for state in [State::New, State::Established, State::Related, State::Invalid] {
            let packet = Packet { state, ..packet() };
            assert_eq!(holds(&Match::CtState(m), &packet), states.contains(&state), "{m:?} {state:?}");
        }
    }
    let answer = Packet { reply: true, state: State::Established, ..packet() };
    assert!(holds(&Match::Reply, &answer) && !holds(&Match::Reply, &packet()));
    let echo = Packet { protocol: Protocol::Icmp, icmp: (8, 0), ..packet() };
    for (code, found) in [(None, true), (Some(0), true), (Some(1), false)] {
        assert_eq!(holds(&Match::IcmpType { kind: 8, code }, &echo), found);
        assert!(!holds(&Match::IcmpType { kind: 0, code }, &echo));
    }
    let udp = Packet { protocol: Protocol::Udp, ..packet() };
    assert!(
        holds(&Match::Protocol(Protocol::Tcp), &packet()) && !holds(&Match::Protocol(Protocol::Tcp), &udp)
    );
}

/// Neither do their opposites hold.
#[test]
fn what_fits_no_connection_has_no_original_destination() {
    let stray = Packet { state: State::Invalid, reply: true, ..packet() };
    for not in [false, true] {
        let net = "10.0.0.2/32".parse().unwrap();
        assert!(!holds(&Match::OriginalDestination { net, not }, &stray));
        let ports = Match::OriginalPort { ports: Ports::One(80), not };
        let rules = vec![rule(vec![Match::Protocol(Protocol::Tcp), ports], Action::Drop)];
        assert_eq!(verdict(&filter(vec![output(rules)]), &stray), Verdict::Pass);
    }
    assert!(!holds(&Match::Reply, &stray));
}

#[test]
fn all_matches_of_a_rule_must_hold() {
    let both = |port| {
        let port = Match::DestinationPort { ports: Ports::One(port), not: false };
        filter(vec![output(vec![rule(vec![Match::Protocol(Protocol::Tcp), port], Action::Drop)])])
    };
    assert_eq!(verdict(&both(80), &packet()), Verdict::Drop);
    assert_eq!(verdict(&both(81), &packet()), Verdict::Pass);
}

#[test]
fn a_rule_with_addresses_is_for_its_family() {
    let not_there = Match::Destination { net: "192.0.2.0/24".parse().unwrap(), not: true };
    assert!(holds(&not_there, &packet()));
    assert!(!holds(&not_there, &packet_v6()), "an IPv6 packet is not outside of an IPv4 range");
    for (only, v4, v6) in [(Family::V4, true, false), (Family::V6, false, true)] {
        let rules = vec![Rule { families: Families::Only(only), ..rule(vec![], Action::Drop) }];
        let ruleset = filter(vec![output(rules)]);
        assert_eq!(verdict(&ruleset, &packet()) == Verdict::Drop, v4);
        assert_eq!(verdict(&ruleset, &packet_v6()) == Verdict::Drop, v6);
    }
}

#[test]
fn without_ipv6_only_nftables_sees_its_packets() {
    let mut ruleset = filter(vec![output(vec![rule(vec![], Action::Drop)])]);
    ruleset.ipv6 = false;
    for (backend, expected) in [(Backend::Nftables, Verdict::Drop), (Backend::Iptables, Verdict::Pass)] {
        let outcome = evaluate(from_ref(&ruleset), backend, &packet_v6(), Hook::Output, true, &NoMembers);
        assert_eq!((outcome.verdict, outcome.trace.is_empty()), (expected, expected == Verdict::Pass));
        assert_eq!(
            evaluate(from_ref(&ruleset), backend, &packet(), Hook::Output, true, &NoMembers).verdict,
            Verdict::Drop
        );
    }
}

#[test]
fn a_packet_without_a_socket_has_an_owner_for_iptables_only() {
    let kernels_own = Packet { owner: None, ..packet() };
    for (not, backend, expected) in [
        (false, Backend::Nftables, false),
        (true, Backend::Nftables, false),
        (false, Backend::Iptables, false),
        (true, Backend::Iptables, true),
    ] {
        for m in [Match::Uid { uid: 1, not }, Match::Gid { gid: 1, not }] {
            let ruleset = filter(vec![output(vec![rule(vec![m], Action::Drop)])]);
            let found = evaluate(from_ref(&ruleset), backend, &kernels_own, Hook::Output, true, &NoMembers)
                .verdict
                == Verdict::Drop;
            assert_eq!(found, expected, "not {not} {backend}");
        }
    }
}

#[test]
fn sets_hold_prefixes_of_one_family() {
    let set = |name: &'static str, family, nets: &[&str]| {
        let nets = nets.iter().map(|net| Key::from(net.parse::<ipnet::IpNet>().unwrap()));
        Set::fixed(name, KeyType::Prefix(family), nets)
    };
    let four = set("four", Family::V4, &["10.0.0.0/24", "192.0.2.1/32"]);
    let six = set("six", Family::V6, &["fd00::/64"]);
    let with = |m| {
        let mut ruleset = filter(vec![output(vec![rule(vec![m], Action::Drop)])]);
        ruleset.tables[0].sets = vec![four.clone(), six.clone()];
        ruleset
    };
    let to = |set: &'static str, family, not| {
        with(Match::DestinationIn { set: set.into(), keys: KeyType::Prefix(family), not })
    };
    let from = |set: &'static str, family, not| {
        with(Match::SourceIn { set: set.into(), keys: KeyType::Prefix(family), not })
    };
    for (ruleset, packet, expected) in [
        (to("four", Family::V4, false), packet(), true),
        (to("four", Family::V4, true), packet(), false),
        (to("four", Family::V4, false), packet_v6(), false),
        (to("four", Family::V4, true), packet_v6(), false),
        (to("six", Family::V6, false), packet_v6(), true),
        (from("four", Family::V4, false), packet(), true),
        (from("four", Family::V4, false), Packet { source: [192, 0, 2, 1].into(), ..packet() }, true),
        (from("four", Family::V4, false), Packet { source: [192, 0, 2, 2].into(), ..packet() }, false),
        (from("gone", Family::V4, false), packet(), false),
    ] {
        assert_eq!(verdict(&ruleset, &packet) == Verdict::Drop, expected, "{ruleset:?} {packet:?}");
    }
}

#[test]
fn marks_change_for_later_rules_and_stay() {
    let marked = |mark| Match::Mark { mark, mask: ALL_BITS, not: false };
    let ct_marked = |mark| Match::CtMark { mark, mask: ALL_BITS, not: false };
    for (rules, mark, ct_mark) in [
        (vec![rule(vec![], Action::SetMark(1))], 1, 9),
        (vec![rule(vec![], Action::SetMark(1)), rule(vec![marked(1)], Action::SetMark(2))], 2, 9),
        (vec![rule(vec![], Action::SetMark(1)), rule(vec![marked(7)], Action::SetMark(2))], 1, 9),
        (vec![rule(vec![], Action::SaveMark)], 7, 7),
        (vec![rule(vec![], Action::SetCtMark { mark: 0x10, mask: 0xf8 })], 7, 0x11),
        (vec![rule(vec![], Action::RestoreMark)], 9, 9),
        (vec![rule(vec![], Action::SaveMark), rule(vec![ct_marked(7)], Action::SetMark(3))], 3, 7),
        (vec![rule(vec![], Action::Tproxy { port: 15006, mark: 5 })], 5, 9),
    ] {
        let ruleset = filter(vec![output(rules)]);
        let found = outcome(&ruleset, &packet());
        assert_eq!((found.mark, found.ct_mark), (mark, ct_mark), "{:?}", found.trace);
    }
}

#[test]
fn marks_are_carried_from_table_to_table() {
    let see = rule(vec![Match::Mark { mark: 1, mask: ALL_BITS, not: false }], Action::Drop);
    let ruleset = ruleset(vec![
        (TableKind::Filter, vec![base(Hook::Output, 0, vec![see])]),
        (TableKind::Mangle, vec![base(Hook::Output, -150, vec![rule(vec![], Action::SetMark(1))])]),
    ]);
    assert_eq!(verdict(&ruleset, &packet()), Verdict::Drop, "the priority orders tables, not their place");
}

#[test]
fn a_log_goes_on_and_a_reject_ends() {
    let log = || Action::Log { group: 1, prefix: "a".into(), limit: Some(Limit { per_second: 1, burst: 1 }) };
    let rules =
        vec![rule(vec![], log()), rule(vec![], Action::Reject(RejectWith::TcpReset)), rule(vec![], log())];
    let ruleset = ruleset(vec![
        (TableKind::Filter, vec![base(Hook::Output, 0, rules)]),
        (TableKind::Nat, vec![base(Hook::Output, 100, vec![rule(vec![], log())])]),
    ]);
    let found = outcome(&ruleset, &packet());
    assert_eq!((found.verdict, found.trace.len()), (Verdict::Reject(RejectWith::TcpReset), 2));
    assert_eq!(found.decided_by.map(|place| place.index), Some(1));
}

#[test]
fn the_first_zone_counts() {
    let zones = |rules: Vec<u16>| {
        filter(vec![output(rules.into_iter().map(|zone| rule(vec![], Action::SetZone(zone))).collect())])
    };
    assert_eq!(outcome(&zones(vec![]), &packet()).zone, None);
    assert_eq!(outcome(&zones(vec![1, 2]), &packet()).zone, Some(1));
}

#[test]
fn return_goes_back_to_the_rule_after_the_jump() {
    let ruleset = filter(vec![
        output(vec![
            jump("one"),
            rule(vec![], Action::SetMark(2)),
            rule(vec![], Action::Return),
            rule(vec![], Action::Drop),
        ]),
        regular(
            "one",
            vec![rule(vec![], Action::SetMark(1)), rule(vec![], Action::Return), rule(vec![], Action::Drop)],
        ),
    ]);
    let found = outcome(&ruleset, &packet());
    assert_eq!((found.verdict, found.mark), (Verdict::Pass, 2));
    let at: Vec<_> = found.trace.iter().map(|place| (place.chain.name.as_ref(), place.index)).collect();
    assert_eq!(at, [("output", 0), ("one", 0), ("one", 1), ("output", 1), ("output", 2)]);
    let decided = found.decided_by.unwrap();
    assert_eq!(
        (decided.chain.name.as_ref(), decided.index),
        ("output", 2),
        "the last that ended a chain early"
    );
}

#[test]
fn a_chain_that_ends_goes_back_too() {
    let ruleset = filter(vec![output(vec![jump("one"), rule(vec![], Action::Drop)]), regular("one", vec![])]);
    assert_eq!(verdict(&ruleset, &packet()), Verdict::Drop);
}

#[test]
fn accept_ends_its_table_only() {
    let accept = || vec![jump("one"), rule(vec![], Action::Drop)];
    let one = || regular("one", vec![rule(vec![], Action::Accept)]);
    assert_eq!(verdict(&filter(vec![output(accept()), one()]), &packet()), Verdict::Pass);
    let later = ruleset(vec![
        (TableKind::Raw, vec![base(Hook::Output, -300, accept()), one()]),
        (TableKind::Filter, vec![output(vec![rule(vec![], Action::Drop)])]),
    ]);
    assert_eq!(verdict(&later, &packet()), Verdict::Drop);
}

#[test]
fn a_verdict_in_a_called_chain_is_final() {
    for (action, expected) in [
        (Action::Drop, Verdict::Drop),
        (Action::Redirect { port: 15001 }, Verdict::Redirect { port: 15001 }),
        (Action::Tproxy { port: 15006, mark: 1 }, Verdict::Tproxy { port: 15006 }),
    ] {
        let ruleset = filter(vec![
            output(vec![jump("one"), rule(vec![], Action::Redirect { port: 1 })]),
            regular("one", vec![jump("two"), rule(vec![], Action::Redirect { port: 2 })]),
            regular("two", vec![rule(vec![], action)]),
        ]);
        let found = outcome(&ruleset, &packet());
        assert_eq!(found.verdict, expected);
        assert_eq!(found.decided_by.unwrap().chain.name, "two");
    }
}

#[test]
fn a_drop_is_the_end_of_all_tables() {
    let ruleset = ruleset(vec![
        (TableKind::Raw, vec![base(Hook::Output, -300, vec![rule(vec![], Action::Drop)])]),
        (TableKind::Mangle, vec![base(Hook::Output, -150, vec![rule(vec![], Action::SetMark(1))])]),
    ]);
    let found = outcome(&ruleset, &packet());
    assert_eq!((found.verdict, found.mark, found.trace.len()), (Verdict::Drop, 7, 1));
}

/// nf_tables goes on with the next rule, and the mark is not set; with iptables the packet is gone.
#[test]
fn a_tproxy_rule_without_a_listener_does_what_the_backend_does() {
    let tproxy = || rule(vec![], Action::Tproxy { port: 15006, mark: 1 });
    let unheard = Packet { listening: false, ..packet() };
    let then = |next| filter(vec![output(vec![tproxy(), next])]);
    for (next, verdict) in [(Action::Drop, Verdict::Drop), (Action::Accept, Verdict::Pass)] {
        let ruleset = then(rule(vec![], next));
        let nft = evaluate(from_ref(&ruleset), Backend::Nftables, &unheard, Hook::Output, true, &NoMembers);
        assert_eq!((nft.verdict, nft.mark, nft.decided_by.map(|place| place.index)), (verdict, 7, Some(1)));
        assert_eq!(nft.trace.len(), 1);
        let iptables =
            evaluate(from_ref(&ruleset), Backend::Iptables, &unheard, Hook::Output, true, &NoMembers);
        assert_eq!((iptables.verdict, iptables.mark), (Verdict::Drop, 7));
        assert_eq!(iptables.decided_by.map(|place| place.index), Some(0));
        for backend in [Backend::Nftables, Backend::Iptables] {
            let heard = evaluate(from_ref(&ruleset), backend, &packet(), Hook::Output, true, &NoMembers);
            assert_eq!((heard.verdict, heard.mark), (Verdict::Tproxy { port: 15006 }, 1));
        }
    }
}

#[test]
fn a_packet_that_has_a_socket_is_not_redirected_any_more() {
    let ruleset = ruleset(vec![
        (
            TableKind::Nat,
            vec![base(Hook::Output, -100, vec![rule(vec![], Action::Redirect { port: 15001 })])],
        ),
        (
            TableKind::Mangle,
            vec![base(Hook::Output, -150, vec![rule(vec![], Action::Tproxy { port: 15006, mark: 1 })])],
        ),
    ]);
    assert_eq!(verdict(&ruleset, &packet()), Verdict::Tproxy { port: 15006 });
}

#[test]
fn nat_sees_first_packets_only() {
    let ruleset = ruleset(vec![(
        TableKind::Nat,
        vec![base(Hook::Output, -100, vec![rule(vec![], Action::Redirect { port: 15001 })])],
    )]);
    for (state, nat, seen) in [
        (State::New, true, true),
        (State::Related, true, true),
        (State::Established, true, false),
        (State::Invalid, true, false),
        (State::New, false, false),
    ] {
        let packet = Packet { state, ..packet() };
        let found =
            evaluate(from_ref(&ruleset), Backend::Nftables, &packet, Hook::Output, nat, &NoMembers).verdict;
        assert_eq!(found == Verdict::Redirect { port: 15001 }, seen, "{state:?} {nat}");
    }
}

#[test]
fn only_the_chains_of_the_hook_run() {
    let ruleset = filter(vec![
        output(vec![rule(vec![], Action::Drop)]),
        regular("unused", vec![rule(vec![], Action::Drop)]),
    ]);
    for (hook, expected) in
        [(Hook::Output, Verdict::Drop), (Hook::Prerouting, Verdict::Pass), (Hook::Input, Verdict::Pass)]
    {
        assert_eq!(
            evaluate(from_ref(&ruleset), Backend::Iptables, &packet(), hook, true, &NoMembers).verdict,
            expected,
            "{hook:?}"
        );
    }
    let nothing = Ruleset { tables: Vec::new(), ..ruleset };
    let found = outcome(&nothing, &packet());
    assert_eq!((found.verdict, found.decided_by, found.mark, found.ct_mark), (Verdict::Pass, None, 7, 9));
}

/// [`crate::check`] refuses these, but an evaluation must end all the same.
#[test]
fn circles_and_missing_chains_end() {
    let circle =
        filter(vec![output(vec![jump("a")]), regular("a", vec![jump("b")]), regular("b", vec![jump("a")])]);
    assert_eq!(verdict(&circle, &packet()), Verdict::Pass);
    let missing = filter(vec![output(vec![jump("gone"), rule(vec![], Action::Drop)])]);
    assert_eq!(verdict(&missing, &packet()), Verdict::Drop);
}

#[test]
fn a_source_is_changed_for_members_of_a_kept_set() {
    let to = IpAddr::from([169, 254, 7, 127]);
    let keys = KeyType::Address(Family::V4);
    let look_up = Match::DestinationIn { set: "pods".into(), keys, not: false };
    let snat = rule(vec![Match::LocalSocket, look_up], Action::Snat { to });
    let mut ruleset = ruleset(vec![(TableKind::Nat, vec![base(Hook::Postrouting, 100, vec![snat])])]);
    ruleset.tables[0].sets = vec![Set::kept("pods", keys)];
    let world = |set: &str| {
        let (mut world, mut delta) = (Contents::default(), SetDelta::default());
        delta.add(Key::from(packet().destination));
        world.apply(set, &delta);
        world
    };
    for (packet, set, expected) in [
        (packet(), "pods", Verdict::Snat { to }),
        (packet(), "others", Verdict::Pass),
        (Packet { destination: [10, 0, 0, 3].into(), ..packet() }, "pods", Verdict::Pass),
        (Packet { owner: None, ..packet() }, "pods", Verdict::Pass),
        (Packet { state: State::Established, ..packet() }, "pods", Verdict::Pass),
    ] {
        for backend in [Backend::Nftables, Backend::Iptables] {
            let outcome =
                evaluate(from_ref(&ruleset), backend, &packet, Hook::Postrouting, true, &world(set));
            assert_eq!(outcome.verdict, expected);
        }
    }
}

/// Prefixes, and addresses with protocol and port, of either end.
#[test]
fn kept_sets_answer_by_the_type_of_their_keys() {
    let endpoint = |address: [u8; 4], protocol, port| {
        Key::from(TransportAddress { address: address.into(), protocol, port })
    };
    let net = |text: &str| Key::from(text.parse::<ipnet::IpNet>().unwrap());
    let (prefix, port) = (KeyType::Prefix(Family::V4), KeyType::Endpoint(Family::V4));
    for (keys, side, member, expected) in [
        (prefix, Side::Destination, net("10.0.0.2/32"), true),
        (prefix, Side::Destination, net("0.0.0.0/0"), true),
        (prefix, Side::Source, net("10.0.0.0/30"), true),
        (prefix, Side::Source, net("10.0.0.2/31"), false),
        (prefix, Side::Source, net("::/0"), false),
        (port, Side::Destination, endpoint([10, 0, 0, 2], Protocol::Tcp, 80), true),
        (port, Side::Destination, endpoint([10, 0, 0, 2], Protocol::Udp, 80), false),
        (port, Side::Destination, endpoint([10, 0, 0, 2], Protocol::Tcp, 81), false),
        (port, Side::Destination, endpoint([10, 0, 0, 1], Protocol::Tcp, 80), false),
        (port, Side::Source, endpoint([10, 0, 0, 1], Protocol::Tcp, 40_000), true),
        (port, Side::Source, endpoint([10, 0, 0, 2], Protocol::Tcp, 80), false),
    ] {
        for not in [false, true] {
            let look_up = match side {
                Side::Source => Match::SourceIn { set: "s".into(), keys, not },
                Side::Destination => Match::DestinationIn { set: "s".into(), keys, not },
            };
            let mut ruleset = filter(vec![output(vec![rule(vec![look_up], Action::Drop)])]);
            ruleset.tables[0].sets = vec![Set::kept("s", keys)];
            let (mut world, mut delta) = (Contents::default(), SetDelta::default());
            delta.add(member);
            world.apply("s", &delta);
            let outcome =
                evaluate(from_ref(&ruleset), Backend::Nftables, &packet(), Hook::Output, true, &world);
            assert_eq!(outcome.verdict == Verdict::Drop, expected != not, "{keys:?} {side:?} {member:?}");
        }
    }
}

/// A verdict map does what it says of a key, and nothing of what is not in it, whether the plan or somebody else says what is in it.
#[test]
fn a_verdict_map_leads_to_chains_and_verdicts() {
    let keys = KeyType::Address(Family::V4);
    let lookup = Action::VerdictMap { map: "m".into(), keys, side: Side::Destination };
    let mark = |mark| rule(vec![], Action::SetMark(mark));
    let dropped = regular("dropped", vec![rule(vec![], Action::Drop)]);
    let marked = regular("marked", vec![mark(1)]);
    let called = regular("called", vec![rule(vec![], lookup), mark(2)]);
    let ruleset = |set: Set| {
        let chains = vec![
            output(vec![jump("called"), mark_if(2, 3)]),
            called.clone(),
            dropped.clone(),
            marked.clone(),
        ];
        let mut ruleset = filter(chains);
        ruleset.tables[0].sets = vec![set];
        ruleset
    };
    for (verdict, ends, mark) in [
        (None, Verdict::Pass, 3),
        (Some(MapVerdict::Accept), Verdict::Pass, 7),
        (Some(MapVerdict::Drop), Verdict::Drop, 7),
        (Some(MapVerdict::Jump("dropped".into())), Verdict::Drop, 7),
        (Some(MapVerdict::Jump("marked".into())), Verdict::Pass, 3),
        // Back to where the chain was called from: what follows in it is left out.
        (Some(MapVerdict::Goto("marked".into())), Verdict::Pass, 1),
        (Some(MapVerdict::Jump("gone".into())), Verdict::Pass, 3),
    ] {
        let element = Element { verdict: verdict.clone(), ..Key::from(packet().destination).into() };
        let (mut world, mut delta) = (Contents::default(), SetDelta::default());
        let mut fixed = Set::fixed("m", keys, []).to_verdicts();
        if verdict.is_some() {
            delta.add(element.clone());
            fixed.content = Content::Fixed(vec![element]);
        }
        world.apply("m", &delta);
        for set in [Set::kept("m", keys).to_verdicts(), fixed] {
            let ruleset = ruleset(set);
            let outcome =
                evaluate(from_ref(&ruleset), Backend::Nftables, &packet(), Hook::Output, true, &world);
            assert_eq!((outcome.verdict, outcome.mark), (ends, mark), "{verdict:?}");
            let met =
                outcome.trace.iter().any(|place| matches!(place.rule.action, Action::VerdictMap { .. }));
            assert_eq!(met, verdict.is_some());
        }
    }
}

fn mark_if(old: u32, new: u32) -> Rule {
    rule(vec![Match::Mark { mark: old, mask: ALL_BITS, not: false }], Action::SetMark(new))
}

fn layer(owner: &'static str, chains: Vec<Chain>) -> Ruleset {
    Ruleset { owner: owner.into(), ..filter(chains) }
}

/// Base chains of all layers run by priority, and where that is equal in the order of the layers.
#[test]
fn layers_run_by_priority_and_then_in_their_order() {
    let marked =
        |mark, next| rule(vec![Match::Mark { mark, mask: ALL_BITS, not: false }], Action::SetMark(next));
    let one = layer("one", vec![base(Hook::Output, 5, vec![marked(2, 3)])]);
    let two = layer("two", vec![base(Hook::Output, -5, vec![marked(7, 1)])]);
    let three = layer("three", vec![base(Hook::Output, 5, vec![marked(3, 4), marked(1, 2)])]);
    let four = layer(
        "four",
        vec![base(Hook::Output, 0, vec![marked(1, 2)]), base(Hook::Input, 5, vec![marked(4, 5)])],
    );
    let layers = [one, two, three, four];
    let outcome = evaluate(&layers, Backend::Nftables, &packet(), Hook::Output, true, &NoMembers);
    let met: Vec<(&str, u32)> = outcome.trace.iter().map(|place| (place.owner, place.index as u32)).collect();
    assert_eq!((outcome.mark, met), (4, vec![("two", 0), ("four", 0), ("one", 0), ("three", 0)]));
}

/// In nf_tables an end of one layer's chain says nothing of the next, but for a drop; a built-in chain of iptables is shared.
#[test]
fn what_ends_a_chain_ends_what_shares_it() {
    let ends = |action| layer("one", vec![output(vec![rule(vec![], action)])]);
    let then = layer("two", vec![output(vec![rule(vec![], Action::SetMark(1))])]);
    let leads = {
        let mut leads = then.clone();
        leads.tables[0].chains[0].leading = 1;
        leads
    };
    for (action, shared) in
        [(Action::Return, 7), (Action::Accept, 7), (Action::Jump("x".into()), 1), (Action::SetMark(9), 1)]
    {
        for (second, in_iptables) in
            [(&then, shared), (&leads, if action == Action::SetMark(9) { 9 } else { 1 })]
        {
            let layers = [ends(action.clone()), second.clone()];
            let mark = |backend| evaluate(&layers, backend, &packet(), Hook::Output, true, &NoMembers).mark;
            assert_eq!((mark(Backend::Nftables), mark(Backend::Iptables)), (1, in_iptables), "{action:?}");
        }
    }
    let dropped = [ends(Action::Drop), then];
    for backend in [Backend::Nftables, Backend::Iptables] {
        let outcome = evaluate(&dropped, backend, &packet(), Hook::Output, true, &NoMembers);
        assert_eq!((outcome.verdict, outcome.mark), (Verdict::Drop, 7));
        assert_eq!(outcome.decided_by.map(|place| place.owner), Some("one"));
    }
}

/// A connection is translated once in a direction, and chains behind the translation see its result.
#[test]
fn of_two_layers_that_redirect_the_first_does() {
    let nat = |owner: &'static str, port| {
        let rules = vec![rule(vec![Match::Protocol(Protocol::Tcp)], Action::Redirect { port })];
        Ruleset {
            owner: owner.into(),
            ..ruleset(vec![(TableKind::Nat, vec![base(Hook::Output, -100, rules)])])
        }
    };
    let to_port = Match::DestinationPort { ports: Ports::One(15001), not: false };
    let to_self = Match::Destination { net: "127.0.0.1/32".parse().unwrap(), not: false };
    let behind = rule(vec![Match::Protocol(Protocol::Tcp), to_self, to_port], Action::SetMark(1));
    let layers = [nat("one", 15001), nat("two", 15002), layer("three", vec![output(vec![behind])])];
    for backend in [Backend::Nftables, Backend::Iptables] {
        let outcome = evaluate(&layers, backend, &packet(), Hook::Output, true, &NoMembers);
        assert_eq!((outcome.verdict, outcome.mark), (Verdict::Redirect { port: 15001 }, 1), "{backend}");
        assert_eq!(outcome.decided_by.map(|place| place.owner), Some("one"));
    }
}
