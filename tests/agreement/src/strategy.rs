//! Random settings and packets.
//!
//! Values come from small pools, so that a packet often meets the rule that was made for it.

use std::net::IpAddr;

use capture::Settings;
use capture::ambient::{self, NodeOptions, PodOptions};
use capture::settings::{DnsCapture, Mode, OwnerGroups, PortChoice, Prefixes, Ranges};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use ruleset::eval::{Owner, Packet, State};
use ruleset::{Hook, Protocol};

use crate::way::Attempt;
use crate::world::{
    CAPTURE_PORTS, FAR, GIDS, LOOPBACK, PASSTHROUGH, PEER, POD, PROXY_PORTS, TCP_PORTS, TUNNEL_PORTS,
    UDP_PORTS, UIDS,
};

const RANGES_V4: [&str; 8] = [
    "198.51.100.0/24",
    "203.0.113.9/32",
    "10.77.0.0/16",
    "10.77.1.0/24",
    "198.51.100.7/8",
    "127.0.0.1/32",
    "127.0.0.0/8",
    "0.0.0.0/0",
];
const RANGES_V6: [&str; 5] = ["2001:db8::/32", "2001:db8:1::9/128", "fd77:1::2/64", "::1/128", "::/0"];
const LOOPBACK_RANGES: [&str; 3] = ["127.0.0.1/32", "127.0.0.0/8", "127.0.0.5/32"];
const INTERFACES: [&str; 3] = ["net1", "eth0", "tap0"];
/// Marks that settings and packets share; the third is the one that tells the proxy's own packets.
const MARKS: [u32; 5] = [1337, 42, capture::settings::TPROXY_OUTBOUND_MARK, 0, ambient::REPLY_MARK];

/// Every field of [`Settings`]; the simplest is near the default.
pub fn settings() -> impl Strategy<Value = Settings> {
    let ports = (select(&PROXY_PORTS[..]), select(&CAPTURE_PORTS[..]), select(&TUNNEL_PORTS[..]));
    let ids = (ids(&UIDS), ids(&GIDS), owner_groups());
    let mode = (select(vec![Mode::Redirect, Mode::Tproxy]), select(&MARKS[..2]), select(vec![133_u32, 200]));
    let inbound = (included_ports(), ports_of(0..=3));
    let few = prop_oneof![2 => Just(Prefixes::default()), 1 => prefixes(0..=2)];
    let outbound = (ports_of(0..=2), ports_of(0..=2), ranges(), few);
    let interfaces = (names(), names());
    let rest = (dns(), any::<(bool, bool)>(), loopback());
    (ports, ids, mode, inbound, outbound, interfaces, rest).prop_map(
        |(ports, ids, mode, inbound, outbound, interfaces, rest)| Settings {
            proxy_port: ports.0,
            capture_port: ports.1,
            tunnel_port: ports.2,
            proxy_uids: ids.0,
            proxy_gids: ids.1,
            owner_groups: ids.2,
            mode: mode.0,
            tproxy_mark: mode.1,
            tproxy_table: mode.2,
            inbound_ports: inbound.0,
            inbound_ports_excluded: inbound.1,
            outbound_ports: outbound.0,
            outbound_ports_excluded: outbound.1,
            outbound_ranges: outbound.2,
            outbound_ranges_excluded: outbound.3,
            reroute_interfaces: interfaces.0,
            excluded_interfaces: interfaces.1,
            dns: rest.0,
            drop_invalid: rest.1.0,
            dual_stack: rest.1.1,
            loopback_v4: rest.2,
        },
    )
}

/// What a hook sees: a packet, where it is, and whether the nat tables look at it.
pub fn packet() -> impl Strategy<Value = (Packet, Hook, bool)> {
    let addresses = any::<bool>().prop_flat_map(|v6| (address(v6), address(v6)));
    let protocol = select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp]);
    let ports = (
        select(vec![40_000_u16, 53, 15053]),
        prop_oneof![8 => select(&TCP_PORTS[..]), 2 => Just(53), 1 => any::<u16>()],
    );
    let owner = (select(&UIDS[..]), select(&GIDS[..]));
    let marks = (mark(), mark());
    let state = prop_oneof![
        6 => Just(State::New),
        2 => Just(State::Established),
        1 => Just(State::Related),
        1 => Just(State::Invalid),
    ];
    let place = (
        select(vec![Hook::Output, Hook::Prerouting]),
        select(vec!["eth0", "lo", "net1"]),
        any::<bool>(),
        listening(2),
    );
    (addresses, protocol, ports, owner, marks, state, place).prop_map(
        |(addresses, protocol, ports, (uid, gid), marks, state, (hook, interface, nat, listening))| {
            let sent = hook == Hook::Output;
            let packet = Packet {
                source: addresses.0,
                destination: addresses.1,
                protocol,
                source_port: ports.0,
                destination_port: ports.1,
                in_interface: if sent { String::new() } else { interface.to_owned() },
                out_interface: if sent { interface.to_owned() } else { String::new() },
                own_destination: true,
                own_source: sent,
                owner: sent.then_some(Owner { uid, gid }),
                mark: marks.0,
                ct_mark: marks.1,
                state,
                reply: false,
                original: None,
                icmp: (0, 0),
                listening,
            };
            (packet, hook, nat)
        },
    )
}

/// Something to try with real packets.
pub fn attempt() -> impl Strategy<Value = Attempt> {
    let protocol = || select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Tcp, Protocol::Udp]);
    let owner = || {
        (
            prop_oneof![2 => Just(1337), 5 => Just(1000), 3 => select(&UIDS[..])],
            prop_oneof![6 => Just(1000), 3 => select(&GIDS[..])],
        )
    };
    let port =
        |protocol| select(if protocol == Protocol::Tcp { TCP_PORTS.to_vec() } else { UDP_PORTS.to_vec() });
    let to = |pool: Vec<IpAddr>| {
        (protocol(), owner(), select(pool)).prop_flat_map(move |(protocol, owner, to)| {
            (port(protocol), listening(7)).prop_map(move |(port, proxy_up)| Attempt {
                from_peer: false,
                protocol,
                owner,
                source: None,
                mark: 0,
                to: (to, port).into(),
                proxy_up,
            })
        })
    };
    let out = to([FAR.to_vec(), PEER[2..].to_vec()].concat());
    let own = to([POD.to_vec(), LOOPBACK.to_vec()].concat());
    let passthrough =
        (owner(), select(&POD[..]), port(Protocol::Tcp)).prop_map(|(owner, to, port)| Attempt {
            from_peer: false,
            protocol: Protocol::Tcp,
            owner,
            source: Some(PASSTHROUGH[usize::from(to.is_ipv6())]),
            mark: 0,
            to: (to, port).into(),
            proxy_up: true,
        });
    let inbound = to(POD.to_vec()).prop_map(|attempt| Attempt { from_peer: true, owner: (0, 0), ..attempt });
    prop_oneof![6 => out, 4 => own, 1 => passthrough, 5 => inbound]
}

/// What a node and a pod may want of ambient mode; interfaces are those of the world, and one that is not there.
pub fn ambient_options() -> impl Strategy<Value = (NodeOptions, PodOptions)> {
    let pod = (any::<bool>(), any::<Option<bool>>(), names());
    (any::<(bool, bool)>(), pod).prop_map(|((dns_capture, ipv6), (ingress, dns, virtual_interfaces))| {
        let node = NodeOptions { dns_capture, ipv6, ..NodeOptions::default() };
        (node, PodOptions { ingress, dns_capture: dns, virtual_interfaces })
    })
}

/// Something to try with real packets, in a third of the cases as ztunnel.
pub fn ambient_attempt() -> impl Strategy<Value = Attempt> {
    let mark = prop_oneof![2 => Just(0), 1 => Just(ambient::ZTUNNEL_MARK)];
    let usual = attempt().prop_filter("a source that sidecars alone have", |a| a.source.is_none());
    // Only root may mark a socket.
    (usual, mark).prop_map(|(attempt, mark)| match (attempt.from_peer, mark) {
        (false, 1..) => Attempt { mark, owner: (0, 0), ..attempt },
        _ => attempt,
    })
}

fn address(v6: bool) -> impl Strategy<Value = IpAddr> {
    let pool: Vec<IpAddr> = [&POD[..], &PEER[..], &FAR[..], &LOOPBACK[..], &PASSTHROUGH[..]].concat();
    select(pool.into_iter().filter(|address| address.is_ipv6() == v6).collect::<Vec<_>>())
}

/// Whether the proxy listens: `up` times for each time that it does not. A packet that is dropped costs an attempt its patience.
fn listening(up: u32) -> impl Strategy<Value = bool> {
    prop_oneof![up => Just(true), 1 => Just(false)]
}

fn mark() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(0), 1 => select(&MARKS[..])]
}

fn ids(pool: &'static [u32]) -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![4 => Just(vec![1337]), 2 => subsequence(pool, 0..=2)]
}

fn owner_groups() -> impl Strategy<Value = OwnerGroups> {
    prop_oneof![
        5 => Just(OwnerGroups::AllBut(Vec::new())),
        1 => subsequence(&GIDS[..], 1..=2).prop_map(OwnerGroups::AllBut),
        1 => subsequence(&GIDS[..], 0..=3).prop_map(OwnerGroups::Only),
    ]
}

fn included_ports() -> impl Strategy<Value = PortChoice> {
    prop_oneof![3 => Just(PortChoice::All), 2 => ports_of(0..=4)]
}

fn ports_of(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = PortChoice> {
    let list = subsequence(&TCP_PORTS[..], count).prop_shuffle().prop_map(PortChoice::Only);
    prop_oneof![19 => list, 1 => Just(PortChoice::All)]
}

fn ranges() -> impl Strategy<Value = Ranges> {
    prop_oneof![4 => Just(Ranges::All), 3 => prefixes(0..=4).prop_map(Ranges::Only)]
}

fn prefixes(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Prefixes> {
    (subsequence(&RANGES_V4[..], count.clone()), subsequence(&RANGES_V6[..], count))
        .prop_map(|(v4, v6)| Prefixes { v4: parsed(&v4), v6: parsed(&v6) })
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| text.parse().expect("the pools hold valid prefixes")).collect()
}

fn names() -> impl Strategy<Value = Vec<String>> {
    let some =
        subsequence(&INTERFACES[..], 1..=2).prop_map(|names| names.into_iter().map(str::to_owned).collect());
    prop_oneof![3 => Just(Vec::new()), 1 => some]
}

fn dns() -> impl Strategy<Value = DnsCapture> {
    let servers = any::<(bool, bool, bool)>().prop_map(|(far, near, v6)| DnsCapture::Servers {
        v4: [far.then_some([198, 51, 100, 7].into()), near.then_some([127, 0, 0, 1].into())]
            .into_iter()
            .flatten()
            .collect(),
        // At least one of all.
        v6: if v6 || !(far || near) { parsed(&["2001:db8::7"]) } else { Vec::new() },
    });
    prop_oneof![2 => Just(DnsCapture::Off), 2 => Just(DnsCapture::All), 1 => servers]
}

fn loopback() -> impl Strategy<Value = ipnet::Ipv4Net> {
    prop_oneof![3 => Just(LOOPBACK_RANGES[0]), 1 => select(&LOOPBACK_RANGES[..])]
        .prop_map(|text| text.parse().expect("the pool holds valid prefixes"))
}
