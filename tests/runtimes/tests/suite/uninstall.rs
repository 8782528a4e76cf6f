//! Pods that outlive the plugin's uninstallation. CRI-O checks and deletes them by the list of their ADD, which names the plugin.

use std::time::Duration;

use anyhow::ensure;
use runtimes::{Containerd, CriO, Kubelet, Machine, PodSpec, Runtime, Started};
use testkit::{PATIENCE, eventually};

/// How long a pod may be tried.
const LIMIT: Duration = Duration::from_secs(20);

fn pods(names: &[&str]) -> Vec<PodSpec> {
    let pod = |name: &&str| match name.strip_prefix("sidecar") {
        Some(_) => PodSpec::sidecar("default", name),
        None => PodSpec::new("default", name),
    };
    names.iter().map(pod).collect()
}

/// Whether the plugin itself is called for what happens.
fn calls_plugin(runtime: &dyn Runtime, verb: &str) -> bool {
    runtime.take_calls().iter().any(|call| call.verb == verb && call.plugin == "istio-cni")
}

fn assert_addressed(runtime: &dyn Runtime, pods: &[Started]) {
    for Started { pod, sandbox, .. } in pods {
        assert_eq!(runtime.sandboxes().addresses(sandbox).len(), 1, "{}", pod.name);
    }
}

/// For which verbs a runtime calls what was uninstalled.
struct ByKeptList {
    check: bool,
    del: bool,
}

/// Installs, starts pods, uninstalls, restarts the runtime, and deletes the pods.
fn outlive(machine: &Machine, runtime: &dyn Runtime, kept: &ByKeptList) {
    let node = &machine.mesh.node;
    let base = std::fs::read_to_string(node.conflist()).unwrap();
    let agent = machine.agent().env("CLEANUP_ON_EXIT", "always").ready().unwrap();
    let kubelet = Kubelet::new(machine, runtime);
    let before = pods(&["sidecar-1", "sidecar-2", "plain"]);
    machine.schedule(&before);
    let before = kubelet.start_all(&before, LIMIT).unwrap();
    agent.stop().unwrap();
    assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), base);
    assert!(!node.kubeconfig().exists());

    assert_eq!(runtime.network_not_ready(), None);
    runtime.take_calls();
    runtime.restart();
    assert_eq!(calls_plugin(runtime, "CHECK"), kept.check);
    assert_addressed(runtime, &before);
    let after = kubelet.start_all(&pods(&["after"]), LIMIT).unwrap();
    assert!(!calls_plugin(runtime, "ADD"), "new pods are added without it");
    for _ in 0..2 {
        runtime.restart();
        assert_addressed(runtime, &before);
        assert_addressed(runtime, &after);
    }

    let mut leases = machine.leases().unwrap();
    for Started { pod, sandbox, .. } in before.iter().chain(&after) {
        let address = runtime.sandboxes().addresses(sandbox)[0].to_string();
        runtime.take_calls();
        runtime.stop(sandbox).unwrap();
        runtime.remove(sandbox).unwrap();
        assert_eq!(calls_plugin(runtime, "DEL"), kept.del && pod.name != "after", "{}", pod.name);
        leases.retain(|lease| *lease != address);
        assert_eq!(machine.leases().unwrap(), leases, "{}", pod.name);
    }
    assert_eq!(leases, [""; 0]);
    assert_eq!(std::fs::read_dir(node.cache_dir().join("results")).unwrap().count(), 0);
}

fn assert_program_gone(machine: &Machine) {
    let gone = || {
        let bin = std::fs::read_dir(machine.mesh.node.bin_target())?;
        let names = bin.map(|file| Ok(file?.file_name().to_string_lossy().into_owned()));
        let left = names.collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(!left.iter().any(|name| name.contains("istio-cni")), "{left:?}");
        Ok(())
    };
    eventually("program and mark are gone", PATIENCE, gone).unwrap();
}

#[test]
fn crio_checks_and_deletes_by_the_kept_list() {
    for (version, check) in [("0.3.1", false), ("1.0.0", true), ("1.1.0", true)] {
        let machine = Machine::new(version).unwrap();
        outlive(&machine, &CriO::start(&machine), &ByKeptList { check, del: true });
        assert_program_gone(&machine);
    }
}

#[test]
fn containerd_deletes_by_the_list_that_is_there() {
    for version in ["0.3.1", "1.0.0", "1.1.0"] {
        let machine = Machine::new(version).unwrap();
        outlive(&machine, &Containerd::start(&machine), &ByKeptList { check: false, del: false });
    }
}
