//! The network of a node: pods and the rest of the world, each at the end of a cable.
//!
//! ```text
//!   [ pod ] ── veth ── [ node ] ── veth ── [ world ]
//! ```

use std::net::Ipv4Addr;

use super::mesh::{Mesh, MeshPod};
use crate::{TestNetns, wait_until_up};
use anyhow::Result;

/// The node's address at the interfaces of pods, a link-local one as many network plugins have it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The node's address on the way to the world.
pub const NODE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The world's: addresses for documentation (RFC 5737).
pub const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// Connects the world, and lets the node forward.
///
/// # Errors
/// `ip` fails.
pub fn connect_world(mesh: &Mesh, world: &TestNetns) -> Result<()> {
    mesh.host.set_sysctl("net.ipv4.ip_forward", "1")?;
    mesh.host.ip(&[
        format!("link add uplink type veth peer name eth0 netns {}", world.path().display()),
        "link set uplink up".to_owned(),
        format!("address add {NODE}/24 dev uplink"),
    ])?;
    world.ip(&[
        "link set eth0 up".to_owned(),
        format!("address add {WORLD}/24 dev eth0"),
        format!("route add default via {NODE}"),
    ])?;
    wait_until_up(&mesh.host, "uplink", true)?;
    wait_until_up(world, "eth0", true)
}

/// Connects a pod's namespace by an interface of this name on the node. A redirect of what comes in is to an address of the interface that it
/// comes by, so the pod's address moves there.
///
/// # Errors
/// `ip` fails.
pub fn connect_pod(mesh: &Mesh, pod: &MeshPod, name: &str) -> Result<()> {
    let ip = pod.ip;
    mesh.host.ip(&[
        format!("link add {name} type veth peer name eth0 netns {}", pod.netns.path().display()),
        format!("link set {name} up"),
        format!("address add {GATEWAY}/32 dev {name}"),
        format!("route add {ip}/32 dev {name}"),
    ])?;
    pod.netns.ip(&[
        "link set eth0 up".to_owned(),
        "link delete net0".to_owned(),
        format!("address add {ip}/32 dev eth0"),
        format!("route add {GATEWAY} dev eth0"),
        format!("route add default via {GATEWAY}"),
    ])?;
    wait_until_up(&mesh.host, name, true)?;
    wait_until_up(&pod.netns, "eth0", true)
}
