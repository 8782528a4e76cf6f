//! Pods while the agent is there, comes and goes, and gets new tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use node::PodSpec;
use testkit::apiserver::{Resource, WatchFault};

use super::Cluster;
use crate::fixture::{
    APP_PORT, GATEWAY, NODE_PORT, ask_from_container, ask_from_node, check_captured, echo_pod,
    is_captured_bare, sidecar_pod,
};
use crate::many::{PODS, has_containers, in_parallel};

/// Often enough to meet every stage of the agent's life while the pods start.
const RESTARTS: usize = 50;

fn containerd_picks_up_the_agents_conflist(native_nftables: &str) {
    let cluster = Cluster::without_agent(&[("NATIVE_NFTABLES", native_nftables)]);
    let containerd = cluster.node.containerd_pid().expect("a number");
    let before = cluster.must_run_bare(&sidecar_pod("default", "before"));
    assert!(!is_captured_bare(&cluster.node, &before), "there is no plugin yet");

    cluster.start_agent();
    cluster.wait_ready();
    let sidecar = sidecar_pod("default", "sidecar");
    let plain = echo_pod("default", "plain");
    cluster.admit_known(&[sidecar.clone(), plain.clone()]);
    let pod = cluster.must_run(&sidecar);
    check_captured(&cluster.node, &pod, "a sidecar");
    assert_eq!(ask_from_container(&cluster.node, &pod, "istio-proxy", GATEWAY, NODE_PORT), "node");
    let unlisted = cluster.must_run(&plain);
    assert_eq!(ask_from_container(&cluster.node, &unlisted, "app", GATEWAY, NODE_PORT), "node");
    let ip = cluster.node.status(&unlisted).expect("a status").ip;
    assert_eq!(ask_from_node(&cluster.node, &ip, APP_PORT), "app");

    assert_eq!(cluster.node.containerd_pid().expect("a number"), containerd, "nobody restarted containerd");
    let log = cluster.agent_log();
    let line = log.lines().find(|line| line.contains("pod is captured") && line.contains("default/sidecar"));
    let line = line.unwrap_or_else(|| panic!("the plugin's line reaches the agent's log:\n{log}"));
    let backend = if native_nftables == "true" { "backend=nftables" } else { "backend=iptables" };
    for part in ["\tcni-plugin\t", "facts_source=agent", backend] {
        assert!(line.contains(part), "{part} in {line}");
    }
    for (sample, count) in [
        (r#"istio_cni_operations_total{operation="add",result="captured"}"#, 1.0),
        (r#"istio_cni_operations_total{operation="add",result="skipped"}"#, 1.0),
        (r#"istio_cni_facts_source_total{source="agent"}"#, 2.0),
    ] {
        assert_eq!(cluster.metric(sample), Some(count), "{sample}");
    }
}

#[test]
fn containerd_picks_up_the_agents_conflist_with_nf_tables() {
    containerd_picks_up_the_agents_conflist("true");
}

#[test]
fn containerd_picks_up_the_agents_conflist_with_iptables() {
    containerd_picks_up_the_agents_conflist("false");
}

#[test]
fn fifty_pods_while_the_agent_is_killed_again_and_again() {
    let cluster = Cluster::start(&[("NATIVE_NFTABLES", "true")]);
    let specs: Vec<PodSpec> = (0..PODS).map(|i| sidecar_pod("default", &format!("pod-{i}"))).collect();
    let done = AtomicBool::new(false);
    let restarts = thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut restarts = 0;
            while restarts < RESTARTS && !done.load(Ordering::Relaxed) {
                // From the midst of its start to well after it.
                sleep(Duration::from_millis(40 * (restarts as u64 % 10)));
                cluster.kill_agent();
                sleep(Duration::from_millis(30 * (restarts as u64 % 4)));
                cluster.start_agent();
                restarts += 1;
            }
            restarts
        });
        let pods = in_parallel(PODS, |i| {
            cluster.admit(&specs[i]);
            if has_containers(i) { cluster.must_run(&specs[i]) } else { cluster.must_run_bare(&specs[i]) }
        });
        done.store(true, Ordering::Relaxed);
        in_parallel(PODS, |i| check_captured(&cluster.node, &pods[i], &format!("pod {i}")));
        killer.join().expect("the killer")
    });

    let mut sources = BTreeMap::new();
    for spec in &specs {
        *sources.entry(cluster.facts_source(spec)).or_insert(0) += 1;
    }
    println!("{restarts} restarts, facts from {sources:?}");
    assert!(restarts >= 5, "the agent was away while pods started: {restarts}");
    assert!(!sources.contains_key(""), "each pod's capture is in the log: {sources:?}");
    cluster.wait_ready();
}

#[test]
fn tokens_that_live_for_a_second() {
    let cluster = Cluster::start(&[("NATIVE_NFTABLES", "true")]);
    let known: Vec<PodSpec> = (0..8).map(|i| sidecar_pod("default", &format!("known-{i}"))).collect();
    // The agent does not see them, so the plugin asks the API server itself, with the token of the kubeconfig.
    let asked: Vec<PodSpec> = (0..8).map(|i| sidecar_pod("default", &format!("asked-{i}"))).collect();
    asked.iter().for_each(|pod| cluster.api.set_pod(Cluster::object(pod, "node-2")));
    let done = AtomicBool::new(false);
    let last = thread::scope(|scope| {
        let rotation = scope.spawn(|| {
            let mut last = String::new();
            for number in 0..60 {
                last = cluster.account.rotate(&cluster.api);
                if number % 4 == 1 {
                    // The watch that comes next needs the token too.
                    cluster.api.disturb_watches(Resource::Pods, WatchFault::Close);
                }
                sleep(Duration::from_secs(1));
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            last
        });
        for (known, asked) in known.iter().zip(&asked) {
            cluster.admit_known(std::slice::from_ref(known));
            // So that tokens change meanwhile on a fast machine, too.
            sleep(Duration::from_millis(500));
            for (spec, source) in [(known, "agent"), (asked, "api")] {
                let pod = cluster.must_run_bare(spec);
                check_captured(&cluster.node, &pod, &spec.name);
                assert_eq!(cluster.facts_source(spec), source, "{}", spec.name);
            }
        }
        done.store(true, Ordering::Relaxed);
        rotation.join().expect("the rotation")
    });
    let kubeconfig = || std::fs::read_to_string(cluster.run_dir("istio-cni-kubeconfig")).unwrap_or_default();
    cluster
        .wait_for("the last token in the kubeconfig", || kubeconfig().contains(&format!("token: {last}\n")));
    let requests = cluster.api.requests();
    let plugins = requests.iter().filter(|request| {
        request.headers.get("user-agent").is_some_and(|agent| agent.starts_with("istio-cni/"))
    });
    let tokens: BTreeSet<_> = plugins.filter_map(|request| request.headers.get("authorization")).collect();
    println!("tokens of the plugin: {tokens:?}");
    assert!(tokens.len() >= 4, "the plugin came with many tokens: {tokens:?}");

    // A kubeconfig that nobody renews any more, and then neither token nor agent: what the agent knew last is left.
    let [with_token, without] = ["with-token", "without"].map(|name| sidecar_pod("default", name));
    cluster.admit_known(&[with_token.clone(), without.clone()]);
    cluster.kill_agent();
    let pod = cluster.must_run_bare(&with_token);
    check_captured(&cluster.node, &pod, "a pod without the agent");
    assert_eq!(cluster.facts_source(&with_token), "api");
    cluster.account.rotate(&cluster.api);
    let pod = cluster.must_run_bare(&without);
    check_captured(&cluster.node, &pod, "a pod with a stale kubeconfig");
    assert_eq!(cluster.facts_source(&without), "last-known");
    assert!(cluster.has_logged(&without, "401"), "{:?}", cluster.plugin_lines(&without));
}
