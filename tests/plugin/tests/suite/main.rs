//! The plugin from outside: input, faults, kills, and what stays in the kernel.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ambient;
mod annotations;
mod facts;
mod identity;
mod input;
mod kills;
mod record;
mod rules;
mod shadow;
mod sinks;
mod status;
mod surroundings;

use plugin_tests::Node;
use testkit::rules::{Comments, Family, Variant};
use testkit::{Families, Pod, TestNetns};

/// A pod's namespace with addresses, and a node that knows the pod `web` with these annotations.
fn node_and_pod(annotations: &[(&str, &str)]) -> (Node, Pod) {
    let node = Node::new().unwrap();
    node.sidecar("web", annotations).unwrap();
    (node, Pod::new(Families::V4).unwrap())
}

/// Everything of ours that the namespace could hold, for comparison.
fn everything(netns: &TestNetns) -> String {
    let mut all = serde_json::to_string_pretty(&netns.nft_json(Comments::Keep).unwrap()).unwrap();
    for family in [Family::V4, Family::V6] {
        all += &netns.iptables_save(Variant::Legacy, family).unwrap();
    }
    for command in
        ["ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all", "ip addr show lo"]
    {
        let mut words = command.split(' ');
        let mut program = std::process::Command::new(words.next().unwrap());
        all += &netns.run(program.args(words)).unwrap();
    }
    all
}

/// Asserts that the text has every one of the parts.
#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}
