//! Ambient mode: an ADD that ends without success leaves nothing of its pod to enrol, however it ends, and the pod's next sandbox is taken.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::mesh::{Mesh, MeshPod, REDIRECTION};
use testkit::ztunnel::{Answer, Request, Script};
use testkit::{Agent, PATIENCE, assert_says, at_most, at_once, eventually, http};

use crate::mesh::wait_in;

/// Waits until nothing is left of the pod but its namespace: no rule, no address, no record, no annotation.
fn wait_nothing_left(mesh: &Mesh, pod: &MeshPod) -> Result<()> {
    eventually(&format!("nothing is left of {}", pod.name), PATIENCE, || {
        ensure!(pod.is_clean()?, "rules are left");
        ensure!(!mesh.probes()?.contains_key(&pod.ip.to_string()), "its address is left");
        let record = mesh.node.run_dir().join("ambient").join(format!("{}.json", pod.uid));
        ensure!(!record.exists(), "its record is left");
        ensure!(mesh.annotation(pod).is_none(), "its annotation is left");
        Ok(())
    })
}

/// The runtime takes the sandbox down and makes another, which is taken in.
fn next_sandbox_is_taken(mesh: &Mesh, pod: &mut MeshPod) {
    mesh.stop(pod).unwrap();
    mesh.new_sandbox(pod).unwrap();
    eventually("the next sandbox is taken", PATIENCE, || {
        let reply = mesh.announce(pod)?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .unwrap();
    wait_in(mesh, pod).unwrap();
}

/// A ztunnel that comes now hears of nobody.
fn a_ztunnel_hears_of_nobody(mesh: &Mesh, when: &str) {
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    assert!(ztunnel.workloads().is_empty(), "{when}: {:?}", ztunnel.requests());
    ztunnel.close();
}

/// A pod whose sandbox is about to be made, and whose object says of the one before that it is in the mesh.
fn starting(mesh: &Mesh) -> MeshPod {
    let pod = mesh.sandbox("mesh", "web").unwrap();
    let mut object = pod.object(&[], false);
    object["metadata"]["annotations"] = json!({REDIRECTION: "enabled"});
    mesh.node.api.set_pod(object);
    pod
}

#[test]
fn without_a_ztunnel_nothing_is_begun() {
    at_once(["true", "false"], |backend| {
        let mesh = Mesh::new().unwrap();
        let agent = mesh.agent().env("NATIVE_NFTABLES", backend).ready().unwrap();
        let mut pod = starting(&mesh);
        let reply = mesh.announce(&pod).unwrap();
        assert_eq!((reply.status, pod.is_clean().unwrap()), (500, true), "{}", reply.body);
        assert_says(&reply.body, &["mesh/web", "no ztunnel connection"]);
        wait_nothing_left(&mesh, &pod).unwrap();
        a_ztunnel_hears_of_nobody(&mesh, "without a ztunnel");
        assert_eq!(agent.metric("istio_cni_ambient_pods{state=\"enrolled\"}").unwrap(), 0.0);
        let _ztunnel = mesh.ztunnel().unwrap();
        next_sandbox_is_taken(&mesh, &mut pod);
    });
}

/// The ztunnel refuses, or ends, in the middle of an ADD.
#[test]
fn what_a_ztunnel_does_not_take_is_taken_back() {
    let backends = ["true", "false"];
    let cases = backends
        .into_iter()
        .flat_map(|backend| [Answer::Nack("no".into()), Answer::Close].map(|answer| (backend, answer)));
    at_once(cases, |(backend, answer)| {
        let mesh = Mesh::new().unwrap();
        let _agent = mesh.agent().env("NATIVE_NFTABLES", backend).ready().unwrap();
        let (says, bad) = (format!("{backend} {answer:?}"), answer);
        let ztunnel = mesh.ztunnel_that(Script::answering(move |request| match request {
            Request::Add { .. } => bad.clone(),
            _ => Answer::Ack,
        }));
        let ztunnel = ztunnel.unwrap();
        ztunnel.wait_snapshot(PATIENCE).unwrap();
        let mut pod = starting(&mesh);
        assert_eq!(mesh.announce(&pod).unwrap().status, 500, "{says}");
        assert!(pod.is_clean().unwrap(), "{says}: with the answer everything is taken back");
        wait_nothing_left(&mesh, &pod).unwrap();
        ztunnel.close();
        a_ztunnel_hears_of_nobody(&mesh, &says);
        let _ztunnel = mesh.ztunnel().unwrap();
        next_sandbox_is_taken(&mesh, &mut pod);
    });
}

/// The plugin is killed, or its time is over, while ztunnel works on the pod and takes it in the end.
#[test]
fn a_plugin_that_hangs_up_leaves_nothing() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let mut first = true;
    let ztunnel = mesh.ztunnel_that(Script::answering(move |request| match request {
        Request::Add { .. } if std::mem::take(&mut first) => {
            std::thread::sleep(Duration::from_secs(1));
            Answer::Ack
        }
        _ => Answer::Ack,
    }));
    let ztunnel = ztunnel.unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let mut pod = starting(&mesh);
    let mut stream = http::connect(&mesh.event_socket()).unwrap();
    stream.write_all(&http::request("POST", "/cmdadd", &mesh.event(&pod).to_string())).unwrap();
    eventually("it is under way", PATIENCE, || {
        ensure!(pod.has_rules()?);
        Ok(())
    })
    .unwrap();
    drop(stream);
    agent.log().wait_for(&["mesh/web", "closed the connection before the answer"], PATIENCE).unwrap();
    wait_nothing_left(&mesh, &pod).unwrap();
    assert!(ztunnel.workloads().is_empty(), "{:?}", ztunnel.requests());
    next_sandbox_is_taken(&mesh, &mut pod);
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

fn killed(mesh: &Mesh, pod: &MeshPod, place: &str) {
    let agent = mesh.agent().env("ISTIO_CNI_FAILPOINT", place).ready().unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert!(mesh.announce(pod).is_err(), "{place}: nobody answers");
    agent.ended_by_itself().unwrap();
}

/// The agent is killed in the middle of an ADD, and the runtime takes the sandbox down before or after the next agent comes.
#[test]
fn an_agent_that_is_killed_leaves_nothing_to_enrol() {
    let places = ["locate", "take-addresses", "load-rules", "tell-ztunnel", "add-probes"];
    let cases = places.into_iter().flat_map(|place| [false, true].map(|down_before| (place, down_before)));
    at_most(4, cases, |(place, down_before)| {
        let when = format!("{place}, sandbox down before: {down_before}");
        let mesh = Mesh::new().unwrap();
        let mut pod = mesh.sandbox("mesh", "web").unwrap();
        mesh.node.api.set_pod(pod.object(&[], false));
        killed(&mesh, &pod, place);
        if down_before {
            mesh.stop(&pod).unwrap();
        }
        let _agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "500ms").ready().unwrap();
        a_ztunnel_hears_of_nobody(&mesh, &when);
        assert!(mesh.probes().unwrap().is_empty(), "{when}");
        mesh.stop(&pod).unwrap();
        let record = mesh.node.run_dir().join("ambient").join(format!("{}.json", pod.uid));
        eventually("it is forgotten", PATIENCE, || {
            ensure!(!record.exists(), "{when}: its record is left");
            Ok(())
        })
        .unwrap();
        assert_eq!(mesh.patches(&pod), [], "{when}");
        let _ztunnel = mesh.ztunnel().unwrap();
        next_sandbox_is_taken(&mesh, &mut pod);
    });
}

/// The answer was on its way when the agent was killed: the pod runs, and is in the mesh as soon as that is known.
#[test]
fn a_pod_that_runs_after_all_is_taken_in_where_it_is() {
    let mesh = Mesh::new().unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    killed(&mesh, &pod, "add-probes");
    let _agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "1h").ready().unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert!(pod.has_rules().unwrap(), "nothing of it gets past its rules meanwhile");
    mesh.node.api.set_pod(pod.object(&[], true));
    wait_in(&mesh, &pod).unwrap();
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

fn del(mesh: &Mesh, pod: &MeshPod) {
    let report = json!({
        "version": "1", "operation": "del", "result": "skipped", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
    });
    let reply = http::ask(&mesh.node.agent_socket(), "POST", "/v1/report", &report.to_string()).unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
}

fn enrolled(agent: &Agent) -> f64 {
    agent.metric("istio_cni_ambient_pods{state=\"enrolled\"}").unwrap()
}

/// This plugin's part of the ADD succeeded, and another's did not: the runtime calls DEL and takes the sandbox down.
#[test]
fn a_sandbox_that_fails_after_our_part_is_forgotten() {
    let (mesh, agent, ztunnel) = Mesh::served_by(|agent| agent.env("AMBIENT_VERIFY_INTERVAL", "1h")).unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let mut pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    wait_in(&mesh, &pod).unwrap();
    // A DEL of a sandbox that stays, as of an earlier one, changes nothing.
    del(&mesh, &pod);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!((enrolled(&agent), mesh.annotation(&pod).as_deref()), (1.0, Some("enabled")));
    del(&mesh, &pod);
    mesh.stop(&pod).unwrap();
    mesh.wait_annotation(&pod, None).unwrap();
    eventually("nothing is left", PATIENCE, || {
        ensure!(ztunnel.workloads().is_empty() && mesh.probes()?.is_empty(), "{:?}", ztunnel.workloads());
        Ok(())
    })
    .unwrap();
    next_sandbox_is_taken(&mesh, &mut pod);
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

/// Two plugins with the same pod in the same namespace: the second one's failure takes nothing from what is in.
#[test]
fn an_add_that_is_repeated_and_fails_takes_nothing_away() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    wait_in(&mesh, &pod).unwrap();
    let mut event = mesh.event(&pod);
    event["Netns"] = json!("/netns/absent");
    assert_eq!(mesh.post(&event.to_string()).unwrap().status, 500);
    ztunnel.close();
    assert_eq!(mesh.announce(&pod).unwrap().status, 200, "it is in");
    std::thread::sleep(Duration::from_millis(500));
    wait_in(&mesh, &pod).unwrap();
    assert_eq!(enrolled(&agent), 1.0);
}

/// However often plugins announce a pod that the API server does not know, the log says so once, and then rarely.
#[test]
fn a_pod_that_is_gone_from_the_api_makes_one_line() {
    let (mesh, agent, _ztunnel) = Mesh::served().unwrap();
    let ghost = mesh.sandbox("mesh", "ghost").unwrap();
    for _ in 0..25 {
        assert_eq!(mesh.announce(&ghost).unwrap().status, 500);
    }
    let lines = agent.log().count(&["mesh/ghost"]);
    assert!((1..=2).contains(&lines), "{lines} lines\n{}", agent.log().text());
}
