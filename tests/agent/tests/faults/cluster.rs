//! The API server and what it allows.

use testkit::TestNetns;

use crate::scene::FaultyNode;

/// The role lets the agent list pods, and the plugin's question for one is refused.
pub(crate) fn no_role() -> FaultyNode {
    FaultyNode::healthy().injected(|node| node.mesh.node.api.deny("pods", &["get"]))
}

pub(crate) fn api_away() -> FaultyNode {
    FaultyNode::healthy().injected(|node| node.mesh.node.api.stop())
}

/// Packets to the API server vanish: the route leads to an interface without anybody behind it.
pub(crate) fn api_black_holed() -> FaultyNode {
    let hole = TestNetns::new().unwrap();
    hole.ip(&[
        "link set lo up",
        "link add hole type veth peer name gone",
        "address add 192.0.2.2/24 dev hole",
        "link set hole up",
        "link set gone up",
        "neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev hole",
    ])
    .unwrap();
    let netns = format!("--net={}", hole.path().display());
    let inside = ["nsenter", &*netns];
    let node = FaultyNode::prepared().asked_behind(&inside).with(hole);
    node.started(|agent| agent.env("KUBERNETES_SERVICE_HOST", "192.0.2.1").behind(&inside))
}
