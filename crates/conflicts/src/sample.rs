//! Namespaces for tests: a pod in ambient mode, and what others add to it.

use std::net::{IpAddr, SocketAddr};

use capture::ambient::{NodeOptions, PodOptions, ProbeSender, plan_host, plan_pod};
use ruleset::eval::{Owner, Packet};
use ruleset::listed::{ListedChain, ListedTable, Lister, parse_line, parse_tables, planned};
use ruleset::{Backend, Base, ChainKind, Families, Family, Hook, Plan, Protocol, Routing};

use crate::{
    LookedAt, NetnsScope, ObservedAddress, ObservedLink, ObservedNetns, ObservedRoute, RoutingRule,
    RuleLookup,
};

pub(crate) const POD: &str = "10.0.0.9";
pub(crate) const POD_V6: &str = "fd00::9";
/// The age of our tables.
pub(crate) const AGE: u64 = 10;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The plan's tables, as they are read.
fn tables_of(plan: &Plan) -> Vec<ListedTable> {
    let mut tables = Vec::new();
    for family in [Family::V4, Family::V6] {
        for table in planned(&plan.layers, family) {
            let nft = plan.backend == Backend::Nftables;
            let kind = table.name.rsplit(' ').next().unwrap().to_owned();
            tables.push(match nft {
                true => ListedTable {
                    name: format!("inet {}-{kind}", plan.layers[0].owner),
                    lister: Lister::Nft,
                    age: Some(AGE),
                    ..table
                },
                false => ListedTable { age: Some(AGE), ..table },
            });
        }
    }
    tables
}

/// A namespace with the plan's rules, read from a kernel that has nothing else.
pub(crate) fn pod_with(plan: &Plan) -> ObservedNetns {
    let rule = |family, preference, mark, table| RoutingRule {
        family,
        preference,
        mark,
        from: None,
        to: None,
        in_interface: None,
        out_interface: None,
        not: false,
        asks_more: false,
        lookup: RuleLookup::Table(table),
        text: format!("{preference}: lookup {table}"),
    };
    let route = |family, table, local, interface: &str| {
        let any = if family == Family::V4 { ip("0.0.0.0") } else { ip("::") };
        ObservedRoute { family, table, to: (any, 0), local, gone: false, interface: interface.to_owned() }
    };
    let families = [Family::V4, Family::V6];
    let mut rules: Vec<RoutingRule> = Vec::new();
    let mut routes: Vec<ObservedRoute> = Vec::new();
    for family in families {
        rules.extend([rule(family, 0, None, 255), rule(family, 32766, None, 254)]);
        routes.push(route(family, 254, false, "eth0"));
    }
    for step in &plan.routing {
        match *step {
            Routing::Rule { family, mark, mask, table, priority } => {
                rules.push(rule(family, priority, Some((mark, mask)), table));
            }
            Routing::LocalRoute { family, table } => routes.push(route(family, table, true, "lo")),
            Routing::LoopbackAddress(_) => {}
        }
    }
    let address = |interface: &str, address: &str, prefix| ObservedAddress {
        interface: interface.to_owned(),
        address: ip(address),
        prefix,
    };
    let off = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
    ObservedNetns {
        tables: tables_of(plan),
        rules,
        routes,
        sysctls: off.into_iter().map(|name| (name.to_owned(), "0".to_owned())).collect(),
        addresses: vec![
            address("lo", "127.0.0.1", 8),
            address("lo", "::1", 128),
            address("eth0", POD, 24),
            address("eth0", POD_V6, 64),
        ],
        links: ["lo", "eth0"]
            .map(|name| ObservedLink { name: name.to_owned(), ..ObservedLink::default() })
            .into(),
        filters: LookedAt::Found(Vec::new()),
        ..ObservedNetns::default()
    }
}

/// A pod in ambient mode.
pub(crate) fn ambient(backend: Backend) -> (ObservedNetns, Plan) {
    let plan = plan_pod(&NodeOptions::default(), &PodOptions::default(), backend);
    (pod_with(&plan), plan)
}

/// The plan of a sidecar's pod that says nothing of its own.
pub(crate) fn sidecar(backend: Backend, tproxy: bool) -> Plan {
    let mode = if tproxy { capture::settings::Mode::Tproxy } else { capture::settings::Mode::Redirect };
    let settings = capture::Settings { mode, ..capture::Settings::default() };
    capture::plan(&settings, capture::PlanTarget { backend, ipv6: true })
}

/// A node with one pod in the mesh.
pub(crate) fn node(backend: Backend) -> (ObservedNetns, Plan) {
    let plan = plan_host(&NodeOptions::default(), ProbeSender::AnySocket, backend);
    let mut observed = pod_with(&plan);
    observed.scope = NetnsScope::Node;
    observed.links.push(ObservedLink {
        name: "veth1".to_owned(),
        kind: "veth".to_owned(),
        ..ObservedLink::default()
    });
    (observed.probing(vec![ip("10.244.0.7"), ip("fd00:10::7")]), plan)
}

/// A base chain of others in a table of its own, younger than ours. Rules are written as iptables has them.
pub(crate) fn foreign(name: &str, kind: ChainKind, hook: Hook, priority: i32, rules: &[&str]) -> ListedTable {
    let chain = ListedChain {
        name: hook.name().to_owned(),
        base: Some(Base { kind, hook, priority }),
        drops: false,
        rules: rules.iter().map(|line| parse_line(line, Family::V4)).collect(),
    };
    ListedTable {
        chains: vec![chain],
        age: Some(AGE + 1),
        ..ListedTable::nft(format!("ip {name}"), Families::Only(Family::V4))
    }
}

/// Tables as `iptables-save` prints them, younger than ours.
pub(crate) fn saved(lister: Lister, text: &str) -> Vec<ListedTable> {
    let mut tables = parse_tables(text, Family::V4, lister);
    tables.iter_mut().for_each(|table| table.age = Some(AGE + 1));
    tables
}

/// A TCP connection of the pod's application.
pub(crate) fn outbound(to: &str) -> Packet {
    let to: SocketAddr = to.parse().unwrap();
    let from = if to.is_ipv4() { ip(POD) } else { ip(POD_V6) };
    Packet {
        out_interface: "eth0".to_owned(),
        owner: Some(Owner { uid: 1000, gid: 1000 }),
        ..Packet::new(Protocol::Tcp, (from, 40_000).into(), to)
    }
}

/// A TCP connection to the pod.
pub(crate) fn inbound(to: &str) -> Packet {
    let to: SocketAddr = to.parse().unwrap();
    let from = if to.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
    Packet { in_interface: "eth0".to_owned(), ..Packet::new(Protocol::Tcp, (ip(from), 40_000).into(), to) }
}
