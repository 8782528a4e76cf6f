//! The node with wires to its pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result};
use testkit::{Mesh, MeshPod, TestNetns};

/// The node's end of every wire, and so every pod's gateway.
const GATEWAY: &str = "169.254.1.1";

/// Port of the pod to which its service leads.
pub const SERVICE_TARGET: u16 = 8080;

/// A node in ambient mode whose pods reach each other through it.
pub struct Town {
    /// The node.
    pub mesh: Mesh,
}

/// A socket that listens: its port and its inode, which no other socket has while it is open.
pub type Listening = (u16, u64);

// === impl Town ===

impl Town {
    /// # Errors
    /// A namespace cannot be made.
    pub fn new() -> Result<Self> {
        let mesh = Mesh::new()?;
        for (name, value) in
            [("ip_forward", "1"), ("conf.all.rp_filter", "0"), ("conf.default.rp_filter", "0")]
        {
            mesh.host.set_sysctl(&format!("net.ipv4.{name}"), value)?;
        }
        Ok(Self { mesh })
    }

    /// A pod whose sandbox is there and which does not run yet.
    ///
    /// # Errors
    /// A namespace cannot be made.
    pub fn sandbox(&self, namespace: &str, name: &str) -> Result<MeshPod> {
        let pod = self.mesh.sandbox(namespace, name)?;
        self.wire(&pod)?;
        Ok(pod)
    }

    /// A pod that runs; in namespace `mesh` it is to be in the mesh.
    ///
    /// # Errors
    /// A namespace cannot be made.
    pub fn running(&self, namespace: &str, name: &str) -> Result<MeshPod> {
        let pod = self.sandbox(namespace, name)?;
        self.mesh.run(&pod)?;
        self.mesh.node.api.set_pod(pod.object(&[], true));
        Ok(pod)
    }

    /// Another sandbox for the same pod; gives the old one.
    ///
    /// # Errors
    /// A namespace cannot be made.
    pub fn new_sandbox(&self, pod: &mut MeshPod) -> Result<TestNetns> {
        self.mesh.host.ip(&[format!("link delete {}", wire_name(pod))])?;
        let fresh = TestNetns::new()?;
        let old = std::mem::replace(&mut pod.netns, fresh);
        self.mesh.new_sandbox(pod)?;
        self.wire(pod)?;
        Ok(old)
    }

    fn wire(&self, pod: &MeshPod) -> Result<()> {
        let (ip, wire) = (pod.ip, wire_name(pod));
        self.mesh.host.ip(&[
            format!("link add {wire} type veth peer name eth0 netns {}", pod.netns.path().display()),
            format!("address add {GATEWAY}/32 dev {wire}"),
            format!("link set {wire} up"),
            format!("route add {ip}/32 dev {wire}"),
        ])?;
        pod.netns.ip(&[
            "link delete net0".to_owned(),
            format!("address add {ip}/32 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add {GATEWAY} dev eth0 scope link"),
            format!("route add default via {GATEWAY}"),
        ])
    }
}

/// The node's end of the pod's wire: `w` and the last digits of its address, within 15 bytes.
fn wire_name(pod: &MeshPod) -> String {
    format!("w{}", pod.ip).replace('.', "-")
}

/// TCP sockets of ztunnel's ports that listen in a namespace.
///
/// # Errors
/// /proc cannot be read.
pub fn listening(netns: &TestNetns) -> Result<BTreeSet<Listening>> {
    let tables = netns.enter(|_| -> std::io::Result<String> {
        let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        Ok(read("tcp")? + &read("tcp6")?)
    })??;
    let mut found = BTreeSet::new();
    for line in tables.lines() {
        // proc(5): column 1 is the local address, 3 the state with 0A for LISTEN, 9 the inode.
        let columns: Vec<&str> = line.split_whitespace().collect();
        if columns.get(3) != Some(&"0A") {
            continue;
        }
        let (_, port) = columns[1].rsplit_once(':').context("no port")?;
        let port = u16::from_str_radix(port, 16)?;
        if (15000..15100).contains(&port) {
            found.insert((port, columns[9].parse()?));
        }
    }
    Ok(found)
}

/// Name of the service that has the pod alone.
pub fn service_name(pod: &MeshPod) -> String {
    format!("{}.{}.svc.cluster.local", pod.name, pod.namespace)
}

/// Address of the service that has the pod alone; no interface has it.
pub fn service_ip(pod: &MeshPod) -> IpAddr {
    match pod.ip {
        IpAddr::V4(ip) => {
            let [.., high, low] = ip.octets();
            IpAddr::from([10, 96, high, low])
        }
        v6 @ IpAddr::V6(_) => v6,
    }
}
