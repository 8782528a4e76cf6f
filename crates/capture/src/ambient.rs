//! Plans of ambient mode: a pod's own namespace, where ztunnel listens, and the node's, from where kubelet probes.
//!
//! Every rule is written once for both backends.

mod host;
mod pod;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use ruleset::{Base, Chain, ChainKind, Family, Hook, Match, Plan, Protocol, Rule, TableKind};

use crate::inputs::SettingChange;
use crate::values::{MAX_LIST_BYTES, Quoted, ValueError, parse_bool, parse_interface};

pub use host::{PROBES_V4, PROBES_V6, ProbeSender, SET_COMMENT, plan_host};
pub use pod::{no_rules, plan_drain, plan_pod, plan_translating_pod};

/// Owner name of ambient rules: their nf_tables tables begin with it.
pub const OWNER: &str = "istio-ambient";

/// The mark that ztunnel puts on every socket that it opens in a pod, compared under [`MARK_MASK`].
pub const ZTUNNEL_MARK: u32 = 0x539;
/// The mark of connections that ztunnel opened towards the application, set and compared under [`MARK_MASK`].
pub const REPLY_MARK: u32 = 0x111;
/// The bits of a mark that ambient rules look at.
pub const MARK_MASK: u32 = 0xfff;
/// The routing table in which every destination is local.
pub const ROUTE_TABLE: u32 = 100;
/// Priority of the policy rule that leads there.
pub const RULE_PRIORITY: u32 = 32764;

/// Where ztunnel takes outbound connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where ztunnel takes inbound connections that come in plain text.
pub const INBOUND_PORT: u16 = 15006;
/// Where ztunnel takes inbound tunnels (HBONE), which therefore are not redirected.
pub const HBONE_PORT: u16 = 15008;
/// Where ztunnel resolves names, by UDP and TCP.
pub const DNS_PORT: u16 = 15053;
/// The ports of ztunnel that connections are redirected to, or that carry connections of others: while a socket of one is connected,
/// something goes through ztunnel.
pub const CAPTURE_PORTS: [u16; 4] = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, DNS_PORT];
/// The connection tracking zone of what ztunnel asks name servers.
pub const DNS_ZONE: u16 = 1;

/// Default source address of probes (`HOST_PROBE_SNAT_IP`).
pub const PROBE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// Default source address of probes in IPv6 (`HOST_PROBE_SNAT_IPV6`).
pub const PROBE_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

/// The most virtual interfaces of a pod that are read; each makes two rules.
pub const MAX_INTERFACES: usize = 1000;

const INGRESS: &str = "ambient.istio.io/bypass-inbound-capture";
const DNS: &str = "ambient.istio.io/dns-capture";
const INTERFACES: &str = "istio.io/reroute-virtual-interfaces";

/// Annotations that say how a pod of ambient mode is captured.
pub const CAPTURE_KEYS: [&str; 3] = [INGRESS, DNS, INTERFACES];

/// What is the same for all pods of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOptions {
    /// Whether ztunnel resolves the names of pods that say nothing about it.
    pub dns_capture: bool,
    /// Whether IPv6 is handled. Then both families are, whatever addresses a pod has.
    pub ipv6: bool,
    /// Source address of probes.
    pub probe_v4: Ipv4Addr,
    /// Source address of probes in IPv6.
    pub probe_v6: Ipv6Addr,
}

/// What a pod's annotations say about its capture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodOptions {
    /// What comes in as plain text goes to the application directly: the pod is a gateway for others.
    pub ingress: bool,
    /// Whether ztunnel resolves the pod's names, where the pod says so.
    pub dns_capture: Option<bool>,
    /// Interfaces of guests inside the pod: what comes in by them is outbound traffic. Valid names, in order, without duplicates.
    pub virtual_interfaces: Vec<String>,
}

/// Everything that ambient pods may have in their namespaces, under whatever options: to remove by. Only that, and never to load.
#[must_use]
pub fn plan_of_everything(backend: ruleset::Backend) -> Plan {
    let node = NodeOptions { dns_capture: true, ipv6: true, ..NodeOptions::default() };
    plan_pod(&node, &PodOptions::default(), backend)
}

// === impl NodeOptions ===

impl Default for NodeOptions {
    /// As upstream's chart sets an agent in ambient mode up: DNS is captured, in both families.
    fn default() -> Self {
        Self { dns_capture: true, ipv6: true, probe_v4: PROBE_V4, probe_v6: PROBE_V6 }
    }
}

impl NodeOptions {
    /// What differs between the families, of each family that is handled.
    fn families(&self) -> impl Iterator<Item = Own> + use<> {
        let v4 = Own { loopback: IpAddr::from(Ipv4Addr::LOCALHOST).into(), probe: self.probe_v4.into() };
        let v6 = Own { loopback: IpAddr::from(Ipv6Addr::LOCALHOST).into(), probe: self.probe_v6.into() };
        [Some(v4), self.ipv6.then_some(v6)].into_iter().flatten()
    }
}

/// Addresses of one family.
#[derive(Clone, Copy)]
struct Own {
    loopback: IpNet,
    probe: IpAddr,
}

// === impl PodOptions ===

impl PodOptions {
    /// Reads a pod's annotations. What cannot be used counts as absent, and a text says so; of a list that is each name by
    /// itself.
    #[must_use]
    pub fn parse(annotations: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let mut boolean = |name: &str| {
            let text = annotations.get(name)?;
            let value = parse_bool(text);
            if value.is_none() {
                let text = Quoted::new(text);
                warnings.push(format!("annotation {name}: {text} is not a boolean; taken as absent"));
            }
            value
        };
        let (ingress, dns_capture) = (boolean(INGRESS).unwrap_or(false), boolean(DNS));
        let list = annotations.get(INTERFACES).map_or("", String::as_str);
        let virtual_interfaces = parse_names(list, &mut warnings);
        (Self { ingress, dns_capture, virtual_interfaces }, warnings)
    }

    /// What is another option than before, by its annotation.
    #[must_use]
    pub fn changes(&self, new: &Self) -> Vec<SettingChange> {
        let dns = |options: &Self| options.dns_capture.map_or_else(String::new, |on| on.to_string());
        let change =
            |name, old: String, new: String| (old != new).then_some(SettingChange { name, old, new });
        let all = [
            change(INGRESS, self.ingress.to_string(), new.ingress.to_string()),
            change(DNS, dns(self), dns(new)),
            change(INTERFACES, self.virtual_interfaces.join(","), new.virtual_interfaces.join(",")),
        ];
        all.into_iter().flatten().collect()
    }

    /// Whether ztunnel resolves the pod's names.
    #[must_use]
    pub fn captures_dns(&self, node: &NodeOptions) -> bool {
        self.dns_capture.unwrap_or(node.dns_capture)
    }
}

fn parse_names(list: &str, warnings: &mut Vec<String>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    if list.len() > MAX_LIST_BYTES {
        let cause = ValueError::TooLong { len: list.len() };
        warnings.push(format!("annotation {INTERFACES}: {cause}; taken as absent"));
        return names;
    }
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match parse_interface(name) {
            Ok(name) if names.iter().any(|known| known == name) => {}
            Ok(_) if names.len() == MAX_INTERFACES => {
                warnings.push(format!("annotation {INTERFACES}: only {MAX_INTERFACES} interfaces are read"));
                break;
            }
            Ok(name) => names.push(name.to_owned()),
            // Each name makes a line for the log, and a list may have thousands.
            Err(_) if warnings.len() >= 10 => {}
            Err(cause) => warnings.push(format!("annotation {INTERFACES}: {cause}; that name is left out")),
        }
    }
    names
}

fn base(table: TableKind, hook: Hook, rules: Vec<Rule>) -> Chain {
    let kind = match (table, hook) {
        (TableKind::Nat, _) => ChainKind::Nat,
        // A mark that is set here must lead to another route.
        (TableKind::Mangle, Hook::Output) => ChainKind::Route,
        _ => ChainKind::Filter,
    };
    let base = Some(Base { kind, hook, priority: table.priority(hook) });
    Chain { name: hook.name().into(), base, rules, leading: 0 }
}

fn regular(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base: None, rules, leading: 0 }
}

fn tcp() -> Match {
    Match::Protocol(Protocol::Tcp)
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

#[cfg(test)]
mod tests;
