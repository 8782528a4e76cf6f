//! Network policies of pods in ambient mode: they speak of the application's port, whatever carries it.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::{MeshPod, PATIENCE, eventually};
use ztunnel_tests::traffic::{Echo, Talk};
use ztunnel_tests::{HBONE, Peer, Sniffer, Town};

use crate::traffic::Until;
use crate::{APP, app, wait_in};

/// A port of the application that no policy opens.
const CLOSED: u16 = 9090;
/// What goes through goes sooner.
const SHORT: Duration = Duration::from_millis(400);

fn reaches(from: &MeshPod, to: &MeshPod, port: u16) -> bool {
    let talk = Talk::within(&from.netns, SocketAddr::new(to.ip, port), SHORT);
    talk.and_then(|mut talk| talk.say("is it open?")).is_ok()
}

#[test]
fn policies_judge_what_is_in_the_tunnel() {
    judged("true");
}

#[test]
fn and_so_they_do_with_iptables() {
    judged("false");
}

fn judged(native_nftables: &str) {
    let town = Town::new().unwrap();
    let api = &town.mesh.node.api;
    let policy = json!({"metadata": {"namespace": "mesh", "name": "shop", "uid": "p"}, "spec": {
        "podSelector": {"matchLabels": {"app": "shop"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}, "namespaceSelector": {}}], "ports": [{"port": APP}]}]}});
    let agent = town
        .mesh
        .agent()
        .env("NATIVE_NFTABLES", native_nftables)
        .env("POLICY_ENFORCEMENT", "on")
        .env("DRAIN_TIMEOUT", "1s");
    let agent = agent.ready().unwrap();
    let [friend, other, shop] = ["friend", "other", "shop"].map(|name| town.running("mesh", name).unwrap());
    let outside = town.running("default", "outside").unwrap();
    let shop_labels: &[(&str, &str)] = &[("app", "shop")];
    for (pod, labels) in
        [(&friend, &[("role", "friend")][..]), (&outside, &[("role", "friend")]), (&shop, shop_labels)]
    {
        api.set_pod(pod.object(labels, true));
    }
    let peer = Peer::start(&town, &[&friend, &other, &shop, &outside]).unwrap();
    wait_in(&town, &peer, &[&friend, &other, &shop]);
    let _apps = [APP, CLOSED].map(|port| Echo::start(&shop.netns, port).unwrap());
    assert!(reaches(&other, &shop, CLOSED), "nothing is isolated");
    api.set_object(Resource::NetworkPolicies, policy);
    let wait = |what: &str, open: [bool; 3]| {
        eventually(what, PATIENCE, || {
            let found = [(&friend, APP), (&outside, APP), (&other, APP)]
                .map(|(from, port)| reaches(from, &shop, port));
            ensure!(found == open, "{found:?}\n{}\n{}", rules(&shop), agent.log().text());
            Ok(())
        })
        .unwrap();
    };
    wait("a policy isolates the pod", [true, true, false]);
    let sniffer = Sniffer::start(&town.mesh.host).unwrap();
    assert!(reaches(&friend, &shop, APP) && sniffer.with_data(HBONE) > 0, "by a tunnel");
    assert!(!reaches(&friend, &shop, CLOSED) && !reaches(&outside, &shop, CLOSED));
    assert_eq!(
        Talk::start(&town.mesh.host, app(&shop)).unwrap().say("alive?").unwrap().to_string(),
        "169.254.7.127"
    );
    // Nobody but friends comes to the tunnel itself.
    let tunnel = SocketAddr::new(shop.ip, HBONE);
    assert!(
        Talk::within(&outside.netns, tunnel, SHORT).is_ok()
            && Talk::within(&town_stranger(&town).netns, tunnel, SHORT).is_err()
    );
    // What a pod itself asks for is judged by the real port, too.
    let _others = [APP, CLOSED].map(|port| Echo::start(&other.netns, port).unwrap());
    assert!(reaches(&friend, &other, CLOSED), "nothing isolates what the friend asks for");
    api.set_object(Resource::NetworkPolicies, json!({"metadata": {"namespace": "mesh", "name": "friend", "uid": "q"}, "spec": {
        "podSelector": {"matchLabels": {"role": "friend"}}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": APP}]}]}}));
    eventually("what the friend asks for is judged", PATIENCE, || {
        let found =
            [reaches(&friend, &other, APP), reaches(&friend, &other, CLOSED), reaches(&friend, &shop, APP)];
        ensure!(found == [true, false, true], "{found:?}\n{}", rules(&friend));
        Ok(())
    })
    .unwrap();
    // Out of the mesh and back: what is closed stays so all the time.
    let (ending, passed) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ending.load(Ordering::SeqCst) {
                for (from, port) in [(&friend, CLOSED), (&outside, CLOSED), (&other, APP)] {
                    passed.fetch_add(usize::from(reaches(from, &shop, port)), Ordering::SeqCst);
                }
            }
        });
        let _end = Until(&ending);
        for is_in in [false, true] {
            let mode = if is_in { "ambient" } else { "none" };
            api.set_pod(shop.object(&[("app", "shop"), (testkit::mesh::MODE, mode)], true));
            town.mesh.wait_annotation(&shop, is_in.then_some("enabled")).unwrap();
            eventually("rules judge the tunnel where there is one", PATIENCE, || {
                let found = [rules(&shop).contains("istio-np-"), node(&town, &shop).contains("-e\n")];
                ensure!(found == [is_in; 2], "{found:?}\n{}\n{}", rules(&shop), node(&town, &shop));
                Ok(())
            })
            .unwrap();
            // No control plane tells a ztunnel that the pod has left: it goes on to a tunnel, which is closed.
            wait("it is in or out", [is_in, true, false]);
        }
    });
    assert_eq!(passed.into_inner(), 0, "connections that policies deny at any time");
    peer.check().unwrap();
    let log = agent.log().text();
    let conflict = log.lines().find(|line| line.contains("\tconflicts\t") || line.contains("escape capture"));
    assert_eq!(conflict, None, "rules of policies are ours");
}

fn town_stranger(town: &Town) -> MeshPod {
    town.running("default", "stranger").unwrap()
}

/// All rules of a pod's namespace.
fn rules(pod: &MeshPod) -> String {
    let nft = pod.netns.run(Command::new("nft").args(["list", "ruleset"])).unwrap();
    nft + &pod.netns.run(&mut Command::new("iptables-save")).unwrap()
}

/// The chains to which the node leads packets to a pod, in either backend; those that open the tunnel end with `-e`.
fn node(town: &Town, pod: &MeshPod) -> String {
    let line = format!(
        "nft list map inet istio-policy-mangle istio-np-ingress-v4 2>/dev/null | tr -s ' ,}}' '\\n'; \
         ipset save | sed -n 's/^add \\(istio-np-[0-9a-f]*-e\\)-4 {}$/\\1/p'",
        pod.ip
    );
    town.mesh.host.run(Command::new("sh").args(["-c", &line])).unwrap()
}
