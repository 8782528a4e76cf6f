//! The plugin from outside: input, faults, kills, and what stays in the kernel.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ambient;
mod annotations;
mod facts;
mod identity;
mod input;
mod kills;
mod policies;
mod record;
mod rules;
mod shadow;
mod sinks;
mod status;
mod surroundings;

use testkit::Node;
use testkit::PodObject;
use testkit::rules::{Comments, Family, Variant};
use testkit::{Families, Pod, TestNetns};

/// A pod's namespace with addresses, and a node that knows the pod `web` with these annotations.
fn node_and_pod(annotations: &[(&str, &str)]) -> (Node, Pod) {
    let node = Node::bare().unwrap();
    node.write_manifest(PodObject::named("web").sidecar().annotations(annotations)).unwrap();
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
