//! What the agent and the plugin have written down of the rules in sidecar pods, and what the next agent makes of it.

use std::path::PathBuf;

use anyhow::ensure;
use testkit::mesh::{Mesh, MeshPod};
use testkit::{Agent, PATIENCE, PodCall, PodObject, eventually};

use crate::repair::{A_WHILE, has_rules, object, rules, started, wait_repaired};

/// The agent's own records: of namespaces.
fn records(mesh: &Mesh) -> Vec<PathBuf> {
    let all = std::fs::read_dir(mesh.node.run_dir().join("applied")).into_iter().flatten().flatten();
    let its = all.filter(|entry| entry.file_name().to_string_lossy().starts_with("netns-"));
    its.map(|entry| entry.path()).collect()
}

/// A node in ambient mode has sidecars, too: who clears away records of the one mode leaves those of the other.
#[test]
fn the_record_of_a_repaired_pod_is_there_for_the_next_agent_and_goes_with_the_pod() {
    let mesh = Mesh::new().unwrap();
    let start = || -> Agent {
        let agent = mesh.agent().env("REPAIR_REPAIR_PODS", "true").env("LIVE_UPDATES", "on");
        agent.env("VERIFY_INTERVAL", "1s").ready().unwrap()
    };
    let agent = start();
    let (pod, other) = (started(&mesh, "web", |pod| pod), started(&mesh, "other", |pod| pod));
    wait_repaired(&pod);
    wait_repaired(&other);
    // More than one round.
    std::thread::sleep(A_WHILE);
    assert_eq!(records(&mesh).len(), 2, "{}", agent.log().text());
    mesh.delete(&other).unwrap();
    eventually("the record of a pod that is gone goes", PATIENCE, || {
        ensure!(records(&mesh).len() == 1, "{:?}", records(&mesh));
        Ok(())
    })
    .unwrap();
    agent.kill().unwrap();
    mesh.node.api.set_pod(object(&pod).label("sidecar.istio.io/inject", "false"));
    let agent = start();
    eventually("rules that a record shows to be ours are taken back", PATIENCE, || {
        ensure!(!has_rules(&pod), "{}\n{}", rules(&pod), agent.log().text());
        Ok(())
    })
    .unwrap();
}

/// The API server's copy of a static pod has another uid than the pod that its runtime knows.
#[test]
fn what_the_plugin_has_written_of_a_static_pod_is_known_to_be_of_it() {
    let mesh = Mesh::new().unwrap();
    let hash = "c0ffee00c0ffee00c0ffee00c0ffee00";
    let pod = mesh.sandbox("default", "web-n1").unwrap();
    let copy = |pod: &MeshPod| -> PodObject {
        ["config.hash", "config.mirror"]
            .iter()
            .fold(object(pod), |object, key| object.annotation(&format!("kubernetes.io/{key}"), hash))
    };
    mesh.node.api.set_pod(copy(&pod));
    let start = || {
        let agent = mesh.node.agent().env("HOST_ROOT", &mesh.root().to_string_lossy());
        let agent = agent.env("LIVE_UPDATES", "off").env("VERIFY_INTERVAL", "1s");
        agent.env("CLEANUP_ON_EXIT", "never").ready().unwrap()
    };
    let agent = start();
    PodCall::new(&mesh.node, &pod.name, hash, pod.netns.path()).unwrap().add().unwrap();
    let before = rules(&pod);
    assert!(before.contains("15001"), "{before}");
    agent.kill().unwrap();
    mesh.process(pod.pid(), pod.netns.path(), &format!("/kubepods/pod{hash}/{:064x}", 7), 7).unwrap();
    // With another option than the rules were made with: those in force are the record's.
    mesh.node.api.set_pod(copy(&pod).annotation("traffic.sidecar.istio.io/excludeOutboundPorts", "9090"));
    let agent = start();
    eventually("the pod is verified", PATIENCE, || {
        let verified = agent.metric("istio_cni_pods_verified{mode=\"sidecar\"}")?;
        ensure!(verified == 1.0, "{verified}\n{}", agent.log().text());
        Ok(())
    })
    .unwrap();
    assert_eq!(rules(&pod), before);
}
