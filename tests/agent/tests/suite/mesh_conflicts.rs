//! Rules of others that take captured packets: found by what the kernel holds, and ours put before them where that is safe.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::probe::{Arrival, Flow, Listener, Listeners};
use testkit::{Agent, PATIENCE, eventually};

use crate::mesh::wait_in;
use crate::mesh_render::cnictl;

/// Nothing is found because its turn came.
const SELDOM: (&str, &str) = ("VERIFY_INTERVAL", "60s");
const ZTUNNEL: u16 = 15001;
const OTHER: u16 = 9999;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// A redirect of others at our place.
const FOREIGN: &str =
    "table ip other { chain o { type nat hook output priority -100; tcp dport 80 redirect to :9999; }; }";

fn resolved(agent: &Agent) -> f64 {
    agent.metrics().unwrap().value("istio_cni_conflicts_resolved_total{id=\"CF-P1\"}")
}

/// The port that a connection of the application comes to.
fn reached(pod: &MeshPod) -> Option<u16> {
    let to: SocketAddr = "203.0.113.9:80".parse().unwrap();
    let answer = Flow::from(&pod.netns).user(1000, 1000).patience(PATIENCE).exchange(to, REQUEST).unwrap();
    port_of(&answer)
}

/// The port of whoever answered.
fn port_of(answer: &[u8]) -> Option<u16> {
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(Arrival::from_text(&answer[body + 4..])?.listener_port)
}

fn started(resolution: &str) -> (Mesh, Agent, testkit::ztunnel::Ztunnel, MeshPod) {
    let (mesh, agent, ztunnel) =
        Mesh::served_by(|agent| agent.env(SELDOM.0, SELDOM.1).env("CONFLICT_RESOLUTION", resolution))
            .unwrap();
    let pod = mesh.running("default", "web", &[(MODE, "ambient")]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    pod.add_way_out().unwrap();
    (mesh, agent, ztunnel, pod)
}

fn eventually_told(agent: &Agent, part: &str) -> Result<()> {
    eventually("the agent tells of it", PATIENCE, || {
        ensure!(agent.log().text().contains(part), "{}", agent.log().text());
        Ok(())
    })
}

#[test]
fn a_redirect_that_comes_later_at_our_place_is_overtaken_and_left_as_it_is() {
    let (_mesh, agent, _ztunnel, pod) = started("safe");
    let _listeners = Listeners::start(&pod.netns, [ZTUNNEL, OTHER].map(Listener::http)).unwrap();
    assert_eq!(reached(&pod), Some(ZTUNNEL));
    eventually("the pod is watched", PATIENCE, || {
        let verified = agent.metrics()?.value("istio_cni_pods_verified{mode=\"ambient\"}");
        ensure!(verified == 1.0, "{verified}");
        Ok(())
    })
    .unwrap();
    let to: SocketAddr = "203.0.113.9:80".parse().unwrap();
    let mut open = pod.netns.enter(|_| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
    pod.netns.nft(FOREIGN).unwrap();
    let before = pod.netns.nft_text().unwrap();
    let planted = Instant::now();
    eventually("ours is the first again", PATIENCE, || {
        let port = reached(&pod);
        ensure!(port == Some(ZTUNNEL), "{port:?}; {}", agent.log().text());
        Ok(())
    })
    .unwrap();
    let took = planted.elapsed();
    println!("ours was the first again {took:?} after the other came");
    assert!(took < Duration::from_secs(1), "{took:?}");
    // What was open then goes on.
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    open.write_all(REQUEST).unwrap();
    let mut answer = Vec::new();
    open.read_to_end(&mut answer).unwrap();
    assert_eq!(port_of(&answer), Some(ZTUNNEL), "{}", answer.escape_ascii());
    eventually("it is counted", PATIENCE, || {
        ensure!(resolved(&agent) == 1.0, "{}", resolved(&agent));
        Ok(())
    })
    .unwrap();
    // What others have is the same, byte for byte.
    let foreign =
        |text: &str| text.split("table ").find(|table| table.starts_with("ip other")).map(str::to_owned);
    let after = pod.netns.nft_text().unwrap();
    assert_eq!(foreign(&before), foreign(&after));
    assert!(foreign(&after).is_some(), "{after}");
}

#[test]
fn whoever_comes_again_and_again_is_not_fought() {
    let (_mesh, agent, _ztunnel, pod) = started("safe");
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        pod.netns.nft(&format!("add table ip other\ndelete table ip other\n{FOREIGN}")).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    eventually("the conflict is known", PATIENCE, || {
        let value =
            agent.metrics()?.value("istio_cni_conflicts{id=\"CF-P1\",scope=\"pod\",severity=\"error\"}");
        ensure!(value == 1.0, "{value}; {}", agent.log().text());
        Ok(())
    })
    .unwrap();
    assert!((1.0..=2.0).contains(&resolved(&agent)), "{}", resolved(&agent));
}

/// A firewall of the node that drops probes: no pod is told, but the node, and whoever asks whether the agent is ready where that is wanted.
#[test]
fn a_conflict_on_the_node_is_told_of_the_node_and_makes_the_agent_unready_until_it_is_gone() {
    let mesh = Mesh::new().unwrap();
    mesh.host
        .ip(&[
            "link add pods0 type veth peer name pods1",
            "address add 10.9.255.254/16 dev pods0",
            "link set pods0 up",
            "link set pods1 up",
        ])
        .unwrap();
    mesh.host
        .nft("table ip wall { chain out { type filter hook postrouting priority 200; ip saddr 169.254.7.127 drop; }; }")
        .unwrap();
    let wanted = [("VERIFY_INTERVAL", "1s"), ("CONFLICTS_BLOCK_READY", "node-errors")];
    let launch = wanted.into_iter().fold(mesh.agent(), |agent, (name, value)| agent.env(name, value));
    // Without a pod in the mesh there is no probe that could be dropped.
    let agent = launch.ready().unwrap();
    let _ztunnel = mesh.ztunnel().unwrap();
    let pod = mesh.running("default", "web", &[(MODE, "ambient")]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    agent.wait_unready(&["conflicts", "CF-H1", "ip saddr 169.254.7.127", "table wall"]).unwrap();
    eventually("an Event about the node tells of it", PATIENCE, || {
        let events = mesh.node.api.events();
        let of_conflicts: Vec<_> =
            events.iter().filter(|event| event["reason"] == "MeshNodeConflict").collect();
        ensure!(!of_conflicts.is_empty(), "{events:?}");
        assert_told_of_the_node(&of_conflicts);
        Ok(())
    })
    .unwrap();
    let series = "istio_cni_conflicts{id=\"CF-H1\",scope=\"node\",severity=\"error\"}";
    assert_eq!(agent.metric(series).unwrap(), 1.0);
    let (exit, text, error) = cnictl(&mesh, "conflicts --node").unwrap();
    assert!(text.contains("CF-H1"), "{exit:?} {text}{error}");
    mesh.host.nft("delete table ip wall").unwrap();
    // It looks at most each half minute.
    eventually("the agent is ready again", Duration::from_secs(60), || {
        let reply = agent.readyz()?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .unwrap();
}

fn assert_told_of_the_node(events: &[&serde_json::Value]) {
    let [event] = events else { panic!("{events:?}") };
    assert_eq!(
        (&event["involvedObject"]["kind"], &event["type"]),
        (&"Node".into(), &"Warning".into()),
        "{event}"
    );
    let message = event["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("CF-H1: ") && message.contains("ip saddr 169.254.7.127"), "{event}");
}

#[test]
fn without_resolution_a_conflict_is_told_once_and_the_pod_is_not_verified() {
    let (mesh, agent, _ztunnel, pod) = started("off");
    for _ in 0..3 {
        pod.netns.nft(&format!("add table ip other\ndelete table ip other\n{FOREIGN}")).unwrap();
        eventually_told(&agent, "CF-P1").unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(resolved(&agent), 0.0);
    eventually("the pod is not verified", PATIENCE, || {
        let series = "istio_cni_pods_unverified{mode=\"ambient\",reason=\"conflict\",state=\"unverifiable\"}";
        let unverified = agent.metrics()?.value(series);
        ensure!(unverified == 1.0, "{unverified}");
        Ok(())
    })
    .unwrap();
    let events = mesh.node.api.events();
    let told = events.iter().filter(|event| event["reason"] == "CaptureConflict").count();
    assert_eq!(told, 1, "{events:?}");
    // Whoever asks is told which, and where.
    let (exit, text, error) = cnictl(&mesh, "verify default/web -o wide").unwrap();
    assert_eq!(exit, Some(1), "{text}{error}");
    assert!(error.contains("pod default/web is unverifiable (conflict): CF-P1: "), "{error}");
    let (_, conflicts, _) = cnictl(&mesh, "conflicts default/web -o json").unwrap();
    let conflicts: serde_json::Value = serde_json::from_str(&conflicts).unwrap();
    let there: Vec<&serde_json::Value> =
        conflicts["items"].as_array().unwrap().iter().filter(|item| item["gone"] != true).collect();
    assert_eq!(there.len(), 1, "{conflicts:#}");
    assert!(there[0]["culprit"].as_str().is_some_and(|by| by.starts_with("nft (pid ")), "{conflicts:#}");
    // No process of this pod is known, so nobody has looked at the programs of its control group.
    let gap = conflicts["not_looked_at"][0].as_str().unwrap();
    assert!(gap.starts_with("pod default/web: programs that the kernel runs on "), "{conflicts:#}");
    let row = text.lines().find(|line| line.contains("unverifiable (conflict)")).unwrap();
    assert!(row.contains(" CF-P1 "), "{text}");
    let (_, json, _) = cnictl(&mesh, "verify default/web -o json").unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let item = &json["items"][0];
    assert_eq!(item["conflicts"], serde_json::json!(["CF-P1"]), "{json:#}");
    assert!(item["netns"].as_str().is_some_and(|path| path.starts_with('/')), "{json:#}");
    pod.netns.nft("delete table ip other").unwrap();
    eventually("the conflict is gone", PATIENCE, || {
        let (exit, text, error) = cnictl(&mesh, "verify default/web")?;
        ensure!(exit == Some(0) && !text.contains("CF-P1"), "{text}{error}");
        Ok(())
    })
    .unwrap();
}

/// Rules on the node that others take away, or put theirs before: the kernel says so, and they are back before their turn comes, each time.
#[test]
fn rules_of_the_node_are_back_when_the_kernel_says_that_they_are_gone() {
    let (mesh, agent, _ztunnel) = Mesh::served_by(|agent| agent.env(SELDOM.0, SELDOM.1)).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    let before = mesh.host.nft_text().unwrap();
    for change in ["flush chain inet istio-ambient-nat postrouting", "delete table inet istio-ambient-nat"] {
        let began = Instant::now();
        mesh.host.nft(change).unwrap();
        eventually("the rules are as before", PATIENCE, || {
            let now = mesh.host.nft_text()?;
            ensure!(now == before, "{change}: {now}\n{}", agent.log().text());
            Ok(())
        })
        .unwrap();
        println!("put right after {:?}", began.elapsed());
    }
    agent.log().wait_for(&["the rules for host probes differed", "culprit=\"nft (pid "], PATIENCE).unwrap();
    eventually("the node's Event names who did it, once", PATIENCE, || {
        let events = mesh.node.api.events();
        let told: Vec<_> = events.iter().filter(|event| event["reason"] == "HostRulesRestored").collect();
        let names =
            |event: &serde_json::Value| event["message"].as_str().unwrap().contains("changed by nft (pid ");
        ensure!(told.len() == 1 && names(told[0]), "{events:?}");
        Ok(())
    })
    .unwrap();
    let repaired = || agent.metric("istio_cni_drift_total{action=\"repaired\",what=\"host-rules\"}").unwrap();
    let first = repaired();
    let other = "type nat hook postrouting priority srcnat; ip daddr 10.0.0.0/8 snat to 10.8.0.1;";
    mesh.host.nft(&format!("table ip other {{ chain p {{ {other} }}; }}")).unwrap();
    eventually("rules of ours are put first", PATIENCE, || {
        ensure!(repaired() > first, "{}", agent.log().text());
        Ok(())
    })
    .unwrap();
}
