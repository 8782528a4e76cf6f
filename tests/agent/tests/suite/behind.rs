//! What the API server knows and the agent's watches do not (yet), and how much of the cluster a start reads.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::{Agent, Families, Node, PATIENCE, Pod, PodCall, PodObject, assert_says, eventually, http};

use crate::mesh::wait_in;

/// Requests of the agent for single objects.
fn gets(node: &Node) -> Vec<String> {
    let of_agent = |request: &testkit::apiserver::Request| {
        let by_agent =
            request.headers.get("user-agent").is_some_and(|agent| agent.starts_with("istio-cni-agent/"));
        by_agent && request.method == "GET" && request.path.starts_with("/api/v1/namespaces/")
    };
    node.api.requests().into_iter().filter(of_agent).map(|request| request.path).collect()
}

fn is_away(agent: &Agent) {
    eventually("the outage is noticed", PATIENCE, || {
        ensure!(agent.metric("istio_cni_api_server_up")? == 0.0);
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_announced_pod_that_no_watch_has_brought_is_enrolled_at_once() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let behind = mesh.node.api.snapshot();
    mesh.node.api.serve_behind(Some(behind));
    mesh.node.api.set_namespace("new", &[("istio.io/dataplane-mode", "ambient")]);
    let pod = mesh.sandbox("new", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    let start = Instant::now();
    let reply = mesh.announce(&pod).unwrap();
    let took = start.elapsed();
    println!("announced, asked for and enrolled in {took:?}");
    assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{}", agent.log().text());
    assert!(took < Duration::from_secs(2), "{took:?}");
    wait_in(&mesh, &pod).unwrap();
    let mut asked = gets(&mesh.node);
    asked.sort_unstable();
    assert_eq!(asked, ["/api/v1/namespaces/new", "/api/v1/namespaces/new/pods/web"]);
    // The watch that comes later says the same, and takes the pod out when it goes.
    mesh.node.api.serve_behind(None);
    mesh.node.api.delete_pod("new", "web");
    eventually("the pod is gone", PATIENCE, || {
        ensure!(ztunnel.workloads().is_empty());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_plugin_is_answered_of_a_pod_that_no_watch_has_brought() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let agent = node.start().unwrap();
    let behind = node.api.snapshot();
    node.api.serve_behind(Some(behind));
    node.sidecar("late", "uid-5");
    node.sidecar("web", "uid-6");
    let pod = Pod::new(Families::V4).unwrap();
    let late = PodCall::new(&node, "late", "uid-5", pod.path()).unwrap();
    let answer = late.add().unwrap();
    assert_says(&answer.stderr, &["pod is captured", "\"facts_source\":\"agent\""]);
    assert_eq!(node.plugin_requests(), Vec::<String>::new());
    // Another pod of a name is known by its uid, and many plugins at once make one question.
    let ask = || http::ask(&node.agent_socket(), "GET", "/v1/facts/default/web?uid=uid-6", "").unwrap();
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
        assert!(asked.into_iter().all(|asked| asked.join().unwrap().status == 200));
    });
    let gets = gets(&node);
    assert_eq!(gets.iter().filter(|path| path.ends_with("/pods/late")).count(), 1, "{gets:?}");
    assert_eq!(gets.iter().filter(|path| path.ends_with("/pods/web")).count(), 1, "{gets:?}");
    assert_eq!(agent.metric("istio_cni_facts_requests_total{result=\"found\"}").unwrap(), 21.0);
}

#[test]
fn without_an_api_server_nothing_is_waited_for() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    mesh.node.api.stop();
    is_away(&agent);
    let pod = mesh.sandbox("mesh", "web").unwrap();
    let start = Instant::now();
    let reply = mesh.announce(&pod).unwrap();
    assert_eq!(reply.status, 500);
    assert_says(&reply.body, &["mesh/web", "not known", "the API server is away"]);
    let reply = http::ask(&mesh.node.agent_socket(), "GET", "/v1/facts/mesh/web", "").unwrap();
    assert_eq!(reply.status, 404);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

/// Peak of the agent's memory, in KiB.
fn peak(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_start_among_a_thousand_large_namespaces_reads_no_store_and_takes_little_memory() {
    let small = Node::new().unwrap();
    let least = peak(&small.start().unwrap());
    let node = Node::new().unwrap();
    let text = "x".repeat(20 << 10);
    for number in 0..1000 {
        let metadata = json!({"name": format!("team-{number}"), "labels": {"team": "shop"}, "annotations": {"note": text}});
        node.api.set_object(Resource::Namespaces, json!({"metadata": metadata}));
    }
    for number in 0..2700 {
        let name = if number % 27 < 5 { testkit::NODE_NAME } else { "elsewhere" };
        node.api.set_pod(
            PodObject::named(&format!("web-{number}")).sidecar().uid(&format!("uid-{number}")).on_node(name),
        );
    }
    let read = node.api.store_reads();
    let agent = node.start().unwrap();
    let most = peak(&agent);
    println!(
        "peak of memory: {least} KiB in an empty cluster, {most} KiB among 1,000 namespaces of 20 KiB and 500 pods"
    );
    assert_eq!(agent.metric("istio_cni_pods").unwrap(), 500.0);
    assert!(
        node.api.store_reads() - read <= 3,
        "the agent's pod, DaemonSet and node: {}",
        node.api.store_reads() - read
    );
    assert!(most < least + (10 << 10), "{least} KiB, then {most} KiB");
}
