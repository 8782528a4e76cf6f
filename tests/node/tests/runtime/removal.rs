//! Every way in which this runtime takes a pod's network away, and how often it calls DEL in each.

use node::{Call, Sandbox};
use serde_json::json;

use crate::fixture::{Mesh, PLUGIN, sidecar_pod};

fn running(mesh: &Mesh) -> Sandbox {
    let pod = mesh.must_run_bare(&sidecar_pod("default", "pod"));
    mesh.node.forget_calls().expect("forgotten");
    pod
}

/// (network namespace given, previous result given) for each DEL since the last look, all of which succeeded in silence.
fn shapes(mesh: &Mesh) -> Vec<(bool, bool)> {
    let shape = |del: &Call| {
        assert_eq!((del.code, del.stdout.as_str()), (0, ""), "DEL succeeds: {}", del.stderr);
        (!del.env("CNI_NETNS").is_empty(), del.has_prev_result())
    };
    mesh.dels().iter().map(shape).collect()
}

const WITH_ALL: (bool, bool) = (true, true);
const WITH_NOTHING: (bool, bool) = (false, false);

#[test]
fn stop_stop_again_remove() {
    let mesh = Mesh::start(true);
    let pod = running(&mesh);
    mesh.node.stop_pod(&pod).expect("stopped");
    assert_eq!(shapes(&mesh), [WITH_ALL], "the first stop");
    mesh.node.stop_pod(&pod).expect("stopped again");
    assert_eq!(shapes(&mesh), [WITH_NOTHING], "the second stop");
    mesh.node.remove_pod(&pod).expect("removed");
    assert_eq!(shapes(&mesh), [WITH_NOTHING], "remove after stop");
    assert_eq!(mesh.node.pods().expect("the pods"), Vec::<String>::new());
}

#[test]
fn an_old_version_gives_no_previous_result() {
    let mesh = Mesh::start_with(|chain| chain.version = "0.3.1");
    let pod = running(&mesh);
    mesh.node.stop_pod(&pod).expect("stopped");
    assert_eq!(shapes(&mesh), [(true, false)]);
    mesh.node.remove_pod(&pod).expect("removed");
    assert_eq!(shapes(&mesh), [WITH_NOTHING]);
}

#[test]
fn remove_without_the_manifest_the_run_directory_and_the_rules() {
    let mesh = Mesh::start(true);
    let pod = running(&mesh);
    mesh.node.exec_in_pod(&pod, &["nft", "flush", "ruleset"]).expect("nft runs");
    for dir in [mesh.manifests(), mesh.run_dir()] {
        std::fs::remove_dir_all(dir).expect("removed");
    }
    mesh.node.stop_pod(&pod).expect("stopped");
    mesh.node.remove_pod(&pod).expect("removed");
    assert_eq!(shapes(&mesh), [WITH_ALL, WITH_NOTHING]);
    let left = std::fs::read_dir(mesh.run_dir()).into_iter().flatten().flatten().map(|e| e.file_name());
    let left: Vec<_> = left.filter(|name| name != "istio-cni.log").collect();
    assert!(left.is_empty(), "DEL leaves its log and nothing else: {left:?}");
}

#[test]
fn a_failing_del_of_another_plugin_is_repeated() {
    // DEL runs backwards: `tuning` stands before ours, so ours has been called when it refuses.
    let mesh = Mesh::start_with(|chain| chain.between = vec![json!({"type": "tuning"})]);
    let pod = running(&mesh);
    mesh.node.refuse("tuning", "DEL", Some(r#"{"code":11,"msg":"not now"}"#)).expect("noted");
    for attempt in ["the first", "the second"] {
        let error = mesh.node.stop_pod(&pod).expect_err("tuning refuses").to_string();
        assert!(error.contains("not now"), "{error}");
        assert_eq!(shapes(&mesh), [WITH_ALL], "{attempt} failed stop");
    }
    mesh.node.refuse("tuning", "DEL", None).expect("noted");
    mesh.node.stop_pod(&pod).expect("stopped");
    assert_eq!(shapes(&mesh), [WITH_ALL], "the stop that succeeds");
    mesh.node.remove_pod(&pod).expect("removed");
    assert_eq!(shapes(&mesh), [WITH_NOTHING]);
}

#[test]
fn a_dead_pause_process_and_a_new_containerd_call_nothing() {
    let mut mesh = Mesh::start(true);
    let pod = running(&mesh);
    mesh.node.restart_containerd().expect("containerd is back");
    assert_eq!(shapes(&mesh), [], "a new containerd");
    assert!(mesh.node.status(&pod).expect("a status").ready, "the pod ran on");
    assert!(mesh.tables(&pod).contains("istio-proxy-nat"));

    let pause = mesh.node.status(&pod).expect("a status").pid.to_string();
    assert_eq!(mesh.node.exec(&["kill", "-KILL", &pause]).expect("kill runs").code, 0);
    let gone = || !mesh.node.status(&pod).expect("a status").ready;
    testkit::until("the pod is seen to be dead", testkit::PATIENCE, gone, || "it is ready").expect("seen");
    assert_eq!(shapes(&mesh), [], "a dead pause process");
    mesh.node.stop_pod(&pod).expect("stopped");
    assert_eq!(shapes(&mesh), [WITH_ALL], "stop of a dead pod");
    mesh.node.remove_pod(&pod).expect("removed");
    assert_eq!(shapes(&mesh), [WITH_NOTHING]);
}

#[test]
fn a_reboot_takes_the_namespace_before_del() {
    let mut mesh = Mesh::start(true);
    let pod = running(&mesh);
    mesh.node.reboot().expect("the node is up again");
    assert_eq!(shapes(&mesh), [], "the reboot itself");
    assert!(!mesh.node.status(&pod).expect("a status").ready);
    mesh.node.stop_pod(&pod).expect("stopped");
    mesh.node.remove_pod(&pod).expect("removed");
    let after = mesh.dels();
    assert_eq!(after.len(), 2, "{after:?}");
    for del in &after {
        assert_eq!((del.plugin.as_str(), del.code, del.env("CNI_NETNS")), (PLUGIN, 0, ""), "{}", del.stdout);
    }
    // The same pod runs again on the rebooted node, captured.
    let again = mesh.must_run_bare(&sidecar_pod("default", "pod"));
    assert!(mesh.tables(&again).contains("istio-proxy-nat"));
}
