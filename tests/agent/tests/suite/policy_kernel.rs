//! What `cnictl policy explain --kernel` says where rules of policies are as the agent left them, and where somebody has changed them.

use std::fs;

use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::{PATIENCE, until};

use crate::denials::wait_isolated;
use crate::mesh_render::cnictl;

const TABLE: &str = "inet istio-policy-mangle";

#[test]
fn rules_that_somebody_has_changed_are_told_from_what_policies_say() {
    let mesh = Mesh::new().unwrap();
    mesh.host
        .ip(&[
            "link add uplink type veth peer name world",
            "address add 192.168.7.1/24 dev uplink",
            "link set uplink up",
        ])
        .unwrap();
    let policy = json!({"metadata": {"namespace": "default", "name": "closed"}, "spec": {
        "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 8080}, {"port": 90, "endPort": 99}]}]}});
    mesh.node.api.set_object(Resource::NetworkPolicies, policy);
    let web = mesh.running("default", "web", &[("app", "web")]).unwrap();
    mesh.running("default", "client", &[("app", "client")]).unwrap();
    let agent = mesh.agent().env("AMBIENT_ENABLED", "false").env("NATIVE_NFTABLES", "true");
    // No packet is sent here, and the pods have no interface that the node could see.
    let agent = agent.env("POLICY_ENFORCEMENT", "on").env("POLICY_POINT", "node");
    let agent = agent.env("POLICY_ESTABLISHED", "keep").ready().unwrap();
    wait_isolated(&mesh, &web);
    let state = mesh.node.state_dir();
    let ask = |from: &str, port: u16| {
        let words =
            format!("policy explain --from {from} --to default/web --port {port} --kernel --state-dir");
        let (exit, text, error) = cnictl(&mesh, &format!("{words} {}", state.display())).unwrap();
        (exit, text + &error)
    };
    let assert_says = |from: &str, port, exit, wanted: &str| {
        let (found, text) = ask(from, port);
        assert!(found == Some(exit) && text.contains(wanted), "{found:?} {text}");
        assert_eq!(text.contains("(differs from what the objects say)"), exit == 5, "{text}");
    };
    let as_left = |evidence: &str| {
        assert_says("default/client", 8080, 0, "  kernel   allowed: ");
        assert_says("default/client", 99, 0, "  kernel   allowed: ");
        assert_says("default/client", 80, 1, "  kernel   denied: ");
        assert_says("node", 80, 0, "  kernel   allowed: ");
        assert_says("default/client", 80, 1, evidence);
    };
    as_left("evidence: the agent");
    let snapshot = state.join("policies.snapshot");
    let has_web = || fs::read_to_string(&snapshot).is_ok_and(|text| text.contains(&web.ip.to_string()));
    until("the snapshot is written", PATIENCE, has_web, || agent.log().text()).unwrap();
    // Nobody puts right any more what others change.
    agent.stop().unwrap();
    as_left("evidence: the snapshot");
    mesh.host.nft(&format!("insert rule {TABLE} postrouting-late udp dport 9 counter accept")).unwrap();
    assert_says("default/client", 8080, 4, "    not of any policy: rule 1 of chain postrouting-late\n");
    mesh.host.nft(&format!("flush map {TABLE} istio-np-ingress-v4")).unwrap();
    assert_says("default/client", 80, 5, "  kernel   allowed: ");
    mesh.host.nft(&format!("delete table {TABLE}")).unwrap();
    assert_says("default/client", 80, 5, "there are no rules of policies");
}
