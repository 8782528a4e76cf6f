//! The API server is away, the agent too, or everything after a reboot.

use node::{PodSpec, Sandbox};

use super::{AGENT_NAMESPACE, Cluster};
use crate::fixture::{check_captured, is_captured_bare, serve_node_port, sidecar_pod};

/// Runs a pod that must be captured with facts from there.
fn run_from(cluster: &Cluster, pod: &PodSpec, source: &str) -> Sandbox {
    let sandbox = cluster.must_run_bare(pod);
    check_captured(&cluster.node, &sandbox, &pod.name);
    assert_eq!(cluster.facts_source(pod), source, "{}", pod.name);
    sandbox
}

#[test]
fn pods_start_captured_while_the_api_server_and_the_agent_are_away() {
    let cluster = Cluster::start(&[("NATIVE_NFTABLES", "true"), ("FACTS_TIMEOUT", "4s")]);
    let pods: Vec<PodSpec> = (0..4).map(|i| sidecar_pod("default", &format!("pod-{i}"))).collect();
    let again = sidecar_pod("default", "again");
    cluster.admit_known(&pods);
    cluster.admit_known(std::slice::from_ref(&again));

    cluster.api.stop();
    run_from(&cluster, &pods[0], "agent");

    cluster.kill_agent();
    run_from(&cluster, &pods[1], "last-known");
    assert!(
        cluster.has_logged(&pods[1], "going on with other facts"),
        "{:?}",
        cluster.plugin_lines(&pods[1])
    );

    // A new agent that could not list anything yet: it is not ready and says why, and spoils nothing.
    cluster.start_agent();
    cluster.wait_for("an agent that lacks the API server", || {
        let (code, body) = cluster.readyz();
        code == 503
            && body.contains("cluster: ")
            && !body.contains("socket")
            && !body.contains("has not begun")
    });
    run_from(&cluster, &pods[2], "last-known");
    cluster.kill_agent();

    // The same name again, as of a StatefulSet: what is known is of the pod before.
    let mut other = again.clone();
    other.uid = "uid-of-the-next-one".to_owned();
    let error = cluster.run_bare(&other).expect_err("facts of another pod").to_string();
    for part in
        [r#"plugin type="istio-cni" name="istio-cni" failed (add)"#, "default/again", &other.uid, &again.uid]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(!cluster.has_logged(&other, "pod is captured"));
    cluster.admit(&other);
    cluster.restart_api();
    run_from(&cluster, &other, "api");

    cluster.start_agent();
    cluster.wait_ready();
    cluster.admit_known(&[other]);
    run_from(&cluster, &pods[3], "agent");
}

#[test]
fn after_a_reboot_the_agents_own_pod_starts_first() {
    let mut cluster = Cluster::start(&[("NATIVE_NFTABLES", "true"), ("FACTS_TIMEOUT", "2s")]);
    let pod = sidecar_pod("default", "pod");
    cluster.admit_known(std::slice::from_ref(&pod));
    let before = run_from(&cluster, &pod, "agent");

    cluster.api.stop();
    cluster.node.reboot().expect("the node is up again");
    cluster.forget_agent();
    serve_node_port(&cluster.node);
    assert!(cluster.entry().is_some(), "the conflist has outlived the reboot");
    assert!(!cluster.run_dir("istio-cni-kubeconfig").exists(), "the run directory has not");

    cluster.node.stop_pod(&before).expect("stopped");
    cluster.node.remove_pod(&before).expect("removed");

    // Nothing answers: a pod that was known before is captured, another one waits, and the agent's own does not.
    let known = cluster.must_run_bare(&pod);
    assert!(is_captured_bare(&cluster.node, &known), "by the facts in the state directory");
    let new = sidecar_pod("default", "new");
    let error = cluster.run_bare(&new).expect_err("no facts").to_string();
    for part in
        [r#"plugin type="istio-cni" name="istio-cni" failed (add)"#, "default/new", "istio-cni-kubeconfig"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
    let agents_own = sidecar_pod(AGENT_NAMESPACE, "istio-cni-node-x7k2p");
    let own = cluster.must_run_bare(&agents_own);
    assert!(!is_captured_bare(&cluster.node, &own), "the agent's own pod");

    cluster.restart_api();
    cluster.start_agent();
    cluster.wait_ready();
    cluster.admit_known(std::slice::from_ref(&new));
    run_from(&cluster, &new, "agent");
}

#[test]
fn a_run_directory_that_somebody_removes_comes_back() {
    let cluster = Cluster::start(&[("NATIVE_NFTABLES", "true")]);
    let pods = ["before", "after"].map(|name| sidecar_pod("default", name));
    cluster.admit_known(&pods);
    run_from(&cluster, &pods[0], "agent");

    // In one step: the agent puts its sockets there again at once.
    let removed = cluster.run_dir("").with_extension("removed");
    std::fs::rename(cluster.run_dir(""), &removed).expect("renamed");
    std::fs::remove_dir_all(removed).expect("removed");
    cluster.wait_for("what was there", || {
        ["agent.sock", "log.sock", "istio-cni-kubeconfig"].iter().all(|name| cluster.run_dir(name).exists())
    });
    cluster.wait_ready();
    run_from(&cluster, &pods[1], "agent");
    assert!(
        cluster.agent_log().lines().any(|line| line.contains("removed a socket")),
        "{}",
        cluster.agent_log()
    );
}
