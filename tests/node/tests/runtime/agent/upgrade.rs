//! The agent's end: another one follows, or it is the last.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;
use testkit::apiserver::Resource;

use super::{AGENT_NAMESPACE, Cluster};
use crate::fixture::{PLUGIN, check_captured, is_captured_bare, sidecar_pod};

/// Every name in a directory, with content, mode and owner.
fn listed(dir: &Path) -> BTreeMap<String, (Vec<u8>, u32, u32, u32)> {
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    let entry = |entry: fs::DirEntry| {
        let metadata = entry.metadata().expect("an entry");
        let content = if metadata.is_file() { fs::read(entry.path()).expect("a file") } else { Vec::new() };
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, (content, metadata.mode(), metadata.uid(), metadata.gid()))
    };
    entries.map(entry).collect()
}

#[test]
fn an_upgrade_keeps_the_plugin_and_an_uninstallation_leaves_the_node_as_it_was() {
    let cluster = Cluster::without_agent(&[("NATIVE_NFTABLES", "true")]);
    fs::set_permissions(cluster.conflist(), fs::Permissions::from_mode(0o640)).expect("a mode");
    std::os::unix::fs::chown(cluster.conflist(), Some(7), Some(8)).expect("an owner");
    let directories = [cluster.node.conf_dir(), cluster.node.bin_dir()];
    let before = directories.each_ref().map(|dir| listed(dir));
    let daemon_set = json!({
        "metadata": {"namespace": AGENT_NAMESPACE, "name": "istio-cni-node"},
        "spec": {"template": {"spec": {}}},
    });
    cluster.api.set_object(Resource::DaemonSets, daemon_set);
    cluster.start_agent();
    cluster.wait_ready();
    let pods = ["under-the-first", "in-between", "under-the-second", "after-all"]
        .map(|name| sidecar_pod("default", name));
    cluster.admit_known(&pods);
    let first = cluster.must_run_bare(&pods[0]);
    check_captured(&cluster.node, &first, "a pod under the first agent");
    let installed = directories.each_ref().map(|dir| listed(dir));

    cluster.terminate_agent();
    assert_eq!(directories.each_ref().map(|dir| listed(dir)), installed, "what the first agent leaves");
    assert!(cluster.run_dir("istio-cni-kubeconfig").exists());
    let between = cluster.must_run_bare(&pods[1]);
    check_captured(&cluster.node, &between, "a pod between two agents");
    assert_eq!(cluster.facts_source(&pods[1]), "api");

    cluster.start_agent();
    cluster.wait_ready();
    assert_eq!(directories.each_ref().map(|dir| listed(dir)), installed, "what the second agent finds");
    let second = cluster.must_run_bare(&pods[2]);
    check_captured(&cluster.node, &second, "a pod under the second agent");
    assert_eq!(cluster.facts_source(&pods[2]), "agent");

    // An API server that cannot be asked says nothing about an uninstallation.
    cluster.api.stop();
    cluster.terminate_agent();
    assert_eq!(
        directories.each_ref().map(|dir| listed(dir)),
        installed,
        "what an agent leaves that cannot ask"
    );
    cluster.restart_api();
    cluster.start_agent();
    cluster.wait_ready();

    assert!(cluster.api.delete_object(Resource::DaemonSets, AGENT_NAMESPACE, "istio-cni-node"));
    cluster.terminate_agent();
    // containerd keeps the results of pods that run. Other runtimes delete them by the configuration that is kept there.
    let mut after = directories.each_ref().map(|dir| listed(dir));
    let left_over = [PLUGIN, ".istio-cni.left-over"].map(|name| after[1].remove(name));
    assert!(
        left_over.iter().all(Option::is_some),
        "the program stays; the agent's log:\n{}",
        cluster.agent_log()
    );
    assert_eq!(after, before, "the node is as it was; the agent's log:\n{}", cluster.agent_log());
    let left = listed(&cluster.run_dir(""));
    assert_eq!(
        left.keys().collect::<Vec<_>>(),
        ["istio-cni.log", "plugin-times.json"],
        "what stays in the run directory"
    );
    cluster.wait_for("containerd to read it", || cluster.is_loaded());
    let last = cluster.must_run_bare(&pods[3]);
    assert!(!is_captured_bare(&cluster.node, &last), "there is no plugin any more");
    // Pods that were captured are not stuck without it.
    for pod in [first, between, second, last] {
        cluster.node.stop_pod(&pod).expect("stopped");
        cluster.node.remove_pod(&pod).expect("removed");
    }
    assert_eq!(cluster.node.pods().expect("the pods"), Vec::<String>::new());
}
