//! A node that joins: nothing is on its disk, and pods are there from the beginning. Its base network and the agent come when they come.

use anyhow::ensure;
use runtimes::{Containerd, CriO, Kubelet, Machine, Runtime};
use testkit::eventually;

use crate::boot::{Kind, LIMIT, assert_captured_or_named, boot};

/// How long the base network takes to come.
#[derive(Debug, Clone, Copy)]
enum Network {
    /// Before the agent's container.
    First,
    /// After it.
    Last,
}

const HOST_NETWORK: Kind = Kind { ambient: false, host_network: true, open: false };
const POD_NETWORK: Kind = Kind { host_network: false, ..HOST_NETWORK };

/// How many of the sidecars are not captured; each of them is named.
fn join(
    runtime: impl for<'a> Fn(&'a Machine) -> Box<dyn Runtime + 'a>,
    kind: Kind,
    network: Network,
) -> usize {
    let machine = Machine::new("1.1.0").unwrap();
    machine.remove_conflist().unwrap();
    let runtime = runtime(&machine);
    let kubelet = Kubelet::new(&machine, runtime.as_ref());
    let (agent_pod, pods) = (kind.agent_pod(), kind.pods());
    machine.schedule(pods.iter().chain([&agent_pod]));
    assert!(runtime.network_not_ready().is_some());
    let (life, started) = std::thread::scope(|scope| {
        scope.spawn(|| {
            if matches!(network, Network::Last) {
                let plugin = machine.mesh.node.plugin();
                let waits = || {
                    ensure!(plugin.exists(), "no {}", plugin.display());
                    Ok(())
                };
                eventually("the agent waits for the network", LIMIT, waits).unwrap();
            }
            machine.write_conflist("1.1.0").unwrap();
        });
        boot(&kubelet, kind, &agent_pod, &pods)
    });
    let uncaptured = assert_captured_or_named(&kubelet, &started, &life.agent);
    println!("{kind:?}, network {network:?}: {uncaptured} sidecars are not captured, and named");
    uncaptured
}

#[test]
fn an_agent_on_the_nodes_network_that_is_there_first() {
    join(|machine| Box::new(Containerd::start(machine)), HOST_NETWORK, Network::Last);
    join(|machine| Box::new(CriO::start(machine)), HOST_NETWORK, Network::Last);
}

#[test]
fn an_agent_on_the_nodes_network_whose_image_comes_late() {
    let uncaptured = join(|machine| Box::new(Containerd::start(machine)), HOST_NETWORK, Network::First);
    assert_ne!(uncaptured, 0);
    join(|machine| Box::new(CriO::start(machine)), HOST_NETWORK, Network::First);
}

#[test]
fn an_agent_on_the_pod_network() {
    let uncaptured = join(|machine| Box::new(Containerd::start(machine)), POD_NETWORK, Network::First);
    assert_ne!(uncaptured, 0);
    join(|machine| Box::new(CriO::start(machine)), POD_NETWORK, Network::First);
}
