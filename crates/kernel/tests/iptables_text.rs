//! Random rules, written by us, read by the real programs, printed by them, and read back by us.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "iptables/support.rs"]
mod support;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use ruleset::iptables::{canonical, parse_rule, render_rule};
use ruleset::{
    ALL_BITS, Action, CtState, Family, Limit, Match, Ports, Protocol, RejectWith, Rule, TableKind,
};
use support::Ns;

fn interface() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_.-]{0,13}\\+?"
}

fn net(family: Family) -> BoxedStrategy<IpNet> {
    match family {
        Family::V4 => {
            (any::<u32>(), 1..=32_u8).prop_map(|(a, n)| Ipv4Net::new(a.into(), n).unwrap().into()).boxed()
        }
        Family::V6 => {
            (any::<u128>(), 1..=128_u8).prop_map(|(a, n)| Ipv6Net::new(a.into(), n).unwrap().into()).boxed()
        }
    }
}

/// The range of ports is kept small in half of the cases, so that lists and single ports meet.
fn ports() -> impl Strategy<Value = Ports> {
    prop_oneof![
        any::<u16>().prop_map(Ports::One),
        prop::collection::btree_set(any::<u16>(), 1..=15)
            .prop_map(|set| Ports::AnyOf(set.into_iter().collect())),
        range(),
    ]
}

/// Often up to an end of all ports.
fn range() -> impl Strategy<Value = Ports> {
    let end = || prop_oneof![2 => any::<u16>(), 1 => Just(0), 1 => Just(u16::MAX)];
    let ends = (end(), end()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    ends.prop_filter("one port or all", |(first, last)| first < last && (*first, *last) != (0, u16::MAX))
        .prop_map(|(first, last)| Ports::Range(first, last))
}

/// What goes with a protocol.
fn of_protocol(family: Family) -> impl Strategy<Value = Vec<Match>> {
    let not = any::<bool>;
    let maybe = prop::option::of::<BoxedStrategy<Match>>;
    let original = prop_oneof![any::<u16>().prop_map(Ports::One), range()];
    let with_ports = (
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)],
        maybe((ports(), not()).prop_map(|(ports, not)| Match::SourcePort { ports, not }).boxed()),
        maybe((ports(), not()).prop_map(|(ports, not)| Match::DestinationPort { ports, not }).boxed()),
        maybe((original, not()).prop_map(|(ports, not)| Match::OriginalPort { ports, not }).boxed()),
    )
        .prop_map(|(protocol, source, destination, original)| {
            let ports = [destination, source, original].into_iter().flatten();
            std::iter::once(Match::Protocol(protocol)).chain(ports).collect()
        });
    let icmp = if family == Family::V4 { Protocol::Icmp } else { Protocol::Icmpv6 };
    // The last type means any in iptables.
    let kind = (0..u8::MAX, any::<Option<u8>>()).prop_map(|(kind, code)| Match::IcmpType { kind, code });
    let of_icmp = maybe(kind.boxed())
        .prop_map(move |kind| std::iter::once(Match::Protocol(icmp)).chain(kind).collect());
    prop_oneof![4 => with_ports, 1 => of_icmp]
}

/// A mark and a mask, which has all bits in half of the cases.
fn mark() -> impl Strategy<Value = (u32, u32)> {
    prop_oneof![
        any::<u32>().prop_map(|mark| (mark, ALL_BITS)),
        (any::<u32>(), any::<u32>()).prop_map(|(mark, mask)| (mark & mask, mask)),
    ]
}

fn matches(family: Family) -> impl Strategy<Value = Vec<Match>> {
    let not = any::<bool>;
    let maybe = prop::option::of::<BoxedStrategy<Match>>;
    let state = prop::sample::select(&CtState::ALL[..]).prop_map(Match::CtState);
    let connection = prop_oneof![
        state,
        Just(Match::Reply),
        (net(family), not()).prop_map(|(net, not)| Match::OriginalDestination { net, not }),
    ];
    let owners = prop_oneof![
        (0..u32::MAX, not()).prop_map(|(uid, not)| Match::Uid { uid, not }),
        (0..u32::MAX, not()).prop_map(|(gid, not)| Match::Gid { gid, not }),
        Just(Match::LocalSocket),
        Just(Match::OwnDestination),
        Just(Match::OwnSource),
    ];
    (
        maybe((interface(), not()).prop_map(|(n, not)| Match::InInterface { name: n.into(), not }).boxed()),
        maybe((interface(), not()).prop_map(|(n, not)| Match::OutInterface { name: n.into(), not }).boxed()),
        maybe((net(family), not()).prop_map(|(net, not)| Match::Source { net, not }).boxed()),
        maybe((net(family), not()).prop_map(|(net, not)| Match::Destination { net, not }).boxed()),
        of_protocol(family),
        maybe((mark(), not()).prop_map(|((mark, mask), not)| Match::Mark { mark, mask, not }).boxed()),
        maybe((mark(), not()).prop_map(|((mark, mask), not)| Match::CtMark { mark, mask, not }).boxed()),
        prop::collection::vec(connection, 0..3),
        prop::collection::vec(owners, 0..3),
    )
        .prop_map(|(i, o, s, d, protocol, mark, ctmark, connection, owners)| {
            let some = [i, o, s, d].into_iter().flatten().chain(protocol);
            some.chain([mark, ctmark].into_iter().flatten()).chain(connection).chain(owners).collect()
        })
}

fn log() -> impl Strategy<Value = Action> {
    let limit = (1..=100_u32, 1..=10_000_u32).prop_map(|(per_second, burst)| Limit { per_second, burst });
    (any::<u16>(), "[A-Za-z0-9:._/-]{1,63}", prop::option::of(limit))
        .prop_map(|(group, prefix, limit)| Action::Log { group, prefix: prefix.into(), limit })
}

fn action(table: TableKind) -> BoxedStrategy<Action> {
    let usual = prop_oneof![
        Just(Action::Accept),
        Just(Action::Return),
        Just(Action::Jump("istio-other".into())),
        Just(Action::SaveMark),
        Just(Action::RestoreMark),
        mark().prop_map(|(mark, mask)| Action::SetCtMark { mark, mask }),
    ];
    let special = match table {
        TableKind::Nat => any::<u16>().prop_map(|port| Action::Redirect { port }).boxed(),
        TableKind::Raw => (1..=u16::MAX).prop_map(Action::SetZone).boxed(),
        TableKind::Filter => prop::sample::select(&RejectWith::ALL[..]).prop_map(Action::Reject).boxed(),
        _ => prop_oneof![
            any::<u32>().prop_map(Action::SetMark),
            (1..=u16::MAX, any::<u32>()).prop_map(|(port, mark)| Action::Tproxy { port, mark }),
        ]
        .boxed(),
    };
    let usual = prop_oneof![3 => usual, 1 => log()];
    // CONNMARK is allowed in the mangle table only.
    let usual = usual.prop_filter("not in this table", move |action| {
        table == TableKind::Mangle
            || !matches!(action, Action::SaveMark | Action::RestoreMark | Action::SetCtMark { .. })
    });
    prop_oneof![usual, special].boxed()
}

fn rule(family: Family, table: TableKind) -> impl Strategy<Value = Rule> {
    let counted = prop::option::of("[a-z][a-z0-9-]{0,62}");
    (matches(family), action(table), counted)
        .prop_map(|(matches, action, counted)| match counted {
            Some(name) => Rule::new(matches, action, "random").counted_as(name),
            None => Rule::new(matches, action, "random"),
        })
        .prop_filter("a protocol that the action is not for", |rule| match (&rule.action, rule.protocol()) {
            (Action::Tproxy { .. }, protocol) => matches!(protocol, Some(Protocol::Tcp | Protocol::Udp)),
            (Action::Redirect { .. }, protocol) => protocol.is_some_and(Protocol::has_ports),
            (Action::Reject(RejectWith::TcpReset), protocol) => protocol == Some(Protocol::Tcp),
            _ => true,
        })
}

#[test]
fn a_written_rule_reads_back() {
    for family in [Family::V4, Family::V6] {
        for table in [TableKind::Nat, TableKind::Mangle, TableKind::Raw, TableKind::Filter] {
            let mut runner =
                TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
            runner
                .run(&rule(family, table), |rule| {
                    let text = render_rule(&rule, family);
                    prop_assert_eq!(parse_rule(&text), Some(canonical(&rule)), "{}", text);
                    Ok(())
                })
                .unwrap();
        }
    }
}

#[test]
fn a_saved_rule_reads_back() {
    let ns = Ns::new();
    for (family, program) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        for table in [TableKind::Nat, TableKind::Mangle, TableKind::Raw, TableKind::Filter] {
            let rules = prop::collection::vec(rule(family, table), 40);
            let mut runner = TestRunner::new(Config {
                cases: 3,
                max_shrink_iters: 200,
                failure_persistence: None,
                ..Config::default()
            });
            let both = runner.run(&rules, |rules| {
                for variant in ["legacy", "nft"] {
                    let text: String =
                        rules.iter().map(|rule| format!("-A ISTIO_ALL {}\n", render_rule(rule, family))).collect();
                    let saved = ns.sh(&format!(
                        "{program}-{variant}-restore <<EOF\n*{table}\n-N ISTIO_ALL\n-N ISTIO_OTHER\n{text}COMMIT\nEOF\n\
                         {program}-{variant} -t {table} -S ISTIO_ALL"
                    ));
                    let read: Vec<_> =
                        saved.lines().filter_map(|line| line.strip_prefix("-A ISTIO_ALL ")).collect();
                    prop_assert_eq!(read.len(), rules.len());
                    for (line, rule) in read.into_iter().zip(&rules) {
                        prop_assert_eq!(parse_rule(line), Some(canonical(rule)), "{} {}", variant, line);
                    }
                }
                Ok(())
            });
            both.unwrap();
        }
    }
}

#[test]
fn what_is_no_rule_of_ours_does_not_read() {
    for text in [
        "",
        "-j",
        "-p gre -j ACCEPT",
        "-p icmp -m icmp --icmp-type any -j ACCEPT",
        "-p icmp -m icmp ! --icmp-type 8 -j ACCEPT",
        "-p tcp -m conntrack --ctdir ORIGINAL -j ACCEPT",
        "-p tcp -m conntrack --ctorigsrc 10.0.0.1 -j ACCEPT",
        "-p tcp -m tcp --dport 80 --tcp-flags SYN SYN -j ACCEPT",
        "-m owner --uid-owner 0-10 -j RETURN",
        "-m mark --mark 0x100/0xff -j RETURN",
        "-m owner ! --socket-exists -j RETURN",
        "-m set --match-set x src,dst -j RETURN",
        "-p tcp -j SNAT --to-source 10.0.0.1-10.0.0.9",
        "-m conntrack --ctstate NEW -j ACCEPT",
        "-m comment --comment \"x\" -j RETURN",
        "-m comment --comment X -j RETURN",
        "-j MARK --set-xmark 0x1/0x1",
        "-j REJECT",
        "-j REJECT --reject-with icmp-net-unreachable",
        "-m limit --limit 10/sec -j ACCEPT",
        "-m limit --limit 10/min -j NFLOG --nflog-prefix a",
        "-j NFLOG --nflog-prefix \"a b\"",
        "-j NFLOG --nflog-prefix a --nflog-threshold 3",
        "-j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff",
        "-p tcp -j REDIRECT --to-ports 1-5",
        "-p tcp -j TPROXY --on-port 1 --on-ip 10.0.0.1 --tproxy-mark 0x1/0xffffffff",
        "-j KUBE-SERVICES",
        "-j ISTIO_lower",
        "-g ISTIO_OUTPUT",
        "-j RETURN trailing",
        "! -j RETURN",
        "-s 10.0.0.0/33 -j RETURN",
    ] {
        assert_eq!(parse_rule(text), None, "{text}");
    }
}
