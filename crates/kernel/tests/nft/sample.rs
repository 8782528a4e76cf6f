//! Rulesets with everything that the rule language has.

use ruleset::{
    ALL_BITS, Action, Base, Chain, ChainKind, Content, CtState, Element, Families, Family, Hook, Key,
    KeyType, Limit, MapVerdict, Match, Ports, Protocol, RejectWith, Rule, Ruleset, Set, Side, Table,
    TableKind, TransportAddress,
};

fn net(text: &str) -> ipnet::IpNet {
    text.parse().expect("a prefix")
}

fn base(name: &'static str, kind: ChainKind, hook: Hook, table: TableKind, rules: Vec<Rule>) -> Chain {
    let base = Some(Base { kind, hook, priority: table.priority(hook) });
    Chain { name: name.into(), base, rules, leading: 0 }
}

fn own(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base: None, rules, leading: 0 }
}

fn tcp() -> Match {
    Match::Protocol(Protocol::Tcp)
}

/// Every match and every action, in every form.
pub(crate) fn everything() -> Ruleset {
    Ruleset {
        owner: "istio-proxy".into(),
        known_chains: Vec::new().into(),
        ipv6: true,
        tables: vec![nat(), mangle(), filter(), raw()],
    }
}

/// What policies need.
fn filter() -> Table {
    let kind = TableKind::Filter;
    let accept = |matches| Rule::new(matches, Action::Accept, "allowed");
    let mut rules = vec![accept(vec![Match::OwnSource]), accept(vec![Match::LocalSocket])];
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let ranges =
        [(80, 90), (0, 90), (1, 65535), (65534, 65535)].map(|(first, last)| Ports::Range(first, last));
    let ports = ranges.into_iter().chain([Ports::One(7), Ports::AnyOf(vec![80, 443])]);
    for (ports, not) in ports.flat_map(|ports| [(ports.clone(), false), (ports, true)]) {
        for protocol in protocols.map(Match::Protocol) {
            let ports = || ports.clone();
            rules.push(accept(vec![protocol.clone(), Match::DestinationPort { ports: ports(), not }]));
            rules.push(accept(vec![protocol.clone(), Match::SourcePort { ports: ports(), not }]));
            if !matches!(ports(), Ports::AnyOf(_)) {
                rules.push(accept(vec![protocol, Match::OriginalPort { ports: ports(), not }]));
            }
        }
    }
    for (protocol, address) in [(Protocol::Icmp, "10.0.0.0/8"), (Protocol::Icmpv6, "fd00::/8")] {
        for (kind, code) in [(8, None), (133, None), (3, Some(4)), (1, Some(0))] {
            let icmp = vec![Match::Protocol(protocol), Match::IcmpType { kind, code }];
            rules.push(accept(icmp.clone()));
            rules.push(accept([vec![Match::Source { net: net(address), not: false }], icmp].concat()));
        }
        rules.push(accept(vec![Match::Protocol(protocol)]));
    }
    for prefix in
        ["10.0.0.1/32", "10.0.0.0/8", "10.0.0.0/9", "0.0.0.0/0", "fd00::1/128", "fd00::/16", "fd00::/9"]
    {
        for not in [false, true] {
            rules.push(accept(vec![Match::OriginalDestination { net: net(prefix), not }]));
            rules.push(accept(vec![tcp(), Match::OriginalDestination { net: net(prefix), not }]));
        }
    }
    rules.push(accept(vec![Match::Reply, Match::CtState(CtState::Established)]));
    rules.push(accept(vec![Match::CtState(CtState::Related)]));
    let log = |group, prefix: &'static str, limit: Option<(u32, u32)>| Action::Log {
        group,
        prefix: prefix.into(),
        limit: limit.map(|(per_second, burst)| Limit { per_second, burst }),
    };
    rules.push(Rule::new(vec![], log(0, "ic1:1", None), "all"));
    rules.push(Rule::new(vec![tcp()], log(115, "np-in", Some((10, 50))), "some"));
    rules.push(Rule::new(vec![tcp()], log(65535, "a", Some((7, 5))), "").uncounted());
    rules.push(Rule::new(vec![tcp()], log(1, "a", Some((1, 1))), "by name").counted_as("np-in-1"));
    rules.push(Rule::new(vec![tcp()], Action::Drop, "").counted_as("np-in-1"));
    rules.push(Rule::new(vec![tcp()], Action::Reject(RejectWith::TcpReset), "").counted_as("a"));
    for with in [RejectWith::PortUnreachable, RejectWith::AdminProhibited] {
        rules.push(Rule::new(vec![], Action::Reject(with), "told"));
        rules.push(Rule::new(
            vec![Match::Source { net: net("10.0.0.0/8"), not: false }],
            Action::Reject(with),
            "told",
        ));
        rules.push(Rule {
            families: Families::Only(Family::V6),
            ..Rule::new(vec![], Action::Reject(with), "told")
        });
    }
    Table { kind, sets: vec![], chains: vec![base("forward", ChainKind::Filter, Hook::Forward, kind, rules)] }
}

fn nat() -> Table {
    let prefixes = [
        "127.0.0.1/32",
        "127.0.0.6/32",
        "10.0.0.0/8",
        "10.96.0.0/12",
        "192.168.1.0/24",
        "172.16.0.0/16",
        "10.1.2.4/30",
        "0.0.0.0/0",
        "128.0.0.0/1",
        "::1/128",
        "::6/128",
        "fd00::/8",
        "fe80::/10",
        "2001:db8::/64",
        "2001:db8::/63",
        "::/0",
    ];
    let mut rules = vec![
        Rule::new(
            vec![tcp(), Match::DestinationPort { ports: Ports::One(15008), not: false }],
            Action::Return,
            "mesh traffic is already captured",
        ),
        Rule::new(
            vec![tcp(), Match::DestinationPort { ports: Ports::AnyOf(vec![53, 80, 15008]), not: true }],
            Action::Redirect { port: 15006 },
            "x".repeat(200),
        ),
        Rule::new(
            vec![
                Match::Protocol(Protocol::Udp),
                Match::SourcePort { ports: Ports::AnyOf(vec![53]), not: false },
                Match::DestinationPort { ports: Ports::AnyOf(vec![1, 2]), not: true },
            ],
            Action::Accept,
            "two anonymous sets ä",
        ),
        Rule::new(
            vec![tcp(), Match::SourcePort { ports: Ports::One(53), not: true }],
            Action::Drop,
            "source",
        ),
        Rule::new(
            vec![
                Match::OutInterface { name: "lo".into(), not: false },
                tcp(),
                Match::Destination { net: net("127.0.0.1/32"), not: true },
                Match::DestinationPort { ports: Ports::One(15008), not: true },
                Match::Uid { uid: 1337, not: false },
            ],
            Action::Jump("istio-redirect".into()),
            "to itself through the mesh",
        ),
        Rule::new(
            vec![Match::Uid { uid: 0, not: true }, Match::Gid { gid: 1337, not: false }],
            Action::Return,
            "ids",
        ),
        Rule::new(
            vec![tcp(), Match::DestinationPort { ports: Ports::AnyOf(vec![53]), not: true }],
            Action::Return,
            "a set of one",
        ),
        Rule::new(vec![Match::Gid { gid: u32::MAX - 1, not: true }], Action::Return, ""),
        Rule::new(
            vec![Match::SourceIn { set: "some4".into(), keys: KeyType::Prefix(Family::V4), not: false }],
            Action::Return,
            "set",
        ),
        Rule::new(
            vec![Match::DestinationIn { set: "some6".into(), keys: KeyType::Prefix(Family::V6), not: true }],
            Action::Return,
            "set",
        ),
        Rule::new(
            vec![
                tcp(),
                Match::DestinationIn {
                    set: "ports4".into(),
                    keys: KeyType::Endpoint(Family::V4),
                    not: false,
                },
            ],
            Action::Return,
            "address, protocol and port",
        ),
        Rule::new(
            vec![Match::SourceIn { set: "ports6".into(), keys: KeyType::Endpoint(Family::V6), not: true }],
            Action::Return,
            "address, protocol and port",
        ),
        verdicts("map4", KeyType::Address(Family::V4), Side::Source),
        verdicts("map4", KeyType::Address(Family::V4), Side::Destination),
        verdicts("map6", KeyType::Endpoint(Family::V6), Side::Destination),
        Rule::new(
            vec![
                Match::Source { net: net("10.0.0.0/8"), not: false },
                Match::Destination { net: net("10.0.0.0/9"), not: true },
            ],
            Action::Return,
            "the family once",
        ),
        Rule { families: Families::Only(Family::V6), ..Rule::new(vec![tcp()], Action::Return, "only IPv6") },
        Rule { families: Families::Only(Family::V4), ..Rule::new(vec![], Action::Return, "only IPv4") },
    ];
    for prefix in prefixes {
        for not in [false, true] {
            rules.push(Rule::new(vec![Match::Source { net: net(prefix), not }], Action::Return, prefix));
            rules.push(Rule::new(
                vec![tcp(), Match::Destination { net: net(prefix), not }],
                Action::Return,
                prefix,
            ));
        }
    }
    let jump = |to: &'static str| vec![Rule::new(vec![], Action::Jump(to.into()), "everything else there")];
    Table {
        kind: TableKind::Nat,
        sets: sets(),
        chains: vec![
            base("prerouting", ChainKind::Nat, Hook::Prerouting, TableKind::Nat, jump("istio-inbound")),
            own("istio-inbound", rules),
            own(
                "istio-redirect",
                vec![Rule::new(vec![tcp()], Action::Redirect { port: 15001 }, "to the proxy")],
            ),
            own("istio-unused", vec![]),
        ],
    }
}

fn verdicts(map: &'static str, keys: KeyType, side: Side) -> Rule {
    Rule::new(vec![], Action::VerdictMap { map: map.into(), keys, side }, "by a map")
}

fn sets() -> Vec<Set> {
    let prefixes = |name: &'static str, family, nets: &[&str]| {
        Set::fixed(name, KeyType::Prefix(family), nets.iter().map(|text| Key::from(net(text))))
    };
    let port = |address: &str, protocol, port| {
        Key::from(TransportAddress { address: address.parse().expect("an address"), protocol, port })
    };
    let map = |name: &'static str, keys, elements: Vec<(Key, MapVerdict)>| {
        let element = |(key, verdict)| Element { key, verdict: Some(verdict), comment: String::new() };
        let content = Content::Fixed(elements.into_iter().map(element).collect());
        Set { content, ..Set::kept(name, keys).to_verdicts() }
    };
    let address = |text: &str| Key::from(text.parse::<std::net::IpAddr>().expect("an address"));
    let commented = Element { comment: "whose".to_owned(), ..address("fd00::1").into() };
    vec![
        prefixes(
            "some4",
            Family::V4,
            &["192.168.1.1/32", "10.0.0.0/8", "11.0.0.0/8", "10.1.0.0/16", "240.0.0.0/4", "12.0.0.0/8"],
        ),
        prefixes("some6", Family::V6, &["::/8", "fd00::/8", "2001:db8::1/128", "ffff::/16"]),
        prefixes("none", Family::V4, &[]),
        prefixes("all4", Family::V4, &["0.0.0.0/0"]),
        Set { content: Content::Fixed(vec![commented]), ..Set::kept("plain6", KeyType::Address(Family::V6)) },
        Set::fixed(
            "ports4",
            KeyType::Endpoint(Family::V4),
            [port("10.0.0.1", Protocol::Tcp, 80), port("10.0.0.1", Protocol::Udp, 80)],
        ),
        Set::fixed("ports6", KeyType::Endpoint(Family::V6), [port("fd00::1", Protocol::Udp, 53)]),
        map(
            "map4",
            KeyType::Address(Family::V4),
            vec![
                (address("10.0.0.1"), MapVerdict::Jump("istio-redirect".into())),
                (address("10.0.0.2"), MapVerdict::Goto("istio-unused".into())),
                (address("10.0.0.3"), MapVerdict::Accept),
                (address("10.0.0.4"), MapVerdict::Drop),
            ],
        ),
        map(
            "map6",
            KeyType::Endpoint(Family::V6),
            vec![(port("fd00::1", Protocol::Tcp, 1), MapVerdict::Drop)],
        ),
    ]
}

fn mangle() -> Table {
    let tproxy = |family, destination| Rule {
        families: Families::Only(family),
        ..Rule::new(
            vec![tcp(), Match::Destination { net: net(destination), not: true }],
            Action::Tproxy { port: 15006, mark: 1337 },
            "to the proxy with the client's address",
        )
    };
    let marks = vec![
        Rule::new(
            vec![
                Match::InInterface { name: "eth0".into(), not: true },
                Match::Mark { mark: 1337, mask: ALL_BITS, not: false },
            ],
            Action::SaveMark,
            "remember",
        ),
        Rule::new(
            vec![tcp(), Match::CtMark { mark: 1337, mask: ALL_BITS, not: false }],
            Action::RestoreMark,
            "recall",
        ),
        Rule::new(
            vec![
                Match::OutInterface { name: "fifteencharacte".into(), not: true },
                Match::Mark { mark: 1338, mask: ALL_BITS, not: true },
            ],
            Action::SetMark(0xdead_beef),
            "mark",
        ),
        Rule::new(
            vec![Match::CtMark { mark: 0x539, mask: ALL_BITS, not: true }],
            Action::Return,
            "other mark",
        ),
        tproxy(Family::V4, "127.0.0.1/32"),
        tproxy(Family::V6, "::1/128"),
        Rule {
            families: Families::Only(Family::V6),
            ..Rule::new(vec![tcp()], Action::Tproxy { port: 1, mark: 2 }, "without an address")
        },
        Rule::new(vec![Match::CtState(CtState::Invalid)], Action::Drop, "a stray packet"),
        Rule::new(vec![tcp(), Match::CtState(CtState::RelatedOrEstablished)], Action::Return, "known"),
    ];
    let kind = TableKind::Mangle;
    Table {
        kind,
        sets: vec![],
        chains: vec![
            base("prerouting", ChainKind::Filter, Hook::Prerouting, kind, marks),
            base("output", ChainKind::Route, Hook::Output, kind, vec![]),
            base(
                "forward",
                ChainKind::Filter,
                Hook::Forward,
                kind,
                vec![Rule::new(vec![], Action::Accept, "a")],
            ),
            base("input", ChainKind::Filter, Hook::Input, kind, vec![Rule::new(vec![], Action::Accept, "a")]),
            base(
                "postrouting",
                ChainKind::Filter,
                Hook::Postrouting,
                kind,
                vec![Rule::new(vec![], Action::Accept, "a")],
            ),
        ],
    }
}

fn raw() -> Table {
    let kind = TableKind::Raw;
    let zone = |zone| Rule::new(vec![tcp()], Action::SetZone(zone), "its own connections");
    Table {
        kind,
        sets: vec![],
        chains: vec![base(
            "prerouting",
            ChainKind::Filter,
            Hook::Prerouting,
            kind,
            vec![zone(1), zone(0x0102)],
        )],
    }
}

/// One set of `count` prefixes.
pub(crate) fn big_set(count: u32) -> Ruleset {
    let nets = (0..count).map(|i| {
        Key::from(ipnet::IpNet::from(
            ipnet::Ipv6Net::new((u128::from(i) << 66).into(), 64).expect("a prefix"),
        ))
    });
    let keys = KeyType::Prefix(Family::V6);
    let set = Set::fixed("big", keys, nets);
    let matches = vec![Match::DestinationIn { set: "big".into(), keys, not: false }];
    let kind = TableKind::Nat;
    let rules = vec![Rule::new(matches, Action::Return, "in the set")];
    let chains = vec![base("output", ChainKind::Nat, Hook::Output, kind, rules)];
    Ruleset {
        owner: "istio-big".into(),
        known_chains: Vec::new().into(),
        ipv6: true,
        tables: vec![Table { kind, sets: vec![set], chains }],
    }
}
