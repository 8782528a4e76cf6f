//! The agent and the plugin with exactly the capabilities that the chart gives, before an API server that notes what it is asked: each right is
//! used, and no other one is asked for. As root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use anyhow::ensure;
use chart::{Objects, render_set};
use serde_json::{Value, json};
use testkit::apiserver::{Request, Resource};
use testkit::looks::{AGENT_POD, DAEMONSET, NAMESPACE, Scene};
use testkit::{Families, Node, PATIENCE, Pod, PodCall, PodObject, eventually, looks};

/// Such as `core pods/status patch`.
type Rights = BTreeSet<String>;

/// What these roles allow.
fn given(objects: &Objects, roles: &[&str]) -> Rights {
    let words = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = Rights::new();
    for rule in roles.iter().flat_map(|role| objects.get("ClusterRole", role)["rules"].as_array().unwrap()) {
        for group in words(&rule["apiGroups"]) {
            let group = if group.is_empty() { "core".to_owned() } else { group };
            for resource in words(&rule["resources"]) {
                rights.extend(words(&rule["verbs"]).iter().map(|verb| format!("{group} {resource} {verb}")));
            }
        }
    }
    rights
}

/// The right that a request needs.
fn needed(request: &Request) -> String {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let mut parts: Vec<&str> = path.split('/').skip(1).collect();
    let group = if parts[0] == "apis" { parts.remove(1) } else { "core" };
    let mut rest = parts.split_off(2);
    if rest[0] == "namespaces" && rest.len() > 2 {
        rest.drain(..2);
    }
    let resource = rest.get(2).map_or(rest[0].to_owned(), |sub| format!("{}/{sub}", rest[0]));
    let verb = match (&*request.method, rest.len()) {
        ("GET", 1) if query.contains("watch=") => "watch",
        ("GET", 1) => "list",
        ("GET", _) => "get",
        ("POST", _) => "create",
        ("PATCH", _) => "patch",
        (other, _) => panic!("{other} {path}"),
    };
    format!("{group} {resource} {verb}")
}

/// A program that becomes the agent, with what the chart gives and nothing else.
fn limited(objects: &Objects) -> Vec<String> {
    let context = &objects.container()["securityContext"];
    let names = context["capabilities"]["add"].as_array().unwrap().iter();
    let set: String = names.map(|name| format!(",+{}", name.as_str().unwrap().to_lowercase())).collect();
    let mut words = vec!["setpriv".to_owned(), "--bounding-set".to_owned(), format!("-all{set}")];
    words.extend(["--inh-caps", "-all"].map(str::to_owned));
    words.extend((context["allowPrivilegeEscalation"] == false).then(|| "--no-new-privs".to_owned()));
    words
}

/// What the cluster knows of the agent.
fn set_own(node: &Node) {
    node.api.set_pod(looks::agent_pod());
    let set =
        json!({"metadata": {"namespace": NAMESPACE, "name": DAEMONSET}, "spec": {"template": {"spec": {}}}});
    node.api.set_object(Resource::DaemonSets, set);
}

/// A sidecar pod that runs since long before the plugin came.
fn older() -> PodObject {
    PodObject::named("older")
        .sidecar()
        .uid("uid-older")
        .on_node("n1")
        .running(&[Pod::V4])
        .started("2020-01-01T00:00:00Z")
        .condition("PodReadyToStartContainers", "2020-01-01T00:00:01Z")
}

#[test]
fn sidecar_mode_uses_its_rights_and_no_others() {
    let all = "-all,+dac_override,+net_admin,+net_raw,+sys_ptrace,+sys_admin";
    uses_its_rights(&[], all, false);
    // Without what entering namespaces takes the agent is as ready.
    uses_its_rights(&["verification.enabled=false,repair.repairPods=false"], "-all,+dac_override", true);
}

fn uses_its_rights(values: &[&str], capabilities: &str, is_confined: bool) {
    let objects = render_set(values).unwrap();
    let wrapper = limited(&objects);
    assert_eq!(wrapper[2], capabilities);
    assert_eq!(wrapper.contains(&"--no-new-privs".to_owned()), is_confined);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let node = Node::new().unwrap();
    set_own(&node);
    node.api.set_pod(older());
    let launch = node.agent().env("POD_NAMESPACE", NAMESPACE).env("POD_NAME", AGENT_POD);
    let agent = launch.behind(&wrapper).ready().unwrap();
    eventually("the label of a pod without capture", PATIENCE, || {
        let pod = node.api.object(Resource::Pods, "default", "older").unwrap();
        ensure!(pod["metadata"]["labels"]["cni.istio.io/uninitialized"] == "true", "{pod}");
        ensure!(!node.api.events().is_empty(), "no event");
        ensure!(node.api.watches() == 4, "{} watches", node.api.watches());
        Ok(())
    })
    .unwrap();
    let ended = agent.stop().unwrap();
    assert!(ended.log.find(&["leaving the plugin on this node", "another agent follows"]).is_some());
    // The plugin alone, with the token that the agent left.
    node.sidecar("web", "uid-web");
    let pod = Pod::new(Families::V4).unwrap();
    PodCall::new(&node, "web", "uid-web", pod.path()).unwrap().add().unwrap();
    assert!(pod.nft_text().unwrap().contains("istio-proxy-nat"));
    let mut used: Rights = node.api.requests().iter().map(needed).collect();
    // What an Event tells again is told five minutes later at the earliest: tests of `cluster` (`writer`) show the request.
    assert!(used.insert("core events patch".to_owned()));
    assert_eq!(used, given(&objects, &["istio-cni", "istio-cni-repair-role"]));
}

#[test]
fn ambient_mode_uses_its_rights_and_no_others() {
    let objects = render_set(&["ambient.enabled=true"]).unwrap();
    let wrapper = limited(&objects);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let (scene, first) = Scene::new(1).unwrap();
    first.stop().unwrap();
    let agent = scene.agent().behind(&wrapper).ready().unwrap();
    scene.wait_installed().unwrap();
    // A pod that comes, and its rules that go.
    let pod = scene.mesh.running("mesh", "comes", &[]).unwrap();
    eventually("the pod is in the mesh", PATIENCE, || {
        ensure!(
            scene.mesh.annotation(&pod).as_deref() == Some("enabled"),
            "{:?}",
            scene.mesh.annotation(&pod)
        );
        Ok(())
    })
    .unwrap();
    agent.stop().unwrap();
    // The plugin alone asks for the namespace's labels, too.
    let sandbox = scene.mesh.sandbox("default", "late").unwrap();
    scene.mesh.node.api.set_pod(sandbox.object(&[], false));
    let entry = scene.mesh.node.entry().unwrap();
    let answer = PodCall::with(entry, "late", &sandbox.uid, sandbox.netns.path()).run("ADD").unwrap();
    assert!(
        scene.mesh.node.plugin_requests().iter().any(|path| path == "/api/v1/namespaces/default"),
        "{answer:?}"
    );
    let used: Rights = scene.mesh.node.api.requests().iter().map(needed).collect();
    let all = given(&objects, &["istio-cni", "istio-cni-repair-role", "istio-cni-ambient"]);
    let missing: Vec<_> = used.difference(&all).collect();
    assert!(missing.is_empty(), "asked for without a right: {missing:?}");
    let idle: Vec<_> = given(&objects, &["istio-cni-ambient"]).difference(&used).cloned().collect();
    assert!(idle.is_empty(), "rights that are not used: {idle:?}");
}
