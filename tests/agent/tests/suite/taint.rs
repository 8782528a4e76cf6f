//! The taint that keeps new pods off a node where they could not be captured.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::{Launch, NODE_NAME, Node, PATIENCE, eventually};

const KEY: &str = "cni.istio.io/not-ready";
/// Longer than the agent waits between two looks at itself.
const A_LOOK: Duration = Duration::from_millis(1500);

fn agent<'a>(node: &'a Node, mode: &str) -> Launch<'a> {
    node.agent().env("NODE_TAINT", mode).env("CLEANUP_ON_EXIT", "never")
}

fn set_taints(node: &Node, taints: &Value) {
    node.api
        .set_object(Resource::Nodes, json!({"metadata": {"name": NODE_NAME}, "spec": {"taints": taints}}));
}

fn taints(node: &Node) -> Vec<Value> {
    let object = node.api.object(Resource::Nodes, "", NODE_NAME).unwrap();
    object["spec"]["taints"].as_array().cloned().unwrap_or_default()
}

fn wait_taints(node: &Node, wanted: &[Value], limit: Duration) {
    eventually("the taints of the node", limit, || {
        let taints = taints(node);
        ensure!(taints == wanted, "{taints:?}");
        Ok(())
    })
    .unwrap();
}

/// Waits until the Events about the node have these reasons, in order.
fn wait_told(node: &Node, wanted: &[&str]) {
    eventually("the Events about the node", PATIENCE, || {
        let mut events = node.api.events();
        events.retain(|event| event["involvedObject"]["kind"] == "Node");
        events.sort_by_key(|event| event["metadata"]["name"].as_str().map(str::to_owned));
        let reasons: Vec<_> =
            events.iter().map(|event| event["reason"].as_str().unwrap_or_default()).collect();
        ensure!(reasons == wanted, "{events:?}");
        Ok(())
    })
    .unwrap();
}

fn ours() -> Value {
    json!({"key": KEY, "effect": "NoSchedule"})
}

fn foreign() -> Value {
    json!({"key": "example.com/gpu", "value": "yes", "effect": "NoExecute"})
}

#[test]
fn a_ready_agent_takes_the_taint_away_and_leaves_those_of_others() {
    for mode in ["remove", "manage"] {
        let node = Node::new().unwrap();
        set_taints(&node, &json!([foreign(), {"key": KEY, "value": "true", "effect": "NoSchedule"}]));
        let _agent = agent(&node, mode).ready().unwrap();
        wait_taints(&node, &[foreign()], PATIENCE);
        wait_told(&node, &["NodeReady"]);
    }
}

#[test]
fn an_agent_that_is_not_told_to_touches_no_taint() {
    let node = Node::new().unwrap();
    set_taints(&node, &json!([ours()]));
    let _agent = node.agent().ready().unwrap();
    std::thread::sleep(A_LOOK);
    assert_eq!((taints(&node), node.api.patches()), (vec![ours()], Vec::new()));
}

#[test]
fn a_restart_of_the_machine_keeps_new_pods_off_until_the_agent_is_ready() {
    let node = Node::new().unwrap();
    set_taints(&node, &json!([foreign()]));
    agent(&node, "manage").booted("one").unwrap().ready().unwrap().kill().unwrap();
    assert_eq!(taints(&node), [foreign()], "nothing has happened");

    // The network's own component has not come yet, so the agent is not ready.
    std::fs::remove_file(node.conflist()).unwrap();
    let start = Instant::now();
    let mut after = agent(&node, "manage").booted("two").unwrap().start().unwrap();
    wait_taints(&node, &[foreign(), ours()], Duration::from_secs(5));
    println!("tainted {:.1?} after the start", start.elapsed());
    std::fs::write(node.conflist(), Node::foreign_conflist()).unwrap();
    after.wait_ready().unwrap();
    wait_taints(&node, &[foreign()], PATIENCE);
    wait_told(&node, &["NodeNotReadyForMesh", "NodeReady"]);
}

#[test]
fn an_agent_that_only_removes_sets_no_taint() {
    let node = Node::new().unwrap();
    agent(&node, "remove").booted("one").unwrap().ready().unwrap().kill().unwrap();
    std::fs::remove_file(node.conflist()).unwrap();
    let after = agent(&node, "remove").booted("two").unwrap().start().unwrap();
    after.wait_unready(&["install: "]).unwrap();
    std::thread::sleep(A_LOOK);
    assert_eq!(taints(&node), [] as [Value; 0]);
}

#[test]
fn the_taint_goes_with_the_plugin() {
    let node = Node::new().unwrap();
    agent(&node, "manage").booted("one").unwrap().ready().unwrap().kill().unwrap();
    std::fs::remove_file(node.conflist()).unwrap();
    let launch = agent(&node, "manage").booted("two").unwrap().env("CLEANUP_ON_EXIT", "always");
    let after = launch.start().unwrap();
    wait_taints(&node, &[ours()], PATIENCE);
    let ended = after.stop().unwrap();
    assert_eq!(taints(&node), [] as [Value; 0], "{}", ended.log.text());
}
