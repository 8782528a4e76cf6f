//! Where the real plugin has a pod's facts from while the agent and the API server come and go.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::json;
use testkit::plugin::Answer;
use testkit::rules::Comments;
use testkit::{Families, Node, PATIENCE, Pod, PodCall, PodObject, as_user, assert_says, eventually};

/// A node with pod `default/web`, uid `uid-1`, and its namespace.
fn node_and_pod() -> (Node, Pod) {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    (node, Pod::new(Families::V4).unwrap())
}

#[track_caller]
fn assert_captured_by(answer: &Answer, source: &str, pod: &Pod) {
    assert_says(&answer.stderr, &["pod is captured", &format!("\"facts_source\":\"{source}\"")]);
    assert!(pod.nft_text().unwrap().contains("istio-proxy-nat"));
    pod.nft("flush ruleset").unwrap();
}

#[track_caller]
fn assert_untouched(pod: &Pod) {
    assert_eq!(pod.nft_json(Comments::Keep).unwrap(), Vec::<serde_json::Value>::new());
}

/// The file that the agent leaves for worse days.
fn wait_for_last_known(node: &Node) {
    let file = node.run_dir().join("facts/default_web.json");
    eventually("the facts are on disk", PATIENCE, || {
        std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
    })
    .unwrap();
}

#[test]
fn the_agent_comes_first_and_then_the_api_server() {
    let (node, pod) = node_and_pod();
    let agent = node.start().unwrap();
    let call = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap();
    assert_captured_by(&call.add().unwrap(), "agent", &pod);
    assert_eq!(node.plugin_requests(), Vec::<String>::new());
    // An agent that does not know the pod yet is no reason to fail.
    node.api.set_pod(PodObject::named("late").sidecar().uid("uid-5").on_node("n2"));
    let late = PodCall::new(&node, "late", "uid-5", pod.path()).unwrap();
    assert_captured_by(&late.add().unwrap(), "api", &pod);
    assert_eq!(node.plugin_requests(), ["/api/v1/namespaces/default/pods/late"]);
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.value("istio_cni_facts_source_total{source=\"agent\"}"), 1.0);
    assert_eq!(metrics.value("istio_cni_facts_source_total{source=\"api\"}"), 1.0);

    agent.kill().unwrap();
    assert!(node.agent_socket().exists(), "a killed agent leaves its socket");
    assert_captured_by(&call.add().unwrap(), "api", &pod);
    std::fs::remove_file(node.agent_socket()).unwrap();
    std::fs::remove_file(node.log_socket()).unwrap();
    assert_captured_by(&call.add().unwrap(), "api", &pod);
    assert_eq!(node.plugin_requests().len(), 3);
}

#[test]
fn without_both_the_last_known_facts_of_the_same_uid_are_used() {
    let (node, pod) = node_and_pod();
    let agent = node.start().unwrap();
    wait_for_last_known(&node);
    let call = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap();
    node.api.stop();
    assert_captured_by(&call.add().unwrap(), "agent", &pod);
    agent.kill().unwrap();
    let answer = call.add().unwrap();
    assert_captured_by(&answer, "last-known", &pod);
    assert_says(&answer.stderr, &["\"level\":\"warn\"", "going on with other facts", "get pod default/web"]);
    assert!(answer.took < Duration::from_secs(3), "took {:?}", answer.took);

    // Another incarnation, or nobody knows which one.
    let other = PodCall::new(&node, "web", "uid-2", pod.path()).unwrap();
    assert_says(&other.refused().unwrap(), &["uid uid-2", "uid uid-1", "refused"]);
    let unknown = PodCall::new(&node, "web", "", pod.path()).unwrap();
    assert_says(&unknown.refused().unwrap(), &["uid-1", "passes no K8S_POD_UID"]);
    // Half a file is no file.
    std::fs::write(node.run_dir().join("facts/default_web.json"), "{\"pod\":{\"meta").unwrap();
    assert_says(&call.refused().unwrap(), &["the last known facts", "refused"]);
    assert_untouched(&pod);
    // A pod that nobody ever knew.
    let ghost = PodCall::new(&node, "ghost", "uid-3", pod.path()).unwrap();
    assert_says(&ghost.refused().unwrap(), &["get pod default/ghost", "refused"]);
    assert_untouched(&pod);
    node.api.restart().unwrap();
    assert_captured_by(&call.add().unwrap(), "api", &pod);
}

/// What the API server says goes before what was known last.
#[test]
fn last_known_facts_do_not_hide_what_the_api_server_says() {
    let (node, pod) = node_and_pod();
    let agent = node.start().unwrap();
    wait_for_last_known(&node);
    agent.kill().unwrap();
    let plain = PodObject::named("web").sidecar().uid("uid-1").on_node("n1");
    node.api.set_pod(plain.with("/metadata/annotations", json!({})));
    let call = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap();
    assert_says(&call.add().unwrap().stderr, &["pod is left alone", "\"facts_source\":\"api\""]);
    assert_untouched(&pod);
}

#[test]
fn annotations_of_the_runtime_are_the_last_resort() {
    let (node, pod) = node_and_pod();
    let agent = node.agent().env("RUNTIME_ANNOTATIONS", "true").ready().unwrap();
    assert_eq!(node.entry().unwrap()["capabilities"], json!({"io.kubernetes.cri.pod-annotations": true}));
    let mut call = PodCall::new(&node, "young", "uid-7", pod.path()).unwrap();
    // As the runtime hands them over to whoever asks for them by that capability.
    let status = r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"]}"#;
    call.conf["runtimeConfig"] =
        json!({"io.kubernetes.cri.pod-annotations": {"sidecar.istio.io/status": status}});
    node.api.stop();
    agent.kill().unwrap();
    let answer = call.add().unwrap();
    assert_captured_by(&answer, "annotations", &pod);
    assert_says(&answer.stderr, &["only annotations were at hand", "\"level\":\"warn\""]);
    call.conf["runtimeConfig"] =
        json!({"io.kubernetes.cri.pod-annotations": {"sidecar.istio.io/status": "{}"}});
    assert_says(&call.refused().unwrap(), &["sidecar.istio.io/status lists no containers", "refused"]);
    assert_untouched(&pod);
}

/// A hung agent holds up a pod, but not for long, and does not keep it from being captured.
#[test]
fn a_hung_agent_costs_little_more_than_a_second() {
    let (node, pod) = node_and_pod();
    let agent = node.start().unwrap();
    let call = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap();
    agent.signal(Signal::STOP).unwrap();
    let answer = call.add().unwrap();
    agent.signal(Signal::CONT).unwrap();
    assert_captured_by(&answer, "api", &pod);
    // A second for the facts, 0.2 s for the report, and some for a busy machine.
    assert!(answer.took < Duration::from_millis(1700), "took {:?}", answer.took);
    assert_says(
        &std::fs::read_to_string(node.run_dir().join("istio-cni.log")).unwrap(),
        &["pod is captured"],
    );
    assert_captured_by(&call.add().unwrap(), "agent", &pod);
}

/// Facts decide over capture, so only root and the plugin's own user may give them.
#[test]
fn a_socket_of_another_user_is_not_asked() {
    let (node, pod) = node_and_pod();
    let agent = node.start().unwrap();
    let call = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap();
    agent.kill().unwrap();
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    std::fs::remove_file(node.agent_socket()).unwrap();
    let address = rustix::net::SocketAddrUnix::new(node.agent_socket()).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    // The kernel notes who listens, not who made the file.
    as_user(65534, || rustix::net::listen(socket.as_fd(), 8)).unwrap().unwrap();
    let mut debug = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap();
    debug.conf["plugin_log_level"] = "debug".into();
    let answer = debug.add().unwrap();
    assert_says(&answer.stderr, &["user 65534 listens there and is not trusted with facts"]);
    assert!(answer.took < Duration::from_secs(1), "took {:?}", answer.took);
    assert_captured_by(&answer, "api", &pod);
    node.api.stop();
    for dir in [node.run_dir(), node.state_dir()] {
        std::fs::remove_dir_all(dir.join("facts")).unwrap();
    }
    assert_says(&call.refused().unwrap(), &["user 65534 listens there"]);
}

/// STATUS, by which a runtime that knows it holds pods back.
#[test]
fn a_strict_status_is_well_with_either_source() {
    let (node, pod) = node_and_pod();
    let agent = node.agent().env("STRICT_STATUS", "true").ready().unwrap();
    let mut status = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap();
    status.conf["cniVersion"] = "1.1.0".into();
    let mut lenient = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap();
    lenient.conf = status.conf.clone();
    lenient.conf.as_object_mut().unwrap().remove("strict_status").unwrap();
    let is_well = || status.run("STATUS").unwrap().exit == Some(0);
    assert!(is_well());
    node.api.stop();
    assert!(is_well(), "the agent answers");
    agent.kill().unwrap();
    std::fs::remove_dir_all(node.run_dir()).unwrap();
    assert!(!is_well());
    assert_eq!(lenient.run("STATUS").unwrap().exit, Some(0), "an agent could come");
    let _agent = node.agent().env("STRICT_STATUS", "true").start().unwrap();
    eventually("it is well again", PATIENCE, || {
        ensure!(is_well());
        Ok(())
    })
    .unwrap();
}
