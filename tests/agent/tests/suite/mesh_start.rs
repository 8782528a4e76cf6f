//! Ambient mode: what an agent does at its start about the pods of an earlier one, and what the original's counter says.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::{Agent, PATIENCE, at_once, eventually};

use crate::mesh::wait_in;
use crate::mesh_verify::{assert_all_are_counted, unverified};

fn pods(agent: &Agent, state: &str) -> f64 {
    agent.metric(&format!("istio_cni_ambient_pods{{state=\"{state}\"}}")).unwrap()
}

fn record(mesh: &Mesh, pod: &MeshPod) -> std::path::PathBuf {
    mesh.node.run_dir().join("ambient").join(format!("{}.json", pod.uid))
}

/// Pods that an agent had in the mesh before it was killed.
fn left_by_an_earlier_agent(mesh: &Mesh, count: usize, nftables: &str) -> Vec<MeshPod> {
    let pods: Vec<MeshPod> =
        (0..count).map(|number| mesh.running("mesh", &format!("p{number}"), &[]).unwrap()).collect();
    let agent = mesh.agent().env("NATIVE_NFTABLES", nftables).ready().unwrap();
    let _ztunnel = mesh.ztunnel().unwrap();
    pods.iter().for_each(|pod| wait_in(mesh, pod).unwrap());
    agent.kill().unwrap();
    pods
}

/// More than are looked at at once.
const MANY: usize = 6;

/// With the option off nobody waits for a look at the pods: the agent is ready and ztunnel has them all before. Each is looked at within the
/// interval, one after the other, and one that has lost its rules gets them back then.
#[test]
fn pods_are_looked_at_by_turns_where_that_may_wait() {
    at_once(["true", "false"], |nftables| {
        let mesh = Mesh::new().unwrap();
        let left = left_by_an_earlier_agent(&mesh, MANY, nftables);
        let robbed = &left[2];
        for program in
            ["nft flush ruleset", "iptables -t nat -F", "iptables -t mangle -F", "iptables -t raw -F"]
        {
            let words: Vec<&str> = program.split(' ').collect();
            let _ = robbed.netns.output(std::process::Command::new(words[0]).args(&words[1..]));
        }
        assert!(!robbed.is_redirected().unwrap());
        let interval = Duration::from_secs(12);
        let agent = mesh
            .agent()
            .env("NATIVE_NFTABLES", nftables)
            .env("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "false")
            .env("AMBIENT_VERIFY_INTERVAL", "12s")
            .ready()
            .unwrap();
        let ready = Instant::now();
        let ztunnel = mesh.ztunnel().unwrap();
        ztunnel.wait_served(MANY, PATIENCE).unwrap();
        let mut seen = BTreeSet::new();
        eventually("all of them are verified", interval + PATIENCE, || {
            let unconfirmed = pods(&agent, "unconfirmed");
            seen.insert(unconfirmed as u32);
            ensure!(
                unconfirmed == 0.0 && pods(&agent, "enrolled") == f64::from(MANY as u32),
                "{unconfirmed} are not"
            );
            Ok(())
        })
        .unwrap();
        println!("{nftables}: {seen:?} not verified, all after {:?}", ready.elapsed());
        assert!(seen.len() >= 3, "one after the other, not at once: {seen:?}");
        for pod in &left {
            assert!(pod.is_redirected().unwrap(), "{}", pod.name);
            wait_in(&mesh, pod).unwrap();
            assert_eq!(mesh.patches(pod), [Some("enabled".to_owned())], "{}", pod.name);
        }
        agent
            .log()
            .wait_for(&["the pods of an earlier agent are verified", &format!("pods={MANY}")], PATIENCE)
            .unwrap();
        assert_eq!(ztunnel.violations(), Vec::<String>::new());
    });
}

/// With the option on every pod is looked at, and put right, before the agent is ready.
#[test]
fn pods_are_put_right_before_the_agent_is_ready() {
    at_once(["true", "false"], |nftables| {
        let mesh = Mesh::new().unwrap();
        let left = left_by_an_earlier_agent(&mesh, 3, nftables);
        left[1].netns.nft("flush ruleset").unwrap();
        let agent = mesh.agent().env("NATIVE_NFTABLES", nftables).ready().unwrap();
        assert!(left.iter().all(|pod| pod.is_redirected().unwrap()), "{}", agent.log().text());
    });
}

/// Pods that are deleted while no agent looks leave nothing behind from the start of the next one on, also where somebody else has no address, so that
/// nobody unknown is taken out of the node's sets.
#[test]
fn what_went_while_no_agent_looked_is_gone_at_the_start() {
    let mesh = Mesh::new().unwrap();
    let left = left_by_an_earlier_agent(&mesh, 3, "true");
    let lost = mesh.sandbox("mesh", "lost").unwrap();
    let mut object = lost.object(&[], false);
    object["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "enabled"});
    mesh.node.api.set_pod(object);
    mesh.delete(&left[0]).unwrap();
    let _agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "1h").ready().unwrap();
    let probes = mesh.probes().unwrap();
    let stay: Vec<_> = left[1..].iter().map(|pod| pod.ip.to_string()).collect();
    assert_eq!(probes.into_keys().collect::<Vec<_>>(), stay);
    assert!(!record(&mesh, &left[0]).exists());
}

/// The same where the API server says so only after the agent has gone on without it.
#[test]
fn what_went_is_gone_as_soon_as_the_api_server_says_so() {
    let mesh = Mesh::new().unwrap();
    let left = left_by_an_earlier_agent(&mesh, 2, "true");
    let stray = "add element inet istio-ambient-nat istio-inpod-probes-v4 { 10.66.0.1 comment \"nobody\" }";
    mesh.host.nft(stray).unwrap();
    mesh.node.api.stop();
    // Nothing but the record knows of it.
    std::fs::remove_dir_all(mesh.node.run_dir().join("facts")).unwrap();
    mesh.delete(&left[0]).unwrap();
    let mut agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "1h").start().unwrap();
    agent.wait_unready(&["ambient: the API server has not listed"]).unwrap();
    assert_eq!(mesh.probes().unwrap().len(), 3, "nothing goes for want of an answer");
    let _ztunnel = mesh.ztunnel().unwrap();
    mesh.node.api.restart().unwrap();
    agent.wait_ready().unwrap();
    eventually("what is left of it goes", PATIENCE, || {
        let probes = mesh.probes()?;
        ensure!(probes.into_keys().collect::<Vec<_>>() == [left[1].ip.to_string()]);
        ensure!(!record(&mesh, &left[0]).exists(), "its record is left");
        Ok(())
    })
    .unwrap();
    wait_in(&mesh, &left[1]).unwrap();
}

fn counted(agent: &Agent, kind: &str) -> f64 {
    agent.metric(&format!("nodeagent_reconcile_events_total{{type=\"{kind}\"}}")).unwrap()
}

/// The original counts what the API server tells, not which pods there is work on. The pods here are never in the mesh, so that nothing is patched.
#[test]
fn the_originals_counter_counts_what_the_original_counts() {
    let mesh = Mesh::new().unwrap();
    let none: [(&str, &str); 1] = [(MODE, "none")];
    mesh.node.api.set_namespace("other", &[]);
    let pods: Vec<MeshPod> =
        (0..2).map(|number| mesh.running("other", &format!("p{number}"), &none).unwrap()).collect();
    let agent = mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "200ms").ready().unwrap();
    let namespaces = mesh.node.api.objects(Resource::Namespaces).len() as f64;
    let all = || (counted(&agent, "add"), counted(&agent, "update"), counted(&agent, "delete"));
    let wait = |what: &str, wanted: (f64, f64, f64)| {
        eventually(what, PATIENCE, || -> Result<()> {
            ensure!(all() == wanted, "{:?} instead of {wanted:?}", all());
            Ok(())
        })
        .unwrap();
    };
    // Every object is new, and every namespace makes its pods be looked at.
    let (mut add, mut update) = (2.0 + namespaces, 2.0);
    wait("the start", (add, update, 0.0));
    let change = |key: &str, value: &str| {
        mesh.node.api.change_object(Resource::Pods, "other", "p0", |object| {
            object["metadata"]["annotations"][key] = json!(value);
        });
    };
    // Also what is of no concern.
    change("example.com/a", "1");
    change("example.com/a", "2");
    update += 2.0;
    wait("changes of a pod", (add, update, 0.0));
    mesh.node.api.set_namespace("other", &[("team", "a")]);
    update += 1.0;
    wait("a label of a namespace that does not matter", (add, update, 0.0));
    mesh.node.api.set_namespace("other", &[(MODE, "ambient")]);
    update += 1.0 + 2.0;
    wait("one that does", (add, update, 0.0));
    mesh.node.api.set_namespace("new", &[(MODE, "ambient")]);
    add += 1.0;
    wait("a new namespace", (add, update, 0.0));
    mesh.delete(&pods[1]).unwrap();
    wait("a pod is deleted", (add, update, 1.0));
    // Verifications come and go meanwhile.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(all(), (add, update, 1.0));
}

/// As the original's commands do.
#[test]
fn the_version_is_printed() {
    let mesh = Mesh::new().unwrap();
    let run = |args: &[&str]| {
        let launch = args.iter().fold(mesh.node.agent().arg("version"), |launch, arg| launch.arg(arg));
        let output = launch.run().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, short) = run(&["--short"]);
    assert_eq!((code, short.lines().count()), (Some(0), 1));
    let (_, json) = run(&["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["clientVersion"]["version"], json!(short.trim_end()));
    assert!(run(&[]).1.starts_with("version.BuildInfo{Version:"));
    assert!(run(&["-o", "yaml"]).1.starts_with("clientVersion:\n"));
    assert_eq!(run(&["-o", "xml"]).0, Some(2));
}

/// Without a capability that ambient mode takes, no pod could come into the mesh: the agent is not ready, and pods count as what they are.
#[test]
fn an_agent_in_ambient_mode_without_rights_is_not_ready_and_says_what_it_lacks() {
    let cases = [
        ("-sys_admin", "auto"),
        ("-net_admin", "true"),
        ("-net_admin", "false"),
        ("-sys_admin,-net_admin,-sys_ptrace", "auto"),
    ];
    at_once(cases, |(rights, native)| {
        let mesh = Mesh::new().unwrap();
        let _pod = mesh.running("mesh", "web", &[]).unwrap();
        let wrapper = ["setpriv", &*format!("--bounding-set={rights}"), "--inh-caps=-all"];
        let agent = mesh.agent().env("NATIVE_NFTABLES", native).behind(&wrapper).start().unwrap();
        eventually("the pod is counted as one that the agent may not look at", PATIENCE, || {
            let series = "{mode=\"ambient\",reason=\"permission\",state=\"unverifiable\"}";
            let pods = agent.metric(&format!("istio_cni_pods_unverified{series}"))?;
            ensure!(pods == 1.0, "{rights}, {native}: {}", unverified(&agent)?);
            Ok(())
        })
        .unwrap();
        assert_all_are_counted(&agent.metrics().unwrap());
        let ready = agent.health("/readyz?verbose").unwrap();
        let says = "give the agent's container the capabilities NET_ADMIN, SYS_ADMIN and SYS_PTRACE";
        assert!(ready.status == 503 && ready.body.contains("[-]ambient failed"), "{}", ready.body);
        assert!(ready.body.contains(says), "{}", ready.body);
        agent.stop().unwrap();
    });
}
