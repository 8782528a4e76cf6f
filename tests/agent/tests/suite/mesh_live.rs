//! Ambient mode: annotations that say how a pod is captured change while it runs.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::ztunnel::Script;
use testkit::{Agent, PATIENCE, at_once, eventually};

use crate::mesh::wait_in;

const BYPASS: &str = "ambient.istio.io/bypass-inbound-capture";
const DNS: &str = "ambient.istio.io/dns-capture";
const GUESTS: &str = "istio.io/reroute-virtual-interfaces";
/// `NATIVE_NFTABLES` of both backends.
const BACKENDS: [&str; 2] = ["true", "false"];

fn agent(mesh: &Mesh, native: &str, updates: &str) -> Agent {
    let agent = mesh.agent().env("NATIVE_NFTABLES", native).env("LIVE_UPDATES", updates);
    let agent = agent.env("AMBIENT_DNS_CAPTURE", "true");
    agent.env("AMBIENT_VERIFY_INTERVAL", "1s").ready().unwrap()
}

/// Changes annotations of the pod as somebody does who edits it.
fn annotate(mesh: &Mesh, pod: &MeshPod, annotations: &[(&str, &str)]) {
    let mut object = mesh.node.api.object(Resource::Pods, &pod.namespace, &pod.name).unwrap();
    for (name, value) in annotations {
        object["metadata"]["annotations"][name] = Value::from(*value);
    }
    mesh.node.api.set_pod(object);
}

fn rules(pod: &MeshPod) -> String {
    let line = "(nft -s list ruleset; iptables-save; ip6tables-save) | sed '/^#/d'";
    pod.netns.run(Command::new("sh").args(["-ec", line])).unwrap()
}

/// Whether what comes in, questions for names, and what a guest sends go to ztunnel.
fn captured(pod: &MeshPod) -> [bool; 3] {
    let rules = rules(pod);
    ["15006", "15053", "tap0"].map(|of| rules.contains(of))
}

fn wait_captured(pod: &MeshPod, wanted: [bool; 3]) {
    let is = || -> Result<()> {
        let found = captured(pod);
        ensure!(found == wanted, "{found:?}");
        Ok(())
    };
    eventually("the rules follow the annotations", PATIENCE, is).unwrap();
}

/// The reasons of the pod's Events, and the last message of each.
fn event(mesh: &Mesh, reason: &str) -> Option<String> {
    let events = mesh.node.api.events();
    let its = events.iter().rfind(|event| event["reason"] == reason)?;
    Some(its["message"].as_str().unwrap_or_default().to_owned())
}

fn wait_event(mesh: &Mesh, reason: &str, says: &str) {
    eventually(&format!("Event {reason}"), PATIENCE, || {
        let event = event(mesh, reason);
        ensure!(event.as_ref().is_some_and(|message| message.contains(says)), "{event:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_changed_annotation_is_in_force_at_once() {
    at_once(BACKENDS, |native| {
        let mesh = Mesh::new().unwrap();
        let agent = agent(&mesh, native, "safe");
        let _ztunnel = mesh.ztunnel().unwrap();
        let pod = mesh.running("mesh", "web", &[]).unwrap();
        wait_in(&mesh, &pod).unwrap();
        assert_eq!(captured(&pod), [true, true, false], "{}", rules(&pod));
        let began = Instant::now();
        annotate(&mesh, &pod, &[(BYPASS, "true")]);
        wait_captured(&pod, [false, true, false]);
        println!("{native}: in force after {:?}", began.elapsed());
        wait_event(&mesh, "CaptureUpdated", "ambient.istio.io/bypass-inbound-capture: false → true");
        annotate(&mesh, &pod, &[(BYPASS, "false"), (DNS, "false"), (GUESTS, "tap0")]);
        wait_captured(&pod, [true, false, true]);
        // What means nothing changes nothing.
        let before = rules(&pod);
        annotate(&mesh, &pod, &[(DNS, "perhaps"), (BYPASS, "true")]);
        wait_event(&mesh, "CaptureSettingsInvalid", "perhaps");
        assert_eq!(rules(&pod), before);
        annotate(&mesh, &pod, &[(DNS, "true"), (BYPASS, "true")]);
        wait_captured(&pod, [false, true, true]);
        assert_eq!(mesh.annotation(&pod).as_deref(), Some("enabled"), "{}", agent.log().text());
        let applied = || agent.metric("istio_cni_live_updates_total{result=\"applied\"}");
        eventually("all are counted", PATIENCE, || {
            ensure!(applied()? == 3.0);
            Ok(())
        })
        .unwrap();
        assert_eq!(agent.metric("istio_cni_live_updates_total{result=\"refused\"}").unwrap(), 1.0);
    });
}

/// The options of a pod's start are those of its rules as long as that is asked for, also after the agent that knew them.
#[test]
fn an_agent_that_starts_anew_changes_nothing_where_updates_are_off() {
    let mesh = Mesh::new().unwrap();
    let first = agent(&mesh, "true", "off");
    let _ztunnel = mesh.ztunnel_that(Script::default().reconnecting()).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    let before = rules(&pod);
    annotate(&mesh, &pod, &[(BYPASS, "true"), (DNS, "false")]);
    first.kill().unwrap();
    let second = agent(&mesh, "true", "off");
    eventually("the pod is in the mesh again", PATIENCE, || {
        ensure!(second.metric("istio_cni_ambient_pods{state=\"enrolled\"}")? == 1.0);
        Ok(())
    })
    .unwrap();
    // Some verifications.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(rules(&pod), before, "{}", second.log().text());
    assert_eq!(event(&mesh, "CaptureUpdated"), None);
    second.kill().unwrap();
    let _third = agent(&mesh, "true", "safe");
    wait_captured(&pod, [false, false, false]);
}
