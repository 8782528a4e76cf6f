//! Pods that are not captured as they should be, and what on the node keeps them from it.

use std::process::Command;

use serde_json::json;
use testkit::ztunnel::{Answer, Request, Script};
use testkit::{PodCall, PodObject, TestNetns};

use crate::scene::FaultyNode;

pub(crate) fn no_ztunnel() -> FaultyNode {
    let node = FaultyNode::ambient(|agent| agent);
    let pod = node.mesh.running("mesh", "web", &[]).unwrap();
    node.with(pod)
}

pub(crate) fn refusing_ztunnel() -> FaultyNode {
    let node = FaultyNode::ambient(|agent| agent);
    let answers = |request: &Request| match request {
        Request::Add { .. } => Answer::Nack("port 15001 is taken".to_owned()),
        _ => Answer::Ack,
    };
    let ztunnel = node.mesh.ztunnel_that(Script::answering(answers)).unwrap();
    let pod = node.mesh.running("mesh", "web", &[]).unwrap();
    node.with(ztunnel).with(pod)
}

/// A pod in the mesh, in whose network namespace somebody loads rules.
fn with_something_in_the_pod(inject: impl FnOnce(&TestNetns)) -> FaultyNode {
    let node = FaultyNode::served();
    let pod = node.mesh.running("mesh", "web", &[]).unwrap();
    node.mesh.wait_annotation(&pod, Some("enabled")).unwrap();
    pod.add_way_out().unwrap();
    inject(&pod.netns);
    node.with(pod)
}

/// As linkerd-init loads them.
pub(crate) fn another_meshs_rules() -> FaultyNode {
    const LINKERD: &str = "*nat\n:PROXY_INIT_OUTPUT - [0:0]\n:PROXY_INIT_REDIRECT - [0:0]\n-A PREROUTING -j PROXY_INIT_REDIRECT\n\
        -A OUTPUT -j PROXY_INIT_OUTPUT\n-A PROXY_INIT_OUTPUT -m owner --uid-owner 2102 -j RETURN\n\
        -A PROXY_INIT_OUTPUT -p tcp -j REDIRECT --to-ports 4140\n\
        -A PROXY_INIT_REDIRECT -p tcp -j REDIRECT --to-ports 4143\nCOMMIT\n";
    with_something_in_the_pod(|netns| {
        netns.pipe(&mut Command::new("iptables-nft-restore"), LINKERD).unwrap();
    })
}

/// A rule gives packets of the application the mark by which ours know the proxy's.
pub(crate) fn forged_mark() -> FaultyNode {
    const RULES: &str = "table ip forger { chain o { type route hook output priority -200; tcp dport 80 meta mark set 0x539; }; }";
    with_something_in_the_pod(|netns| netns.nft(RULES).unwrap())
}

/// The node's firewall drops what comes from the source by which pods know the kubelet's probes.
pub(crate) fn firewall_that_drops_probes() -> FaultyNode {
    let node = FaultyNode::served();
    node.mesh
        .host
        .ip(&[
            "link add pods0 type veth peer name pods1",
            "address add 10.9.255.254/16 dev pods0",
            "link set pods0 up",
            "link set pods1 up",
        ])
        .unwrap();
    node.mesh
        .host
        .nft("table ip wall { chain out { type filter hook postrouting priority 200; ip saddr 169.254.7.127 drop; }; }")
        .unwrap();
    let pod = node.mesh.running("mesh", "web", &[]).unwrap();
    node.mesh.wait_annotation(&pod, Some("enabled")).unwrap();
    node.with(pod)
}

/// Its network stack is the sandbox's, which no rule sees.
pub(crate) fn pod_of_gvisor() -> FaultyNode {
    let node = FaultyNode::served();
    let pod = node.mesh.sandbox("mesh", "web").unwrap();
    node.mesh.run(&pod).unwrap();
    let mut object = pod.object(&[], true);
    object["spec"]["runtimeClassName"] = json!("gvisor");
    node.mesh.node.api.set_pod(object);
    node.with(pod)
}

/// The application's container runs as the user whose packets are the proxy's.
pub(crate) fn application_as_the_proxys_user() -> FaultyNode {
    let node = FaultyNode::healthy();
    let pod = node.mesh.sandbox("default", "web").unwrap();
    let status = json!([{"name": "istio-proxy", "state": {"running": {}}}]);
    let object = PodObject::named("web").uid(&pod.uid).on_node("n1").sidecar().running(&[pod.ip]);
    let object = object.with("/status/containerStatuses", status);
    let object = object.with("/spec/containers/0/securityContext/runAsUser", 1337);
    // What procfs says of its process.
    let process = node.mesh.root().join("proc").join(pod.pid().to_string());
    std::fs::create_dir_all(&process).unwrap();
    let ids = "1337\t1337\t1337\t1337";
    let text = format!("Name:\tweb\nUid:\t{ids}\nGid:\t{ids}\nCapEff:\t0000000000000000\n");
    std::fs::write(process.join("status"), text).unwrap();
    node.mesh.run(&pod).unwrap();
    node.mesh.node.api.set_pod(object.clone());
    PodCall::new(&node.mesh.node, "web", &pod.uid, pod.netns.path()).unwrap().add().unwrap();
    node.mesh.node.api.set_pod(object.label("seen", "true"));
    node.with(pod)
}

/// Its label asks for a proxy; the injector did not answer when it was created.
pub(crate) fn pod_without_injection() -> FaultyNode {
    let node = FaultyNode::healthy();
    let pod = node.mesh.sandbox("default", "web").unwrap();
    node.mesh.run(&pod).unwrap();
    let object = PodObject::named("web").uid(&pod.uid).on_node("n1").running(&[pod.ip]);
    node.mesh.node.api.set_pod(object.label("sidecar.istio.io/inject", "true"));
    node.with(pod)
}
