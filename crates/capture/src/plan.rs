//! A captured pod's plan: every rule is written here once, for both backends.
//!
//! Where upstream's two backends differ in more than notation, a comment says so; `docs/compatibility.md` lists those places.

mod dns;
mod draft;
mod outbound;
mod tproxy;

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ruleset::{ALL_BITS, Action, Backend, Families, Family, Match, Plan, Protocol, Routing, Rule, TableKind};

use crate::settings::{Mode, PortChoice, Settings};
use draft::{Draft, DraftChain};

/// Owner name of sidecar rules: their nf_tables tables begin with it.
pub const OWNER: &str = "istio-proxy";

/// Chains that sidecar rules may have in a table, in every setting. Whoever cleans up touches no others.
pub const CHAINS: &[(TableKind, &[&str])] = draft::CHAINS;

/// Source address of the proxy's own inbound connections to the application.
const PASSTHROUGH_V4: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 6), 32);
/// The same for IPv6; the plan puts it on the loopback interface.
const PASSTHROUGH_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6), 128);

/// Priority of our policy rules: the one below the main table's 32766 (linux/fib_rules.h has no name for it), which is what the
/// kernel gives upstream's first rule that has none. Being fixed, it lets a second run find the first one's rule.
const RULE_PRIORITY: u32 = 32765;

/// What planning must know of the namespace and the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanTarget {
    /// The kernel interface that will hold the rules.
    pub backend: Backend,
    /// Whether IPv6 is captured, see [`detect_ipv6`].
    pub ipv6: bool,
}

/// The pod has no address that a connection could come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no valid local IP address found in the pod's network namespace: the plugins before this one in the chain gave it \
     only loopback and link-local addresses, or none"
)]
pub struct NoAddress;

/// Whether IPv6 is captured. `addresses` are those of all interfaces in the order in which the kernel lists them.
///
/// # Errors
/// No address is usable.
pub fn detect_ipv6(addresses: &[IpAddr], dual_stack: bool) -> Result<bool, NoAddress> {
    let usable: Vec<IpAddr> = addresses.iter().map(IpAddr::to_canonical).filter(is_usable).collect();
    match usable.first() {
        None => Err(NoAddress),
        Some(first) if !dual_stack => Ok(first.is_ipv6()),
        Some(_) => Ok(usable.iter().any(IpAddr::is_ipv6)),
    }
}

fn is_usable(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => {
            v4.is_link_local() || (v4.octets()[0] == 224 && v4.octets()[1] == 0 && v4.octets()[2] == 0)
        }
        IpAddr::V6(v6) => v6.is_unicast_link_local() || (v6.segments()[0] & 0xff0f) == 0xff02,
    };
    !address.is_loopback() && !link_local && !address.is_unspecified()
}

/// No rules: to look for those that a captured pod has.
#[must_use]
pub fn no_rules() -> ruleset::Ruleset {
    Draft::new().finish(true)
}

/// The plan for a captured pod.
pub fn plan(settings: &Settings, facts: PlanTarget) -> Plan {
    with_routing(settings, facts, Planner::new(settings, facts).rules())
}

/// The plan for a pod that is not captured any more while connections by way of its proxy are open: nothing is redirected, and what was redirected
/// goes on. As in ambient mode ([`crate::ambient::plan_drain`]): a nat base chain and something that uses connection tracking stay, by which the
/// kernel goes on translating, and the marks by which answers find back to the proxy.
#[must_use]
pub fn plan_drain(settings: &Settings, facts: PlanTarget) -> Plan {
    with_routing(settings, facts, Planner::new(settings, facts).drain())
}

/// What the rules rely on. A pod that drains needs it still.
fn with_routing(settings: &Settings, facts: PlanTarget, rules: ruleset::Ruleset) -> Plan {
    let mut routing = Vec::new();
    if facts.ipv6 {
        routing.push(Routing::LoopbackAddress(PASSTHROUGH_V6.addr()));
    }
    if settings.mode == Mode::Tproxy && !settings.inbound_ports.is_none() {
        let families: &[Family] = if facts.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] };
        for &family in families {
            routing.push(Routing::Rule {
                family,
                mark: settings.tproxy_mark,
                mask: ALL_BITS,
                table: settings.tproxy_table,
                priority: RULE_PRIORITY,
            });
            routing.push(Routing::LocalRoute { family, table: settings.tproxy_table });
        }
    }
    Plan { backend: facts.backend, routing, layers: vec![rules] }
}

struct Planner<'a> {
    settings: &'a Settings,
    facts: PlanTarget,
    draft: Draft,
}

impl<'a> Planner<'a> {
    fn new(settings: &'a Settings, facts: PlanTarget) -> Self {
        Self { settings, facts, draft: Draft::new() }
    }

    fn rules(mut self) -> ruleset::Ruleset {
        self.excluded_interfaces();
        self.rerouted_interfaces();
        self.drop_invalid();
        self.proxy_targets();
        self.inbound();
        self.outbound();
        self.answer_marks();
        self.tproxy_exceptions();
        self.draft.finish(self.facts.ipv6)
    }

    fn drain(mut self) -> ruleset::Ruleset {
        let enter = Rule::new(vec![], jump(DraftChain::NAT_OUTPUT), "what the pod sends");
        self.draft.add(DraftChain::output(TableKind::Nat), enter);
        // Of packets that begin no connection the kernel asks no nat chain, so it never holds.
        let track = Rule::new(
            vec![Match::CtState(ruleset::CtState::RelatedOrEstablished)],
            Action::Return,
            "what was redirected is translated as long as something here uses connection tracking",
        );
        self.draft.add(DraftChain::NAT_OUTPUT, track);
        self.answer_marks();
        self.draft.finish(self.facts.ipv6)
    }

    fn tproxy(&self) -> bool {
        self.settings.mode == Mode::Tproxy
    }

    /// The loopback range and the proxy's source address, of each family that is captured.
    fn per_family(&self) -> impl Iterator<Item = Own> + use<> {
        let v4 = Own { loopback: self.settings.loopback_v4.into(), passthrough: PASSTHROUGH_V4.into() };
        let v6 =
            Own { loopback: Ipv6Net::from(Ipv6Addr::LOCALHOST).into(), passthrough: PASSTHROUGH_V6.into() };
        [Some(v4), self.facts.ipv6.then_some(v6)].into_iter().flatten()
    }

    /// Interfaces that the annotation names are left alone, in both directions.
    fn excluded_interfaces(&mut self) {
        let tables: &[TableKind] =
            if self.tproxy() { &[TableKind::Nat, TableKind::Mangle] } else { &[TableKind::Nat] };
        for &table in tables {
            for name in &self.settings.excluded_interfaces {
                let why = format!("interface {name} is excluded by annotation");
                let back = |m| Rule::new(vec![m], Action::Return, why.clone());
                self.draft.add(DraftChain::prerouting(table), back(in_interface(name)));
                self.draft.add(DraftChain::output(table), back(out_interface(name)));
            }
        }
    }

    /// Interfaces of virtual machines: what they send is outbound.
    fn rerouted_interfaces(&mut self) {
        for name in &self.settings.reroute_interfaces {
            let rule = Rule::new(
                vec![in_interface(name)],
                Action::Return,
                format!("what comes from {name} and is not outbound traffic to capture is left alone"),
            );
            self.draft.insert_first(DraftChain::NAT_PREROUTING, rule);
        }
    }

    /// Packets that fit no connection. Upstream's nf_tables rule looks at TCP only.
    fn drop_invalid(&mut self) {
        if !self.settings.drop_invalid {
            return;
        }
        let mut matches = vec![Match::CtState(ruleset::CtState::Invalid)];
        if self.facts.backend == Backend::Nftables {
            matches.insert(0, tcp());
        }
        let why = "INVALID_DROP: a packet that fits no connection would make the proxy's peer reset it";
        self.draft.add(DraftChain::MANGLE_PREROUTING, Rule::new(matches, jump(DraftChain::MANGLE_DROP), why));
        self.draft.add(DraftChain::MANGLE_DROP, Rule::new(vec![], Action::Drop, why));
    }

    /// The chains that lead to the proxy's ports, and the tunnel's port, which leads nowhere else.
    fn proxy_targets(&mut self) {
        let Settings { proxy_port, capture_port, tunnel_port, .. } = *self.settings;
        let tunnel = Rule::new(
            vec![tcp(), to_port(tunnel_port)],
            Action::Return,
            "HBONE tunnels end at the proxy's own port",
        );
        self.draft.add(DraftChain::NAT_INBOUND, tunnel);
        let out = Rule::new(vec![tcp()], Action::Redirect { port: proxy_port }, "outbound, to the proxy");
        self.draft.add(DraftChain::NAT_REDIRECT, out);
        let inward = Rule::new(vec![tcp()], Action::Redirect { port: capture_port }, "inbound, to the proxy");
        self.draft.add(DraftChain::NAT_IN_REDIRECT, inward);
    }

    /// What comes in.
    fn inbound(&mut self) {
        let Settings { inbound_ports, inbound_ports_excluded, .. } = self.settings;
        // Excluded ports count only where all are captured; a list of ports to capture says it all.
        let all_excluded = *inbound_ports == PortChoice::All && *inbound_ports_excluded == PortChoice::All;
        if inbound_ports.is_none() || all_excluded {
            return;
        }
        if self.tproxy() {
            self.tproxy_targets();
        }
        let table = if self.tproxy() { TableKind::Mangle } else { TableKind::Nat };
        if self.tproxy() {
            // What leads these interfaces outward is in nat only; upstream's transparent socket therefore takes these packets before nat can redirect them.
            for name in &self.settings.reroute_interfaces {
                let why = format!("what comes from {name} is not inbound traffic");
                self.draft.add(
                    DraftChain::MANGLE_PREROUTING,
                    Rule::new(vec![in_interface(name)], Action::Return, why),
                );
            }
        }
        let enter = Rule::new(vec![tcp()], jump(DraftChain::NAT_INBOUND), "inbound TCP");
        self.draft.add(DraftChain::prerouting(table), enter);
        match &self.settings.inbound_ports {
            PortChoice::All => {
                if let PortChoice::Only(excluded) = &self.settings.inbound_ports_excluded {
                    for &port in excluded {
                        let rule = Rule::new(
                            vec![tcp(), to_port(port)],
                            Action::Return,
                            format!("inbound port {port} is excluded"),
                        );
                        self.draft.add(DraftChain::inbound(table), rule);
                    }
                }
                self.capture_inbound(table, None);
            }
            PortChoice::Only(ports) => {
                for &port in ports {
                    self.capture_inbound(table, Some(port));
                }
            }
        }
    }

    fn capture_inbound(&mut self, table: TableKind, port: Option<u16>) {
        let matches = |first: Vec<Match>| first.into_iter().chain(port.map(to_port)).collect::<Vec<_>>();
        let what =
            port.map_or_else(|| "every other inbound port".to_owned(), |port| format!("inbound port {port}"));
        if table == TableKind::Mangle {
            let divert = Rule::new(
                matches(vec![tcp(), Match::CtState(ruleset::CtState::RelatedOrEstablished)]),
                jump(DraftChain::MANGLE_DIVERT),
                format!("{what}: later packets of a captured connection keep its mark"),
            );
            self.draft.add(DraftChain::MANGLE_INBOUND, divert);
            let capture = Rule::new(
                matches(vec![tcp()]),
                jump(DraftChain::MANGLE_TPROXY),
                format!("{what} is captured"),
            );
            self.draft.add(DraftChain::MANGLE_INBOUND, capture);
        } else {
            let capture = Rule::new(
                matches(vec![tcp()]),
                jump(DraftChain::NAT_IN_REDIRECT),
                format!("{what} is captured"),
            );
            self.draft.add(DraftChain::NAT_INBOUND, capture);
        }
    }

    /// Prefixes of the families that are captured, IPv4 first.
    fn handled(&self, v4: &[Ipv4Net], v6: &[Ipv6Net]) -> Vec<IpNet> {
        let v6 = if self.facts.ipv6 { v6 } else { &[] };
        v4.iter().copied().map(IpNet::V4).chain(v6.iter().copied().map(IpNet::V6)).collect()
    }
}

/// What counts as the pod's own in one family.
#[derive(Clone, Copy)]
struct Own {
    loopback: IpNet,
    passthrough: IpNet,
}

/// Whose packet it is.
#[derive(Clone, Copy)]
enum Owner {
    Uid(u32),
    Gid(u32),
}

impl Owner {
    fn is(self) -> Match {
        self.matching(false)
    }

    fn is_not(self) -> Match {
        self.matching(true)
    }

    fn matching(self, not: bool) -> Match {
        match self {
            Self::Uid(uid) => Match::Uid { uid, not },
            Self::Gid(gid) => Match::Gid { gid, not },
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Gid(gid) => write!(f, "gid {gid}"),
        }
    }
}

fn tcp() -> Match {
    Match::Protocol(Protocol::Tcp)
}

/// What a process of the pod sends to an address of its own that is not the loopback address.
fn to_own_address(own: Own) -> [Match; 3] {
    [out_interface("lo"), tcp(), Match::Destination { net: own.loopback, not: true }]
}

fn to_port(port: u16) -> Match {
    Match::DestinationPort { ports: ruleset::Ports::One(port), not: false }
}

fn in_interface(name: &str) -> Match {
    Match::InInterface { name: name.to_owned().into(), not: false }
}

fn out_interface(name: &str) -> Match {
    Match::OutInterface { name: name.to_owned().into(), not: false }
}

fn source(net: IpNet) -> Match {
    Match::Source { net, not: false }
}

fn destination(net: IpNet) -> Match {
    Match::Destination { net, not: false }
}

fn jump(chain: DraftChain) -> Action {
    Action::Jump(chain.name.into())
}

/// Both families, or the only one that has something.
fn families(v4: bool, v6: bool) -> Option<Families> {
    match (v4, v6) {
        (true, true) => Some(Families::Both),
        (true, false) => Some(Families::Only(Family::V4)),
        (false, true) => Some(Families::Only(Family::V6)),
        (false, false) => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;
