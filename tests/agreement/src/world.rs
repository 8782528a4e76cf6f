//! A pod's addresses, interfaces and routes, as [`testkit::Pod`] makes them with `eth0` and `net1`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use capture::settings::DNS_PORT;

/// The pod's interfaces besides `lo`, with their addresses in the order of [`PEER`].
pub const INTERFACES: [&str; 2] = ["eth0", "net1"];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(a: u16, b: u16, c: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, last))
}

/// The pod's addresses: IPv4 and IPv6 of `eth0`, then of `net1`.
pub const POD: [IpAddr; 4] = [v4(10, 77, 0, 2), v6(0xfd77, 0, 0, 2), v4(10, 77, 1, 2), v6(0xfd77, 1, 0, 2)];
/// The other ends of the same links.
pub const PEER: [IpAddr; 4] = [v4(10, 77, 0, 1), v6(0xfd77, 0, 0, 1), v4(10, 77, 1, 1), v6(0xfd77, 1, 0, 1)];
/// Addresses that no interface has; the pod reaches them through `eth0`.
pub const FAR: [IpAddr; 4] =
    [v4(198, 51, 100, 7), v6(0x2001, 0xdb8, 0, 7), v4(203, 0, 113, 9), v6(0x2001, 0xdb8, 1, 9)];
/// Addresses of `lo`; the last is there for IPv4 only because all of 127.0.0.0/8 is.
pub const LOOPBACK: [IpAddr; 3] = [v4(127, 0, 0, 1), v6(0, 0, 0, 1), v4(127, 0, 0, 5)];
/// Source addresses of the proxy's own connections to the application.
pub const PASSTHROUGH: [IpAddr; 2] = [v4(127, 0, 0, 6), v6(0, 0, 0, 6)];

/// Ports that have a TCP listener in the pod and at its peer.
pub const TCP_PORTS: [u16; 10] = [80, 443, 8080, 53, 15008, 15020, 15021, 15090, 15006, 9999];
/// Ports that have a UDP listener in the pod and at its peer.
pub const UDP_PORTS: [u16; 2] = [53, 9999];

/// Where the proxy may take outbound connections.
pub const PROXY_PORTS: [u16; 2] = [15001, 16001];
/// Where the proxy may take inbound connections.
pub const CAPTURE_PORTS: [u16; 2] = [15006, 16006];
/// Where the proxy may take tunnels.
pub const TUNNEL_PORTS: [u16; 2] = [15008, 443];

/// Whether the listener on a port of the pod is the proxy's, which is not always there.
pub fn is_proxys(port: u16) -> bool {
    PROXY_PORTS.contains(&port) || CAPTURE_PORTS.contains(&port) || port == DNS_PORT
}

/// The user and group that own the pod's listeners: the proxy's usual ones.
pub const LISTENER_ID: u32 = 1337;
/// Users that rules and packets share.
pub const UIDS: [u32; 4] = [1337, 1000, 4242, 0];
/// Groups that rules and packets share.
pub const GIDS: [u32; 4] = [1337, 1000, 2000, 0];

/// The interface that the pod's main routing table sends a packet out by.
pub fn out_interface(destination: IpAddr) -> &'static str {
    if destination.is_loopback() || POD.contains(&destination) || PASSTHROUGH.contains(&destination) {
        return "lo";
    }
    match PEER.iter().position(|peer| *peer == destination) {
        Some(at) => INTERFACES[at / 2],
        None => INTERFACES[0],
    }
}

/// The source address that the pod takes for a destination.
pub fn source_for(destination: IpAddr) -> IpAddr {
    if POD.contains(&destination) {
        return destination;
    }
    let v6 = usize::from(destination.is_ipv6());
    match out_interface(destination) {
        "lo" => LOOPBACK[v6],
        "net1" => POD[2 + v6],
        _ => POD[v6],
    }
}

/// The interface by which packets to one of the pod's addresses come in.
pub fn in_interface(destination: IpAddr) -> &'static str {
    match POD.iter().position(|pod| *pod == destination) {
        Some(at) => INTERFACES[at / 2],
        None => INTERFACES[0],
    }
}
