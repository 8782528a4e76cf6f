//! Ambient mode: what the agent keeps of its pods on disk, and what the next agent makes of it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::mesh::{Mesh, MeshPod};
use testkit::ztunnel::Request;
use testkit::{PATIENCE, eventually};

use crate::mesh::{wait_in, wait_out};

fn file(mesh: &Mesh, pod: &MeshPod) -> PathBuf {
    mesh.node.run_dir().join("ambient").join(format!("{}.json", pod.uid))
}

fn record(mesh: &Mesh, pod: &MeshPod) -> Result<Value> {
    let path = file(mesh, pod);
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&text)?)
}

fn wait_state(mesh: &Mesh, pod: &MeshPod, state: &str) {
    eventually(&format!("the record says {state}"), PATIENCE, || {
        let record = record(mesh, pod)?;
        ensure!(record["state"] == state, "{record}");
        Ok(())
    })
    .unwrap();
}

/// An announced pod has no process that carries its uid, as a static pod's do not: only what the plugin said leads to its namespace, and that
/// outlives the agent.
#[test]
fn a_namespace_that_the_plugin_named_is_known_to_the_next_agent() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    mesh.wait_annotation(&pod, Some("enabled")).unwrap();
    wait_state(&mesh, &pod, "enrolled");
    let kept = record(&mesh, &pod).unwrap();
    assert_eq!((&kept["name"], &kept["service_account"]), (&json!("web"), &json!("sa-web")));
    assert_eq!((&kept["ips"], &kept["netns"]["given"]), (&json!([pod.ip.to_string()]), &json!(true)));
    agent.kill().unwrap();
    drop(ztunnel);
    // Its address is in the API by now, its rules are lost meanwhile, and a ztunnel comes that knows nothing.
    let mut object = pod.object(&[], true);
    object["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "enabled"});
    mesh.node.api.set_pod(object);
    pod.netns.nft("delete table inet istio-ambient-nat").unwrap();
    let agent = mesh.start().unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert_eq!(ztunnel.adds(&pod.uid), 1, "{:?}\n{}", ztunnel.requests(), agent.log().text());
    wait_in(&mesh, &pod).unwrap();
}

/// The path stands for another namespace by now: it is not believed.
#[test]
fn a_path_that_leads_elsewhere_is_not_the_pods() {
    let (mesh, agent, _ztunnel) = Mesh::served().unwrap();
    let mut pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    wait_state(&mesh, &pod, "enrolled");
    agent.kill().unwrap();
    mesh.new_sandbox(&mut pod).unwrap();
    mesh.node.api.set_pod(pod.object(&[], true));
    let _agent = mesh.start().unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let sent = ztunnel.requests().iter().any(|(_, request)| matches!(request, Request::Add { .. }));
    assert!(!sent && pod.is_clean().unwrap(), "{:?}", ztunnel.requests());
}

#[test]
fn a_record_goes_with_its_pod() {
    let (mesh, agent, _ztunnel) = Mesh::served().unwrap();
    let (leaves, ends) =
        (mesh.running("mesh", "leaves", &[]).unwrap(), mesh.running("mesh", "ends", &[]).unwrap());
    for pod in [&leaves, &ends] {
        wait_in(&mesh, pod).unwrap();
        wait_state(&mesh, pod, "enrolled");
    }
    mesh.node.api.set_pod(leaves.object(&[(testkit::mesh::MODE, "none")], true));
    wait_out(&mesh, &leaves).unwrap();
    eventually("its record is gone", PATIENCE, || {
        ensure!(!file(&mesh, &leaves).exists(), "it is there");
        Ok(())
    })
    .unwrap();
    // One that goes while no agent looks, and what an agent that was killed in the middle of writing leaves.
    agent.kill().unwrap();
    mesh.delete(&ends).unwrap();
    let half = mesh.node.run_dir().join("ambient").join("x.unfinished");
    std::fs::write(&half, "{").unwrap();
    let _agent = mesh.start().unwrap();
    assert!(!file(&mesh, &ends).exists() && !half.exists());
}

/// Broken records cost a warning, and their pods are found as they are without.
#[test]
fn broken_records_are_ignored() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let pods: Vec<_> = (0..3).map(|n| mesh.running("mesh", &format!("web-{n}"), &[]).unwrap()).collect();
    let ztunnel = mesh.ztunnel().unwrap();
    for pod in &pods {
        wait_in(&mesh, pod).unwrap();
        wait_state(&mesh, pod, "enrolled");
    }
    agent.kill().unwrap();
    drop(ztunnel);
    std::fs::write(file(&mesh, &pods[0]), "{\"uid\":").unwrap();
    std::fs::write(file(&mesh, &pods[1]), vec![b' '; 1 << 20]).unwrap();
    let agent = mesh.start().unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert_eq!(ztunnel.workloads().len(), 3);
    let log = agent.log().text();
    for pod in &pods[..2] {
        assert!(log.contains(&file(&mesh, pod).display().to_string()), "{log}");
    }
    for pod in &pods {
        wait_in(&mesh, pod).unwrap();
        wait_state(&mesh, pod, "enrolled");
    }
}
