use std::borrow::Cow;

use super::*;

use crate::rule::{
    Base, Chain, ChainKind, Families, Family, Hook, Limit, Match, Ports, Protocol, RejectWith, Rule,
    TableKind,
};
use crate::set::{Content, Element, Key, KeyType, MapVerdict, Set, Side, TransportAddress};

fn rule(matches: Vec<Match>, action: Action) -> Rule {
    Rule::new(matches, action, "a test")
}

fn jump(target: impl Into<Cow<'static, str>>) -> Rule {
    rule(vec![], Action::Jump(target.into()))
}

fn chain(name: impl Into<Cow<'static, str>>, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base: None, rules, leading: 0 }
}

fn output(rules: Vec<Rule>) -> Chain {
    let base = Base { kind: ChainKind::Filter, hook: Hook::Output, priority: 0 };
    Chain { base: Some(base), ..chain("output", rules) }
}

fn table(kind: TableKind, chains: Vec<Chain>) -> Table {
    let sets = vec![
        Set::fixed("istio-four", KeyType::Address(Family::V4), []),
        Set::kept("six", KeyType::Address(Family::V6)),
        Set::kept("map", KeyType::Address(Family::V4)).to_verdicts(),
    ];
    Table { kind, sets, chains }
}

fn ruleset(tables: Vec<Table>) -> Ruleset {
    Ruleset { owner: "test".into(), known_chains: Vec::new().into(), ipv6: true, tables }
}

fn refused(chains: Vec<Chain>) -> String {
    check(&ruleset(vec![table(TableKind::Nat, chains)])).expect_err("not valid").to_string()
}

fn port(ports: Ports) -> Match {
    Match::DestinationPort { ports, not: false }
}

const TCP: Match = Match::Protocol(Protocol::Tcp);
const SCTP: Match = Match::Protocol(Protocol::Sctp);
const ICMP: Match = Match::Protocol(Protocol::Icmp);

#[test]
fn base_chains_are_named_by_their_hooks() {
    let Chain { base, .. } = output(vec![]);
    let error = refused(vec![Chain { base, ..chain("early", vec![]) }]);
    let wanted = "the base chain \"early\" of table nat is at the hook output and must have its name, or end with \"-late\" and have a greater priority";
    assert_eq!(error, wanted);
}

#[test]
fn what_is_valid() {
    let v4 = Match::Destination { net: "10.0.0.0/8".parse().unwrap(), not: false };
    let six = Match::SourceIn { set: "six".into(), keys: KeyType::Address(Family::V6), not: false };
    let chains = vec![
        output(vec![jump("istio-a"), jump("istio-b")]),
        chain(
            "istio-a",
            vec![jump("istio-b"), rule(vec![TCP, port(Ports::AnyOf(vec![53, 80]))], Action::Return)],
        ),
        chain(
            "istio-b",
            vec![rule(vec![v4, TCP], Action::Tproxy { port: 1, mark: 1 }), rule(vec![six], Action::Drop)],
        ),
    ];
    // Chains of two tables may have one name.
    let same_names = vec![
        table(TableKind::Nat, chains),
        Table { sets: vec![], ..table(TableKind::Mangle, vec![chain("istio-a", vec![])]) },
    ];
    assert_eq!(check(&ruleset(same_names)), Ok(()));
    assert_eq!(check(&ruleset(vec![])), Ok(()));
}

#[test]
fn jumps_lead_to_regular_chains_of_the_same_table() {
    assert_eq!(
        refused(vec![output(vec![rule(vec![], Action::Drop), jump("gone")])]),
        "rule 1 of nat/output jumps to chain \"gone\", which is no regular chain of that table"
    );
    assert!(
        refused(vec![output(vec![]), chain("istio-a", vec![jump("output")])])
            .contains("nat/istio-a jumps to chain \"output\"")
    );
    let elsewhere = ruleset(vec![
        table(TableKind::Nat, vec![output(vec![jump("istio-a")])]),
        table(TableKind::Raw, vec![chain("istio-a", vec![])]),
    ]);
    assert!(matches!(check(&elsewhere), Err(Invalid::Target { .. })));
}

#[test]
fn circles() {
    assert!(
        refused(vec![chain("istio-a", vec![jump("istio-a")])]).contains("in a circle through \"istio-a\"")
    );
    let three = vec![
        output(vec![jump("istio-a")]),
        chain("istio-a", vec![jump("istio-b")]),
        chain("istio-b", vec![rule(vec![], Action::Return), jump("istio-c")]),
        chain("istio-c", vec![jump("istio-a")]),
    ];
    assert!(refused(three).contains("in a circle"));
}

/// Each chain jumps twice to the next one: few chains, and more ways through them than can be walked.
#[test]
fn many_ways_are_checked_in_good_time() {
    let name = |number: u32| format!("istio-{number}");
    let next = |number: u32| vec![jump(name(number + 1)), jump(name(number + 1))];
    let chains = (0..28).map(|at| chain(name(at), if at < 27 { next(at) } else { vec![] }));
    let start = std::time::Instant::now();
    assert_eq!(check(&ruleset(vec![table(TableKind::Nat, chains.collect())])), Ok(()));
    assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
}

#[test]
fn names_of_chains_may_be_data_within_bounds() {
    let long = "istio-np-0123456789abcdef012";
    assert_eq!(check(&ruleset(vec![table(TableKind::Nat, vec![chain(long, vec![])])])), Ok(()));
    for name in
        [&*format!("{long}3"), "", "istio-A", "istio-a_b", "istio-a b", "istio-ä", "kube-a", "istio-\"a"]
    {
        let refused = refused(vec![chain(name.to_owned(), vec![])]);
        assert!(refused.starts_with("the name of chain"), "{name}: {refused}");
    }
}

#[test]
fn names_stand_once() {
    assert_eq!(
        refused(vec![chain("istio-a", vec![]), chain("istio-a", vec![])]),
        "istio-a in table nat stands twice"
    );
    assert_eq!(
        refused(vec![chain("istio-four", vec![])]),
        "istio-four in table nat stands twice",
        "chains and sets share them"
    );
    let twice = ruleset(vec![table(TableKind::Nat, vec![]), table(TableKind::Nat, vec![])]);
    assert_eq!(check(&twice).unwrap_err().to_string(), "table nat stands twice");
}

/// No backend takes one elsewhere, however the packet comes to it.
#[test]
fn rejects_stand_where_the_kernel_takes_them() {
    let at = |hook: Hook| {
        let base = Base { kind: ChainKind::Filter, hook, priority: 0 };
        Chain { base: Some(base), ..chain(hook.name(), vec![jump("istio-a")]) }
    };
    let rejects = || {
        let reject = rule(vec![], Action::Reject(RejectWith::PortUnreachable));
        vec![chain("istio-a", vec![jump("istio-b")]), chain("istio-b", vec![reject])]
    };
    let all = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
    for (kind, hook) in
        [TableKind::Filter, TableKind::Mangle].into_iter().flat_map(|kind| all.map(|hook| (kind, hook)))
    {
        let chains = [vec![at(hook)], rejects()].concat();
        let fits = kind == TableKind::Filter && matches!(hook, Hook::Input | Hook::Forward | Hook::Output);
        let problem = "a reject outside of the filter table's input, forward and output";
        let place = format!("{kind}/istio-b");
        let wrong = Invalid::Rule { place, index: 0, problem };
        let expected = if fits { Ok(()) } else { Err(wrong) };
        assert_eq!(check(&ruleset(vec![table(kind, chains.clone())])), expected, "{kind} {hook:?}");
        let problem = "a reject where packets leave";
        let wrong = Invalid::Rule { place: format!("{kind}/istio-b"), index: 0, problem };
        let expected = if hook == Hook::Postrouting { Err(wrong) } else { Ok(()) };
        let found = check_for(&ruleset(vec![table(kind, chains)]), Backend::Nftables);
        assert_eq!(found, expected, "nf_tables {kind} {hook:?}");
    }
}

#[test]
fn the_parts_of_a_rule_fit_together() {
    let v4 = || Match::Source { net: "10.0.0.0/8".parse().unwrap(), not: false };
    let v6 = || Match::Destination { net: "fd00::/8".parse().unwrap(), not: false };
    let keyed = |set: &'static str, keys| Match::DestinationIn { set: set.into(), keys, not: false };
    let in_set = |set: &'static str, family| keyed(set, KeyType::Address(family));
    let mapped = |map: &'static str, keys| {
        rule(vec![], Action::VerdictMap { map: map.into(), keys, side: Side::Source })
    };
    let four = KeyType::Address(Family::V4);
    let name = |name: &'static str| Match::OutInterface { name: name.into(), not: false };
    let plain = |matches| rule(matches, Action::Return);
    let original = |ports| Match::OriginalPort { ports, not: false };
    let echo = || Match::IcmpType { kind: 8, code: None };
    let log = |prefix: &str, limit: Option<(u32, u32)>| {
        let limit = limit.map(|(per_second, burst)| Limit { per_second, burst });
        rule(vec![], Action::Log { group: 1, prefix: prefix.to_owned().into(), limit })
    };
    for (bad, says) in [
        (plain(vec![v4(), v6()]), "a match of another family"),
        (Rule { families: Families::Both, ..plain(vec![v4()]) }, "a match of another family"),
        (plain(vec![TCP, Match::Protocol(Protocol::Udp)]), "two protocols"),
        (plain(vec![port(Ports::One(80))]), "without a protocol with ports before it"),
        (plain(vec![port(Ports::One(80)), TCP]), "without a protocol with ports before it"),
        (plain(vec![TCP, port(Ports::AnyOf(vec![]))]), "a port set that is empty"),
        (plain(vec![TCP, port(Ports::AnyOf(vec![80, 53]))]), "not sorted"),
        (plain(vec![TCP, port(Ports::AnyOf(vec![53, 53]))]), "has duplicates"),
        (plain(vec![TCP, port(Ports::AnyOf((1..=16).collect()))]), "longer than 15"),
        (plain(vec![TCP, port(Ports::One(1)), port(Ports::One(1))]), "two matches of one port"),
        (plain(vec![TCP, port(Ports::Range(90, 80))]), "does not ascend"),
        (plain(vec![TCP, port(Ports::Range(80, 80))]), "does not ascend"),
        (plain(vec![TCP, port(Ports::Range(0, 65535))]), "a range of all ports"),
        (plain(vec![ICMP, port(Ports::One(80))]), "without a protocol with ports before it"),
        (plain(vec![original(Ports::One(80)), TCP]), "without a protocol with ports before it"),
        (plain(vec![TCP, original(Ports::AnyOf(vec![80, 90]))]), "a set of original ports"),
        (plain(vec![TCP, original(Ports::Range(90, 80))]), "does not ascend"),
        (plain(vec![echo(), ICMP]), "a type of ICMP without that protocol before it"),
        (plain(vec![TCP, echo()]), "a type of ICMP without that protocol before it"),
        (plain(vec![v6(), Match::Protocol(Protocol::Icmp)]), "a match of another family"),
        (Rule { families: Families::Both, ..plain(vec![ICMP, echo()]) }, "a match of another family"),
        (rule(vec![], Action::Reject(RejectWith::TcpReset)), "a TCP reset without TCP"),
        (rule(vec![SCTP], Action::Reject(RejectWith::TcpReset)), "a TCP reset without TCP"),
        (log("", None), "a log prefix that is empty"),
        (log(&"x".repeat(64), None), "longer than 63 bytes"),
        (log("a b", None), "more than letters, digits"),
        (log("a\"b", None), "more than letters, digits"),
        (log("ä", None), "more than letters, digits"),
        (log("a", Some((0, 1))), "a limit that iptables would round"),
        (log("a", Some((110, 1))), "a limit that iptables would round"),
        (log("a", Some((10_001, 1))), "a limit that iptables would round"),
        (log("a", Some((10, 0))), "a limit that iptables would round"),
        (log("a", Some((10, 10_001))), "a limit that iptables would round"),
        (plain(vec![]).counted_as("a b"), "the name of a counter"),
        (plain(vec![]).counted_as("A"), "the name of a counter"),
        (plain(vec![]).counted_as("1a"), "the name of a counter"),
        (plain(vec![]).counted_as(""), "the name of a counter"),
        (plain(vec![]).counted_as("a".repeat(64)), "the name of a counter"),
        (rule(vec![ICMP], Action::Redirect { port: 1 }), "redirect without a protocol"),
        (rule(vec![SCTP, v4()], Action::Tproxy { port: 1, mark: 1 }), "tproxy without TCP or UDP"),
        (plain(vec![name("")]), "an interface name that is empty"),
        (plain(vec![name("abcdefghijklmnop")]), "longer than 15 bytes"),
        (plain(vec![name("eth 0")]), "an interface name with blanks"),
        (plain(vec![name("eth0\n-A")]), "an interface name with blanks"),
        (plain(vec![name("a/b")]), "slashes or quotes"),
        (plain(vec![name("a\"b")]), "slashes or quotes"),
        (plain(vec![in_set("gone", Family::V4)]), "a set that the table does not have"),
        (plain(vec![in_set("six", Family::V4)]), "a set of the other family"),
        (plain(vec![in_set("istio-four", Family::V6)]), "a set of the other family"),
        (plain(vec![keyed("istio-four", KeyType::Prefix(Family::V4))]), "a set with keys of another type"),
        (plain(vec![in_set("map", Family::V4)]), "a look-up in a verdict map as in a set"),
        (mapped("gone", four), "a verdict map that the table does not have"),
        (mapped("istio-four", four), "a verdict map that the table does not have"),
        (mapped("map", KeyType::Endpoint(Family::V4)), "a verdict map with keys of another type"),
        (Rule { families: Families::Both, ..mapped("map", four) }, "a verdict map of another family"),
        (rule(vec![], Action::Redirect { port: 1 }), "redirect without a protocol"),
        (rule(vec![v4()], Action::Tproxy { port: 1, mark: 1 }), "tproxy without TCP or UDP"),
        (rule(vec![TCP], Action::Tproxy { port: 1, mark: 1 }), "tproxy for both families"),
        (plain(vec![Match::Mark { mark: 0x1000, mask: 0xfff, not: false }]), "bits outside of its mask"),
        (rule(vec![], Action::SetCtMark { mark: 2, mask: 1 }), "bits outside of its mask"),
        (plain(vec![Match::WholeHeader]), "without a protocol with ports before it"),
        (rule(vec![TCP], Action::Snat { to: [10, 0, 0, 1].into() }), "source address of another family"),
        (rule(vec![v6()], Action::Snat { to: [10, 0, 0, 1].into() }), "source address of another family"),
    ] {
        let error = refused(vec![output(vec![plain(vec![]), bad.clone()])]);
        assert!(error.starts_with("rule 1 of nat/output: ") && error.contains(says), "{bad:?}: {error}");
    }
}

#[test]
fn the_parts_of_a_set_fit_together() {
    let (address, prefix) = (KeyType::Address(Family::V4), KeyType::Prefix(Family::V4));
    let key = Key::from(std::net::IpAddr::from([10, 0, 0, 1]));
    let icmp = TransportAddress { address: [10, 0, 0, 1].into(), protocol: Protocol::Icmp, port: 8 }.into();
    let to = |chain: &'static str| Element { verdict: Some(MapVerdict::Jump(chain.into())), ..key.into() };
    let map = |elements| Set { content: Content::Fixed(elements), ..Set::kept("set", address).to_verdicts() };
    for (set, says) in [
        (Set::kept("", address), "a name that is empty"),
        (Set::kept("n".repeat(32), address), "longer than 31 bytes"),
        (Set::kept("a b", address), "more than letters"),
        (Set::kept("set", prefix).to_verdicts(), "a verdict map of prefixes"),
        (Set::fixed("set", prefix, [key]), "an element of another type"),
        (Set::fixed("set", KeyType::Address(Family::V6), [key]), "an element of another type"),
        (Set::fixed("set", address, [key, key]), "an element that stands twice"),
        (Set::fixed("set", KeyType::Endpoint(Family::V4), [icmp]), "a protocol that has none"),
        (
            Set { content: Content::Fixed(vec![to("istio-a")]), ..Set::kept("set", address) },
            "a verdict in a plain set",
        ),
        (map(vec![key.into()]), "none in a verdict map"),
        (map(vec![to("gone")]), "no regular chain"),
        (map(vec![to("output")]), "no regular chain"),
    ] {
        let table = Table {
            sets: vec![set.clone()],
            ..table(TableKind::Nat, vec![output(vec![]), chain("istio-a", vec![])])
        };
        let error = check(&ruleset(vec![table])).expect_err("not valid").to_string();
        assert!(
            error.starts_with(&format!("set nat/{}: ", set.name)) && error.contains(says),
            "{set:?}: {error}"
        );
    }
    let named = |kind| Table { sets: vec![Set::kept("set", address)], ..table(kind, vec![]) };
    let twice = ruleset(vec![named(TableKind::Nat), named(TableKind::Filter)]);
    assert_eq!(check(&twice).unwrap_err().to_string(), "set set stands twice");
    let lookup = Action::VerdictMap { map: "set".into(), keys: address, side: Side::Source };
    let chains = vec![output(vec![jump("istio-a")]), chain("istio-a", vec![rule(vec![], lookup)])];
    let circle = Table { sets: vec![map(vec![to("istio-a")])], ..table(TableKind::Nat, chains) };
    let error = check(&ruleset(vec![circle])).unwrap_err().to_string();
    assert!(error.contains("in a circle through \"istio-a\""), "{error}");
}
