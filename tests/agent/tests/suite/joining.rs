//! Sidecar pods that started while runtimes did not call the plugin: on a node that joins, and while its configuration was another component's.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::apiserver::{Fault, Resource};
use testkit::{Agent, Families, Node, PATIENCE, Pod, PodCall, PodObject, assert_says, eventually};

const LABEL: &str = "cni.istio.io/uninitialized";
const GAUGE: &str = "istio_cni_started_without_plugin_pods";
const COUNTER: &str = "istio_cni_uncaptured_pods_total{reason=\"no-plugin\"}";
const BEFORE_AGENT: &str = "istio_cni_uncaptured_pods_total{reason=\"started-before-agent\"}";
/// After this time a look at the pods that was under way is over.
const A_LOOK: Duration = Duration::from_millis(1500);

/// A moment so many seconds from now, as Kubernetes writes it.
fn time(offset: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let at = format!("@{}", now.saturating_add_signed(offset));
    let printed = Command::new("date").args(["-u", "-d", &at, "+%Y-%m-%dT%H:%M:%SZ"]).output().unwrap();
    String::from_utf8(printed.stdout).unwrap().trim().to_owned()
}

/// A pod with a sidecar that runs: its sandbox was ready a second after kubelet took it up.
fn running(name: &str, uid: &str, start: i64) -> Value {
    PodObject::named(name)
        .sidecar()
        .uid(uid)
        .on_node("n1")
        .running(&[Pod::V4])
        .started(&time(start))
        .condition("PodReadyToStartContainers", &time(start + 1))
        .condition("Ready", &time(start + 2))
        .json()
}

/// The names of pods with an event, each of which has to be of the one kind.
fn told(node: &Node) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for event in node.api.events() {
        ensure!(event["reason"] == "StartedWithoutPlugin" && event["type"] == "Warning", "{event}");
        let message = event["message"].as_str().unwrap_or_default();
        ensure!(message.contains("NOT CAPTURED; delete the pod") && message.len() < 300, "{message}");
        names.push(event["involvedObject"]["name"].as_str().unwrap_or_default().to_owned());
    }
    names.sort();
    Ok(names)
}

fn labelled(node: &Node) -> Vec<String> {
    let pods =
        node.api.objects(Resource::Pods).into_iter().filter(|pod| pod["metadata"]["labels"][LABEL] == "true");
    let mut names: Vec<String> =
        pods.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn wait_told(node: &Node, wanted: &[&str]) {
    eventually("the pods have their events", PATIENCE, || {
        let told = told(node)?;
        ensure!(told == wanted, "{told:?}");
        Ok(())
    })
    .unwrap();
}

fn wait_gauge(agent: &Agent, wanted: f64) {
    eventually("the gauge says how many", PATIENCE, || {
        let found = agent.metric(GAUGE)?;
        ensure!(found == wanted, "{found}");
        Ok(())
    })
    .unwrap();
}

fn notice(agent: &Agent) -> Option<String> {
    let verbose = agent.health("/readyz?verbose").unwrap();
    assert_eq!(verbose.status, 200, "a notice does not make the agent unready: {verbose:?}");
    verbose.body.lines().find_map(|line| line.strip_prefix("[!]older pods: ").map(str::to_owned))
}

/// Every way in which the agent tells says nothing.
fn assert_silent(node: &Node, agent: &Agent) {
    std::thread::sleep(A_LOOK);
    assert_eq!(told(node).unwrap(), Vec::<String>::new());
    assert_eq!(labelled(node), Vec::<String>::new());
    assert_eq!((agent.metric(GAUGE).unwrap(), agent.metric(COUNTER).unwrap()), (0.0, 0.0));
    assert_eq!(notice(agent), None);
    assert_eq!(agent.log().count(&["WITHOUT CAPTURE"]), 0);
}

#[test]
fn pods_before_the_installation_are_reported_and_pods_after_it_are_not() {
    let node = Node::new().unwrap();
    let older: Vec<String> = (0..8).map(|number| format!("older-{number}")).collect();
    for name in &older {
        node.api.set_pod(running(name, &format!("uid-{name}"), -30));
    }
    // Not one of these asks for capture.
    for (name, path, value) in [
        ("host", "/spec/hostNetwork", json!(true)),
        ("plain", "/metadata/annotations", json!({})),
        ("programmed", "/spec/initContainers", json!([{"name": "istio-init"}])),
        ("done", "/status/phase", json!("Succeeded")),
    ] {
        let mut pod = running(name, &format!("uid-{name}"), -30);
        let (parent, key) = path.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value;
        node.api.set_pod(pod);
    }
    let agent = node.start().unwrap();
    let names: Vec<&str> = older.iter().map(String::as_str).collect();
    wait_told(&node, &names);
    eventually("the pods are labelled", PATIENCE, || {
        ensure!(labelled(&node) == names, "{:?}", labelled(&node));
        Ok(())
    })
    .unwrap();
    wait_gauge(&agent, 8.0);
    assert_eq!(agent.metric(BEFORE_AGENT).unwrap(), 8.0);
    assert_says(
        &notice(&agent).unwrap(),
        &[": 8 (default/older-0, default/older-1", " and 3 more); delete them"],
    );
    for name in &older {
        let parts = ["\terror\t", "started WITHOUT CAPTURE", &format!("pod=default/{name}")];
        assert_eq!(agent.log().count(&parts), 1);
    }

    // One that the plugin sees, although kubelet took it up before the installation, and one from long after.
    let sandbox = Pod::new(Families::V4).unwrap();
    node.sidecar("late", "uid-late");
    PodCall::new(&node, "late", "uid-late", sandbox.path()).unwrap().add().unwrap();
    node.api.set_pod(running("late", "uid-late", -2));
    node.api.set_pod(running("new", "uid-new", 60));
    std::thread::sleep(A_LOOK);
    assert_eq!(told(&node).unwrap(), names);

    // Deleted, as people are told to.
    for name in &names[..6] {
        node.api.delete_pod("default", name);
    }
    wait_gauge(&agent, 2.0);
    assert_says(&notice(&agent).unwrap(), &[": 2 (default/older-6, default/older-7);"]);
    for name in &names[6..] {
        node.api.delete_pod("default", name);
    }
    wait_gauge(&agent, 0.0);
    assert_eq!(notice(&agent), None);
    assert_eq!((told(&node).unwrap().len(), agent.metric(BEFORE_AGENT).unwrap()), (8, 8.0));
}

#[test]
fn an_agent_that_starts_again_tells_only_what_is_new() {
    let node = Node::new().unwrap();
    node.api.set_pod(running("older", "uid-older", -30));
    let agent = node.start().unwrap();
    wait_told(&node, &["older"]);
    // An agent that is killed between the event and its note would write the event once more.
    let journal = node.run_dir().join("plugin-times.json");
    eventually("the event is noted", PATIENCE, || {
        ensure!(std::fs::read_to_string(&journal)?.contains("uid-older"));
        Ok(())
    })
    .unwrap();
    agent.kill().unwrap();
    for end in [Signal::KILL, Signal::TERM] {
        let agent = node.agent().env("CLEANUP_ON_EXIT", "never").ready().unwrap();
        wait_gauge(&agent, 1.0);
        assert_says(&notice(&agent).unwrap(), &[": 1 (default/older)"]);
        std::thread::sleep(A_LOOK);
        assert_eq!(told(&node).unwrap(), ["older"]);
        assert_eq!((agent.log().count(&["WITHOUT CAPTURE"]), agent.metric(COUNTER).unwrap()), (0, 0.0));
        agent.end(end).unwrap();
    }
}

/// Only some features of the chart give the right to label, and one may give neither.
#[test]
fn what_the_chart_gives_no_right_to_is_left_out() {
    let node = Node::new().unwrap();
    node.api.fail_path("/status", usize::MAX, Fault::status(403));
    node.api.set_pod(running("older", "uid-older", -30));
    let agent = node.start().unwrap();
    wait_told(&node, &["older"]);
    wait_gauge(&agent, 1.0);
    assert_eq!(labelled(&node), Vec::<String>::new());
    node.api.fail_path("/events", usize::MAX, Fault::status(403));
    node.api.set_pod(running("older-2", "uid-older-2", -30));
    wait_gauge(&agent, 2.0);
    agent.log().wait_for(&["started WITHOUT CAPTURE", "pod=default/older-2"], PATIENCE).unwrap();
    std::thread::sleep(A_LOOK);
    assert_eq!(told(&node).unwrap(), ["older"]);
    assert_eq!(agent.log().count(&["cannot mark", "403"]), 0);
}

#[test]
fn an_api_server_that_is_away_gets_the_event_when_it_is_back() {
    let node = Node::new().unwrap();
    node.api.fail_path("/events", 3, Fault::status(500));
    node.api.set_pod(running("older", "uid-older", -30));
    let agent = node.start().unwrap();
    agent.log().wait_for(&["\twarn\t", "cannot mark a pod", "pod=default/older"], PATIENCE).unwrap();
    wait_told(&node, &["older"]);
    std::thread::sleep(A_LOOK);
    assert_eq!(node.api.events().len(), 1);
}

/// Whoever does not take the Event of one pod would not take those of the others.
#[test]
fn an_api_server_that_is_away_is_not_asked_for_each_pod() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    node.api.fail_path("/events", 2, Fault::status(500));
    let names = ["older-0", "older-1", "older-2", "older-3"];
    for name in names {
        node.api.set_pod(running(name, &format!("uid-{name}"), -30));
    }
    agent.log().wait_for(&["\twarn\t", "cannot mark a pod"], PATIENCE).unwrap();
    let failed = Instant::now();
    wait_told(&node, &names);
    // A pause of a second, and one of two, each within a fifth of its length.
    assert!(failed.elapsed() > Duration::from_secs(2), "{:?}", failed.elapsed());
    assert_eq!(agent.log().count(&["cannot mark a pod"]), 2);
    assert_eq!(agent.log().count(&["started WITHOUT CAPTURE"]), names.len());
}

/// Nobody may be told to delete a static pod: its copy in the API is not what runs.
#[test]
fn a_static_pod_is_reported_and_not_labelled() {
    let node = Node::new().unwrap();
    let mut pod = running("static", "uid-static", -30);
    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("h1");
    node.api.set_pod(pod);
    let agent = node.start().unwrap();
    wait_told(&node, &["static"]);
    wait_gauge(&agent, 1.0);
    assert_eq!(labelled(&node), Vec::<String>::new());
}

/// Another component writes over the configuration, and a pod starts before it is healed.
#[test]
fn a_pod_that_starts_before_a_configuration_is_healed_is_found() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let sandbox = Pod::new(Families::V4).unwrap();
    node.sidecar("captured", "uid-captured");
    PodCall::new(&node, "captured", "uid-captured", sandbox.path()).unwrap().add().unwrap();
    node.api.set_pod(running("captured", "uid-captured", -1));
    assert_silent(&node, &agent);
    agent.signal(Signal::STOP).unwrap();
    std::fs::write(node.conflist(), Node::foreign_conflist()).unwrap();
    node.api.set_pod(running("meanwhile", "uid-meanwhile", 0));
    std::thread::sleep(Duration::from_millis(300));
    agent.signal(Signal::CONT).unwrap();
    wait_told(&node, &["meanwhile"]);
    node.entry().unwrap();
    wait_gauge(&agent, 1.0);
    agent.log().wait_for(&["was overwritten"], PATIENCE).unwrap();
    assert_says(&notice(&agent).unwrap(), &["(default/meanwhile)"]);
}

#[test]
fn a_pod_that_starts_while_neither_agent_nor_plugin_is_there_is_found_by_the_next_agent() {
    let node = Node::new().unwrap();
    node.api.set_pod(running("long-before", "uid-0", -3600));
    let agent = node.start().unwrap();
    wait_told(&node, &["long-before"]);
    let sandbox = Pod::new(Families::V4).unwrap();
    node.sidecar("captured", "uid-captured");
    PodCall::new(&node, "captured", "uid-captured", sandbox.path()).unwrap().add().unwrap();
    // Its record is not older than its start: kubelet tells the start before the runtime calls.
    node.api.set_pod(running("captured", "uid-captured", -1));
    agent.kill().unwrap();
    std::fs::write(node.conflist(), Node::foreign_conflist()).unwrap();
    node.api.set_pod(running("meanwhile", "uid-meanwhile", 0));
    let agent = node.start().unwrap();
    wait_told(&node, &["long-before", "meanwhile"]);
    wait_gauge(&agent, 2.0);
    assert_eq!(agent.metric(COUNTER).unwrap(), 1.0, "the first one was counted by the agent before");
}

/// Pods of the original's plugin have no record of ours. Its entry, or its validation container that ended well, shows that they are captured.
#[test]
fn pods_of_the_originals_plugin_are_not_reported() {
    let node = Node::new().unwrap();
    node.api.set_pod(running("of-the-original", "uid-1", -3600));
    let mut list: Value = serde_json::from_str(Node::foreign_conflist()).unwrap();
    list["plugins"].as_array_mut().unwrap().push(json!({"type": "istio-cni", "log_level": "info"}));
    std::fs::write(node.conflist(), list.to_string()).unwrap();
    let agent = node.start().unwrap();
    assert_silent(&node, &agent);
    drop(agent);

    // It has taken its entry away at its end.
    let node = Node::new().unwrap();
    let mut pod = running("of-the-original", "uid-1", -3600);
    pod["spec"]["initContainers"] = json!([{"name": "istio-validation"}]);
    pod["status"]["initContainerStatuses"] = json!([{"name": "istio-validation", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]);
    node.api.set_pod(pod.clone());
    let agent = node.start().unwrap();
    assert_silent(&node, &agent);
    // A pod in which it fails is one that is not captured.
    pod["metadata"]["name"] = json!("fails");
    pod["metadata"]["uid"] = json!("uid-2");
    pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] = json!(126);
    node.api.set_pod(pod);
    wait_told(&node, &["fails"]);
}

/// An uninstallation removes the plugin's records; what it had captured is captured still.
#[test]
fn pods_that_were_captured_before_an_uninstallation_are_not_reported_after_it() {
    let node = Node::new().unwrap();
    let agent = node.agent().env("CLEANUP_ON_EXIT", "always").ready().unwrap();
    let sandbox = Pod::new(Families::V4).unwrap();
    node.sidecar("captured", "uid-captured");
    PodCall::new(&node, "captured", "uid-captured", sandbox.path()).unwrap().add().unwrap();
    node.api.set_pod(running("captured", "uid-captured", 2));
    assert_silent(&node, &agent);
    std::thread::sleep(Duration::from_secs(4));
    agent.stop().unwrap();
    node.api.set_pod(running("meanwhile", "uid-meanwhile", 0));
    let agent = node.start().unwrap();
    wait_told(&node, &["meanwhile"]);
    wait_gauge(&agent, 1.0);
}
