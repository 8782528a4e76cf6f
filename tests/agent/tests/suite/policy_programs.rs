//! With nf_tables, neither the agent nor a plugin starts another program for policies.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::{Families, PATIENCE, Pod, PodCall, PodObject, TestNetns, at_once, until};

const UID: &str = "00000001-0000-4000-8000-00000000beef";

/// Starts what follows as itself, with a tracer beside it that writes down which programs are started.
fn tracer(trace: &Path) -> [&str; 8] {
    ["strace", "-D", "-f", "-q", "-e", "trace=execve,execveat", "-o", trace.to_str().unwrap()]
}

/// The programs that were started, once the tracer has seen the end of the first.
fn started(trace: &Path) -> Vec<String> {
    let text = || std::fs::read_to_string(trace).unwrap();
    let has_ended = || {
        let text = text();
        let first = text.split_whitespace().next().unwrap_or_default().to_owned();
        text.lines().any(|line| line.starts_with(&first) && line.contains("+++ "))
    };
    until("the traced program has ended", PATIENCE, has_ended, text).unwrap();
    // A call that others come between is two lines, of which the second names no program.
    text().lines().filter(|line| line.contains(" exec") && line.contains("(\"")).map(str::to_owned).collect()
}

/// Gives a node's pod policies, undoes and changes them, ends the agent, and starts the pod again without it. Says which programs the agent started, and
/// the plugin in each call.
fn lives(native: &str, point: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let (mesh, pod, traces) =
        (Mesh::new().unwrap(), Pod::new(Families::V4).unwrap(), tempfile::tempdir().unwrap());
    let policy = |port: u16| {
        let policy = json!({"metadata": {"namespace": "default", "name": "some"}, "spec": {
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": port}]}]}});
        mesh.node.api.set_object(Resource::NetworkPolicies, policy);
    };
    policy(8080);
    mesh.process(2001, pod.own().path(), &format!("/kubepods/burstable/pod{UID}/{:064x}", 1), 2101).unwrap();
    let object = PodObject::named("web").uid(UID).label("app", "web").on_node("n1").container("app");
    mesh.node.api.set_pod(object.clone());
    let of_agent = traces.path().join("agent");
    let agent = mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on");
    let agent = agent.env("POLICY_POINT", point).env("NATIVE_NFTABLES", native);
    let agent = agent.behind(&tracer(&of_agent)).ready().unwrap();
    let call = PodCall::new(&mesh.node, "web", UID, pod.path()).unwrap();
    let runs = |verb: &str, number: u8| {
        let trace = traces.path().join(number.to_string());
        let answer = call.run_behind(&tracer(&trace), verb).unwrap();
        assert_eq!(answer.exit, Some(0), "{verb}: {answer:#?}");
        started(&trace)
    };
    let place: &TestNetns = if point == "pod" { pod.own() } else { &mesh.host };
    // The rules of the backend; those of iptables are not read here.
    let has_rules = |port: &str| {
        let text = place.nft_text().unwrap();
        native == "false"
            || text.contains("some#0") && text.contains(port) && !text.contains("istio-np-guard")
    };
    let wait = |what: &str, port: &str| {
        until(
            what,
            PATIENCE,
            || has_rules(port),
            || format!("{}\n{}", place.nft_text().unwrap(), agent.log().text()),
        )
        .unwrap();
    };
    let mut of_plugin = vec![runs("ADD", 1)];
    mesh.node.api.set_pod(object.running(pod.ips()));
    wait("a pod that starts has its rules", "8080");
    place.run(Command::new("nft").args(["flush", "ruleset"])).unwrap();
    wait("what somebody removed is there again", "8080");
    policy(9090);
    wait("a policy that changes is in force", "9090");
    agent.stop().unwrap();
    of_plugin.push(runs("DEL", 2));
    // Without an agent the plugin guards the pod itself.
    pod.own().run(Command::new("nft").args(["flush", "ruleset"])).unwrap();
    of_plugin.push(runs("ADD", 3));
    if native == "true" {
        let text = pod.nft_text().unwrap();
        assert!(text.contains("istio-np-guard-in"), "{text}");
    }
    (started(&of_agent), of_plugin)
}

#[test]
fn policies_start_no_program_with_nf_tables() {
    at_once([("true", "node"), ("true", "pod"), ("false", "node")], |(native, point)| {
        let (agent, plugin) = lives(native, point);
        println!(
            "{native} {point}: agent {}, plugin {:?}",
            agent.len(),
            plugin.iter().map(Vec::len).collect::<Vec<_>>()
        );
        if native == "true" {
            // The plugin is tried before it is put in its place.
            let is_ours =
                |line: &String| line.contains("/install-cni\"") || line.contains("/istio-cni.tmp.istio-");
            assert!((1..=2).contains(&agent.len()) && agent.iter().all(is_ours), "{agent:#?}");
            assert!(
                plugin.iter().all(|call| call.len() == 1 && call[0].contains("istio-cni")),
                "{plugin:#?}"
            );
        } else {
            // The tracer sees programs where there are some.
            assert!(
                agent.len() > 1 && plugin.last().is_some_and(|call| call.len() > 1),
                "{agent:#?} {plugin:#?}"
            );
        }
    });
}
