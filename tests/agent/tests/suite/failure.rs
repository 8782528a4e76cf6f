//! What becomes of a pod that cannot be set up: failure policy, deadline, kill switch.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::apiserver::{Fault, Resource};
use testkit::rules::Comments;
use testkit::{Agent, Families, Node, PATIENCE, Pod, PodCall, PodObject, assert_says, eventually};

const LABEL: &str = "cni.istio.io/uninitialized";

fn operations(result: &str) -> String {
    format!("istio_cni_operations_total{{operation=\"add\",result=\"{result}\"}}")
}

#[track_caller]
fn assert_untouched(pod: &Pod) {
    assert_eq!(pod.nft_json(Comments::Keep).unwrap(), Vec::<Value>::new());
}

/// Notes of pods that started without capture.
fn notes(node: &Node) -> Vec<String> {
    let entries = std::fs::read_dir(node.run_dir().join("uncaptured")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// The pod has its Event and its label, and the note is gone.
fn check_marked(node: &Node, name: &str, uid: &str) -> Result<()> {
    let events = node.api.events();
    let event = events.iter().find(|event| event["involvedObject"]["name"] == name);
    let event = event.ok_or_else(|| anyhow::anyhow!("no event: {events:?}"))?;
    ensure!(event["reason"] == "StartedWithoutCapture" && event["type"] == "Warning", "{event}");
    ensure!(event["involvedObject"]["uid"] == uid && event["source"]["host"] == "n1", "{event}");
    ensure!(event["message"].as_str().is_some_and(|text| text.contains("failure_policy: open")), "{event}");
    let pod = node.api.object(Resource::Pods, "default", name).unwrap_or_default();
    ensure!(pod["metadata"]["labels"][LABEL] == "true", "{pod}");
    ensure!(notes(node).is_empty(), "{:?}", notes(node));
    Ok(())
}

/// The default: nothing runs outside of the mesh.
#[test]
fn closed_fails_the_pod_and_counts_it() {
    let node = Node::new().unwrap();
    let pod = Pod::new(Families::V4).unwrap();
    let agent = node.start().unwrap();
    assert!(node.entry().unwrap().get("failure_policy").is_none(), "written only where it is said");
    node.api.stop();
    let call = PodCall::new(&node, "ghost", "uid-1", pod.path()).unwrap();
    assert_says(&call.refused().unwrap(), &["could not set up pod default/ghost", "refused"]);
    assert_untouched(&pod);
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.value(&operations("failed")), 1.0);
    assert_eq!(metrics.value("istio_cni_uncaptured_pods_total{reason=\"failure-policy-open\"}"), 0.0);
    assert!(notes(&node).is_empty() && node.api.events().is_empty());
}

/// A node where `web` starts without capture, because nobody can tell about it.
fn uncaptured(node: &Node, agent: &Agent, pod: &Pod) {
    // The API server has the pod, and the agent does not hear of it any more.
    node.api.stop();
    node.sidecar("web", "uid-1");
    let answer = PodCall::new(node, "web", "uid-1", pod.path()).unwrap().add().unwrap();
    assert_says(
        &answer.stderr,
        &["\"level\":\"error\"", "pod starts WITHOUT CAPTURE", "failure_policy: open"],
    );
    assert_eq!(answer.json().unwrap()["ips"][0]["address"], "10.77.0.2/24", "the result goes on");
    assert_untouched(pod);
    assert_eq!(agent.metric(&operations("uncaptured")).unwrap(), 1.0);
}

#[test]
fn open_lets_the_pod_start_and_marks_it_when_the_api_server_is_back() {
    let node = Node::new().unwrap();
    let pod = Pod::new(Families::V4).unwrap();
    let agent = node.agent().env("FAILURE_POLICY", "open").ready().unwrap();
    assert_eq!(node.entry().unwrap()["failure_policy"], "open");
    uncaptured(&node, &agent, &pod);
    agent
        .log()
        .wait_for(&["\terror\t", "a pod started WITHOUT CAPTURE", "pod=default/web"], PATIENCE)
        .unwrap();
    agent.log().wait_for(&["\twarn\t", "cannot mark a pod", "trying again"], PATIENCE).unwrap();
    assert_eq!(notes(&node), ["c0ffee-web.json"]);
    node.api.restart().unwrap();
    eventually("the pod is marked", PATIENCE, || check_marked(&node, "web", "uid-1")).unwrap();
    let patch = node.api.patches().pop().unwrap();
    assert!(patch.path.starts_with("/api/v1/namespaces/default/pods/web/status"), "{patch:?}");
    assert_eq!(patch.body["metadata"]["uid"], "uid-1", "for this incarnation only");
    assert_eq!(node.api.events().len(), 1);
    let counted = agent.metric("istio_cni_uncaptured_pods_total{reason=\"failure-policy-open\"}").unwrap();
    assert_eq!(counted, 1.0, "once, however often it was tried");
}

/// Another pod of the name is none of the matter.
#[test]
fn a_pod_that_was_replaced_is_not_marked() {
    let node = Node::new().unwrap();
    let pod = Pod::new(Families::V4).unwrap();
    let agent = node.agent().env("FAILURE_POLICY", "open").ready().unwrap();
    uncaptured(&node, &agent, &pod);
    node.api.set_pod(PodObject::named("web").sidecar().uid("uid-2").on_node("n1"));
    node.api.restart().unwrap();
    eventually("the note is gone", PATIENCE, || {
        ensure!(notes(&node).is_empty());
        Ok(())
    })
    .unwrap();
    assert!(node.api.events().is_empty());
    let web = node.api.object(Resource::Pods, "default", "web").unwrap();
    assert!(web["metadata"]["labels"][LABEL].is_null(), "{web}");
}

#[test]
fn without_the_agent_the_note_is_on_disk_until_the_next_one_comes() {
    let node = Node::new().unwrap();
    let pod = Pod::new(Families::V4).unwrap();
    node.agent().env("FAILURE_POLICY", "open").ready().unwrap().kill().unwrap();
    node.api.stop();
    node.sidecar("web", "uid-1");
    PodCall::new(&node, "web", "uid-1", pod.path()).unwrap().add().unwrap();
    assert_untouched(&pod);
    let note = node.run_dir().join("uncaptured/c0ffee-web.json");
    let report: Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
    assert_eq!((&report["result"], &report["uid"]), (&json!("uncaptured"), &json!("uid-1")));
    assert_says(report["error"].as_str().unwrap(), &["default/web", "refused"]);
    // What is none of ours, or no note, harms nobody.
    std::fs::write(note.with_file_name("broken.json"), "{\"result\":").unwrap();
    node.api.restart().unwrap();
    let agent = node.start().unwrap();
    eventually("the pod is marked", PATIENCE, || check_marked(&node, "web", "uid-1")).unwrap();
    agent.log().wait_for(&["\terror\t", "cannot be read and is removed", "broken.json"], PATIENCE).unwrap();
}

#[test]
fn an_add_ends_in_time_and_says_what_it_waited_for() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let pod = Pod::new(Families::V4).unwrap();
    let options = node.agent().env("ADD_TIMEOUT", "1s").env("FACTS_TIMEOUT", "30s");
    options.ready().unwrap().kill().unwrap();
    std::fs::remove_dir_all(node.run_dir().join("facts")).unwrap();
    node.api.set_fault(Some(Fault::Hang));
    let call = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap();
    let answer = call.run("ADD").unwrap();
    let waited = "gave up after 1.0 s (add_timeout) while waiting for the pod's facts from the API server";
    assert_says(&answer.error().unwrap().1, &["default/web", waited]);
    assert!((1.0..2.0).contains(&answer.took.as_secs_f64()), "took {:?}", answer.took);
    assert_untouched(&pod);
    node.api.set_fault(None);
    call.add().unwrap();
    assert!(pod.nft_text().unwrap().contains("istio-proxy-nat"));
}

/// For the worst day: from now on no pod is captured, and none fails.
#[test]
fn the_kill_switch_lets_every_pod_start() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let pod = Pod::new(Families::V4).unwrap();
    let config = node.dir().join("config");
    std::fs::create_dir(&config).unwrap();
    let agent = node.agent().env("CONFIG_DIR", &config.to_string_lossy()).ready().unwrap();
    std::fs::write(config.join("CAPTURE"), "disabled\n").unwrap();
    eventually("the switch is on the node", Duration::from_secs(2), || {
        ensure!(node.entry()?["capture"] == "disabled");
        Ok(())
    })
    .unwrap();
    node.api.stop();
    for name in ["web", "ghost"] {
        let answer = PodCall::new(&node, name, "uid-1", pod.path()).unwrap().add().unwrap();
        assert_says(&answer.stderr, &["\"level\":\"warn\"", "the configuration says capture: disabled"]);
    }
    assert_untouched(&pod);
    assert_eq!(agent.metric(&operations("disabled")).unwrap(), 2.0);
    std::fs::remove_file(config.join("CAPTURE")).unwrap();
    eventually("it is switched on again", Duration::from_secs(2), || {
        ensure!(node.entry()?.get("capture").is_none());
        Ok(())
    })
    .unwrap();
    PodCall::new(&node, "web", "uid-1", pod.path()).unwrap().add().unwrap();
    assert!(pod.nft_text().unwrap().contains("istio-proxy-nat"));
}

/// Its rules are there, and people hear that they do not see all of its traffic: by an event, and by no label, as the next pod would be no better.
#[test]
fn a_pod_whose_application_is_taken_for_the_proxy_gets_an_event_and_no_label() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let web = PodObject::named("web").sidecar().uid("uid-1").on_node("n1");
    node.api.set_pod(web.with("/spec/securityContext/runAsGroup", 1337));
    let pod = Pod::new(Families::V4).unwrap();
    let answer = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap().add().unwrap();
    assert_says(&answer.stderr, &["container app runs as group 1337", "not all of its traffic is captured"]);
    assert_says(&pod.nft_text().unwrap(), &["istio-proxy-nat"]);
    eventually("the pod has its event", PATIENCE, || {
        let events = node.api.events();
        let event = events.first().ok_or_else(|| anyhow::anyhow!("no event"))?;
        ensure!(event["reason"] == "CaptureIncomplete" && event["type"] == "Warning", "{event}");
        let message = event["message"].as_str().unwrap_or_default();
        ensure!(message.contains("container app runs as group 1337"), "{message}");
        ensure!(notes(&node).is_empty(), "{:?}", notes(&node));
        Ok(())
    })
    .unwrap();
    assert_eq!(agent.metric(&operations("incomplete")).unwrap(), 1.0);
    assert_eq!(agent.metric(&operations("captured")).unwrap(), 0.0);
    assert_eq!(agent.metric("istio_cni_uncaptured_pods_total{reason=\"incomplete\"}").unwrap(), 1.0);
    assert!(node.api.patches().is_empty(), "{:?}", node.api.patches());
    assert_eq!(node.api.events().len(), 1);
}

/// Where the chart gives no right for events, the log and the metric have said it.
#[test]
fn an_event_that_is_forbidden_is_not_tried_for_ever() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let web = PodObject::named("web").sidecar().uid("uid-1").on_node("n1");
    node.api.set_pod(web.with("/spec/containers/0/securityContext/runAsUser", 1337));
    node.api.fail_path("/events", usize::MAX, Fault::status(403));
    let pod = Pod::new(Families::V4).unwrap();
    PodCall::new(&node, "web", "uid-1", pod.path()).unwrap().add().unwrap();
    agent
        .log()
        .wait_for(&["\twarn\t", "not all of its traffic is captured", "pod=default/web"], PATIENCE)
        .unwrap();
    eventually("the note is gone", PATIENCE, || {
        ensure!(notes(&node).is_empty());
        Ok(())
    })
    .unwrap();
    assert!(node.api.events().is_empty());
}
