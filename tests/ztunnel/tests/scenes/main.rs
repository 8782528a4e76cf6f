//! The node agent, real pods' rules and ztunnel together: proxies that come, stay and go, and what applications notice of it all.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod life;
mod names;
mod policies;
mod traffic;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::ensure;
use testkit::TestNetns;
use testkit::{Agent, MeshPod, PATIENCE, eventually};
use ztunnel_tests::{Listening, Peer, SERVICE_TARGET, Town, listening};

/// The applications' port.
const APP: u16 = SERVICE_TARGET;

/// Where a pod's application listens.
fn app(pod: &MeshPod) -> SocketAddr {
    SocketAddr::new(pod.ip, APP)
}

/// Waits until ztunnel listens in the namespace on all of its ports; gives the sockets.
fn wait_proxy(netns: &TestNetns, peer: &Peer) -> BTreeSet<Listening> {
    let proxy = eventually("a proxy in the pod", PATIENCE, || {
        let sockets = listening(netns)?;
        let ports: BTreeSet<u16> = sockets.iter().map(|(port, _)| *port).collect();
        ensure!(ports == Peer::ports(), "it listens on {ports:?}\n{}", peer.log());
        Ok(sockets)
    });
    proxy.unwrap()
}

/// Waits until nothing of ztunnel's listens in the namespace.
fn wait_no_proxy(netns: &TestNetns) {
    let gone = eventually("no proxy in the pod", PATIENCE, || {
        let sockets = listening(netns)?;
        ensure!(sockets.is_empty(), "{sockets:?}");
        Ok(())
    });
    gone.unwrap();
}

/// Waits until the agent has so many ztunnels.
fn wait_connected(agent: &Agent, count: f64) {
    let connected = eventually("so many ztunnels", 2 * PATIENCE, || {
        let found = agent.metric("ztunnel_connected")?;
        ensure!(found == count, "{found} instead of {count}\n{}", agent.log().text());
        Ok(())
    });
    connected.unwrap();
}

/// Waits until each of the pods is in the mesh and has its proxy.
fn wait_in(town: &Town, peer: &Peer, pods: &[&MeshPod]) {
    for pod in pods {
        town.mesh.wait_annotation(pod, Some("enabled")).unwrap();
        wait_proxy(&pod.netns, peer);
    }
    peer.wait_ready(true).unwrap();
}
