//! The private node itself, with reference plugins only.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use node::{Node, PodSpec};
use serde_json::json;

use crate::fixture::{GATEWAY, bridge, echo_pod};

fn bridge_only() -> Node {
    let conflist = json!({"cniVersion": "1.0.0", "name": "plain", "plugins": [bridge()]});
    Node::start(&conflist, &[]).expect("a node with containerd")
}

#[test]
fn a_pod_talks_to_the_node_and_back() {
    let node = bridge_only();
    node.serve(&["busybox", "nc", "-ll", "-p", "9999", "-e", "echo", "node"])
        .expect("a listener on the node");
    let pod = node.run_pod(&echo_pod("default", "plain")).expect("a pod");
    let status = node.status(&pod).expect("its status");

    assert!(status.ready);
    assert!(status.pid > 1, "the pause process has a number: {status:?}");
    assert_eq!(status.cni_result["Interfaces"]["eth0"]["IPConfigs"][0]["IP"], json!(status.ip));
    assert_eq!(crate::fixture::ask_from_container(&node, &pod, "app", GATEWAY, 9999), "node");
    assert_eq!(crate::fixture::ask_from_node(&node, &status.ip, 8080), "app");
    let id = node.exec_sync(&pod, "app", &["id", "-u"]).expect("id runs");
    assert_eq!((id.code, id.stdout.trim()), (0, "1000"));
    let links = node.exec_in_pod(&pod, &["ip", "-o", "link", "show", "eth0"]).expect("ip runs");
    assert_eq!(links.code, 0, "{}", links.stderr);
}

#[test]
fn calls_are_recorded_with_what_the_runtime_handed_over() {
    let node = bridge_only();
    let pod = node.run_pod(&PodSpec::new("default", "recorded")).expect("a pod");
    node.stop_pod(&pod).expect("stopped");

    let calls = node.calls().expect("records");
    let verbs: Vec<_> = calls.iter().map(|c| (c.plugin.as_str(), c.verb())).collect();
    assert_eq!(verbs, [("bridge", "ADD"), ("bridge", "DEL")]);
    let add = &calls[0];
    assert_eq!(add.code, 0);
    assert_eq!(add.env("CNI_CONTAINERID"), pod.id);
    assert_eq!(add.env("CNI_IFNAME"), "eth0");
    for arg in ["K8S_POD_NAMESPACE=default", "K8S_POD_NAME=recorded", "K8S_POD_UID=uid-default-recorded"] {
        assert!(add.env("CNI_ARGS").split(';').any(|a| a == arg), "{arg} in {}", add.env("CNI_ARGS"));
    }
    assert_eq!(add.stdin["name"], "plain");
    assert!(add.stdout.contains("10.88."), "the result: {}", add.stdout);
    node.forget_calls().expect("forgotten");
    assert_eq!(node.calls().expect("records").len(), 0);
}

#[test]
fn nothing_stays_when_a_node_is_dropped() {
    let node = bridge_only();
    let pod = node.run_pod(&echo_pod("default", "left-running")).expect("a pod");
    node.serve(&["sleep", "1000"]).expect("a process of the node");
    let dir = node.dir().to_owned();
    let spaces: BTreeSet<u64> = [
        node.enter_pod(&pod).expect("the pod's namespace"),
        format!("/proc/{}/ns/net", node.init_pid()).into(),
    ]
    .iter()
    .map(|path| fs::metadata(path).expect("a namespace file").ino())
    .collect();
    assert_eq!(spaces.len(), 2, "the pod has a network of its own");
    assert!(!users_of(&spaces).is_empty(), "the search finds the running node");
    let cgroups = node.cgroups();
    assert!(!cgroups.is_empty(), "pods have cgroups");

    drop(node);

    assert_eq!(users_of(&spaces), BTreeSet::new(), "processes in the node's networks");
    assert_eq!(mentions(&dir), BTreeSet::new(), "processes that name the node");
    assert!(!dir.exists(), "{} is removed", dir.display());
    for cgroup in cgroups {
        assert!(!cgroup.exists(), "{} is removed", cgroup.display());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&*dir.to_string_lossy()), "no mount of the node's in {mounts}");
    assert!(!Path::new("/sys/class/net/cni0").exists(), "the node's bridge is not on this machine");
}

fn processes() -> impl Iterator<Item = PathBuf> {
    fs::read_dir("/proc").expect("/proc").flatten().map(|e| e.path()).filter(|p| p.join("ns").exists())
}

/// Processes in one of these network namespaces.
fn users_of(spaces: &BTreeSet<u64>) -> BTreeSet<PathBuf> {
    processes().filter(|p| fs::metadata(p.join("ns/net")).is_ok_and(|m| spaces.contains(&m.ino()))).collect()
}

/// Processes whose command line names this directory.
fn mentions(dir: &Path) -> BTreeSet<PathBuf> {
    let dir = dir.to_string_lossy();
    processes()
        .filter(|p| fs::read(p.join("cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(&*dir)))
        .collect()
}
