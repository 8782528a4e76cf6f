//! Policies that are not enforced any more: nothing of ours is left on the node and in pods that run, and what others have there is as it was.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Families, PATIENCE, Pod, PodCall, PodObject, TestNetns, eventually};

use crate::policy_pods::{Setup, strip};

/// What others have at the same hooks, in all ways.
fn disturb(namespace: &TestNetns) {
    let line = "nft add table inet theirs; nft add chain inet theirs istio-np-x '{ type filter hook input priority mangle; }'; \
        nft add rule inet theirs istio-np-x tcp dport 9 accept; \
        for chain in PREROUTING INPUT OUTPUT POSTROUTING; do \
            iptables -t mangle -A $chain -p tcp --dport 9 -j ACCEPT; ip6tables -t mangle -A $chain -p tcp --dport 9 -j ACCEPT; done; \
        ipset create theirs hash:ip; ipset add theirs 192.0.2.1";
    namespace.run(Command::new("sh").args(["-ec", line])).unwrap();
}

fn listing(namespace: &TestNetns) -> Vec<String> {
    let line = "nft -a list ruleset; iptables-save; ip6tables-save; ipset save";
    strip(&namespace.run(Command::new("sh").args(["-c", line])).unwrap())
}

fn closed(namespace: &str, app: &str) -> serde_json::Value {
    json!({"metadata": {"namespace": namespace, "name": "closed", "uid": app},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]}})
}

/// A pod that a plugin has guarded, because no agent was there, and of which nothing runs yet.
fn guarded(setup: &Setup) -> Pod {
    let late = Pod::new(Families::V4).unwrap();
    disturb(late.own());
    let node = &setup.mesh.node;
    let path = node.dir().join("late");
    symlink(late.own().path(), &path).unwrap();
    let seen = setup.mesh.root().join(path.strip_prefix("/").unwrap());
    std::fs::create_dir_all(seen.parent().unwrap()).unwrap();
    symlink(late.own().path(), seen).unwrap();
    let uid = "0000000a-0000-4000-8000-00000000beef";
    let object = PodObject::named("late").uid(uid).label("app", "late").on_node("n1").container("app");
    node.api.set_pod(object);
    PodCall::new(node, "late", uid, &path).unwrap().add().unwrap();
    late
}

fn reaches(pod: &Pod) -> bool {
    let to = (Pod::V4, 8080).into();
    Flow::from(pod.peer()).patience(Duration::from_millis(300)).tcp(to).unwrap().port().is_some()
}

fn wait_clean(setup: &Setup, namespace: &TestNetns, before: &[String], log: &str) {
    eventually("nothing of ours is left, and all of the others'", PATIENCE, || {
        let now = listing(namespace);
        ensure!(now == before, "before:\n{}\nnow:\n{}\n{log}", before.join("\n"), now.join("\n"));
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:#}; in the pod:\n{}", setup.rules()));
}

fn turned_off(nftables: bool) {
    let setup = Setup::new(nftables);
    let api = &setup.mesh.node.api;
    [setup.pod.own(), &setup.mesh.host].into_iter().for_each(disturb);
    let before = [setup.pod.own(), &setup.mesh.host].map(listing);
    [closed("shop", "web"), closed("default", "late")].into_iter().for_each(|policy| {
        api.set_object(Resource::NetworkPolicies, policy);
    });
    let agent = setup.agent();
    setup.wait("a policy isolates the pod", false, false);
    let snapshot = setup.mesh.node.state_dir().join("policies.snapshot");
    eventually("what is known of policies is kept", PATIENCE, || {
        let text = std::fs::read_to_string(&snapshot)?;
        ensure!(text.contains("policy np default closed"), "{text}");
        Ok(())
    })
    .unwrap();
    agent.kill().unwrap();
    let late = guarded(&setup);
    let _there = Listeners::start(late.own(), [Listener::tcp(8080)]).unwrap();
    assert!(!reaches(&late), "a pod that started without an agent is guarded:\n{:?}", listing(late.own()));
    let agent = setup.launch().env("POLICY_ENFORCEMENT", "off").ready().unwrap();
    setup.wait("policies are not enforced any more", true, true);
    wait_clean(&setup, setup.pod.own(), &before[0], &agent.log().text());
    wait_clean(&setup, &setup.mesh.host, &before[1], &agent.log().text());
    // What others have in this one is the same as in the other pod.
    eventually("the guard is gone", PATIENCE, || {
        let text = listing(late.own()).join("\n");
        ensure!(
            !text.contains("istio-policy") && !text.contains("ISTIO") && text.contains("theirs"),
            "{text}"
        );
        Ok(())
    })
    .unwrap();
    assert!(reaches(&late), "{:?}", listing(late.own()));
}

#[test]
fn where_they_are_turned_off_in_nf_tables() {
    turned_off(true);
}

#[test]
fn where_they_are_turned_off_in_iptables() {
    turned_off(false);
}

#[test]
fn where_everything_is_uninstalled() {
    let setup = Setup::new(true);
    [setup.pod.own(), &setup.mesh.host].into_iter().for_each(disturb);
    let before = [setup.pod.own(), &setup.mesh.host].map(listing);
    setup.mesh.node.api.set_object(Resource::NetworkPolicies, closed("shop", "web"));
    let agent = setup.launch().env("CLEANUP_ON_EXIT", "always").ready().unwrap();
    setup.wait("a policy isolates the pod", false, false);
    let log = agent.stop().unwrap().log.text();
    wait_clean(&setup, setup.pod.own(), &before[0], &log);
    wait_clean(&setup, &setup.mesh.host, &before[1], &log);
    setup.wait("policies are not enforced any more", true, true);
    let marks =
        [setup.mesh.node.state_dir().join("policies.snapshot"), setup.mesh.node.run_dir().join("policed")];
    assert!(marks.iter().all(|path| !path.exists()), "{log}");
}
