//! Ambient mode: what is missing on the node, such as a ztunnel, is told once for all pods that wait for it, and once to each pod's owner.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::apiserver::Fault;
use testkit::mesh::{Mesh, MeshPod, REDIRECTION};
use testkit::ztunnel::{Answer, Script};
use testkit::{Agent, PATIENCE, at_once, eventually};

use crate::mesh::wait_in;

/// The messages of the Events about a pod.
fn events(mesh: &Mesh, pod: &MeshPod) -> Vec<String> {
    let events = mesh.node.api.events().into_iter();
    let of_pod = events.filter(|event| event["involvedObject"]["uid"] == json!(pod.uid));
    of_pod.map(|event| format!("{}: {}", event["reason"], event["message"])).collect()
}

fn verbose(agent: &Agent) -> String {
    let reply = agent.health("/readyz?verbose").unwrap();
    assert_eq!(reply.status, 200, "a pod that waits does not make the agent unready: {reply:?}");
    reply.body
}

fn wait_verbose(agent: &Agent, wanted: impl Fn(&str) -> bool) -> String {
    eventually("/readyz?verbose", PATIENCE, || {
        let text = verbose(agent);
        ensure!(wanted(&text), "{text}\n{}", agent.log().text());
        Ok(text)
    })
    .unwrap()
}

/// Warnings and errors of the agent that name one of these pods.
fn complaints(agent: &Agent, pods: &[MeshPod]) -> Vec<String> {
    let lines = agent.log().lines().into_iter();
    let complains = |line: &String| line.contains("\twarn\t") || line.contains("\terror\t");
    let names = |line: &String| pods.iter().any(|pod| line.contains(&format!("mesh/{}", pod.name)));
    lines.filter(|line| complains(line) && names(line)).collect()
}

fn pods(mesh: &Mesh, count: usize) -> Vec<MeshPod> {
    (0..count).map(|number| mesh.running("mesh", &format!("p{number}"), &[]).unwrap()).collect()
}

/// Pods that run and pods whose sandboxes the runtime makes and gives up again and again, as it does after each ADD that failed.
#[test]
fn without_a_ztunnel_there_is_one_line_for_all_and_one_event_for_each() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let running = pods(&mesh, 6);
    let mut starting = [mesh.sandbox("mesh", "s0").unwrap(), mesh.sandbox("mesh", "s1").unwrap()];
    for pod in &starting {
        mesh.node.api.set_pod(pod.object(&[], false));
    }
    for round in 0..6 {
        for pod in &mut starting {
            if round > 0 {
                mesh.stop(pod).unwrap();
                std::thread::sleep(Duration::from_millis(100));
                mesh.new_sandbox(pod).unwrap();
            }
            let reply = eventually("the pod is known", PATIENCE, || {
                let reply = mesh.announce(pod)?;
                ensure!(!reply.body.contains("not known"), "{reply:?}");
                Ok(reply)
            });
            let reply = reply.unwrap();
            assert!(reply.status == 500 && reply.body.contains("no ztunnel connection"), "{reply:?}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let text = wait_verbose(&agent, |text| text.contains("[!]ztunnel: 8 pods wait for a ztunnel: "));
    assert!(text.contains("check that ztunnel runs on this node"), "{text}");
    let all: Vec<&MeshPod> = running.iter().chain(&starting).collect();
    let one_each = || -> Result<()> {
        for pod in &all {
            let events = events(&mesh, pod);
            let of_ztunnel = "\"AmbientEnrollmentFailed\": \"no ztunnel connection (hand the pod to ztunnel); check that ztunnel runs on this node; \
                              the pod comes into the mesh when a ztunnel takes it\"";
            ensure!(events == [of_ztunnel], "{}: {events:?}\n{}", pod.name, agent.log().text());
        }
        Ok(())
    };
    eventually("each pod has its event", PATIENCE, one_each).unwrap();
    agent.log().wait_for(&["warn", "8 pods wait for a ztunnel", "no ztunnel connection"], PATIENCE).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    one_each().unwrap();
    let lines = agent.log().count(&["for a ztunnel"]);
    assert!((1..=3).contains(&lines), "{lines} lines\n{}", agent.log().text());
    assert_eq!(complaints(&agent, &running), Vec::<String>::new());
    assert_eq!(complaints(&agent, &starting), Vec::<String>::new());
    println!(
        "{} lines in all, {lines} of them about ztunnel, {} events",
        agent.log().lines().len(),
        all.len()
    );

    let _ztunnel = mesh.ztunnel().unwrap();
    running.iter().for_each(|pod| wait_in(&mesh, pod).unwrap());
    for pod in &starting {
        mesh.run(pod).unwrap();
        mesh.node.api.set_pod(pod.object(&[], true));
        assert_eq!(mesh.announce(pod).unwrap().status, 200);
    }
    wait_verbose(&agent, |text| !text.contains("ztunnel:"));
    agent.log().wait_for(&["info", "no pod waits for a ztunnel any more"], PATIENCE).unwrap();
    one_each().unwrap();
}

/// As while ztunnel is replaced.
#[test]
fn a_ztunnel_that_comes_soon_leaves_neither_events_nor_warnings() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let pods = pods(&mesh, 3);
    wait_verbose(&agent, |text| text.contains("3 pods wait for a ztunnel"));
    let _ztunnel = mesh.ztunnel().unwrap();
    pods.iter().for_each(|pod| wait_in(&mesh, pod).unwrap());
    wait_verbose(&agent, |text| !text.contains("ztunnel:"));
    assert_eq!(complaints(&agent, &pods), Vec::<String>::new());
    assert!(mesh.node.api.events().is_empty(), "{:?}", mesh.node.api.events());
}

/// The next ztunnel is connected, and says nothing of the pods that the one before had.
#[test]
fn no_pod_counts_as_verified_by_the_word_of_a_ztunnel_that_is_gone() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    let pods = pods(&mesh, 2);
    let counted = |series: &str| agent.metric(&format!("istio_cni_pods_{series}"));
    let wait = |series: &str| {
        eventually(series, PATIENCE, || {
            ensure!(counted(series)? == pods.len() as f64);
            Ok(())
        })
        .unwrap();
    };
    wait("verified{mode=\"ambient\"}");
    drop(ztunnel);
    let unacknowledged = "unverified{mode=\"ambient\",reason=\"\",state=\"unacknowledged\"}";
    wait(unacknowledged);
    let silent = mesh.ztunnel_that(Script::answering(|_| Answer::Silence)).unwrap();
    silent.wait_requests(1, PATIENCE).unwrap();
    for _ in 0..20 {
        assert_eq!(counted(unacknowledged).unwrap(), 2.0);
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(silent);
    let _ztunnel = mesh.ztunnel().unwrap();
    wait("verified{mode=\"ambient\"}");
}

/// Pods that were in before the agent came wait as well, and no try of theirs fails.
#[test]
fn pods_of_an_earlier_agent_are_counted() {
    let mesh = Mesh::new().unwrap();
    let pods = pods(&mesh, 4);
    {
        let _ztunnel;
        let agent = mesh.start().unwrap();
        _ztunnel = mesh.ztunnel().unwrap();
        pods.iter().for_each(|pod| wait_in(&mesh, pod).unwrap());
        agent.kill().unwrap();
    }
    let agent = mesh.start().unwrap();
    wait_verbose(&agent, |text| text.contains("[!]ztunnel: 4 pods wait for a ztunnel: "));
    agent.log().wait_for(&["warn", "4 pods wait for a ztunnel"], PATIENCE).unwrap();
    mesh.node.api.delete_pod("mesh", &pods[0].name);
    wait_verbose(&agent, |text| text.contains("3 pods wait for a ztunnel"));
    let _ztunnel = mesh.ztunnel().unwrap();
    wait_verbose(&agent, |text| !text.contains("ztunnel:"));
    agent.log().wait_for(&["no pod waits for a ztunnel any more"], PATIENCE).unwrap();
}

/// The annotation cannot be written: the API server is away, overloaded, or lacks the role.
#[test]
fn an_api_server_that_takes_no_annotations_makes_one_line() {
    at_once([Fault::status(503), Fault::status(403), Fault::Reset], |fault| {
        let (mesh, agent, _ztunnel) = Mesh::served().unwrap();
        mesh.node.api.fail_path("/status", usize::MAX, fault.clone());
        let pods = pods(&mesh, 5);
        let parts = ["warn", "5 pods wait for the API server", "annotate pod mesh/p"];
        agent.log().wait_for(&parts, PATIENCE).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let of_pods = complaints(&agent, &pods);
        assert!(of_pods.len() <= 2, "{fault:?}: {of_pods:?}");
        assert!(mesh.node.api.events().is_empty(), "{fault:?}: {:?}", mesh.node.api.events());
        mesh.node.api.fail_path("/status", 0, fault);
        pods.iter().for_each(|pod| wait_in(&mesh, pod).unwrap());
        agent.log().wait_for(&["info", "no pod waits for the API server any more"], PATIENCE).unwrap();
    });
}

/// A role without events, as in the original's chart of sidecar mode, or one that is not loaded yet.
#[test]
fn an_event_that_is_refused_is_not_tried_again() {
    let mesh = Mesh::new().unwrap();
    mesh.node.api.fail_path("/events", usize::MAX, Fault::status(403));
    let agent = mesh.start().unwrap();
    let pods = pods(&mesh, 4);
    let posts = || {
        let requests = mesh.node.api.requests().into_iter();
        requests.filter(|request| request.method == "POST" && request.path.contains("/events")).count()
    };
    eventually("each event is tried", PATIENCE, || {
        ensure!(posts() == 4, "{} posts", posts());
        Ok(())
    })
    .unwrap();
    agent.log().wait_for(&["warn", "Events about pods cannot be written", "403"], PATIENCE).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!((posts(), agent.log().count(&["Events about pods cannot be written"])), (4, 1));
    assert_eq!(complaints(&agent, &pods), Vec::<String>::new());
}

/// A pod's object has no address until its sandbox is there. What is to be done then begins with the event that brings the address, and nothing
/// is looked for, or complained of, before.
#[test]
fn a_pod_is_taken_in_when_its_address_comes() {
    at_once(
        [(None, false), (Some("enabled"), false), (Some("enabled"), true), (Some("pending"), true)],
        |(annotation, before)| {
            let mesh = Mesh::new().unwrap();
            let pod = mesh.sandbox("mesh", "late").unwrap();
            mesh.run(&pod).unwrap();
            let mut object = pod.object(&[], false);
            if let Some(value) = annotation {
                object["metadata"]["annotations"][REDIRECTION] = json!(value);
            }
            if before {
                mesh.node.api.set_pod(object.clone());
            }
            // No verification comes to help.
            let agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "1h").ready().unwrap();
            let _ztunnel = mesh.ztunnel().unwrap();
            if !before {
                mesh.node.api.set_pod(object);
            }
            mesh.wait_annotation(&pod, None).unwrap();
            std::thread::sleep(Duration::from_millis(1500));
            assert!(
                pod.is_clean().unwrap(),
                "{annotation:?} {before}: nobody may touch a pod without an address"
            );
            let quiet = |what: &str| {
                let complaints = complaints(&agent, std::slice::from_ref(&pod));
                assert_eq!(complaints, Vec::<String>::new(), "{annotation:?} {before} {what}");
            };
            quiet("without an address");
            let come = Instant::now();
            mesh.node.api.set_pod(pod.object(&[], true));
            wait_in(&mesh, &pod).unwrap();
            assert!(come.elapsed() < Duration::from_secs(2), "{annotation:?} {before}: {:?}", come.elapsed());
            quiet("with its address");
            println!("{annotation:?} before {before}: in {:?} after its address", come.elapsed());
        },
    );
}
