//! The end of the agent: whether another one is to follow, or everything is to go, in both modes by what was seen of the DaemonSet.

use serde_json::{Value, json};
use testkit::apiserver::{Fault, Resource};
use testkit::{Ended, Mesh, Node, PATIENCE, at_once, eventually};

const NAMESPACE: &str = "istio-system";

fn daemonset(spec: &Value) -> Value {
    json!({
        "kind": "DaemonSet",
        "metadata": {"name": "istio-cni-node", "namespace": NAMESPACE},
        "spec": {"template": {"spec": spec}},
    })
}

fn affinity(key: &str, operator: &str, values: &Value) -> Value {
    let terms = json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
    let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
    json!({"affinity": {"nodeAffinity": required}})
}

#[track_caller]
fn assert_ended(node: &Node, ended: &Ended, row: &str, stays: bool, reason: &str) {
    let log = ended.log.text();
    assert_eq!(ended.status.code(), Some(0), "{row}: {log}");
    assert!(ended.took.as_secs() < 6, "{row} took {:?}", ended.took);
    let what = if stays { "leaving the plugin on this node" } else { "taking the plugin off this node" };
    assert!(ended.log.find(&[what, reason]).is_some(), "{row}: {log}");
    assert_eq!(node.plugin().exists(), stays, "{row}: {log}");
    assert_eq!(node.kubeconfig().exists(), stays, "{row}: {log}");
    if stays {
        node.entry().unwrap_or_else(|error| panic!("{row}: {error:#}"));
    } else {
        assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), Node::foreign_conflist(), "{row}");
    }
    // Sockets go in any case: nobody answers there.
    assert!(!node.agent_socket().exists() && !node.log_socket().exists(), "{row}");
}

/// One row: what the cluster is like when the signal comes, and what is to become of the plugin.
fn row(name: &str, env: &[(&str, &str)], prepare: impl FnOnce(&Node), stays: bool, reason: &str) {
    let node = Node::new().unwrap();
    let node_object = json!({"metadata": {"name": "n1", "labels": {"pool": "mesh"}}});
    node.api.set_object(Resource::Nodes, node_object);
    node.api.set_object(Resource::DaemonSets, daemonset(&json!({})));
    let launch = node.agent().env("POD_NAMESPACE", NAMESPACE);
    let launch = env.iter().fold(launch, |launch, (name, value)| launch.env(name, value));
    let agent = launch.ready().unwrap();
    prepare(&node);
    let ended = agent.stop().unwrap();
    assert_ended(&node, &ended, name, stays, reason);
}

fn set(node: &Node, spec: &Value) {
    node.api.set_object(Resource::DaemonSets, daemonset(spec));
}

#[test]
fn another_agent_follows() {
    row("it exists", &[], |_| {}, true, "so another agent follows");
    let fits = affinity("pool", "In", &json!(["mesh"]));
    row("its affinity fits", &[], |node| set(node, &fits), true, "so another agent follows");
}

#[test]
fn no_agent_follows() {
    let gone = |node: &Node| {
        node.api.delete_object(Resource::DaemonSets, NAMESPACE, "istio-cni-node");
    };
    row("it is gone", &[], gone, false, "was deleted");
    let deleting = |node: &Node| {
        let mut object = daemonset(&json!({}));
        object["metadata"]["deletionTimestamp"] = json!("2026-08-01T09:30:00Z");
        node.api.set_object(Resource::DaemonSets, object);
    };
    row("it is being deleted", &[], deleting, false, "was deleted");
    let differs = affinity("pool", "NotIn", &json!(["mesh"]));
    row("its affinity does not fit", &[], |node| set(node, &differs), false, "is not for this node any more");
    let selects = json!({"nodeSelector": {"pool": "edge"}});
    row("its nodeSelector does not fit", &[], |node| set(node, &selects), false, "lacks the label pool=edge");
    let tainted = |node: &Node| {
        let taints = json!([{"key": "team", "value": "db", "effect": "NoExecute"}]);
        let object =
            json!({"metadata": {"name": "n1", "labels": {"pool": "mesh"}}, "spec": {"taints": taints}});
        node.api.set_object(Resource::Nodes, object);
    };
    row("the node is tainted", &[], tainted, false, "do not tolerate the node's taint team=db:NoExecute");
}

/// A node that is cordoned, not ready or drained is still one of the DaemonSet's.
#[test]
fn the_state_of_a_node_is_no_reason() {
    for (key, effect) in [
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoSchedule"),
    ] {
        let prepare = |node: &Node| {
            let spec = json!({"unschedulable": true, "taints": [{"key": key, "effect": effect}]});
            let object = json!({"metadata": {"name": "n1", "labels": {"pool": "mesh"}}, "spec": spec});
            node.api.set_object(Resource::Nodes, object);
        };
        row(key, &[], prepare, true, "so another agent follows");
    }
}

/// A refusal says nothing of the DaemonSet: it comes with a pod that is deleted by force, with an upgrade whose roles are others, and with an API
/// server that starts.
#[test]
fn we_are_not_let_in() {
    let unauthorized = |node: &Node| node.api.set_token("of-somebody-else");
    row("401", &[], unauthorized, true, "as it was seen last; the plugin stays");
    row("403", &[], |node| node.api.forbid_everyone(), true, "run cnictl uninstall on this node");
}

/// A deviation from the original, which cleans up then: pods would start outside of the mesh.
#[test]
fn an_api_server_that_does_not_tell() {
    row("it is away", &[], |node| node.api.stop(), true, "as it was seen last; the plugin stays");
    at_once([Fault::status(500), Fault::Hang, Fault::Garbage], |fault| {
        let name = format!("{fault:?}");
        let prepare = |node: &Node| node.api.fail_path("/daemonsets/", 10, fault);
        row(&name, &[], prepare, true, "as it was seen last; the plugin stays");
    });
    let broken = affinity("pool", "Resembles", &json!(["mesh"]));
    row("its affinity is not valid", &[], |node| set(node, &broken), true, "affinity that is not valid");
    let fits = affinity("pool", "In", &json!(["mesh"]));
    let no_node = |node: &Node| {
        set(node, &fits);
        node.api.delete_object(Resource::Nodes, "", "n1");
    };
    row("the node is unknown", &[], no_node, true, "the object of this node was not seen");
}

#[test]
fn options_decide_alone() {
    let gone = |node: &Node| {
        node.api.delete_object(Resource::DaemonSets, NAMESPACE, "istio-cni-node");
    };
    row("never", &[("CLEANUP_ON_EXIT", "never")], gone, true, "cleanup-on-exit is never");
    row("always", &[("CLEANUP_ON_EXIT", "always")], |_| {}, false, "cleanup-on-exit is always");
    let original = [("AMBIENT_DISABLE_SAFE_UPGRADE", "true")];
    row("safe upgrade is off", &original, |_| {}, false, "cleanup-on-exit is always");
    row("no namespace is known", &[("POD_NAMESPACE", "")], |_| {}, false, "there is no DaemonSet");
}

/// Pods of the next start of the machine would be quicker than the agent that installs everything again.
#[test]
fn a_machine_that_shuts_down_keeps_the_plugin() {
    const LEAVING: &str = "leaving the plugin on this node: the machine is shutting down";
    let mesh = Mesh::new().unwrap();
    let root = mesh.root().join("proc/1/root/run");
    std::fs::create_dir_all(root.join("systemd/system")).unwrap();
    let condition = |status: &str, message: &str| {
        let ready = json!([{"type": "Ready", "status": status, "message": message}]);
        json!({"metadata": {"name": "n1"}, "spec": {}, "status": {"conditions": ready}})
    };
    let end = |name: &str, object: &Value, leaves: bool| {
        mesh.node.api.set_object(Resource::Nodes, object.clone());
        let ended = mesh.agent().env("CLEANUP_ON_EXIT", "always").ready().unwrap().stop().unwrap();
        assert_eq!(ended.log.find(&[LEAVING]).is_some(), leaves, "{name}: {}", ended.log.text());
        assert_eq!(mesh.node.entry().is_ok(), leaves, "{name}");
    };
    end("kubelet", &condition("False", "[container runtime is down, node is shutting down]"), true);
    end("neither", &condition("True", "kubelet is posting ready status"), false);
    std::fs::write(root.join("nologin"), "System is going down.").unwrap();
    end("systemd", &condition("True", "kubelet is posting ready status"), true);
    std::fs::remove_dir(root.join("systemd/system")).unwrap();
    end("another init", &condition("True", "kubelet is posting ready status"), false);
}

/// What stays goes on working: the next agent finds it in order, and nothing was written twice.
#[test]
fn an_upgrade_leaves_no_gap() {
    let node = Node::new().unwrap();
    node.api.set_object(Resource::DaemonSets, daemonset(&json!({})));
    let first = node.agent().env("POD_NAMESPACE", NAMESPACE).ready().unwrap();
    let before = std::fs::metadata(node.conflist()).unwrap().modified().unwrap();
    let ended = first.stop().unwrap();
    assert_ended(&node, &ended, "the first", true, "so another agent follows");
    let second = node.agent().env("POD_NAMESPACE", NAMESPACE).ready().unwrap();
    assert_eq!(std::fs::metadata(node.conflist()).unwrap().modified().unwrap(), before);
    node.api.delete_object(Resource::DaemonSets, NAMESPACE, "istio-cni-node");
    let ended = second.stop().unwrap();
    assert_ended(&node, &ended, "the second", false, "was deleted");
}

/// A call of the program that is left on the node, by a configuration that a runtime has kept.
fn call(node: &Node, verb: &str, container: &str, kept: &Value) -> (Option<i32>, String) {
    let mut config = kept["plugins"].as_array().unwrap().last().unwrap().clone();
    config["cniVersion"] = kept["cniVersion"].clone();
    config["name"] = kept["name"].clone();
    config["prevResult"] =
        json!({"cniVersion": kept["cniVersion"], "ips": [{"version": "4", "address": "10.9.0.7/24"}]});
    let mut child = std::process::Command::new(node.plugin())
        .env_clear()
        .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", container), ("CNI_IFNAME", "eth0")])
        .envs([("CNI_NETNS", "/proc/1/ns/none"), ("CNI_PATH", "/opt/cni/bin")])
        .env("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=stale;K8S_POD_UID=u")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// What libcni keeps of an ADD by this configuration.
fn keep(node: &Node, container: &str, kept: &Value) -> std::path::PathBuf {
    use base64::Engine as _;
    let config = base64::engine::general_purpose::STANDARD.encode(kept.to_string());
    let result = json!({"kind": "cniCacheV1", "containerId": container, "config": config, "ifName": "eth0"});
    let name = format!("{}-{container}-eth0", kept["name"].as_str().unwrap());
    let path = node.cache_dir().join("results").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, result.to_string()).unwrap();
    path
}

/// CRI-O and Multus delete a pod by the configuration of its ADD. libcni forgets a result after the whole list has succeeded.
#[test]
fn a_pod_from_before_is_deleted_after_the_uninstallation_and_the_program_goes_with_the_last() {
    let node = Node::new().unwrap();
    let agent = node.agent().env("CLEANUP_ON_EXIT", "always").ready().unwrap();
    let kept: Value = serde_json::from_slice(&std::fs::read(node.conflist()).unwrap()).unwrap();
    let results = ["one", "two"].map(|container| keep(&node, container, &kept));
    let ended = agent.stop().unwrap();
    assert!(
        ended.log.find(&["kept", "istio-cni: 2 pods were added with it"]).is_some(),
        "{}",
        ended.log.text()
    );
    assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), Node::foreign_conflist());
    assert!(node.plugin().exists() && !node.kubeconfig().exists());

    // A runtime that goes on adding by it gets what others get: no capture, and no failure for want of facts.
    let (code, text) = call(&node, "ADD", "three", &kept);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("10.9.0.7/24") && text.contains("without capture"), "{text}");
    for verb in ["CHECK", "STATUS"] {
        let (code, text) = call(&node, verb, "one", &kept);
        assert!(code == Some(0) || text.contains("\"code\": 1,"), "{verb}: {text}");
    }

    let delete = |container| {
        let (code, text) = call(&node, "DEL", container, &kept);
        assert_eq!(code, Some(0), "{text}");
    };
    // The rest of the list fails, so the runtime comes again, and finds the program.
    delete("two");
    delete("two");
    std::fs::remove_file(&results[1]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(node.plugin().exists(), "the first pod needs it");
    delete("one");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(node.plugin().exists(), "the DEL is not over");
    std::fs::remove_file(&results[0]).unwrap();
    let gone = || {
        let left: Vec<_> = std::fs::read_dir(node.bin_target())?.collect();
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    };
    testkit::eventually("program and mark are gone", testkit::PATIENCE, gone).unwrap();
}

#[test]
fn an_agent_that_cannot_see_the_results_leaves_the_program_and_says_so() {
    let node = Node::new().unwrap();
    let agent =
        node.agent().env("CLEANUP_ON_EXIT", "always").env("HOST_ROOT", "/nonexistent").ready().unwrap();
    let log = agent.stop().unwrap().log;
    assert!(log.find(&["kept", "cannot be seen", "cnictl uninstall --purge"]).is_some(), "{}", log.text());
    assert!(node.plugin().exists());
    // It is installed again as if nothing had been.
    let agent = node.start().unwrap();
    assert_eq!(std::fs::read_dir(node.bin_target()).unwrap().count(), 1, "the mark is gone");
    agent.stop().unwrap();
}

/// With pods from a directory an agent of a cluster still goes by its DaemonSet: a rollout is no uninstallation.
#[test]
fn an_agent_with_manifests_goes_by_its_daemonset() {
    let gone = |node: &Node| {
        assert!(node.api.delete_object(Resource::DaemonSets, NAMESPACE, "istio-cni-node"));
    };
    let no_change = |_: &Node| ();
    for (row, is_in_cluster, change, stays, reason) in [
        ("a rollout", true, &no_change as &dyn Fn(&Node), true, "so another agent follows"),
        ("the server is away", true, &|node: &Node| node.api.stop(), true, "as it was seen last"),
        ("an uninstallation", true, &gone, false, "was deleted"),
        ("no cluster", false, &no_change, false, "no DaemonSet that could bring another agent"),
        ("no pod", false, &no_change, false, "no DaemonSet that could bring another agent"),
    ] {
        let node = Node::new().unwrap();
        set(&node, &json!({}));
        let launch = node.agent().env("POD_NAMESPACE", NAMESPACE);
        let launch = launch.env("POD_SOURCE", &format!("manifests:{}", node.manifests().display()));
        let launch = if row == "no pod" { launch } else { launch.env("POD_NAME", "istio-cni-node-x") };
        let launch = if row == "no cluster" { launch.without("KUBERNETES_SERVICE_HOST") } else { launch };
        let agent = launch.ready().unwrap();
        let seen = || {
            let known = node.api.requests().iter().any(|request| request.path.contains("/daemonsets"));
            anyhow::ensure!(known == is_in_cluster, "{row}: the DaemonSet was asked for: {known}");
            Ok(())
        };
        eventually(row, PATIENCE, seen).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        change(&node);
        if !stays && is_in_cluster {
            eventually("the plugin is gone", PATIENCE, || {
                anyhow::ensure!(!node.plugin().exists(), "it is there");
                Ok(())
            })
            .unwrap();
        }
        let ended = agent.stop().unwrap();
        let log = ended.log.text();
        assert_eq!(ended.status.code(), Some(0), "{row}: {log}");
        let what = if stays { "leaving the plugin on this node" } else { "taking the plugin off this node" };
        assert!(ended.log.find(&[what, reason]).is_some(), "{row}: {log}");
        assert_eq!((node.plugin().exists(), node.entry().is_ok()), (stays, stays), "{row}: {log}");
        if !stays {
            assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), Node::foreign_conflist(), "{row}");
        }
    }
}
