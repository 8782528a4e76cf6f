//! The doubles call as the real runtimes did.

use runtimes::recording::{self, Section};
use runtimes::{Containerd, CriO, Machine, PodSpec, Runtime};

/// What was done when the recordings were made.
fn scenario(machine: &Machine, runtime: &dyn Runtime) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut note = |name: &str| sections.push(Section::of(name, &runtime.take_calls()));
    // The agent of then did not ask for annotations.
    let agent = machine.ambient_agent().env("RUNTIME_ANNOTATIONS", "false");
    let agent = agent.env("CLEANUP_ON_EXIT", "always").ready().unwrap();
    assert_eq!(runtime.network_not_ready(), None);
    note("agent install");
    let pod = PodSpec::sidecar("default", "web");
    let bad =
        PodSpec::sidecar("default", "bad").annotate("traffic.sidecar.istio.io/excludeOutboundPorts", "x");
    machine.schedule([&pod, &bad]);
    let sandbox = runtime.run(&pod).unwrap();
    note("RunPodSandbox");
    for signal in ["SIGKILL", "SIGTERM"] {
        runtime.restart();
        note(&format!("runtime restart ({signal})"));
    }
    assert_eq!(runtime.sandboxes().addresses(&sandbox).len(), 1);
    runtime.stop(&sandbox).unwrap();
    note("StopPodSandbox");
    runtime.stop(&sandbox).unwrap();
    note("Stop again");
    runtime.remove(&sandbox).unwrap();
    note("Remove");
    let error = format!("{:#}", runtime.run(&bad).unwrap_err());
    assert!(error.contains("excludeOutboundPorts"), "{error}");
    note("ADD fails: sidecar pod with a bad annotation");
    assert_eq!(machine.leases().unwrap(), [""; 0]);
    agent.stop().unwrap();
    assert_eq!(runtime.network_not_ready(), None);
    note("uninstall");
    sections.retain(|section| !section.calls.is_empty());
    sections
}

/// The entry has other keys today than when the recordings were made, so what counts is what a runtime adds to it.
fn without_entry(mut sections: Vec<Section>) -> Vec<Section> {
    let added = ["prevResult", "runtimeConfig", "cni.dev/attachments", "cni.dev/valid-attachments"];
    for sent in sections.iter_mut().flat_map(|section| &mut section.calls) {
        let entry = sent.keys.iter().any(|key| key == "cni_agent_run_dir");
        sent.keys.retain(|key| added.contains(&key.as_str()));
        if entry {
            sent.keys.insert("(the entry)".to_owned());
        }
    }
    sections
}

fn compare(name: &str, version: &str, start: impl for<'a> Fn(&'a Machine) -> Box<dyn Runtime + 'a>) {
    let recorded = without_entry(recording::read(&format!("{name}-{version}.txt")).unwrap());
    let machine = Machine::new(version).unwrap();
    let runtime = start(&machine);
    let called = without_entry(scenario(&machine, runtime.as_ref()));
    let calls: usize = called.iter().map(|section| section.calls.len()).sum();
    assert_eq!(called, recorded, "{name} {version}");
    println!("{name} {version}: {calls} calls as recorded, in {} parts", called.len());
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn containerd_calls_as_recorded() {
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        compare("cd2", version, |machine| Box::new(Containerd::start(machine)));
    }
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn crio_calls_as_recorded() {
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        compare("crio", version, |machine| Box::new(CriO::start(machine)));
    }
}

/// Version 1.1.0 brings STATUS and GC.
#[test]
fn status_and_gc_come_with_version_1_1_0() {
    let verbs = |runtime: &dyn Runtime| -> Vec<&'static str> {
        let calls = runtime.take_calls();
        calls.iter().filter(|call| call.plugin == "istio-cni").map(|call| call.verb).collect()
    };
    let machine = Machine::new("1.1.0").unwrap();
    let agent = machine.agent().ready().unwrap();
    let (containerd, crio) = (Containerd::start(&machine), CriO::start(&machine));
    verbs(&crio);
    for _ in 0..3 {
        assert_eq!((containerd.network_not_ready(), crio.network_not_ready()), (None, None));
    }
    assert_eq!(verbs(&containerd), ["STATUS", "STATUS", "STATUS"]);
    assert_eq!(verbs(&crio), ["STATUS", "GC"]);
    // A pod that the runtime lost without deleting it: its attachment is kept and its address leased.
    let lost = PodSpec::new("default", "lost");
    machine.schedule([&lost]);
    containerd.run(&lost).unwrap();
    assert_eq!(machine.leases().unwrap().len(), 1);
    crio.restart();
    assert_eq!(crio.network_not_ready(), None);
    assert_eq!(verbs(&crio), ["VERSION", "STATUS", "DEL", "GC"]);
    assert_eq!(machine.leases().unwrap(), [""; 0]);
    agent.stop().unwrap();
}
