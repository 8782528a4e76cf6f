//! What policies deny is answered where that is asked for, told with another verdict, and gone when policies are.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::probe::{Flow, Listener, Listeners, Outcome};
use testkit::{PATIENCE, at_once, eventually};

use crate::denials::{agent_by, records, told, wire};

/// All rules of the node, in nf_tables and in iptables.
fn rules(mesh: &Mesh) -> anyhow::Result<String> {
    let line = "nft list ruleset; for each in iptables ip6tables; do $each-legacy-save; $each-nft-save; done";
    mesh.host.run(Command::new("sh").args(["-c", line]))
}

#[test]
fn what_policies_deny_is_answered_and_told_as_rejected() {
    at_once(["native", "nft", "legacy"], is_answered);
}

fn is_answered(backend: &str) {
    let mesh = Mesh::new().unwrap();
    let metadata = json!({"namespace": "default", "name": "closed"});
    let spec = json!({"podSelector": {"matchLabels": {"app": "closed"}}, "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": 8080}]}]});
    mesh.node.api.set_object(Resource::NetworkPolicies, json!({"metadata": metadata, "spec": spec}));
    let pod = |name: &str| -> MeshPod {
        let pod = mesh.running("default", name, &[("app", name)]).unwrap();
        wire(&mesh, &pod);
        pod
    };
    let [closed, client] = ["closed", "client"].map(pod);
    let _listeners = Listeners::start(&closed.netns, [Listener::tcp(8080), Listener::tcp(9090)]).unwrap();
    let asked = agent_by(&mesh, backend).env("POLICY_DENY", "reject");
    let agent = asked.ready().unwrap();
    let ask = |port| {
        let flow = Flow::from(&client.netns).patience(Duration::from_millis(500));
        flow.tcp(SocketAddr::new(closed.ip, port)).unwrap()
    };
    let is_refused = || {
        eventually("a denial is answered", PATIENCE, || {
            let found = ask(9090);
            ensure!(found == Outcome::Refused, "{backend}: {found:?}");
            Ok(())
        })
        .unwrap();
    };
    is_refused();
    assert_eq!(ask(8080).port(), Some(8080), "{backend}");
    client
        .netns
        .enter(|_| {
            let socket = UdpSocket::bind((client.ip, 0)).unwrap();
            (0..400).for_each(|_| drop(socket.send_to(b"x", (closed.ip, 53))));
        })
        .unwrap();
    eventually("records and the metric say the same", 2 * PATIENCE, || {
        let [rejected, dropped] = [told(&mesh, "REJECTED")?, told(&mesh, "DROPPED")?];
        let labels = r#"direction="ingress",namespace="default",policy_set="default/closed""#;
        let counted = agent.metric(&format!("istio_cni_policy_denied_total{{{labels}}}"))?;
        let all = rejected.0 + rejected.1 + dropped.0 + dropped.1;
        ensure!(
            rejected.0 >= 10 && rejected.0 + rejected.1 > 400 && counted == all as f64,
            "{backend}: {rejected:?} are rejected, {dropped:?} dropped, {counted} counted"
        );
        Ok(())
    })
    .unwrap();
    let record = records(&mesh).unwrap().into_iter().find(|one| one["verdict"] == "REJECTED").unwrap();
    let paths = ["/type", "/source/pod_name", "/destination/pod_name", "/policy/selecting/0", "/point"];
    let found = paths.map(|path| record.pointer(path).cloned().unwrap_or_default());
    assert_eq!(
        json!(found),
        json!(["policy_violation", "client", "closed", "default/closed", "node"]),
        "{backend}"
    );
    // Others may flush the table that answers.
    let flush = match backend {
        "native" => "nft flush chain inet istio-policy-mangle forward-late",
        "nft" => "iptables-nft -t filter -F",
        _ => "iptables-legacy -t filter -F; nft add table ip noticed",
    };
    mesh.host.run(Command::new("sh").args(["-c", flush])).unwrap();
    if backend != "legacy" {
        is_refused();
    }
    drop(agent);
    let without = mesh.agent().env("AMBIENT_ENABLED", "false").ready().unwrap();
    eventually("nothing of it is left", PATIENCE, || {
        let rules = rules(&mesh)?;
        ensure!(!rules.contains("istio-policy") && !rules.contains("ISTIO_N"), "{backend}: {rules}");
        Ok(())
    })
    .unwrap();
    drop(without);
}
