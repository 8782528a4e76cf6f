//! Network policies in the node's namespace by iptables and ipset.

use std::process::Command;

use anyhow::ensure;
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::{Launch, PATIENCE, at_once, eventually};

fn agent<'m>(mesh: &'m Mesh, variant: &str) -> Launch<'m> {
    let agent = mesh.agent().env("AMBIENT_ENABLED", "false");
    agent.env("NATIVE_NFTABLES", "false").env("FORCE_IPTABLES_BINARY", variant)
}

fn shell(mesh: &Mesh, line: &str) -> String {
    mesh.host.run(Command::new("sh").args(["-c", line])).unwrap()
}

/// All of ours: sets with their members, and rules with the packets that they have counted.
fn everything(mesh: &Mesh, variant: &str) -> (String, String) {
    let rules =
        shell(mesh, &format!("iptables-{variant}-save -c -t mangle; ip6tables-{variant}-save -c -t mangle"));
    let ours = rules.lines().filter(|line| line.contains("ISTIO_NP"));
    (shell(mesh, "ipset save | sort"), ours.collect::<Vec<_>>().join("\n"))
}

/// Waits until these addresses are isolated, each with a rule that leads to one chain.
fn wait_isolated(mesh: &Mesh, variant: &str, addresses: &[String]) {
    let mut addresses = addresses.to_vec();
    addresses.sort();
    eventually("the pods are isolated", PATIENCE, || {
        let (sets, rules) = everything(mesh, variant);
        let led: Vec<&str> = rules
            .lines()
            .filter_map(|rule| rule.split_once("-A ISTIO_NP_INGRESS "))
            .map(|(_, rule)| rule)
            .collect();
        ensure!(addresses.is_empty() || led.len() == 4, "{led:?}");
        ensure!(rules.matches("-A POSTROUTING -j ISTIO_NP_POSTROUTING").count() == 2, "{rules}");
        let of_class = led.iter().find(|rule| rule.contains("-n-4 dst"));
        let of_class = of_class.and_then(|rule| rule.split_whitespace().nth(3)).unwrap_or("none");
        for set in ["istio-np-ingress-v4", of_class] {
            let added = sets.lines().filter_map(|line| line.strip_prefix(&format!("add {set} ")));
            let found: Vec<&str> = added.collect();
            ensure!(found == addresses, "{set}: {found:?} of {addresses:?}\n{sets}");
        }
        Ok(())
    })
    .unwrap();
}

/// Handles are those of nf_tables; of iptables-legacy packets tell that a rule is the one that was there.
#[test]
fn policies_are_in_force_put_right_adopted_and_taken_off_by_iptables() {
    at_once(["nft", "legacy"], |variant| {
        let mesh = Mesh::new().unwrap();
        let rule = json!({"ports": [{"port": 8080}]});
        let policy = json!({"metadata": {"namespace": "default", "name": "closed"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [rule]}});
        mesh.node.api.set_object(Resource::NetworkPolicies, policy);
        let theirs = format!("iptables-{variant} -t mangle -A POSTROUTING -j MARK --set-mark 7");
        shell(&mesh, &format!("{theirs}; ipset create theirs hash:ip"));
        let web = mesh.running("default", "web", &[("app", "web")]).unwrap();
        let on = || agent(&mesh, variant).env("POLICY_ENFORCEMENT", "on").ready().unwrap();
        let running = on();
        wait_isolated(&mesh, variant, &[web.ip.to_string()]);
        let other = mesh.running("default", "other", &[("app", "web")]).unwrap();
        let both = [web.ip.to_string(), other.ip.to_string()];
        wait_isolated(&mesh, variant, &both);
        // Another program removes everything. Nothing tells of iptables-legacy, which is looked at each half minute.
        if variant == "nft" {
            shell(&mesh, "nft flush ruleset; ipset flush; ipset destroy istio-np-ingress-v4 || true");
            wait_isolated(&mesh, variant, &both);
            // The rules are back by the time that somebody empties the sets, which nobody tells.
            shell(&mesh, "nft flush ruleset; sleep 0.3; ipset flush");
            wait_isolated(&mesh, variant, &both);
            shell(&mesh, &theirs);
            shell(&mesh, "iptables-nft -t mangle -F ISTIO_NP_POSTROUTING");
            eventually("the chain is as it was", PATIENCE, || {
                let (_, rules) = everything(&mesh, variant);
                // Of both families.
                ensure!(rules.matches("-A ISTIO_NP_POSTROUTING -m set").count() == 4, "{rules}");
                Ok(())
            })
            .unwrap();
        }
        // The next agent leaves what is right as it is.
        let before = everything(&mesh, variant);
        running.stop().unwrap();
        assert_eq!(everything(&mesh, variant), before, "{variant}: an agent that ends leaves it");
        let running = on();
        assert_eq!(everything(&mesh, variant), before, "{variant}: the next one, too");
        let third = mesh.running("default", "third", &[("app", "web")]).unwrap();
        wait_isolated(&mesh, variant, &[both.as_slice(), &[third.ip.to_string()]].concat());
        assert_eq!(everything(&mesh, variant).1, before.1, "{variant}: another pod changes no rule");
        running.stop().unwrap();
        let _off = agent(&mesh, variant).ready().unwrap();
        eventually("everything is gone", PATIENCE, || {
            let left = shell(&mesh, "ipset list -n; nft list ruleset; iptables-legacy-save");
            ensure!(!left.contains("istio-np") && !left.contains("ISTIO_NP"), "{left}");
            Ok(())
        })
        .unwrap();
        let left = shell(&mesh, &format!("ipset list -n; iptables-{variant}-save -t mangle"));
        assert!(left.contains("theirs") && left.contains("-A POSTROUTING -j MARK"), "{variant}: {left}");
    });
}

#[test]
fn another_backend_takes_the_rules_over() {
    let mesh = Mesh::new().unwrap();
    let policy = json!({"metadata": {"namespace": "default", "name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}});
    mesh.node.api.set_object(Resource::NetworkPolicies, policy);
    let web = mesh.running("default", "web", &[("app", "web")]).unwrap();
    let running = agent(&mesh, "nft").env("POLICY_ENFORCEMENT", "on").ready().unwrap();
    wait_isolated(&mesh, "nft", &[web.ip.to_string()]);
    running.stop().unwrap();
    let has = |what: &str| shell(&mesh, "nft list ruleset; ipset list -n").contains(what);
    let running =
        agent(&mesh, "nft").env("NATIVE_NFTABLES", "true").env("POLICY_ENFORCEMENT", "on").ready().unwrap();
    eventually("nf_tables has the rules, alone", PATIENCE, || {
        ensure!(has("istio-policy-mangle") && !has("ISTIO_NP"));
        Ok(())
    })
    .unwrap();
    running.stop().unwrap();
    let _running = agent(&mesh, "nft").env("POLICY_ENFORCEMENT", "on").ready().unwrap();
    wait_isolated(&mesh, "nft", &[web.ip.to_string()]);
    eventually("iptables has the rules, alone", PATIENCE, || {
        ensure!(has("ISTIO_NP") && !has("istio-policy-mangle"));
        Ok(())
    })
    .unwrap();
}
