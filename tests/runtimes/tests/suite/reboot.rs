//! A node that starts again: everything in memory is gone, plugin and configuration are on disk, and all pods come at once with the agent.

use std::time::Duration;

use runtimes::{Containerd, CriO, Kubelet, Machine, Runtime, Started};
use testkit::{PATIENCE, eventually};

use crate::boot::{
    Kind, LIMIT, Life, assert_all_captured, assert_captured_or_named, boot, has_label, is_shown,
};

/// The longest that STATUS may take, by the answer that came soonest.
const STATUS_IN_TIME: Duration = Duration::from_millis(50);
fn reboot(runtime: impl for<'a> Fn(&'a Machine) -> Box<dyn Runtime + 'a>, kind: Kind) {
    let machine = Machine::new("1.1.0").unwrap();
    let (agent_pod, pods) = (kind.agent_pod(), kind.pods());
    machine.schedule(pods.iter().chain([&agent_pod]));
    let before = kind.start(&machine);
    let runtime = runtime(&machine);
    let kubelet = Kubelet::new(&machine, runtime.as_ref());
    let started = kubelet.start_all(&pods, LIMIT).unwrap();
    assert_all_captured(&kubelet, kind, &started, &before);
    before.agent.kill().unwrap();
    drop(before.ztunnel);

    machine.lose_memory().unwrap();
    if kind.open {
        // By the facts that it has the plugin would capture these pods before the agent is there.
        std::fs::remove_dir_all(machine.mesh.node.state_dir()).unwrap();
    }
    runtime.take_calls();
    runtime.reboot();
    assert_eq!(runtime.network_not_ready(), None, "the agent's pod would not start");
    assert_status_in_time(runtime.as_ref());
    for old in &started {
        runtime.stop(&old.sandbox).unwrap();
    }
    let (life, again) = boot(&kubelet, kind, &agent_pod, &pods);
    if kind.open {
        let uncaptured = assert_captured_or_named(&kubelet, &again, &life.agent);
        assert_ne!(uncaptured, 0, "the agent came too soon");
        println!("{uncaptured} pods are named as not captured");
        assert_known_to_the_next_agent(&machine, kind, life, &again, uncaptured);
    } else {
        assert_all_captured(&kubelet, kind, &again, &life);
    }
    for old in &started {
        runtime.remove(&old.sandbox).unwrap();
    }
    let on_pod_network = pods.iter().chain([&agent_pod]).filter(|pod| !pod.host_network).count();
    assert_eq!(machine.leases().unwrap().len(), on_pod_network, "every lease is of a pod that runs");
    let slowest = again.iter().max_by_key(|started| started.after).unwrap();
    println!(
        "{kind:?}: {} pods, the last after {:.1?} with {} refusals",
        pods.len(),
        slowest.after,
        slowest.refusals.len()
    );
    for refusal in again.iter().filter_map(|started| started.refusals.first()).take(1) {
        println!("  {refusal}");
    }
}

/// The next agent has no notes of them, and finds those that are still there.
fn assert_known_to_the_next_agent(
    machine: &Machine,
    kind: Kind,
    life: Life,
    started: &[Started],
    uncaptured: usize,
) {
    life.agent.kill().unwrap();
    let gone = started.iter().find(|started| has_label(machine, &started.pod)).unwrap();
    machine.api().delete_pod(&gone.pod.namespace, &gone.pod.name);
    let next = kind.start(machine);
    let shown = || is_shown(&next.agent, uncaptured - 1);
    eventually("the next agent names the others", PATIENCE, shown).unwrap();
}

fn assert_status_in_time(runtime: &dyn Runtime) {
    for _ in 0..8 {
        // CRI-O asks once after each start.
        runtime.restart();
        assert_eq!(runtime.network_not_ready(), None);
    }
    let calls = runtime.take_calls();
    let status = calls.iter().filter(|call| call.verb == "STATUS" && call.plugin == "istio-cni");
    let soonest = status.map(|call| call.took).min().unwrap();
    println!("STATUS {soonest:.1?}");
    assert!(soonest < STATUS_IN_TIME, "{soonest:?}");
}

const AMBIENT: Kind = Kind { ambient: true, host_network: true, open: false };
const SIDECAR: Kind = Kind { ambient: false, host_network: false, open: false };

#[test]
fn containerd_ambient_agent_on_the_nodes_network() {
    reboot(|machine| Box::new(Containerd::start(machine)), AMBIENT);
}

#[test]
fn containerd_sidecar_agent_on_the_pod_network() {
    reboot(|machine| Box::new(Containerd::start(machine)), SIDECAR);
}

#[test]
fn crio_ambient_agent_on_the_nodes_network() {
    reboot(|machine| Box::new(CriO::start(machine)), AMBIENT);
}

#[test]
fn crio_sidecar_agent_on_the_pod_network() {
    reboot(|machine| Box::new(CriO::start(machine)), SIDECAR);
}

/// The failure policy lets pods start, and then they are found.
#[test]
fn pods_that_may_start_without_capture_are_named() {
    let open = Kind { open: true, ..SIDECAR };
    reboot(|machine| Box::new(Containerd::start(machine)), open);
    reboot(|machine| Box::new(CriO::start(machine)), open);
}
