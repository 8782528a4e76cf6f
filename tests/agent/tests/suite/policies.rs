//! Network policies in the node's namespace.

use std::process::Command;

use anyhow::ensure;
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::{Launch, PATIENCE, eventually};

const TABLE: &str = "istio-policy-mangle";

fn agent(mesh: &Mesh) -> Launch<'_> {
    mesh.agent().env("AMBIENT_ENABLED", "false")
}

fn shell(mesh: &Mesh, line: &str) -> String {
    mesh.host.run(Command::new("sh").args(["-c", line])).unwrap()
}

/// Waits until the addresses that lead to rules are these.
fn wait_isolated(mesh: &Mesh, addresses: &[String]) {
    let mut addresses = addresses.to_vec();
    addresses.sort();
    eventually("the pods are isolated", PATIENCE, || {
        let listed = shell(mesh, &format!("nft list map inet {TABLE} istio-np-ingress-v4 2>&1 || true"));
        let words: Vec<&str> = listed.split_whitespace().collect();
        let led = words.windows(3).filter(|three| three[1] == ":" && three[2] == "jump");
        let mut found: Vec<String> = led.map(|three| three[0].to_owned()).collect();
        found.sort();
        ensure!(found == addresses, "{listed}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn policies_are_in_force_put_right_adopted_and_taken_off() {
    let mesh = Mesh::new().unwrap();
    let policy = json!({"metadata": {"namespace": "default", "name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}});
    mesh.node.api.set_object(Resource::NetworkPolicies, policy);
    let web = mesh.running("default", "web", &[("app", "web")]).unwrap();
    let on = || agent(&mesh).env("POLICY_ENFORCEMENT", "on").ready().unwrap();
    let running = on();
    wait_isolated(&mesh, &[web.ip.to_string()]);
    let other = mesh.running("default", "other", &[("app", "web")]).unwrap();
    let both = [web.ip.to_string(), other.ip.to_string()];
    wait_isolated(&mesh, &both);
    // Another program removes everything.
    shell(&mesh, "nft add table inet theirs; nft flush ruleset");
    wait_isolated(&mesh, &both);
    shell(&mesh, &format!("nft flush chain inet {TABLE} postrouting-late"));
    eventually("the chain is as it was", PATIENCE, || {
        let listed = shell(&mesh, &format!("nft list chain inet {TABLE} postrouting-late"));
        ensure!(listed.contains("istio-np-ingress-v4"), "{listed}");
        Ok(())
    })
    .unwrap();
    // The next agent leaves what is right as it is: handles are the same.
    let before = shell(&mesh, &format!("nft -a list table inet {TABLE}"));
    running.stop().unwrap();
    assert_eq!(
        shell(&mesh, &format!("nft -a list table inet {TABLE}")),
        before,
        "an agent that ends leaves it"
    );
    let running = on();
    let third = mesh.running("default", "third", &[("app", "web")]).unwrap();
    wait_isolated(&mesh, &[both.as_slice(), &[third.ip.to_string()]].concat());
    let handles = |text: &str| -> Vec<String> {
        let named = text.lines().filter(|line| line.contains("# handle") && !line.contains("counter"));
        named.map(str::to_owned).collect()
    };
    assert_eq!(handles(&shell(&mesh, &format!("nft -a list table inet {TABLE}"))), handles(&before));
    running.stop().unwrap();
    let _off = agent(&mesh).ready().unwrap();
    eventually("the table is gone", PATIENCE, || {
        let tables = shell(&mesh, "nft list tables");
        ensure!(!tables.contains(TABLE), "{tables}");
        Ok(())
    })
    .unwrap();
}
