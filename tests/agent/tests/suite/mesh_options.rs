//! Ambient mode: options that change while the agent runs, and an agent that starts while the API server is away.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::{MODE, Mesh, MeshPod, SELECTORS};
use testkit::{Agent, PATIENCE, assert_says, eventually};

use crate::mesh::{wait_in, wait_out};

/// A node whose agent follows a directory of options.
struct Followed {
    mesh: Mesh,
    dir: PathBuf,
}

impl Followed {
    fn new(options: &[(&str, &str)]) -> Self {
        let mesh = Mesh::new().unwrap();
        let dir = mesh.node.dir().join("options");
        std::fs::create_dir(&dir).unwrap();
        let followed = Self { mesh, dir };
        options.iter().for_each(|(name, value)| followed.set(name, value));
        followed
    }

    fn set(&self, name: &str, value: &str) {
        let new = self.dir.join("..new");
        std::fs::write(&new, value).unwrap();
        std::fs::rename(new, self.dir.join(name)).unwrap();
    }

    fn start(&self) -> Agent {
        let agent = self.mesh.agent().env("CONFIG_DIR", &self.dir.to_string_lossy());
        agent.env("AMBIENT_VERIFY_INTERVAL", "300ms").ready().unwrap()
    }
}

/// Several verifications.
fn settle() {
    std::thread::sleep(Duration::from_millis(1200));
}

fn rules(pod: &MeshPod) -> String {
    pod.netns.run(Command::new("nft").args(["list", "ruleset"])).unwrap()
}

#[test]
fn excluded_namespaces_and_selectors_change_for_agent_and_plugin() {
    let node =
        Followed::new(&[("EXCLUDE_NAMESPACES", "kube-system"), ("AMBIENT_ENABLEMENT_SELECTOR", SELECTORS)]);
    let _agent = node.start();
    let _ztunnel = node.mesh.ztunnel().unwrap();
    let pod = node.mesh.running("mesh", "in", &[]).unwrap();
    let chosen = node.mesh.running("default", "chosen", &[("tier", "gold")]).unwrap();
    wait_in(&node.mesh, &pod).unwrap();
    node.set("EXCLUDE_NAMESPACES", "kube-system,mesh");
    wait_out(&node.mesh, &pod).unwrap();
    assert!(chosen.is_clean().unwrap());
    node.set(
        "AMBIENT_ENABLEMENT_SELECTOR",
        "[{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}]",
    );
    wait_in(&node.mesh, &chosen).unwrap();
    let entry = || node.mesh.node.entry().unwrap();
    eventually("the plugin has them too", PATIENCE, || {
        let entry = entry();
        ensure!(entry["exclude_namespaces"] == json!(["kube-system", "mesh"]), "{entry}");
        ensure!(entry["enablement_selectors"].to_string().contains("tier"), "{entry}");
        Ok(())
    })
    .unwrap();
    let new = node.mesh.sandbox("default", "new").unwrap();
    node.mesh.node.api.set_pod(new.object(&[("tier", "silver")], false));
    assert_eq!(node.mesh.announce(&new).unwrap().status, 200);
    node.set("EXCLUDE_NAMESPACES", "kube-system");
    node.set("AMBIENT_ENABLEMENT_SELECTOR", SELECTORS);
    wait_in(&node.mesh, &pod).unwrap();
    wait_out(&node.mesh, &chosen).unwrap();
}

/// What runs keeps the rules it has: other ones would cut what is open.
#[test]
fn dns_and_ipv6_are_todays_for_a_new_sandbox_and_the_node() {
    let node = Followed::new(&[("AMBIENT_DNS_CAPTURE", "false"), ("AMBIENT_IPV6", "false")]);
    let agent = node.start();
    let _ztunnel = node.mesh.ztunnel().unwrap();
    let announce = |pod: &MeshPod| {
        node.mesh.node.api.set_pod(pod.object(&[], false));
        assert_eq!(node.mesh.announce(pod).unwrap().status, 200, "{}", agent.log().text());
        wait_in(&node.mesh, pod).unwrap();
    };
    let mut pod = node.mesh.sandbox("mesh", "web").unwrap();
    announce(&pod);
    let before = rules(&pod);
    assert!(!before.contains("15053") && !before.contains("ip6 "), "{before}");
    node.set("AMBIENT_DNS_CAPTURE", "true");
    node.set("AMBIENT_IPV6", "true");
    eventually("the node's set of IPv6", PATIENCE, || node.mesh.members("istio-inpod-probes-v6")).unwrap();
    settle();
    assert_eq!(rules(&pod), before, "a sandbox that runs");
    assert_eq!(agent.metric("istio_cni_drift_repaired_total{what=\"pod-rules\"}").unwrap(), 0.0);

    node.mesh.new_sandbox(&mut pod).unwrap();
    announce(&pod);
    let after = rules(&pod);
    assert!(after.contains("15053") && after.contains("15006"), "{after}");
    settle();
    assert_eq!(rules(&pod), after);
    // The annotations of a pod are today's for it as well.
    let mut object = pod.object(&[], false);
    object["metadata"]["annotations"] = json!({"ambient.istio.io/dns-capture": "false"});
    node.mesh.node.api.set_pod(object);
    node.mesh.new_sandbox(&mut pod).unwrap();
    settle();
    assert_eq!(node.mesh.announce(&pod).unwrap().status, 200);
    assert!(!rules(&pod).contains("15053"));
}

#[test]
fn disabled_capture_lets_no_pod_in_and_none_out() {
    let node = Followed::new(&[("CAPTURE", "enabled")]);
    let mut agent = node.start();
    let _ztunnel = node.mesh.ztunnel().unwrap();
    let inside = node.mesh.running("mesh", "inside", &[]).unwrap();
    wait_in(&node.mesh, &inside).unwrap();
    node.set("CAPTURE", "disabled");
    agent.log().wait_for(&["capture is disabled", "pods=1"], PATIENCE).unwrap();
    eventually("the plugin's too", PATIENCE, || {
        let entry = node.mesh.node.entry()?;
        ensure!(entry["capture"] == "disabled", "{entry}");
        Ok(())
    })
    .unwrap();
    assert_eq!(agent.metric("istio_cni_capture_enabled").unwrap(), 0.0);
    eventually("the pod counts as one that is left as it is", PATIENCE, || {
        let left = agent.metric("istio_cni_capture_disabled_pods{mode=\"ambient\"}")?;
        ensure!(left == 1.0, "{left}");
        Ok(())
    })
    .unwrap();
    let running = node.mesh.running("mesh", "running", &[]).unwrap();
    let labelled = node.mesh.running("default", "labelled", &[]).unwrap();
    node.mesh.node.api.set_pod(labelled.object(&[(MODE, "ambient")], true));
    // A plugin that was started a moment before: its pod starts, uncaptured as the others.
    let announced = node.mesh.sandbox("mesh", "announced").unwrap();
    node.mesh.node.api.set_pod(announced.object(&[], false));
    assert_eq!(node.mesh.announce(&announced).unwrap().status, 200);
    settle();
    for pod in [&running, &labelled, &announced] {
        assert!(pod.is_clean().unwrap() && node.mesh.patches(pod).is_empty(), "{}", pod.name);
    }
    wait_in(&node.mesh, &inside).unwrap();
    // It can be taken out, and does not come in again.
    node.mesh.node.api.set_pod(inside.object(&[(MODE, "none")], true));
    wait_out(&node.mesh, &inside).unwrap();
    node.mesh.node.api.set_pod(inside.object(&[], true));
    settle();
    assert!(inside.is_clean().unwrap());

    // It holds for the next agent, and ends when it is taken back.
    agent.kill().unwrap();
    agent = node.start();
    let _ztunnel = node.mesh.ztunnel().unwrap();
    agent.log().wait_for(&["capture is disabled"], PATIENCE).unwrap();
    settle();
    assert!(running.is_clean().unwrap());
    node.set("CAPTURE", "enabled");
    for pod in [&running, &labelled, &inside] {
        wait_in(&node.mesh, pod).unwrap();
    }
    // What differs is put right again, too.
    assert_eq!(agent.metric("istio_cni_capture_enabled").unwrap(), 1.0);
    running.netns.nft("delete table inet istio-ambient-nat").unwrap();
    agent
        .log()
        .wait_for(&["the rules of a pod differed and are put right", "mesh/running"], PATIENCE)
        .unwrap();
    assert!(running.is_redirected().unwrap());
}

#[test]
fn what_cannot_be_followed_is_named_until_it_is_set_back() {
    let node = Followed::new(&[("NATIVE_NFTABLES", "true"), ("EXCLUDE_NAMESPACES", "a")]);
    let mut agent = node.start();
    node.set("NATIVE_NFTABLES", "false");
    node.set("HOST_PROBE_SENDER", "kubelet");
    node.set("EXCLUDE_NAMESPACES", "a,b");
    let body = agent.wait_unready(&["native-nftables", "host-probe-sender"]).unwrap();
    assert_says(&body, &["configuration: changed options that this agent cannot follow while it runs"]);
    eventually("the rest counts", PATIENCE, || {
        let entry = node.mesh.node.entry()?;
        ensure!(entry["exclude_namespaces"] == json!(["a", "b"]), "{entry}");
        ensure!(entry["native_nftables"] == true, "the two halves go by one backend: {entry}");
        Ok(())
    })
    .unwrap();
    node.set("AMBIENT_IPV6", "on");
    agent.wait_unready(&["option ambient-ipv6: \"on\" is not true or false"]).unwrap();
    for (name, value) in
        [("AMBIENT_IPV6", "false"), ("NATIVE_NFTABLES", "true"), ("HOST_PROBE_SENDER", "socket")]
    {
        node.set(name, value);
    }
    agent.wait_ready().unwrap();
}

/// Pods in the mesh keep their network, and their new sandboxes start, by what an earlier agent kept.
#[test]
fn pods_are_taken_over_without_the_api_server_and_what_it_says_later_wins() {
    let (mesh, agent, ztunnel) =
        Mesh::served_by(|agent| agent.env("AMBIENT_VERIFY_INTERVAL", "300ms")).unwrap();
    let mut announced = mesh.sandbox("mesh", "announced").unwrap();
    mesh.node.api.set_pod(announced.object(&[], false));
    assert_eq!(mesh.announce(&announced).unwrap().status, 200);
    mesh.run(&announced).unwrap();
    // As kubelet says it: the annotation, which may have come meanwhile, stays.
    mesh.node.api.change_object(Resource::Pods, "mesh", "announced", |object| {
        object["status"] = announced.object(&[], true)["status"].take();
    });
    let [running, deleted, labelled, forgotten] =
        ["running", "deleted", "labelled", "forgotten"].map(|name| mesh.running("mesh", name, &[]).unwrap());
    for pod in [&announced, &running, &deleted, &labelled, &forgotten] {
        wait_in(&mesh, pod).unwrap();
    }
    // Everything that is said of them is on disk.
    settle();
    agent.kill().unwrap();
    drop(ztunnel);
    mesh.node.api.stop();
    for dir in [mesh.node.run_dir(), mesh.node.state_dir()] {
        let mut facts = std::fs::read_dir(dir.join("facts")).unwrap().flatten();
        let of_forgotten = facts.find(|file| file.file_name().to_string_lossy().contains("forgotten"));
        std::fs::remove_file(of_forgotten.unwrap().path()).unwrap();
    }
    mesh.node.api.delete_pod("mesh", "deleted");
    mesh.stop(&deleted).unwrap();
    let mut object = labelled.object(&[(MODE, "none")], true);
    object["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "enabled"});
    mesh.node.api.set_pod(object);

    let mut agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "300ms").start().unwrap();
    agent.log().wait_for(&["an earlier agent kept are used meanwhile", "pods=4"], PATIENCE).unwrap();
    let body = agent.wait_unready(&["ambient: the API server has not listed"]).unwrap();
    assert_says(&body, &["cluster: "]);
    let ztunnel = mesh.ztunnel().unwrap();
    eventually("ztunnel hears of the pods", PATIENCE, || {
        let workloads = ztunnel.workloads();
        let known = [&announced, &running, &labelled].map(|pod| workloads.contains_key(&pod.uid));
        ensure!(known == [true; 3], "{workloads:?}");
        Ok(())
    })
    .unwrap();
    mesh.new_sandbox(&mut announced).unwrap();
    let reply = mesh.announce(&announced).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(announced.has_rules().unwrap());
    let stranger = mesh.sandbox("mesh", "stranger").unwrap();
    assert_says(&mesh.announce(&stranger).unwrap().body, &["mesh/stranger", "not known"]);
    settle();
    // No pod leaves by what was kept, and nothing is taken from one of which nothing was.
    assert!(mesh.probes().unwrap().contains_key(&forgotten.ip.to_string()) && forgotten.has_rules().unwrap());
    let record = |pod: &MeshPod| mesh.node.run_dir().join("ambient").join(format!("{}.json", pod.uid));
    assert!(record(&forgotten).exists());
    assert!(running.has_rules().unwrap() && labelled.has_rules().unwrap());

    mesh.node.api.restart().unwrap();
    agent.wait_ready().unwrap();
    wait_out(&mesh, &labelled).unwrap();
    for pod in [&announced, &running, &forgotten] {
        wait_in(&mesh, pod).unwrap();
    }
    eventually("the deleted one is gone", PATIENCE, || {
        let workloads = ztunnel.workloads();
        ensure!(!workloads.contains_key(&deleted.uid), "{workloads:?}");
        ensure!(!mesh.probes()?.contains_key(&deleted.ip.to_string()));
        ensure!(!record(&deleted).exists(), "its record is left");
        Ok(())
    })
    .unwrap();
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}
