//! A connection that is judged.

use std::net::IpAddr;

use facts::networkpolicy::PolicyProtocol;

/// A new connection, or the first packet of what has none. Addresses and port are those between the two ends: after a service proxy has chosen
/// the destination and before anything in the destination's own namespace redirects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyFlow {
    /// The source's own address.
    pub source: IpAddr,
    /// The destination's.
    pub destination: IpAddr,
    /// What it carries.
    pub traffic: Traffic,
    /// The way it takes.
    pub route: FlowRoute,
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// A protocol that policies can name, to a port of the destination.
    Port(PolicyProtocol, u16),
    /// Another one, such as ICMP echo or GRE. Rules with ports do not match it.
    Portless,
}

/// The way of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FlowRoute {
    /// Straight to the destination's address.
    #[default]
    Direct,
    /// By an address of a Service, behind which is the destination.
    Service,
    /// Through the tunnel of ambient mode: the pod's network carries it to port 15008, and the port of the flow is the real one, inside.
    Tunnel,
}

/// Port of the tunnel of ambient mode (HBONE, Istio `architecture/ambient/ztunnel.md`).
pub const TUNNEL_PORT: u16 = 15008;

/// Mark of the packets that ztunnel sends, and the bits that are compared (Istio `architecture/ambient/ztunnel-cni-lifecycle.md`).
pub const ZTUNNEL_MARK: (u32, u32) = (0x539, 0xfff);
