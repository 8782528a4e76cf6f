//! Random rulesets with what policies need, and packets that meet them.
//!
//! Values come from small pools, as those of settings do.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::slice::from_ref;

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;
use ruleset::eval::{Packet, RulePlace, State, Verdict, evaluate};
use ruleset::{
    Action, Backend, Base, Chain, ChainKind, Counting, CtState, Families, Family, Hook, KnownChain, Limit,
    Match, NoMembers, Ports, Protocol, RejectWith, Rule, Ruleset, Table, TableKind,
};

use crate::raw::{Answer, Shot};
use crate::world::{PEER, POD};

/// Where a redirect leads; in the pod listens somebody there, and on no other port.
pub const OPEN: u16 = 15006;
/// The groups that rules log to.
pub const GROUPS: [u16; 2] = [7, 115];
/// Neighbour discovery is let through and counted here, as it comes when it likes.
pub const DISCOVERY: &str = "discovery";

const PORTS: [u16; 6] = [80, 81, 90, 91, 443, OPEN];
const CHAINS: [&str; 2] = ["istio-np-a", "istio-np-b"];

/// Something to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what the variant names: `to` is a port")]
pub enum Attempt {
    /// From the peer to the pod; an echo may be asked twice, so that the second belongs to a connection.
    In { protocol: Protocol, v6: bool, to: u16, icmp: (u8, u8), again: bool },
    /// An echo that the pod asks its peer; the answer comes in.
    Echo { v6: bool },
    /// A datagram that the pod sends to a closed port of its peer; what ICMP says of it comes in.
    Closed { v6: bool, to: u16 },
}

/// What the evaluator says of an attempt.
#[derive(Debug, Default)]
pub struct Expected {
    /// By the name of the counter.
    pub counts: BTreeMap<String, u64>,
    /// Groups and prefixes, in order.
    pub logged: Vec<(u16, String)>,
    /// What the sender gets; absent: something, whatever it is, or nobody looks.
    pub answer: Option<Answer>,
}

/// A ruleset, its chains in the filter table, with or without a redirect before.
pub fn ruleset() -> impl Strategy<Value = Ruleset> {
    let chain = |jumps| vec(rule(jumps), 1..8);
    (chain(true), chain(false), chain(false), any::<bool>()).prop_map(|(input, a, b, redirects)| {
        let kind = TableKind::Filter;
        let regular =
            |name: &str, rules| Chain { name: name.to_owned().into(), base: None, rules, leading: 0 };
        let base = |hook: Hook, of: TableKind, kind, rules| {
            let base = Some(Base { kind, hook, priority: of.priority(hook) });
            Chain { name: hook.name().into(), base, rules, leading: 0 }
        };
        let discovery = (133..=137).map(|kind| {
            let matches = vec![Match::Protocol(Protocol::Icmpv6), Match::IcmpType { kind, code: None }];
            Rule::new(matches, Action::Accept, "discovery is never judged").counted_as(DISCOVERY)
        });
        let input = base(Hook::Input, kind, ChainKind::Filter, discovery.chain(input).collect());
        // As every plan has: in iptables, ours are looked for in a family by the names of chains.
        let end = Rule::new(Vec::new(), Action::Return, "each family has a chain of ours");
        let first = a.into_iter().chain([end]).collect();
        let chains = vec![input, regular(CHAINS[0], first), regular(CHAINS[1], b)];
        let mut tables = vec![Table { kind, sets: Vec::new(), chains }];
        if redirects {
            let ports = Match::DestinationPort { ports: Ports::Range(80, 90), not: false };
            let redirect = Rule::new(
                vec![Match::Protocol(Protocol::Tcp), ports],
                Action::Redirect { port: OPEN },
                "to the proxy",
            );
            let kind = TableKind::Nat;
            let chain = base(Hook::Prerouting, kind, ChainKind::Nat, vec![redirect]);
            tables.push(Table { kind, sets: Vec::new(), chains: vec![chain] });
        }
        let known_chains = vec![KnownChain::beginning(TableKind::Filter, "istio-np-")].into();
        Ruleset { owner: "istio-agree".into(), known_chains, ipv6: true, tables }
    })
}

fn rule(jumps: bool) -> impl Strategy<Value = Rule> {
    let name = (0..6).prop_map(|number| format!("count-{number}"));
    (matches(), action(jumps), name)
        .prop_map(|((families, matches), action, name)| {
            let rule = Rule::new(matches, action, "random");
            let families = if rule.families == Families::Both { families } else { rule.families };
            Rule { families, ..rule }.counted_as(name)
        })
        .prop_filter("parts that do not go together", |rule| {
            let reset = rule.action == Action::Reject(RejectWith::TcpReset);
            let families: Vec<Family> = rule.matches.iter().filter_map(Match::family).collect();
            families.windows(2).all(|two| two[0] == two[1])
                && (!reset || rule.protocol() == Some(Protocol::Tcp))
        })
}

fn matches() -> impl Strategy<Value = (Families, Vec<Match>)> {
    let families = prop_oneof![
        3 => Just(Families::Both),
        1 => select(vec![Family::V4, Family::V6]).prop_map(Families::Only),
    ];
    (families, address(), of_protocol(), connection())
        .prop_map(|(families, a, b, c)| (families, [a, b, c].concat()))
}

fn address() -> impl Strategy<Value = Vec<Match>> {
    let pool = [
        "10.77.0.1/32",
        "10.77.0.2/32",
        "10.0.0.0/9",
        "10.77.0.0/24",
        "fd77::1/128",
        "fd77::2/128",
        "fd77::/16",
        "fd77::/17",
    ];
    let net = select(pool.map(|text| text.parse().expect("a prefix")).to_vec());
    let one = (net, any::<(bool, bool)>()).prop_map(|(net, (original, not))| match original {
        true => vec![Match::OriginalDestination { net, not }],
        false => vec![Match::Source { net, not }],
    });
    prop_oneof![2 => Just(Vec::new()), 1 => one]
}

fn ports() -> impl Strategy<Value = Ports> {
    let range = || {
        let ends = (select(&PORTS[..]), select(&PORTS[..])).prop_filter("one port", |(a, b)| a != b);
        ends.prop_map(|(a, b)| Ports::Range(a.min(b), a.max(b)))
    };
    prop_oneof![
        select(&PORTS[..]).prop_map(Ports::One),
        range(),
        select(vec![Ports::Range(0, 90), Ports::Range(90, u16::MAX), Ports::Range(1, u16::MAX)]),
    ]
}

fn of_protocol() -> impl Strategy<Value = Vec<Match>> {
    let list = proptest::sample::subsequence(&PORTS[..], 2..=4).prop_map(Ports::AnyOf);
    let destination = (prop_oneof![ports(), list], any::<bool>())
        .prop_map(|(ports, not)| Match::DestinationPort { ports, not });
    let original = (ports(), any::<bool>()).prop_map(|(ports, not)| Match::OriginalPort { ports, not });
    let source = any::<bool>().prop_map(|not| Match::SourcePort { ports: Ports::Range(1024, u16::MAX), not });
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let transport = (protocol, weighted(0.7, destination), weighted(0.3, original), weighted(0.2, source))
        .prop_map(|(protocol, a, b, c)| {
            std::iter::once(Match::Protocol(protocol)).chain(a).chain(b).chain(c).collect()
        });
    let kind = (select(vec![0, 3, 8, 13, 128, 129, 1]), select(vec![None, None, Some(0), Some(3), Some(4)]))
        .prop_map(|(kind, code)| Match::IcmpType { kind, code });
    let icmp = (select(vec![Protocol::Icmp, Protocol::Icmpv6]), prop::option::of(kind))
        .prop_map(|(protocol, kind)| std::iter::once(Match::Protocol(protocol)).chain(kind).collect());
    prop_oneof![2 => Just(Vec::new()), 5 => transport, 3 => icmp]
}

fn connection() -> impl Strategy<Value = Vec<Match>> {
    let one = prop_oneof![
        select(&CtState::ALL[..]).prop_map(|state| vec![Match::CtState(state)]),
        Just(vec![Match::Reply]),
        Just(vec![Match::Reply, Match::CtState(CtState::Established)]),
    ];
    prop_oneof![3 => Just(Vec::new()), 1 => one]
}

fn action(jumps: bool) -> impl Strategy<Value = Action> {
    let limit = prop::option::of(Just(Limit { per_second: 100, burst: 5000 }));
    let log = (select(&GROUPS[..]), "ic1:[0-9]{1,3}", limit).prop_map(|(group, prefix, limit)| Action::Log {
        group,
        prefix: prefix.into(),
        limit,
    });
    let jump = if jumps { 4 } else { 0 };
    prop_oneof![
        2 => Just(Action::Accept),
        2 => Just(Action::Drop),
        1 => Just(Action::Return),
        3 => select(&RejectWith::ALL[..]).prop_map(Action::Reject),
        4 => log,
        jump => select(&CHAINS[..]).prop_map(|chain| Action::Jump(chain.into())),
    ]
}

/// What may be sent.
pub fn attempt() -> impl Strategy<Value = Attempt> {
    let transport = (
        select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
        any::<bool>(),
        select(&PORTS[..]),
    )
        .prop_map(|(protocol, v6, to)| Attempt::In { protocol, v6, to, icmp: (0, 0), again: false });
    let echo = any::<(bool, bool)>().prop_map(|(v6, again)| {
        let (protocol, kind) = if v6 { (Protocol::Icmpv6, 128) } else { (Protocol::Icmp, 8) };
        Attempt::In { protocol, v6, to: 0, icmp: (kind, 0), again }
    });
    let time = Just(Attempt::In { protocol: Protocol::Icmp, v6: false, to: 0, icmp: (13, 0), again: false });
    prop_oneof![
        6 => transport,
        3 => echo,
        1 => time,
        1 => any::<bool>().prop_map(|v6| Attempt::Echo { v6 }),
        1 => (any::<bool>(), select(&PORTS[..])).prop_map(|(v6, to)| Attempt::Closed { v6, to }),
    ]
}

impl Attempt {
    /// The packets to send, all alike, and whether the peer sends them.
    pub fn shots(&self, port: u16) -> (Shot, u32, bool) {
        let shot = |protocol, from: IpAddr, to: SocketAddr, icmp| Shot {
            protocol,
            from: (from, port).into(),
            to,
            icmp,
        };
        match *self {
            Self::In { protocol, v6, to, icmp, again } => {
                let at = usize::from(v6);
                (shot(protocol, PEER[at], (POD[at], to).into(), icmp), 1 + u32::from(again), true)
            }
            Self::Echo { v6: false } => (shot(Protocol::Icmp, POD[0], (PEER[0], 0).into(), (8, 0)), 1, false),
            Self::Echo { v6: true } => {
                (shot(Protocol::Icmpv6, POD[1], (PEER[1], 0).into(), (128, 0)), 1, false)
            }
            Self::Closed { v6, to } => {
                let at = usize::from(v6);
                (shot(Protocol::Udp, POD[at], (PEER[at], to).into(), (0, 0)), 1, false)
            }
        }
    }

    /// The packet that comes to the pod.
    fn packet(&self, port: u16) -> Packet {
        let (shot, _, from_peer) = self.shots(port);
        let packet = Packet {
            source_port: if shot.protocol.has_ports() { port } else { 0 },
            in_interface: "eth0".to_owned(),
            icmp: shot.icmp,
            ..Packet::new(shot.protocol, shot.from, shot.to)
        };
        if from_peer {
            return packet;
        }
        let (protocol, icmp, state) = match *self {
            Self::Closed { v6: false, .. } => (Protocol::Icmp, (3, 3), State::Related),
            Self::Closed { v6: true, .. } => (Protocol::Icmpv6, (1, 4), State::Related),
            Self::Echo { v6: true } => (Protocol::Icmpv6, (129, 0), State::Established),
            _ => (Protocol::Icmp, (0, 0), State::Established),
        };
        Packet {
            source: shot.to.ip(),
            destination: shot.from.ip(),
            original: Some(shot.to),
            source_port: 0,
            destination_port: 0,
            reply: true,
            protocol,
            icmp,
            state,
            ..packet
        }
    }

    /// What the evaluator says.
    pub fn expected(&self, ruleset: &Ruleset, backend: Backend, port: u16) -> Expected {
        let mut expected = Expected::default();
        let (shot, times, from_peer) = self.shots(port);
        let mut packet = self.packet(port);
        let before = evaluate(from_ref(ruleset), backend, &packet, Hook::Prerouting, true, &NoMembers);
        if let Verdict::Redirect { port } = before.verdict {
            packet = packet.redirected(Hook::Prerouting, port);
        }
        for _ in 0..times {
            let outcome = evaluate(from_ref(ruleset), backend, &packet, Hook::Input, false, &NoMembers);
            outcome.trace.iter().for_each(|place| expected.met(place));
            expected.answer = Some(match outcome.verdict {
                Verdict::Drop => Answer::Nothing,
                Verdict::Reject(with) => rejected(with, shot.to.is_ipv6()),
                _ => match natural(&shot, packet.destination_port) {
                    Some(answer) => answer,
                    None => {
                        expected.answer = None;
                        continue;
                    }
                },
            });
            // What was answered has a connection that the next one belongs to.
            if outcome.verdict == Verdict::Pass {
                packet.state = State::Established;
            }
        }
        if !from_peer {
            expected.answer = None;
        }
        expected
    }
}

impl Expected {
    fn met(&mut self, place: &RulePlace<'_>) {
        if let Counting::Named(name) = &place.rule.counting {
            *self.counts.entry(name.to_string()).or_default() += 1;
        }
        if let Action::Log { group, prefix, .. } = &place.rule.action {
            self.logged.push((*group, prefix.to_string()));
        }
    }
}

fn rejected(with: RejectWith, v6: bool) -> Answer {
    match (with, v6) {
        (RejectWith::TcpReset, _) => Answer::Reset,
        (RejectWith::PortUnreachable, false) => Answer::Icmp(3, 3),
        (RejectWith::PortUnreachable, true) => Answer::Icmp(1, 4),
        (RejectWith::AdminProhibited, false) => Answer::Icmp(3, 13),
        (RejectWith::AdminProhibited, true) => Answer::Icmp(1, 1),
    }
}

/// What the pod's kernel answers; absent where it depends on whether it speaks the protocol.
fn natural(shot: &Shot, port: u16) -> Option<Answer> {
    Some(match (shot.protocol, shot.icmp.0) {
        (Protocol::Tcp, _) if port == OPEN => Answer::SynAck,
        (Protocol::Tcp, _) => Answer::Reset,
        (Protocol::Udp, _) if shot.to.is_ipv6() => Answer::Icmp(1, 4),
        (Protocol::Udp, _) => Answer::Icmp(3, 3),
        (Protocol::Sctp, _) => return None,
        (_, 8) => Answer::Icmp(0, 0),
        (_, 13) => Answer::Icmp(14, 0),
        (_, _) => Answer::Icmp(129, 0),
    })
}
