//! How a pod is captured, in types: nothing here is unparsed text.

use ipnet::{Ipv4Net, Ipv6Net};

/// The port where the proxy takes outbound connections (Istio's fixed default).
pub const PROXY_PORT: u16 = 15001;
/// The port where the proxy takes inbound connections.
pub const CAPTURE_PORT: u16 = 15006;
/// The port of HBONE tunnels, which the proxy serves itself.
pub const TUNNEL_PORT: u16 = 15008;
/// The port where the proxy answers DNS.
pub const DNS_PORT: u16 = 15053;
/// The user and group of the proxy where the pod does not say otherwise.
pub const PROXY_ID: u32 = 1337;
/// Mark of packets for the transparent inbound socket.
pub const TPROXY_MARK: u32 = 1337;
/// Mark of packets that the proxy sends to its own pod.
pub const TPROXY_OUTBOUND_MARK: u32 = 1338;
/// Routing table that makes marked packets local.
pub const TPROXY_TABLE: u32 = 133;

/// Everything that decides a pod's rules, apart from what the namespace itself shows ([`crate::plan::PlanTarget`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where outbound connections go.
    pub proxy_port: u16,
    /// Where inbound connections go.
    pub capture_port: u16,
    /// Inbound port that is never captured.
    pub tunnel_port: u16,
    /// Users whose traffic is the proxy's own.
    pub proxy_uids: Vec<u32>,
    /// Groups whose traffic is the proxy's own.
    pub proxy_gids: Vec<u32>,
    /// How inbound connections are captured.
    pub mode: Mode,
    /// Mark for [`Mode::Tproxy`].
    pub tproxy_mark: u32,
    /// Routing table for [`Mode::Tproxy`].
    pub tproxy_table: u32,
    /// Inbound ports that are captured.
    pub inbound_ports: PortChoice,
    /// Inbound ports that are not, where `inbound_ports` is all.
    pub inbound_ports_excluded: PortChoice,
    /// Outbound destination ports that are captured whatever their address.
    pub outbound_ports: PortChoice,
    /// Outbound destination ports that are never captured.
    pub outbound_ports_excluded: PortChoice,
    /// Outbound destinations that are captured.
    pub outbound_ranges: Ranges,
    /// Outbound destinations that are not.
    pub outbound_ranges_excluded: Prefixes,
    /// Groups whose outbound traffic is captured.
    pub owner_groups: OwnerGroups,
    /// Interfaces whose inbound traffic is the outbound traffic of something behind them, such as a virtual machine.
    pub reroute_interfaces: Vec<String>,
    /// Interfaces that are left alone in both directions.
    pub excluded_interfaces: Vec<String>,
    /// Which DNS queries go to the proxy.
    pub dns: DnsCapture,
    /// Whether packets that fit no connection are dropped.
    pub drop_invalid: bool,
    /// Whether IPv6 is captured as soon as the pod has any IPv6 address, rather than when its first address is one.
    pub dual_stack: bool,
    /// IPv4 addresses that count as this pod's own loopback.
    pub loopback_v4: Ipv4Net,
}

/// How inbound connections are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// By address translation: the proxy sees its own pod as the source.
    #[default]
    Redirect,
    /// By a transparent socket: the source address stays.
    Tproxy,
}

/// A choice of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortChoice {
    /// Every port.
    All,
    /// These, in the order given, without duplicates.
    Only(Vec<u16>),
}

/// A choice of destination addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// Every address.
    All,
    /// These.
    Only(Prefixes),
}

/// Prefixes of both families, each in the order given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prefixes {
    /// IPv4.
    pub v4: Vec<Ipv4Net>,
    /// IPv6.
    pub v6: Vec<Ipv6Net>,
}

/// A choice of groups by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerGroups {
    /// Every group but these.
    AllBut(Vec<u32>),
    /// These; none means that no outbound traffic is captured.
    Only(Vec<u32>),
}

/// Which DNS queries go to the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsCapture {
    /// None.
    Off,
    /// Every query to port 53.
    All,
    /// Those to these servers; at least one.
    Servers {
        /// IPv4 addresses.
        v4: Vec<std::net::Ipv4Addr>,
        /// IPv6 addresses.
        v6: Vec<std::net::Ipv6Addr>,
    },
}

// === impl Settings ===

impl Default for Settings {
    /// A pod that says nothing: everything captured by REDIRECT, as with no annotation and no proxy variable at all.
    fn default() -> Self {
        Self {
            proxy_port: PROXY_PORT,
            capture_port: CAPTURE_PORT,
            tunnel_port: TUNNEL_PORT,
            proxy_uids: vec![PROXY_ID],
            proxy_gids: vec![PROXY_ID],
            mode: Mode::Redirect,
            tproxy_mark: TPROXY_MARK,
            tproxy_table: TPROXY_TABLE,
            inbound_ports: PortChoice::All,
            inbound_ports_excluded: PortChoice::Only(crate::annotations::ALWAYS_EXCLUDED_INBOUND.to_vec()),
            outbound_ports: PortChoice::none(),
            outbound_ports_excluded: PortChoice::Only(vec![crate::annotations::AGENT_PORT]),
            outbound_ranges: Ranges::All,
            outbound_ranges_excluded: Prefixes::default(),
            owner_groups: OwnerGroups::AllBut(Vec::new()),
            reroute_interfaces: Vec::new(),
            excluded_interfaces: Vec::new(),
            dns: DnsCapture::Off,
            drop_invalid: false,
            dual_stack: false,
            loopback_v4: default_loopback(),
        }
    }
}

/// `127.0.0.1/32`.
pub fn default_loopback() -> Ipv4Net {
    Ipv4Net::from(std::net::Ipv4Addr::LOCALHOST)
}

impl PortChoice {
    /// No port.
    pub fn none() -> Self {
        Self::Only(Vec::new())
    }

    /// Whether it chooses no port at all.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::Only(ports) if ports.is_empty())
    }
}

impl Ranges {
    /// Whether a chosen prefix, other than all, lies in the loopback range.
    pub fn include_loopback(&self) -> bool {
        match self {
            Self::All => false,
            Self::Only(prefixes) => {
                prefixes.v4.iter().any(|net| net.addr().is_loopback())
                    || prefixes.v6.iter().any(|net| net.addr().is_loopback())
            }
        }
    }
}
