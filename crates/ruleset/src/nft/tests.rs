use super::*;
use crate::rule::ChainKind;
use crate::set::{Content, TransportAddress};

use crate::rule::{CtState, Hook, TableKind};

fn text(matches: Vec<Match>, action: Action) -> String {
    render_rule(&Rule::new(matches, action, ""))
}

#[test]
fn each_match() {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let tcp = || Match::Protocol(Protocol::Tcp);
    let any = || Ports::AnyOf(vec![53, 15008]);
    for (matches, expected) in [
        (vec![Match::InInterface { name: "net1".into(), not: false }], "iifname \"net1\""),
        (vec![Match::OutInterface { name: "lo".into(), not: true }], "oifname != \"lo\""),
        (vec![Match::Protocol(Protocol::Udp)], "meta l4proto udp"),
        (vec![Match::Source { net: net("10.1.2.3/8"), not: false }], "ip saddr 10.1.2.3/8"),
        (vec![Match::Destination { net: net("fd00::/8"), not: true }], "ip6 daddr != fd00::/8"),
        (
            vec![Match::SourceIn { set: "s".into(), keys: KeyType::Address(Family::V4), not: false }],
            "ip saddr @s",
        ),
        (
            vec![Match::DestinationIn { set: "s".into(), keys: KeyType::Prefix(Family::V6), not: true }],
            "ip6 daddr != @s",
        ),
        (
            vec![Match::DestinationIn { set: "s".into(), keys: KeyType::Endpoint(Family::V4), not: false }],
            "ip daddr . meta l4proto . th dport @s",
        ),
        (
            vec![Match::SourceIn { set: "s".into(), keys: KeyType::Endpoint(Family::V6), not: true }],
            "ip6 saddr . meta l4proto . th sport != @s",
        ),
        (
            vec![tcp(), Match::SourcePort { ports: Ports::One(53), not: true }],
            "meta l4proto tcp tcp sport != 53",
        ),
        (
            vec![tcp(), Match::DestinationPort { ports: any(), not: true }],
            "meta l4proto tcp tcp dport != { 53, 15008 }",
        ),
        (vec![Match::Uid { uid: 1337, not: true }], "meta skuid != 1337"),
        (vec![Match::Gid { gid: 0, not: false }], "meta skgid 0"),
        (vec![Match::Mark { mark: 1337, mask: ALL_BITS, not: false }], "meta mark 1337"),
        (vec![Match::CtMark { mark: 1, mask: ALL_BITS, not: true }], "ct mark != 1"),
        (vec![Match::Mark { mark: 0x539, mask: 0xfff, not: true }], "meta mark & 0xfff != 0x539"),
        (vec![Match::CtMark { mark: 0x111, mask: 0xfff, not: false }], "ct mark & 0xfff == 0x111"),
        (vec![Match::LocalSocket], "meta skuid != 4294967295"),
        (vec![Match::OwnSource], "meta iif 0 fib saddr type local"),
        (vec![tcp(), Match::WholeHeader], "meta l4proto tcp"),
        (vec![Match::CtState(CtState::Invalid)], "ct state invalid"),
        (vec![Match::CtState(CtState::RelatedOrEstablished)], "ct state related,established"),
        (vec![Match::Reply, Match::CtState(CtState::Established)], "ct direction reply ct state established"),
        (
            vec![Match::Protocol(Protocol::Sctp), Match::SourcePort { ports: Ports::Range(1, 9), not: true }],
            "meta l4proto sctp sctp sport != 1-9",
        ),
        (
            vec![Match::OriginalDestination { net: net("10.0.0.0/8"), not: true }],
            "ct original ip daddr != 10.0.0.0/8",
        ),
        (
            vec![tcp(), Match::OriginalPort { ports: Ports::Range(80, 90), not: false }],
            "meta l4proto tcp ct original proto-dst 80-90",
        ),
        (
            vec![Match::Protocol(Protocol::Icmp), Match::IcmpType { kind: 8, code: None }],
            "meta nfproto ipv4 meta l4proto icmp icmp type 8",
        ),
        (
            vec![Match::Protocol(Protocol::Icmpv6), Match::IcmpType { kind: 1, code: Some(4) }],
            "meta nfproto ipv6 meta l4proto ipv6-icmp icmpv6 type 1 icmpv6 code 4",
        ),
    ] {
        assert_eq!(text(matches, Action::Return), format!("{expected} counter return"));
    }
}

#[test]
fn each_action() {
    for (action, expected) in [
        (Action::Accept, "counter accept"),
        (Action::Drop, "counter drop"),
        (Action::Return, "counter return"),
        (Action::Jump("istio-output".into()), "counter jump istio-output"),
        (Action::Redirect { port: 15001 }, "counter redirect to :15001"),
        (Action::SetMark(1338), "counter meta mark set 1338"),
        (Action::SetCtMark { mark: 1, mask: ALL_BITS }, "counter ct mark set 1"),
        (Action::SetCtMark { mark: 0x111, mask: 0xfff }, "counter ct mark set ct mark & 0xfffff000 | 0x111"),
        (Action::Snat { to: [192, 0, 2, 1].into() }, "counter snat ip to 192.0.2.1"),
        (Action::Snat { to: [0xfd00, 0, 0, 0, 0, 0, 0, 1].into() }, "counter snat ip6 to fd00::1"),
        (Action::SaveMark, "counter ct mark set meta mark"),
        (Action::RestoreMark, "counter meta mark set ct mark"),
        (Action::SetZone(2), "counter ct zone set 2"),
        (Action::Reject(RejectWith::TcpReset), "counter reject with tcp reset"),
        (Action::Reject(RejectWith::PortUnreachable), "counter reject with icmpx type port-unreachable"),
        (Action::Reject(RejectWith::AdminProhibited), "counter reject with icmpx type admin-prohibited"),
        (log(None), "counter log prefix \"ic1:7\" group 115"),
        (
            log(Some(Limit { per_second: 10, burst: 50 })),
            "limit rate 10/second burst 50 packets counter log prefix \"ic1:7\" group 115",
        ),
    ] {
        assert_eq!(text(vec![], action), expected);
    }
    for (net, ip) in [("10.0.0.0/8", "ip"), ("fd00::/8", "ip6")] {
        let matches = vec![Match::Destination { net: net.parse().unwrap(), not: true }];
        let expected = format!("{ip} daddr != {net} tproxy {ip} to :15006 meta mark set 1337 counter accept");
        assert_eq!(text(matches, Action::Tproxy { port: 15006, mark: 1337 }), expected);
    }
}

fn log(limit: Option<Limit>) -> Action {
    Action::Log { group: 115, prefix: "ic1:7".into(), limit }
}

#[test]
fn each_way_to_count() {
    let rule = || Rule::new(vec![], Action::Drop, "");
    assert_eq!(render_rule(&rule()), "counter drop");
    assert_eq!(render_rule(&rule().uncounted()), "drop");
    assert_eq!(render_rule(&rule().counted_as("np-in")), "counter name np-in drop");
    let mut ruleset = ruleset();
    for name in ["b", "a", "b"] {
        ruleset.tables[0].chains[0].rules.push(rule().counted_as(name));
    }
    let text = render(&Transaction::Add(std::slice::from_ref(&ruleset)));
    let counters: Vec<&str> = text.lines().filter(|line| line.starts_with("add counter")).collect();
    assert_eq!(counters, ["add counter inet test-nat a", "add counter inet test-nat b"]);
}

#[test]
fn a_family_without_an_address_is_said() {
    let v6 = Rule { families: Families::Only(Family::V6), ..Rule::new(vec![], Action::Drop, "") };
    assert_eq!(render_rule(&v6), "meta nfproto ipv6 counter drop");
    let v4 = Rule { families: Families::Only(Family::V4), ..v6 };
    assert_eq!(render_rule(&v4), "meta nfproto ipv4 counter drop");
}

#[test]
fn a_reason_is_cut_between_characters() {
    let rule = |why: String| Rule::new(vec![], Action::Drop, why);
    assert_eq!(render_rule(&rule("because".to_owned())), "counter drop comment \"because\"");
    let long = rule("a".repeat(126) + "é and more");
    assert_eq!(comment(&long), "a".repeat(126));
    assert_eq!(comment(&rule("a".repeat(127))).len(), COMMENT_MAX);
    assert_eq!(comment(&rule("a".repeat(128))).len(), COMMENT_MAX);
}

/// A quote would end the comment, and a line's end the command: nft knows no escapes in strings.
#[test]
fn a_reason_cannot_leave_its_comment() {
    let bad = Rule::new(vec![], Action::Drop, "a\" ; flush ruleset\nflush ruleset\u{1b}");
    let text = render_rule(&bad);
    assert_eq!(text.matches('"').count(), 2, "{text}");
    assert!(!text.contains(char::is_control), "{text:?}");
}

fn ruleset() -> Ruleset {
    let base = |kind, hook, priority| Some(Base { kind, hook, priority });
    let chain = |name: &'static str, base, rules| Chain { name: name.into(), base, rules, leading: 0 };
    let rule = |action| Rule::new(vec![], action, "");
    let net = |text: &str| Key::from(text.parse::<IpNet>().unwrap());
    Ruleset {
        owner: "test".into(),
        known_chains: Vec::new().into(),
        ipv6: true,
        tables: vec![
            Table {
                kind: TableKind::Nat,
                sets: vec![
                    Set::fixed(
                        "four",
                        KeyType::Prefix(Family::V4),
                        // One within another, and the halves of a third.
                        ["10.1.0.0/16", "192.0.2.1/32", "10.0.0.0/9", "10.128.0.0/9"].map(net),
                    ),
                    Set::fixed("none", KeyType::Prefix(Family::V6), []),
                ],
                chains: vec![
                    chain(
                        "output",
                        base(ChainKind::Nat, Hook::Output, -100),
                        vec![rule(Action::Jump("empty".into()))],
                    ),
                    chain("empty", None, vec![]),
                    chain("unused", None, vec![]),
                    chain("used", None, vec![rule(Action::Return)]),
                ],
            },
            Table {
                kind: TableKind::Mangle,
                sets: vec![],
                chains: vec![chain(
                    "output",
                    base(ChainKind::Route, Hook::Output, -150),
                    vec![rule(Action::SaveMark)],
                )],
            },
        ],
    }
}

const TABLES: &str = "\
add table inet test-nat
add set inet test-nat four { type ipv4_addr ; flags constant,interval ; }
add set inet test-nat none { type ipv6_addr ; flags constant,interval ; }
add chain inet test-nat output { type nat hook output priority -100 ; }
add chain inet test-nat empty
add chain inet test-nat used
add element inet test-nat four { 10.0.0.0/8, 192.0.2.1/32 }
add rule inet test-nat output counter jump empty
add rule inet test-nat used counter return
add table inet test-mangle
add chain inet test-mangle output { type route hook output priority -150 ; }
add rule inet test-mangle output counter ct mark set meta mark
";

#[test]
fn a_transaction_that_adds() {
    assert_eq!(render(&Transaction::Add(&[ruleset()])), TABLES);
}

#[test]
fn a_transaction_that_replaces_deletes_first() {
    let replaced = ["nat", "mangle"].iter().fold(TABLES.to_owned(), |text, kind| {
        let add = format!("add table inet test-{kind}\n");
        text.replacen(&add, &format!("{add}delete table inet test-{kind}\n{add}"), 1)
    });
    assert_eq!(render(&Transaction::Replace(&[ruleset()])), replaced);
}

#[test]
fn a_transaction_that_deletes_what_may_not_be_there() {
    let delete = Transaction::Delete { owner: "test", tables: &[TableKind::Nat, TableKind::Raw] };
    let expected = "add table inet test-nat\ndelete table inet test-nat\nadd table inet test-raw\ndelete table inet test-raw\n";
    assert_eq!(render(&delete), expected);
}

#[test]
fn members_of_a_kept_set_survive_a_replacement() {
    let keys = KeyType::Address(Family::V4);
    let look_up = Match::DestinationIn { set: "pods".into(), keys, not: false };
    let mut ruleset = ruleset();
    ruleset.tables.truncate(1);
    let jump = Rule::new(vec![look_up], Action::Jump("used".into()), "").uncounted();
    ruleset.tables[0].sets = vec![Set { comment: "kept elsewhere".into(), ..Set::kept("pods", keys) }];
    ruleset.tables[0].chains.retain(|chain| chain.name == "used");
    ruleset.tables[0].chains[0].rules = vec![jump];
    let expected = "\
add table inet test-nat
flush table inet test-nat
add set inet test-nat pods { type ipv4_addr ; comment \"kept elsewhere\" ; }
add chain inet test-nat used
add rule inet test-nat used ip daddr @pods jump used
";
    assert_eq!(render(&Transaction::Replace(&[ruleset])), expected);
}

/// What is fixed is replaced beside it.
#[test]
fn a_fixed_set_beside_a_kept_one_is_made_anew() {
    let keys = KeyType::Address(Family::V4);
    let one = Key::from(std::net::IpAddr::from([10, 0, 0, 1]));
    let mut ruleset = ruleset();
    ruleset.tables.truncate(1);
    ruleset.tables[0].sets = vec![Set::kept("pods", keys), Set::fixed("hosts", keys, [one])];
    ruleset.tables[0].chains.clear();
    let expected = "\
add table inet test-nat
flush table inet test-nat
add set inet test-nat hosts { type ipv4_addr ; flags constant ; }
delete set inet test-nat hosts
add set inet test-nat pods { type ipv4_addr ; }
add set inet test-nat hosts { type ipv4_addr ; flags constant ; }
add element inet test-nat hosts { 10.0.0.1 }
";
    assert_eq!(render(&Transaction::Replace(&[ruleset])), expected);
}

#[test]
fn sets_and_maps_of_every_kind() {
    let endpoint =
        |port| Key::from(TransportAddress { address: [10, 0, 0, 1].into(), protocol: Protocol::Udp, port });
    let (v4, v6) = (KeyType::Endpoint(Family::V4), KeyType::Endpoint(Family::V6));
    let element = |port, verdict, comment: &str| Element {
        verdict: Some(verdict),
        comment: comment.to_owned(),
        ..endpoint(port).into()
    };
    let elements = vec![
        element(1, MapVerdict::Accept, ""),
        element(2, MapVerdict::Drop, "say \"no\""),
        element(3, MapVerdict::Jump("used".into()), ""),
        element(4, MapVerdict::Goto("used".into()), ""),
    ];
    let mut ruleset = ruleset();
    ruleset.tables.truncate(1);
    ruleset.tables[0].sets = vec![
        Set::fixed("ports", v4, [endpoint(53)]),
        Set { content: Content::Fixed(elements), ..Set::kept("fixed", v4).to_verdicts() },
        Set::kept("kept", v6).to_verdicts(),
    ];
    let action = Action::VerdictMap { map: "kept".into(), keys: v6, side: Side::Source };
    ruleset.tables[0].chains = vec![
        Chain { name: "unused".into(), base: None, rules: vec![], leading: 0 },
        Chain { name: "used".into(), base: None, rules: vec![Rule::new(vec![], action, "")], leading: 0 },
    ];
    let expected = "\
add table inet test-nat
add set inet test-nat ports { type ipv4_addr . inet_proto . inet_service ; flags constant ; }
add map inet test-nat fixed { type ipv4_addr . inet_proto . inet_service : verdict ; flags constant ; }
add map inet test-nat kept { type ipv6_addr . inet_proto . inet_service : verdict ; }
add chain inet test-nat unused
add chain inet test-nat used
add element inet test-nat ports { 10.0.0.1 . udp . 53 }
add element inet test-nat fixed { 10.0.0.1 . udp . 1 : accept, 10.0.0.1 . udp . 2 comment \"say 'no'\" : drop, \
10.0.0.1 . udp . 3 : jump used, 10.0.0.1 . udp . 4 : goto used }
add rule inet test-nat used ip6 saddr . meta l4proto . th sport vmap @kept
";
    assert_eq!(render(&Transaction::Add(&[ruleset])), expected);
}
