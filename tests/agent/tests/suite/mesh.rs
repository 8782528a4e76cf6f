//! Ambient mode: how pods come into the mesh, stay there and leave it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::{Agent, PATIENCE, assert_says, eventually};

/// Waits until the pod is wholly in: rules, ztunnel, probes, annotation.
pub(crate) fn wait_in(mesh: &Mesh, pod: &MeshPod) -> Result<()> {
    mesh.wait_annotation(pod, Some("enabled"))?;
    ensure!(pod.has_rules()?, "annotated without rules");
    ensure!(mesh.probes()?.get(&pod.ip.to_string()) == Some(&pod.uid), "annotated without the address");
    Ok(())
}

pub(crate) fn wait_out(mesh: &Mesh, pod: &MeshPod) -> Result<()> {
    mesh.wait_annotation(pod, None)?;
    eventually("the pod is out", PATIENCE, || {
        ensure!(pod.is_clean()?, "something is left in the namespace");
        ensure!(!mesh.probes()?.contains_key(&pod.ip.to_string()), "its address is left");
        Ok(())
    })
}

fn requests(agent: &Agent, code: u16) -> f64 {
    agent.metric(&format!("istio_cni_plugin_requests_total{{response_code=\"{code}\"}}")).unwrap()
}

#[test]
fn an_announced_pod_is_enrolled() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    let reply = mesh.announce(&pod).unwrap();
    assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{}", agent.log().text());
    assert!(pod.has_rules().unwrap());
    wait_in(&mesh, &pod).unwrap();
    let workloads = ztunnel.workloads();
    assert_eq!(workloads.len(), 1);
    let workload = &workloads[&pod.uid];
    assert_eq!(
        (workload.name.as_str(), workload.namespace.as_str(), workload.service_account.as_str()),
        ("web", "mesh", "sa-web")
    );
    assert_eq!(mesh.patches(&pod), [Some("enabled".to_owned())]);
    assert_eq!(requests(&agent, 200), 1.0);
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

#[test]
fn what_is_no_event_and_what_is_no_pod() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    assert_eq!(mesh.post("notjson").unwrap().status, 400);
    assert_eq!(requests(&agent, 400), 1.0);
    let start = Instant::now();
    let ghost = mesh.sandbox("mesh", "ghost").unwrap();
    let reply = mesh.announce(&ghost).unwrap();
    assert_eq!(reply.status, 500);
    assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
    assert_says(&reply.body, &["mesh/ghost", "not known"]);
    assert_eq!(requests(&agent, 500), 1.0);
    assert!(ghost.is_clean().unwrap());
}

#[test]
fn a_labelled_namespace_enrolls_running_pods_with_one_add_and_one_patch_each() {
    let (mesh, _agent, ztunnel) = Mesh::served().unwrap();
    let pods: Vec<MeshPod> =
        (0..3).map(|n| mesh.running("default", &format!("web-{n}"), &[]).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(200));
    assert!(pods.iter().all(|pod| pod.is_clean().unwrap()));
    mesh.node.api.set_namespace("default", &[(MODE, "ambient")]);
    for pod in &pods {
        wait_in(&mesh, pod).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    for pod in &pods {
        assert_eq!(mesh.patches(pod), [Some("enabled".to_owned())]);
        assert_eq!(ztunnel.adds(&pod.uid), 1);
    }
    mesh.node.api.set_namespace("default", &[]);
    for pod in &pods {
        wait_out(&mesh, pod).unwrap();
        assert_eq!(mesh.patches(pod), [Some("enabled".to_owned()), None]);
    }
    assert!(ztunnel.workloads().is_empty());
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

#[test]
fn host_network_sidecars_and_none_are_never_touched() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    let none = mesh.running("mesh", "none", &[(MODE, "none")]).unwrap();
    let sidecar = mesh.sandbox("mesh", "sidecar").unwrap();
    mesh.run(&sidecar).unwrap();
    let mut object = sidecar.object(&[(MODE, "ambient")], true);
    object["metadata"]["annotations"] = json!({"sidecar.istio.io/status": ""});
    mesh.node.api.set_pod(object);
    let host = mesh.sandbox("mesh", "host").unwrap();
    mesh.run(&host).unwrap();
    let mut object = host.object(&[], true);
    object["spec"]["hostNetwork"] = json!(true);
    mesh.node.api.set_pod(object);
    let witness = mesh.running("mesh", "witness", &[]).unwrap();
    wait_in(&mesh, &witness).unwrap();
    for (pod, reason) in [(&none, "selector"), (&sidecar, "sidecar"), (&host, "hostNetwork")] {
        assert!(pod.is_clean().unwrap(), "{}", pod.name);
        assert!(mesh.patches(pod).is_empty(), "{}", pod.name);
        let reply = mesh.announce(pod).unwrap();
        assert_eq!(reply.status, 500);
        assert_says(&reply.body, &["does not belong to the mesh", reason]);
    }
    assert_eq!(ztunnel.workloads().len(), 1, "{}", agent.log().text());
}

#[test]
fn without_ztunnel_a_running_pod_is_taken_in_when_one_comes() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    eventually("it is counted", PATIENCE, || {
        ensure!(agent.metric("istio_cni_ambient_pods{state=\"pending\"}")? == 1.0);
        Ok(())
    })
    .unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    wait_in(&mesh, &pod).unwrap();
    assert_eq!(mesh.patches(&pod), [Some("enabled".to_owned())]);
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
    assert_eq!(agent.metric("istio_cni_ambient_pods{state=\"enrolled\"}").unwrap(), 1.0);
}

/// A namespace that is not the pod's: nothing of the pod is anywhere.
#[test]
fn a_namespace_that_cannot_be_programmed_leaves_nothing() {
    let (mesh, _agent, ztunnel) = Mesh::served().unwrap();
    let (pod, other) = (mesh.sandbox("mesh", "web").unwrap(), mesh.sandbox("mesh", "other").unwrap());
    mesh.node.api.set_pod(pod.object(&[], false));
    let mut event = mesh.event(&pod);
    for (netns, says) in [
        (format!("/netns/{}", other.uid), "address"),
        ("/netns/absent".to_owned(), "absent"),
        ("/proc/1/ns/net".to_owned(), "node"),
        ("/proc/1/comm".to_owned(), "namespace"),
        ("/../../../etc/passwd".to_owned(), "passwd"),
        ("/netns".to_owned(), "namespace"),
    ] {
        event["Netns"] = json!(netns);
        let reply = mesh.post(&event.to_string()).unwrap();
        assert_eq!(reply.status, 500, "{netns}");
        assert_says(&reply.body, &["mesh/web", says]);
    }
    assert!(pod.is_clean().unwrap() && other.is_clean().unwrap());
    assert!(ztunnel.workloads().is_empty());
    assert!(mesh.probes().unwrap().is_empty());
    assert!(mesh.patches(&pod).is_empty());
    let second = mesh.ztunnel().unwrap();
    second.wait_snapshot(PATIENCE).unwrap();
    assert!(second.workloads().is_empty());
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    wait_in(&mesh, &pod).unwrap();
}

#[test]
fn a_pod_without_an_address_keeps_everybody_in_the_sets() {
    let mesh = Mesh::new().unwrap();
    let known = mesh.running("mesh", "known", &[]).unwrap();
    let agent = mesh.start().unwrap();
    let _ztunnel = mesh.ztunnel().unwrap();
    wait_in(&mesh, &known).unwrap();
    agent.kill().unwrap();
    let stray = "add element inet istio-ambient-nat istio-inpod-probes-v4 { 10.66.0.1 comment \"nobody\" }";
    mesh.host.nft(stray).unwrap();
    // One that is marked and has no address: it may be the stranger in the set.
    let lost = mesh.sandbox("mesh", "lost").unwrap();
    let mut object = lost.object(&[], false);
    object["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "enabled"});
    mesh.node.api.set_pod(object);
    let agent = mesh.start().unwrap();
    assert_eq!(mesh.probes().unwrap().len(), 2);
    agent.kill().unwrap();
    mesh.delete(&lost).unwrap();
    let _agent = mesh.start().unwrap();
    assert_eq!(mesh.probes().unwrap().into_keys().collect::<Vec<_>>(), [known.ip.to_string()]);
}

#[test]
fn another_address_is_noted_once() {
    let (mesh, _agent, _ztunnel) = Mesh::served().unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    let mut object = mesh.node.api.object(testkit::apiserver::Resource::Pods, "mesh", "web").unwrap();
    object["status"]["podIPs"] = json!([{"ip": "10.9.99.1"}]);
    mesh.node.api.set_pod(object);
    eventually("the new address", PATIENCE, || {
        let probes = mesh.probes()?;
        ensure!(probes.keys().collect::<Vec<_>>() == ["10.9.99.1"], "{probes:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(mesh.patches(&pod), [Some("enabled".to_owned())]);
}

#[test]
fn ended_pods_keep_their_rules_and_deleted_ones_are_forgotten() {
    let (mesh, _agent, ztunnel) = Mesh::served().unwrap();
    let (job, web) = (mesh.running("mesh", "job", &[]).unwrap(), mesh.running("mesh", "web", &[]).unwrap());
    wait_in(&mesh, &job).unwrap();
    wait_in(&mesh, &web).unwrap();
    let mut object = mesh.node.api.object(testkit::apiserver::Resource::Pods, "mesh", "job").unwrap();
    object["status"] = json!({"phase": "Succeeded"});
    mesh.node.api.set_pod(object);
    mesh.wait_annotation(&job, None).unwrap();
    assert!(job.has_rules().unwrap(), "the namespace goes with the pod");
    mesh.delete(&web).unwrap();
    eventually("nothing is left", PATIENCE, || {
        ensure!(ztunnel.workloads().is_empty(), "{:?}", ztunnel.workloads());
        ensure!(mesh.probes()?.is_empty());
        Ok(())
    })
    .unwrap();
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

/// The same pod in a new sandbox.
#[test]
fn a_new_sandbox_takes_the_place_of_the_old_one() {
    let (mesh, _agent, ztunnel) = Mesh::served().unwrap();
    let mut pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    let old = ztunnel.workloads()[&pod.uid].netns;
    mesh.new_sandbox(&mut pod).unwrap();
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    assert!(pod.has_rules().unwrap());
    assert_ne!(ztunnel.workloads()[&pod.uid].netns, old);
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

/// What an earlier agent did is taken over, verified, and told to the ztunnel that comes.
#[test]
fn a_restart_takes_over_and_verifies() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    let pods: Vec<MeshPod> =
        (0..3).map(|n| mesh.running("mesh", &format!("web-{n}"), &[]).unwrap()).collect();
    for pod in &pods {
        wait_in(&mesh, pod).unwrap();
    }
    agent.kill().unwrap();
    // Drift, a pod whose process is not seen, and one that was deleted meanwhile.
    pods[0].netns.nft("flush table inet istio-ambient-nat").unwrap();
    mesh.stop(&pods[1]).unwrap();
    mesh.delete(&pods[2]).unwrap();
    drop(ztunnel);
    let agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "200ms").ready().unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert_eq!(ztunnel.kept(), [pods[1].uid.clone()], "{}", agent.log().text());
    assert!(ztunnel.workloads().contains_key(&pods[0].uid));
    assert!(!ztunnel.workloads().contains_key(&pods[2].uid));
    let nat = pods[0].netns.run(std::process::Command::new("nft").args([
        "list",
        "table",
        "inet",
        "istio-ambient-nat",
    ]));
    assert!(nat.unwrap().contains("15001"));
    assert_eq!(agent.metric("istio_cni_drift_repaired_total{what=\"pod-rules\"}").unwrap(), 1.0);
    assert!(!mesh.probes().unwrap().contains_key(&pods[2].ip.to_string()));
    // It is looked for again.
    mesh.run(&pods[1]).unwrap();
    eventually("the pod is found again", PATIENCE, || {
        ensure!(ztunnel.adds(&pods[1].uid) == 1);
        Ok(())
    })
    .unwrap();
    assert_eq!(mesh.patches(&pods[0]), [Some("enabled".to_owned())], "nothing is patched again");
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

#[test]
fn drift_is_repaired_without_a_restart() {
    let (mesh, agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env("AMBIENT_VERIFY_INTERVAL", "100ms")).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    let list = |netns: &testkit::TestNetns| {
        netns.run(std::process::Command::new("nft").args(["-s", "list", "ruleset"])).unwrap()
    };
    let (own, host) = (list(&pod.netns), list(&mesh.host));
    pod.netns.nft("delete table inet istio-ambient-mangle").unwrap();
    pod.netns.ip(&["rule del pref 32764"]).unwrap();
    mesh.host.nft("flush chain inet istio-ambient-nat postrouting").unwrap();
    mesh.host
        .nft(&format!("delete element inet istio-ambient-nat istio-inpod-probes-v4 {{ {} }}", pod.ip))
        .unwrap();
    eventually("everything is as before", PATIENCE, || {
        ensure!(list(&pod.netns) == own, "{}", list(&pod.netns));
        ensure!(list(&mesh.host) == host, "{}", list(&mesh.host));
        let rules = pod.netns.run(std::process::Command::new("ip").arg("rule"))?;
        ensure!(rules.contains("32764"), "{rules}");
        Ok(())
    })
    .unwrap();
    for what in ["pod-rules", "host-rules", "host-sets"] {
        assert!(
            agent.metric(&format!("istio_cni_drift_repaired_total{{what=\"{what}\"}}")).unwrap() >= 1.0,
            "{what}"
        );
    }
}

/// Uninstallation leaves nothing; an upgrade leaves everything.
#[test]
fn uninstallation_removes_everything_and_an_upgrade_nothing() {
    let mesh = Mesh::new().unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    let agent = mesh.start().unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    wait_in(&mesh, &pod).unwrap();
    assert!(agent.stop().unwrap().status.success());
    assert!(pod.has_rules().unwrap());
    assert_eq!(mesh.probes().unwrap().len(), 1);
    assert!(!mesh.event_socket().exists() && !mesh.ztunnel_socket().exists());
    drop(ztunnel);
    let agent = mesh.agent().env("CLEANUP_ON_EXIT", "always").ready().unwrap();
    let _ztunnel = mesh.ztunnel().unwrap();
    let ended = agent.stop().unwrap();
    assert!(pod.is_clean().unwrap(), "{}", ended.log.text());
    assert_eq!(mesh.annotation(&pod), None);
    let tables = mesh.host.run(std::process::Command::new("nft").args(["list", "tables"])).unwrap();
    assert!(!tables.contains("istio"), "{tables}");
}

#[test]
fn a_peer_of_another_user_is_refused() {
    let mesh = Mesh::new().unwrap();
    let _agent = mesh.start().unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    // The way to the socket is root's; a container that mounts it has another.
    use std::os::unix::fs::PermissionsExt;
    for dir in [mesh.node.dir().to_owned(), mesh.node.run_dir()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let reply = testkit::as_user(65534, || mesh.announce(&pod)).unwrap().unwrap();
    assert_eq!(reply.status, 403);
    assert_says(&reply.body, &["root"]);
    assert!(pod.is_clean().unwrap());
}

#[test]
fn readiness_waits_for_the_pods_and_not_for_ztunnel() {
    let mesh = Mesh::new().unwrap();
    mesh.node.api.stop();
    let mut agent = mesh.agent().start().unwrap();
    agent.wait_unready(&["ambient: the pods of this node are not known yet"]).unwrap();
    mesh.node.api.restart().unwrap();
    agent.wait_ready().unwrap();
    assert_eq!(agent.metric("ztunnel_connected").unwrap(), 0.0);
}

#[test]
fn selectors_that_mean_nothing_end_the_agent() {
    let mesh = Mesh::new().unwrap();
    for (text, says) in [
        ("- podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}", "operator"),
        ("- podSelector: [", "YAML"),
        ("podSelector: {}", "enablement"),
        ("- podSelector: {matchLabels: {\"a b\": c}}", "label"),
        ("- 5", "enablement"),
    ] {
        let output = mesh.agent().env("AMBIENT_ENABLEMENT_SELECTOR", text).run().unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_says(&String::from_utf8_lossy(&output.stderr), &["ambient-enablement-selector", says]);
    }
    for (name, value) in [
        ("HOST_PROBE_SNAT_IP", ""),
        ("HOST_PROBE_SNAT_IPV6", "10.0.0.1"),
        ("FORCE_IPTABLES_BINARY", "other"),
        ("ZTUNNEL_UDS_ADDRESS", ""),
        ("AMBIENT_VERIFY_INTERVAL", "soon"),
    ] {
        let output = mesh.agent().env(name, value).run().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}");
        let option = name.to_lowercase().replace('_', "-");
        assert_says(&String::from_utf8_lossy(&output.stderr), &[&option]);
    }
}

/// A mark that an earlier agent left on a pod whose sandbox was given up since.
#[test]
fn a_mark_that_is_not_true_any_more_is_taken_away() {
    let mesh = Mesh::new().unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    let mut object = pod.object(&[], false);
    object["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "pending"});
    mesh.node.api.set_pod(object);
    let _agent = mesh.start().unwrap();
    mesh.wait_annotation(&pod, None).unwrap();
    let _ztunnel = mesh.ztunnel().unwrap();
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    wait_in(&mesh, &pod).unwrap();
}
