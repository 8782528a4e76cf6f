use super::*;

use crate::Backend;
use crate::eval::Owner;
use crate::rule::{
    ALL_BITS, Action, Base, Chain, ChainKind, Family, Match, Ports, Protocol, Rule, Ruleset, Table, TableKind,
};
use crate::set::NoMembers;

const MARK: u32 = 0x111;

fn rule(matches: Vec<Match>, action: Action) -> Rule {
    Rule::new([vec![Match::Protocol(Protocol::Tcp)], matches].concat(), action, "a test")
}

/// A layer with one table; its base chains by hook.
fn layer(owner: &'static str, kind: TableKind, chains: Vec<(Hook, Vec<Rule>)>) -> Ruleset {
    let chain = |(hook, rules): (Hook, _)| {
        let base = Base { kind: ChainKind::Filter, hook, priority: kind.priority(hook) };
        Chain { name: hook.name().into(), base: Some(base), rules, leading: 0 }
    };
    let tables = vec![Table { kind, sets: Vec::new(), chains: chains.into_iter().map(chain).collect() }];
    Ruleset { owner: owner.into(), known_chains: Vec::new().into(), ipv6: true, tables }
}

fn sent() -> Packet {
    let (source, destination) = (([10, 0, 0, 1], 40_000).into(), ([10, 0, 0, 2], 80).into());
    Packet {
        out_interface: "eth0".to_owned(),
        owner: Some(Owner { uid: 1, gid: 1 }),
        ..Packet::new(Protocol::Tcp, source, destination)
    }
}

fn arriving() -> Packet {
    let packet = Packet { owner: None, out_interface: String::new(), ..sent() };
    Packet { in_interface: "eth0".to_owned(), ..packet }
}

fn plan(layers: Vec<Ruleset>) -> Plan {
    Plan { backend: Backend::Nftables, routing: Vec::new(), layers }
}

fn path(plan: &Plan, packet: Packet) -> Path<'_> {
    follow(plan, packet, &NoMembers)
}

fn hooks(path: &Path<'_>) -> Vec<Hook> {
    path.stops.iter().map(|stop| stop.hook).collect()
}

#[test]
fn a_packet_passes_the_hooks_of_its_way() {
    use Hook::{Forward, Input, Output, Postrouting, Prerouting};
    let to_self = Packet { out_interface: "lo".to_owned(), ..sent() };
    let passing = Packet { out_interface: "eth1".to_owned(), ..arriving() };
    let here = End::Socket { port: 80 };
    let cases = [
        (sent(), vec![Output, Postrouting], End::Left),
        (arriving(), vec![Prerouting, Input], here),
        (passing, vec![Prerouting, Forward, Postrouting], End::Left),
        (to_self, vec![Output, Postrouting, Prerouting, Input], here),
    ];
    for (packet, expected, end) in cases {
        let plan = plan(Vec::new());
        let path = path(&plan, packet);
        assert_eq!((hooks(&path), path.end), (expected, end));
    }
    for hook in [Output, Postrouting, Prerouting, Input] {
        let plan =
            plan(vec![layer("one", TableKind::Filter, vec![(hook, vec![rule(vec![], Action::Drop)])])]);
        let path = path(&plan, Packet { out_interface: "lo".to_owned(), ..sent() });
        assert_eq!(
            (path.end, path.verdict(), path.stops.last().map(|stop| stop.hook)),
            (End::Gone, Verdict::Drop, Some(hook))
        );
    }
}

/// The second half of the loopback: marks stay, the socket does not, and what was translated is not translated again.
#[test]
fn a_redirected_packet_arrives_again_with_its_marks() {
    let redirect = |port| rule(vec![], Action::Redirect { port });
    let marks =
        vec![rule(vec![], Action::SetCtMark { mark: 2, mask: ALL_BITS }), rule(vec![], Action::SetMark(1))];
    let seen = [
        Match::Mark { mark: 1, mask: ALL_BITS, not: false },
        Match::CtMark { mark: 2, mask: ALL_BITS, not: false },
        Match::InInterface { name: "lo".into(), not: false },
        Match::Destination { net: "127.0.0.1/32".parse().unwrap(), not: false },
        Match::DestinationPort { ports: Ports::One(15001), not: false },
        Match::OriginalDestination { net: "10.0.0.2/32".parse().unwrap(), not: false },
    ];
    let owned = rule(vec![Match::LocalSocket], Action::SetMark(9));
    let plan = plan(vec![
        layer("one", TableKind::Mangle, vec![(Hook::Output, marks), (Hook::Prerouting, vec![owned])]),
        layer(
            "two",
            TableKind::Nat,
            vec![(Hook::Output, vec![redirect(15001)]), (Hook::Prerouting, vec![redirect(15006)])],
        ),
        layer("three", TableKind::Filter, vec![(Hook::Input, vec![rule(seen.to_vec(), Action::SetMark(3))])]),
    ]);
    let path = path(&plan, sent());
    assert_eq!(hooks(&path), [Hook::Output, Hook::Postrouting, Hook::Prerouting, Hook::Input]);
    assert_eq!((path.end, path.verdict()), (End::Socket { port: 15001 }, Verdict::Redirect { port: 15001 }));
    assert_eq!((path.packet.mark, path.packet.ct_mark, path.packet.owner), (3, 2, None));
    let deciders: Vec<Option<&str>> =
        path.stops.iter().map(|stop| stop.outcome.decided_by.map(|place| place.owner)).collect();
    assert_eq!(deciders, [Some("two"), None, None, None]);
    let trace: Vec<(Hook, &str)> = path.trace().map(|(hook, place)| (hook, place.owner)).collect();
    let output = [(Hook::Output, "one"), (Hook::Output, "one"), (Hook::Output, "two")];
    assert_eq!(trace, [&output[..], &[(Hook::Input, "three")]].concat());
}

#[test]
fn a_mark_that_is_routed_here_leads_back() {
    let mark = vec![rule(vec![], Action::SetMark(MARK))];
    let layers = vec![layer("one", TableKind::Mangle, vec![(Hook::Output, mark)])];
    let routing = |mark, family| vec![Routing::Rule { family, mark, mask: 0xfff, table: 100, priority: 1 }];
    for (routing, end) in [
        (routing(MARK, Family::V4), End::Socket { port: 80 }),
        (routing(MARK, Family::V6), End::Left),
        (routing(1, Family::V4), End::Left),
    ] {
        let plan = Plan { routing, ..plan(layers.clone()) };
        let path = path(&plan, sent());
        assert_eq!((path.end, path.packet.mark), (end, MARK));
    }
}

/// Layers before and behind the translation of what arrives: the one sees the port that was asked for, the other that of the proxy.
#[test]
fn layers_around_a_translation_see_what_it_does() {
    let port = |port| Match::DestinationPort { ports: Ports::One(port), not: false };
    let redirect = vec![rule(vec![], Action::Redirect { port: 15006 })];
    let policy =
        |hook, of| layer("policy", TableKind::Raw, vec![(hook, vec![rule(vec![port(of)], Action::Drop)])]);
    let capture = || layer("capture", TableKind::Nat, vec![(Hook::Prerouting, redirect.clone())]);
    for (hook, of, end) in [
        (Hook::Prerouting, 80, End::Gone),
        (Hook::Prerouting, 15006, End::Socket { port: 15006 }),
        (Hook::Input, 80, End::Socket { port: 15006 }),
        (Hook::Input, 15006, End::Gone),
    ] {
        let plan = plan(vec![capture(), policy(hook, of)]);
        let path = path(&plan, arriving());
        assert_eq!(path.end, end, "{hook:?} {of}");
        let (place, _) = path.decided_by().unwrap();
        assert_eq!(place.owner, if end == End::Gone { "policy" } else { "capture" });
    }
}

/// The rules by whose jumps a packet came to the one that decides, and no other jump.
#[test]
fn the_way_to_a_rule_is_told() {
    let jump = |to: &'static str| rule(vec![], Action::Jump(to.into()));
    let own = |name: &'static str, rules| Chain { name: name.into(), base: None, rules, leading: 0 };
    let mut one = layer("one", TableKind::Filter, vec![(Hook::Output, vec![jump("a")])]);
    one.tables[0].chains.extend([
        own("a", vec![jump("b"), jump("c")]),
        own("b", vec![rule(vec![], Action::SetMark(1))]),
        own("c", vec![jump("b"), rule(vec![], Action::Drop)]),
    ]);
    let plan = plan(vec![one]);
    let path = path(&plan, sent());
    let (place, callers) = path.decided_by().unwrap();
    assert_eq!((&*place.chain.name, place.index), ("c", 1));
    let callers: Vec<(&str, usize)> = callers.iter().map(|place| (&*place.chain.name, place.index)).collect();
    assert_eq!(callers, [("output", 0), ("a", 1)]);
}
