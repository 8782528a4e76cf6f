//! A machine that starts again: what is in memory is gone, and the state directory is there.

use anyhow::Context;
use testkit::{Families, Launch, Node, PATIENCE, Pod, PodCall, assert_says, eventually};

const REBOOTS: &str = "istio_cni_reboots_total";

/// Waits for the facts of pod `default/web` in the state directory.
fn wait_kept(node: &Node) {
    let file = node.state_dir().join("facts/default_web.json");
    eventually("the facts are kept", PATIENCE, || std::fs::read(&file).context("no facts")).unwrap();
}

/// An agent in the start of the machine with this number, which an uninstallation does not end.
fn agent<'a>(node: &'a Node, boot: &str) -> Launch<'a> {
    node.agent().env("CLEANUP_ON_EXIT", "never").booted(boot).unwrap()
}

#[test]
fn a_pod_is_captured_by_the_facts_that_a_restart_of_the_machine_left() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let agent = node.start().unwrap();
    wait_kept(&node);
    agent.kill().unwrap();
    node.api.stop();
    std::fs::remove_dir_all(node.run_dir()).unwrap();

    let pod = Pod::new(Families::V4).unwrap();
    let answer = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap().add().unwrap();
    assert_says(&answer.stderr, &["pod is captured", "\"facts_source\":\"last-known\""]);
    // Another pod of the name is not the one that was known, and its ADD waits for an agent.
    let mut other = PodCall::new(&node, "web", "uid-2", pod.path()).unwrap();
    other.conf["facts_timeout"] = "500ms".into();
    assert_says(&other.refused().unwrap(), &["istio-cni-kubeconfig"]);
}

#[test]
fn a_restart_of_the_machine_is_noticed_once() {
    let node = Node::new().unwrap();
    let noticed = "the machine has started again since an agent ran last";
    for (boot, reboots, tells) in
        [("one", 0.0, false), ("two", 1.0, true), ("two", 1.0, false), ("three", 2.0, true)]
    {
        let agent = agent(&node, boot).ready().unwrap();
        assert_eq!(agent.metric(REBOOTS).unwrap(), reboots, "{boot}");
        assert_eq!(agent.log().find(&[noticed]).is_some(), tells, "{boot}");
        agent.kill().unwrap();
    }
}

/// Without an API server the pods are those of this start of the machine, also where the run directory outlives it.
#[test]
fn pods_of_an_earlier_start_of_the_machine_do_not_count() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let first = agent(&node, "one").ready().unwrap();
    wait_kept(&node);
    first.kill().unwrap();
    node.api.stop();

    let same = agent(&node, "one").start().unwrap();
    same.log()
        .wait_for(&["the facts that an earlier agent kept are used meanwhile", "pods=1"], PATIENCE)
        .unwrap();
    same.kill().unwrap();
    for _ in 0..2 {
        let after = agent(&node, "two").start().unwrap();
        after.log().wait_for(&["the machine has started again", "none is known"], PATIENCE).unwrap();
        assert!(node.state_dir().join("facts/default_web.json").exists(), "the plugin goes by them");
        after.kill().unwrap();
    }
    node.api.restart().unwrap();
    let known = agent(&node, "two").ready().unwrap();
    wait_kept(&node);
    known.kill().unwrap();
    node.api.stop();
    let next = agent(&node, "two").start().unwrap();
    next.log().wait_for(&["are used meanwhile", "pods=1"], PATIENCE).unwrap();
}

#[test]
fn nothing_is_left_in_the_state_directory_at_the_end() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let agent = node.agent().env("CLEANUP_ON_EXIT", "always").ready().unwrap();
    wait_kept(&node);
    agent.stop().unwrap();
    assert!(!node.state_dir().exists());
}
