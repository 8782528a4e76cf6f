//! What has to come out, written down by hand. The rules of the plugin are not looked at here: these lines say what Istio promises
//! its users, and the demo fails where a real connection does something else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where the proxy takes what comes to the pod.
pub(crate) const INBOUND: u16 = 15006;
/// Where the proxy takes what the pod sends.
pub(crate) const OUTBOUND: u16 = 15001;

/// The application's port in every pod.
pub(crate) const APP: u16 = 8080;
/// A second one, excluded in one pod.
pub(crate) const METRICS: u16 = 9090;
/// Ports that the world serves.
pub(crate) const HTTPS: u16 = 443;
pub(crate) const MYSQL: u16 = 3306;

/// The rest of the world: addresses for documentation (RFC 5737, RFC 3849).
pub(crate) const WORLD: IpAddr = IpAddr::V4(testkit::wires::WORLD);
pub(crate) const WORLD_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10));
/// One more address of the world, in a range that one pod excludes.
pub(crate) const PARTNER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// User and group.
pub(crate) type Ids = (u32, u32);
/// The application's processes.
pub(crate) const APP_IDS: Ids = (1000, 1000);

/// One pod: its manifest is `manifests/<namespace>_<name>.yaml`.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    pub(crate) decision: Decision,
    /// The proxy's processes.
    pub(crate) proxy: Ids,
    /// The inbound listener is a transparent socket, and connections come to it as they were sent.
    pub(crate) tproxy: bool,
    pub(crate) connections: &'static [Connection],
}

/// What the plugin has to do with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Captured,
    /// With this reason.
    LeftAlone(&'static str),
}

/// One real connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) from: From,
    pub(crate) to: To,
    pub(crate) expected: Expected,
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    World,
    /// The node itself, as kubelet does for probes.
    Node,
    /// The application of another pod.
    Neighbour(&'static str),
    /// The pod's application.
    App,
    /// The pod's proxy.
    Proxy,
}

/// Whereto.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// The pod's IPv4 address.
    Pod(u16),
    /// The pod's IPv6 address.
    PodV6(u16),
    /// An address that is not the pod's.
    Address(IpAddr, u16),
}

/// Where a connection has to arrive. The proxy always has to learn the destination that the client wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// At the proxy's inbound port.
    Inbound,
    /// At the proxy's outbound port.
    Outbound,
    /// Where it was sent to.
    Direct,
}

impl Expected {
    /// The port where a connection to `port` has to arrive.
    pub(crate) fn port(self, port: u16) -> u16 {
        match self {
            Self::Inbound => INBOUND,
            Self::Outbound => OUTBOUND,
            Self::Direct => port,
        }
    }
}

/// Whether somebody who listens on this port is the proxy.
pub(crate) fn is_proxy(port: u16) -> bool {
    [INBOUND, OUTBOUND].contains(&port)
}

const fn pod(name: &'static str, decision: Decision, connections: &'static [Connection]) -> Pod {
    Pod { namespace: "shop", name, decision, proxy: (1337, 1337), tproxy: false, connections }
}

const fn flow(from: From, to: To, expected: Expected) -> Connection {
    Connection { from, to, expected }
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

use Decision::{Captured, LeftAlone};
use Expected::{Direct, Inbound, Outbound};
use To::Address;

pub(crate) const PODS: &[Pod] = &[
    pod(
        "plain",
        LeftAlone("no-proxy"),
        &[flow(From::World, To::Pod(APP), Direct), flow(From::App, Address(WORLD, HTTPS), Direct)],
    ),
    pod(
        "web",
        Captured,
        &[
            flow(From::World, To::Pod(APP), Inbound),
            flow(From::Node, To::Pod(APP), Inbound),
            flow(From::Neighbour("plain"), To::Pod(APP), Inbound),
            flow(From::App, Address(WORLD, HTTPS), Outbound),
            flow(From::App, Address(LOOPBACK, APP), Direct),
            flow(From::Proxy, Address(WORLD, HTTPS), Direct),
        ],
    ),
    pod(
        "payments",
        Captured,
        &[
            flow(From::World, To::Pod(APP), Inbound),
            flow(From::World, To::Pod(METRICS), Direct),
            flow(From::App, Address(WORLD, HTTPS), Outbound),
            flow(From::App, Address(WORLD, MYSQL), Direct),
            flow(From::App, Address(PARTNER, HTTPS), Direct),
        ],
    ),
    Pod {
        tproxy: true,
        proxy: (0, 1337),
        ..pod(
            "audit",
            Captured,
            &[
                flow(From::World, To::Pod(APP), Inbound),
                flow(From::App, Address(WORLD, HTTPS), Outbound),
                flow(From::Proxy, Address(WORLD, HTTPS), Direct),
            ],
        )
    },
    pod(
        "dual",
        Captured,
        &[
            flow(From::World, To::Pod(APP), Inbound),
            flow(From::World, To::PodV6(APP), Inbound),
            flow(From::App, Address(WORLD_V6, HTTPS), Outbound),
            flow(From::App, Address(LOOPBACK_V6, APP), Direct),
            flow(From::Proxy, Address(WORLD_V6, HTTPS), Direct),
        ],
    ),
    Pod {
        namespace: "kube-system",
        ..pod(
            "dns",
            LeftAlone("excluded-namespace"),
            &[flow(From::Node, To::Pod(APP), Direct), flow(From::App, Address(WORLD, HTTPS), Direct)],
        )
    },
];
