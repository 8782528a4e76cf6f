//! Settings of the kernel in a namespace.

use ruleset::Family;
use ruleset::listed::ListedAct;

use super::Found;
use super::view::NetnsView;
use crate::{Conflict, ConflictId, Resolution, Severity};

/// Strict reverse path filter; 2 is loose. The kernel takes the greater of an interface's value and that of all.
const STRICT: u32 = 1;

pub(super) fn find_in_pod(view: &NetnsView<'_>, found: &mut Found) {
    reverse_path_filter(view, found);
    local_ports(view, found);
    loopback_without_ipv6(view, found);
    localnet(view, found);
    forwards(view, found);
}

pub(super) fn find_on_node(view: &NetnsView<'_>, found: &mut Found) {
    let bridges = view.observed.links.iter().any(|link| link.kind == "bridge");
    if bridges && number(view, "net/bridge/bridge-nf-call-iptables") == Some(1) {
        found.add(Conflict::of_setting(
            ConflictId::H8,
            Severity::Info,
            "net/bridge/bridge-nf-call-iptables=1",
            "packets between pods of a bridge pass the node's chains, too",
            "nothing, if the node's rules let pods speak to each other",
        ));
    }
    let mut to_pods = view.observed.links.iter().filter(|link| matches!(&*link.kind, "veth" | "netkit"));
    if let Some(link) = to_pods.find(|link| is_strict(view, &link.name)) {
        found.add(Conflict::warning(
            ConflictId::H9,
            format!("net/ipv4/conf/{}/rp_filter={STRICT}", link.name),
            "the source address of probes is no address of the node: packets with it may be dropped here",
            "set net.ipv4.conf.all.rp_filter to 2, or to 0",
        ));
    }
}

fn number(view: &NetnsView<'_>, name: &str) -> Option<u32> {
    view.observed.sysctls.get(name)?.trim().parse().ok()
}

fn is_strict(view: &NetnsView<'_>, interface: &str) -> bool {
    let of = |name: &str| number(view, &format!("net/ipv4/conf/{name}/rp_filter")).unwrap_or(0);
    of("all").max(of(interface)) == STRICT
}

fn reverse_path_filter(view: &NetnsView<'_>, found: &mut Found) {
    let interfaces = ["lo", &view.interface];
    for interface in interfaces.into_iter().filter(|name| view.proxy.tproxy && is_strict(view, name)) {
        let affects = format!(
            "packets for the transparent proxy that come in by {interface} are dropped, because answers would leave by another interface"
        );
        found.add(Conflict {
            resolution: Resolution::LOOSE_REVERSE_PATH,
            ..Conflict::of_setting(
                ConflictId::P13,
                Severity::Error,
                format!("net/ipv4/conf/{interface}/rp_filter={STRICT}"),
                affects,
                "set net.ipv4.conf.all.rp_filter to 2 in the pod",
            )
        });
    }
}

/// Ports of the proxy may be taken for connections of the application.
fn local_ports(view: &NetnsView<'_>, found: &mut Found) {
    let Some(range) = view.observed.sysctls.get("net/ipv4/ip_local_port_range") else { return };
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (Some(low), Some(high)) = (ends.next(), ends.next()) else { return };
    let reserved = view.observed.sysctls.get("net/ipv4/ip_local_reserved_ports").map_or("", String::as_str);
    let is_reserved = |port: u16| {
        reserved.split(',').map(str::trim).any(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            matches!((low.parse::<u16>(), high.parse::<u16>()), (Ok(low), Ok(high)) if (low..=high).contains(&port))
        })
    };
    let within = view.proxy.ports.iter().find(|port| (low..=high).contains(*port) && !is_reserved(**port));
    if let Some(port) = within {
        found.add(Conflict::warning(
            ConflictId::P13,
            format!("net/ipv4/ip_local_port_range={low} {high}"),
            format!(
                "a connection of the application may get port {port}, on which the proxy then cannot listen"
            ),
            format!("add {port} to net.ipv4.ip_local_reserved_ports, or begin the range above it"),
        ));
    }
}

/// What is redirected in IPv6 goes to ::1.
fn loopback_without_ipv6(view: &NetnsView<'_>, found: &mut Found) {
    let off = view.observed.is_on("net/ipv6/conf/lo/disable_ipv6") == Some(true);
    if off && view.addresses(Family::V6).next().is_some() {
        found.add(Conflict::warning(ConflictId::P13, "net/ipv6/conf/lo/disable_ipv6=1",
            "the pod has an IPv6 address, and what is redirected of its connections goes to ::1, which is not there",
            "set net.ipv6.conf.lo.disable_ipv6 to 0 in the pod",
        ));
    }
}

fn localnet(view: &NetnsView<'_>, found: &mut Found) {
    let names = ["all", &view.interface].map(|name| format!("net/ipv4/conf/{name}/route_localnet"));
    if let Some(name) = names.iter().find(|name| view.observed.is_on(name) == Some(true)) {
        found.add(Conflict::warning(ConflictId::P13, format!("{name}=1"),
            "packets from outside may be translated to 127.0.0.1, where the application trusts whoever connects",
            "set it to 0, unless something in the pod needs it",
        ));
    }
}

/// The pod forwards for others, or has addresses that came later.
fn forwards(view: &NetnsView<'_>, found: &mut Found) {
    let on = |name| view.observed.is_on(name) == Some(true);
    if !on("net/ipv4/ip_forward") && !on("net/ipv6/conf/all/forwarding") {
        return;
    }
    let others = |name: &str| name != "lo" && name != view.interface;
    let later = view.observed.addresses.iter().find(|own| others(&own.interface));
    let tailscale = view.chains().find(|(_, chain)| chain.name.starts_with("ts-"));
    let is_dnat = |act: &ListedAct| matches!(act, ListedAct::Dnat { .. });
    let dnat = view.foreign_rules().find(|(.., rule)| rule.acts.iter().any(is_dnat));
    let evidence = match (later, tailscale, dnat) {
        (Some(own), ..) => format!("interface {} with {}", own.interface, own.address),
        (None, Some((table, chain)), _) => format!("chain {} of table {}", chain.name, table.name),
        (None, None, Some((table, chain, rule))) => format!("{} {}: {rule}", table.name, chain.name),
        (None, None, None) => return,
    };
    found.add(Conflict::warning(ConflictId::P18, evidence,
        "the pod forwards: what comes in for an address that the mesh does not know is redirected like the pod's own",
        "name the interface in the annotation istio.io/reroute-virtual-interfaces, or leave its addresses out of the capture",
    ));
}
