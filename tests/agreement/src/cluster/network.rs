//! The namespaces of a cluster and the ways between them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use policy::PolicyFlow;
use policy::compiled::ServicePoint;
use testkit::TestNetns;

use super::{Layout, OUTSIDE, endpoint, pod_place, protocol};
use crate::lab::Loader;

/// The namespaces by their names.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) layout: Layout,
    namespaces: BTreeMap<String, TestNetns>,
}

/// Addresses of the ends of each cable, as far from a pod or a node as can be.
const NEAR: [&str; 2] = ["169.254.1.2", "fe80::2"];
const FAR: [&str; 2] = ["169.254.1.1", "fe80::1"];
/// And of the cards in them.
const NEAR_CARD: &str = "02:00:00:00:00:02";
const FAR_CARD: &str = "02:00:00:00:00:01";

// === impl Network ===

impl Network {
    pub(super) fn new(layout: Layout) -> Result<Self> {
        let mut network = Self { layout, namespaces: BTreeMap::new() };
        let layout = network.layout.clone();
        let outside = host(layout.outside.iter())?;
        network.namespaces.insert(OUTSIDE.to_owned(), outside);
        for (number, (name, own)) in layout.nodes.iter().enumerate() {
            let node = host(own.iter())?;
            let mut behind: Vec<IpAddr> = own.iter().copied().collect();
            let pods = layout.pods.iter().filter(|(_, of)| *of == name);
            behind.extend(pods.flat_map(|(addresses, _)| addresses));
            network.cable(&node, OUTSIDE, &format!("n{number}"), &behind)?;
            network.namespaces.insert(name.clone(), node);
        }
        for (number, (addresses, node)) in layout.pods.iter().enumerate() {
            let pod = TestNetns::new()?;
            quiet(&pod)?;
            let all: Vec<IpAddr> = addresses.iter().copied().collect();
            network.cable(&pod, node, &format!("p{number}"), &all)?;
            pod.ip(&own_addresses(addresses.iter(), "eth0"))?;
            network.namespaces.insert(pod_place(addresses), pod);
        }
        Ok(network)
    }

    pub(super) fn namespace(&self, name: &str) -> Result<&TestNetns> {
        self.namespaces.get(name).with_context(|| format!("no namespace {name}"))
    }

    /// Connects a namespace by its `eth0` with another one, where the cable has the name `far` and these addresses are behind it.
    fn cable(&self, near: &TestNetns, to: &str, far: &str, behind: &[IpAddr]) -> Result<()> {
        let to = self.namespace(to)?;
        near.ip(&[
            format!(
                "link add eth0 address {NEAR_CARD} type veth peer name {far} address {FAR_CARD} netns {}",
                to.path().display()
            ),
            "link set eth0 addrgenmode none".to_owned(),
            "link set eth0 up".to_owned(),
        ])?;
        let mut far_side = vec![format!("link set {far} addrgenmode none"), format!("link set {far} up")];
        for next in NEAR {
            far_side.push(format!("neigh replace {next} lladdr {NEAR_CARD} nud permanent dev {far}"));
        }
        far_side.extend(behind.iter().map(|address| {
            format!("route add {address} via {} dev {far} onlink", NEAR[usize::from(address.is_ipv6())])
        }));
        to.ip(&far_side)?;
        let mut near_side = Vec::new();
        for next in FAR {
            near_side.push(format!("neigh replace {next} lladdr {FAR_CARD} nud permanent dev eth0"));
        }
        near_side.push(format!("route add default via {} dev eth0 onlink", FAR[0]));
        near_side.push(format!("route add default via {} dev eth0 onlink", FAR[1]));
        near.ip(&near_side)
    }

    /// Lets the service proxy of each node lead what goes to an address of a Service to one endpoint.
    pub(super) fn serve(&self, loader: Loader, service: ServicePoint, flow: &PolicyFlow) -> Result<()> {
        let (proto, port) = protocol(flow);
        let (address, number) = service;
        let (proto, to) = (proto.name(), endpoint(flow.destination, port));
        let (source, destination) = (flow.source, flow.destination);
        let ip = if address.is_ipv4() { "ip" } else { "ip6" };
        for name in self.layout.nodes.keys() {
            let node = self.namespace(name)?;
            if loader == Loader::Nft {
                let translate = format!("{ip} daddr {address} {proto} dport {number} dnat {ip} to {to}");
                node.nft(&format!(
                    "table inet proxy {{
                        chain pre {{ type nat hook prerouting priority -100; {translate}; }}
                        chain out {{ type nat hook output priority -100; {translate}; }}
                        chain post {{ type nat hook postrouting priority 100;
                            {ip} saddr {destination} {ip} daddr {destination} masquerade; }}
                    }}"
                ))?;
            } else {
                let translate =
                    format!("-d {address} -p {proto} --dport {number} -j DNAT --to-destination {to}");
                let mut rules = format!("*nat\n-A PREROUTING {translate}\n-A OUTPUT {translate}\n");
                if source == destination {
                    rules += &format!("-A POSTROUTING -s {source} -d {destination} -j MASQUERADE\n");
                }
                rules += "COMMIT\n";
                node.pipe(&mut restore(loader, address), &rules)?;
            }
        }
        Ok(())
    }

    /// Takes the service proxy's rules away.
    pub(super) fn serve_nothing(&self, loader: Loader) -> Result<()> {
        for name in self.layout.nodes.keys() {
            let node = self.namespace(name)?;
            if loader == Loader::Nft {
                node.nft("delete table inet proxy")?;
                continue;
            }
            for family in NEAR {
                let rules = "*nat\n-F PREROUTING\n-F OUTPUT\n-F POSTROUTING\nCOMMIT\n";
                node.pipe(&mut restore(loader, family.parse()?), rules)?;
            }
        }
        Ok(())
    }
}

fn restore(loader: Loader, address: IpAddr) -> std::process::Command {
    let variant = if loader == Loader::IptablesLegacy { "legacy" } else { "nft" };
    let family = if address.is_ipv4() { "" } else { "6" };
    let mut command = std::process::Command::new(format!("ip{family}tables-{variant}-restore"));
    command.arg("--noflush");
    command
}

/// A namespace that passes packets on and has these addresses.
fn host<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> Result<TestNetns> {
    let host = TestNetns::new()?;
    quiet(&host)?;
    host.set_sysctl("net.ipv4.ip_forward", "1")?;
    host.set_sysctl("net.ipv6.conf.all.forwarding", "1")?;
    host.ip(&own_addresses(addresses, "lo"))?;
    Ok(host)
}

fn own_addresses<'a>(addresses: impl Iterator<Item = &'a IpAddr>, link: &str) -> Vec<String> {
    addresses
        .map(|address| match address {
            IpAddr::V4(address) => format!("address add {address}/32 dev {link}"),
            IpAddr::V6(address) => format!("address add {address}/128 dev {link} nodad"),
        })
        .collect()
}

/// No packets that no test asked for, and each refusal told.
fn quiet(namespace: &TestNetns) -> Result<()> {
    for (name, value) in [
        ("net.ipv6.conf.default.accept_ra", "0"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
        ("net.ipv4.icmp_ratelimit", "0"),
        ("net.ipv6.icmp.ratelimit", "0"),
        ("net.ipv4.icmp_msgs_per_sec", "100000"),
        ("net.ipv4.icmp_msgs_burst", "100000"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
    ] {
        namespace.set_sysctl(name, value)?;
    }
    Ok(())
}
