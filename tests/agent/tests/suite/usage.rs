//! What tenants' pods send and receive, as it is counted, against the counters of their interfaces.

use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::probe;
use testkit::{Agent, Launch, NODE_NAME, PATIENCE, PodObject, TestNetns, eventually};
use usage::{USAGE_DIR, USAGE_STATE, UsageBook};

use crate::denials::wire;
use crate::tenants::tenant;

/// Each way, of a transfer.
const BYTES: usize = 1_000_000;
/// The node's own, one of a Service, and one that is outside of the cluster.
const NODE_ADDRESS: &str = "192.0.2.1";
const SERVICE_ADDRESS: &str = "10.96.0.10";
const OUTSIDE: &str = "203.0.113.9";

/// Two tenants that let each other pass, and a node that counts.
struct Counted {
    mesh: Mesh,
    /// What is outside of the cluster.
    outside: MeshPod,
    pods: Vec<CountedPod>,
    /// Bytes of interfaces that have gone.
    gone: u64,
}

/// A pod with addresses of both families.
struct CountedPod {
    pod: MeshPod,
    ip6: IpAddr,
    /// Bytes of its interface before anything was counted.
    before: u64,
}

fn spec(namespace: &str, other: &str) -> Value {
    let rule = json!([{"name": "other", "action": "Allow", "peers": [{"tenant": other}]}]);
    json!({"namespaces": [namespace], "defaults": {"external": "Allow", "unassigned": "Allow"},
        "networkPolicy": {"egressRules": rule, "ingressRules": rule}})
}

// === impl Counted ===

impl Counted {
    fn new() -> Self {
        let mesh = Mesh::new().unwrap();
        let api = &mesh.node.api;
        ["red-web", "blue-api", "free"].iter().for_each(|name| api.set_namespace(name, &[]));
        for (second, name, own, other) in [(1, "red", "red-web", "blue"), (2, "blue", "blue-api", "red")] {
            api.set_object(Resource::NetworkTenants, tenant(name, second, &spec(own, other)));
        }
        let addresses = json!([{"type": "InternalIP", "address": NODE_ADDRESS}]);
        let node = json!({"metadata": {"name": NODE_NAME}, "status": {"addresses": addresses}});
        api.set_object(Resource::Nodes, node);
        let service = json!({"metadata": {"name": "store", "namespace": "free"},
            "spec": {"clusterIP": SERVICE_ADDRESS, "clusterIPs": [SERVICE_ADDRESS], "ports": [{"port": 80}]}});
        api.set_object(Resource::Services, service);
        mesh.host.ip(&[format!("address add {NODE_ADDRESS}/32 dev lo")]).unwrap();
        let outside = mesh.sandbox("nowhere", "outside").unwrap();
        wire(&mesh, &outside);
        outside.netns.ip(&[format!("address add {OUTSIDE}/32 dev lo")]).unwrap();
        mesh.host.ip(&[format!("route add {OUTSIDE}/32 dev w-outside")]).unwrap();
        mesh.host.set_sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
        Self { mesh, outside, pods: Vec::new(), gone: 0 }
    }

    /// A pod starts. Where an agent runs, it is waited for until it is counted.
    fn add(&mut self, namespace: &str, name: &str, waits: bool) {
        let pod = self.mesh.sandbox(namespace, name).unwrap();
        wire(&self.mesh, &pod);
        let ip6: IpAddr =
            format!("fd09::{}", pod.ip.to_string().rsplit('.').next().unwrap()).parse().unwrap();
        let link = format!("w-{name}");
        self.mesh
            .host
            .ip(&[
                format!("address add fe80::1/64 dev {link} nodad"),
                format!("route add {ip6}/128 dev {link}"),
                format!("route replace {} dev {link} src {NODE_ADDRESS}", pod.ip),
            ])
            .unwrap();
        let own = [format!("address add {ip6}/128 dev eth0 nodad")];
        pod.netns.ip(&own).unwrap();
        pod.netns.ip(&["route add default via fe80::1 dev eth0"]).unwrap();
        self.mesh.run(&pod).unwrap();
        let object = PodObject::named(name).in_namespace(namespace).uid(&pod.uid).on_node(NODE_NAME);
        self.mesh.node.api.set_pod(object.running(&[pod.ip, ip6]));
        let mut one = CountedPod { pod, ip6, before: 0 };
        if waits && namespace != "free" {
            self.wait_for_counters(&one);
            one.before = interface(&one.pod.netns);
        }
        self.pods.push(one);
    }

    /// A pod ends, with its process and its sandbox.
    fn end(&mut self, name: &str) {
        let place = self.pods.iter().position(|one| one.pod.name == name).unwrap();
        let one = self.pods.remove(place);
        self.gone += interface(&one.pod.netns) - one.before;
        self.mesh.delete(&one.pod).unwrap();
    }

    fn start(&self, usage: &str) -> Agent {
        self.launch(usage).ready().unwrap()
    }

    fn launch(&self, usage: &str) -> Launch<'_> {
        let agent = self.mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on");
        let agent = agent.env("TENANTS_ENFORCEMENT", "on").env("POLICY_POINT", "node");
        agent.env("NATIVE_NFTABLES", "true").env("USAGE", usage).env("USAGE_INTERVAL", "1s")
    }

    /// An agent that follows another one, and has begun to read what that one counted.
    fn start_again(&self) -> Agent {
        let agent = self.start("on");
        let series = r#"istio_cni_tenant_usage_pod_seconds{counted="true"}"#;
        eventually("it goes on", PATIENCE, || {
            ensure!(agent.metric(series)? > 0.0);
            Ok(())
        })
        .unwrap();
        agent
    }

    fn pod(&self, name: &str) -> &CountedPod {
        self.pods.iter().find(|one| one.pod.name == name).unwrap()
    }

    fn dir(&self) -> PathBuf {
        self.mesh.node.state_dir().join(USAGE_DIR)
    }

    fn book(&self) -> Result<UsageBook> {
        let path = self.dir().join(USAGE_STATE);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(UsageBook::read_kept(&text)?)
    }

    fn wait_for_counters(&self, one: &CountedPod) {
        eventually("a pod is counted", PATIENCE, || {
            let is_known = self.book()?.pods().any(|key| *key.0 == *one.pod.uid);
            ensure!(is_known && has_table(&one.pod), "{} is not counted", one.pod.name);
            Ok(())
        })
        .unwrap();
    }

    /// Bytes that the interfaces of tenants' pods have told since they are counted.
    fn told(&self) -> u64 {
        let of_tenants = self.pods.iter().filter(|one| one.pod.namespace != "free");
        self.gone + of_tenants.map(|one| interface(&one.pod.netns) - one.before).sum::<u64>()
    }

    /// Transfers between two pods, by both families.
    fn between(&self, from: &str, to: &str) {
        let (from, to) = (self.pod(from), self.pod(to));
        for ip in [to.pod.ip, to.ip6] {
            transfer(&from.pod.netns, &to.pod.netns, ip);
        }
    }

    /// What `cnictl audit usage` tells.
    fn tool(&self, words: &str) -> (Option<i32>, String) {
        cnictl(&format!("audit usage {words} {}", self.dir().display()))
    }

    fn report(&self) -> Value {
        let (exit, text) = self.tool("-o json");
        assert!([Some(0), Some(3)].contains(&exit), "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

fn cnictl(words: &str) -> (Option<i32>, String) {
    let mut command = Command::new(testkit::programs().join("cnictl"));
    let output = command.args(words.split_whitespace()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    (output.status.code(), text(&output.stdout))
}

fn has_table(pod: &MeshPod) -> bool {
    pod.netns.nft_text().is_ok_and(|text| text.contains("istio-usage-raw"))
}

/// Bytes of both directions without headers of the link.
fn interface(netns: &TestNetns) -> u64 {
    netns.link_counters().unwrap().map(|(bytes, _)| bytes).iter().sum()
}

fn transfer(from: &TestNetns, to: &TestNetns, ip: IpAddr) {
    probe::transfer(from, to, ip, BYTES).unwrap();
}

/// Bytes of a tenant's rows for a class, out and in.
fn bytes(report: &Value, tenant: &str, peer: &str) -> [u64; 2] {
    ["egress", "ingress"].map(|direction| {
        let rows = report["rows"].as_array().unwrap().iter();
        let is_it =
            |row: &&Value| row["tenant"] == tenant && row["peer"] == peer && row["direction"] == direction;
        rows.filter(is_it).map(|row| row["bytes"].as_u64().unwrap()).sum()
    })
}

fn sum(report: &Value) -> u64 {
    report["rows"].as_array().unwrap().iter().map(|row| row["bytes"].as_u64().unwrap()).sum()
}

/// Pods come and go, an agent is killed and another one replaced: what is counted is what the interfaces say, to a thousandth, by who is at the other end.
/// Then nothing is counted any more, and what was is a line of a chain.
#[test]
fn what_is_counted_is_what_interfaces_say_whatever_restarts() {
    let seconds: Option<u32> = std::env::var("SOAK_SECONDS").ok().map(|text| text.parse().unwrap());
    let restarts: u32 = if seconds.is_some() { 20 } else { 3 };
    let pause = Duration::from_secs(seconds.unwrap_or_default().into()) / restarts;
    let mut run = Counted::new();
    let agent = run.start("on");
    for (namespace, name) in [("red-web", "ra"), ("blue-api", "ba"), ("free", "fa"), ("red-web", "rb0")] {
        run.add(namespace, name, true);
    }
    assert!(!has_table(&run.pod("fa").pod), "a pod of no tenant is not counted");
    let base = sum(&run.report());
    let host = &run.mesh.host;
    let ra = &run.pod("ra").pod;
    transfer(&ra.netns, &run.outside.netns, OUTSIDE.parse().unwrap());
    // As a service proxy does it.
    let fa = &run.pod("fa").pod;
    let to = format!("ip daddr {SERVICE_ADDRESS} dnat to {}", fa.ip);
    host.nft(&format!(
        "table ip proxy {{ chain pre {{ type nat hook prerouting priority -100; {to}; }}\n }}"
    ))
    .unwrap();
    transfer(&ra.netns, &fa.netns, SERVICE_ADDRESS.parse().unwrap());
    // Tenants do not reach their nodes, which reach them.
    transfer(host, &ra.netns, ra.ip);
    for to in ["ba", "fa", "rb0"] {
        run.between("ra", to);
    }
    let series = r#"istio_cni_tenant_bytes_total{direction="egress",peer_tenant="blue",tenant="red"}"#;
    eventually("metrics tell it", PATIENCE, || {
        ensure!(agent.metric(series)? > 2.0 * BYTES as f64);
        let connections = series.replace("bytes", "connections");
        ensure!(agent.metric(&connections)? == 2.0, "{}", agent.metric(&connections)?);
        Ok(())
    })
    .unwrap();
    // Traffic while no agent is there.
    agent.kill().unwrap();
    run.between("ba", "ra");
    let mut agent = run.start_again();
    for round in 0..restarts {
        run.between("ra", &format!("rb{round}"));
        run.end(&format!("rb{round}"));
        run.add("red-web", &format!("rb{}", round + 1), true);
        std::thread::sleep(pause);
        if round == restarts / 2 {
            agent.stop().unwrap();
            run.between("ra", "ba");
            agent = run.start_again();
        }
    }
    let last = format!("rb{restarts}");
    run.between(&last, "ra");
    let (mut report, mut told) = (Value::Null, 0);
    let agree = eventually("all is read", PATIENCE, || {
        (report, told) = (run.report(), run.told());
        let counted = sum(&report) - base;
        ensure!(counted.abs_diff(told) * 1000 <= told, "counted {counted}, the interfaces say {told}");
        Ok(())
    });
    println!(
        "counted {}, the interfaces say {told}, {restarts} pods and 2 agents restarted; coverage {}, incomplete {}",
        sum(&report) - base,
        report["coverage"],
        report["incomplete"]
    );
    agree.unwrap();
    assert!(report["coverage"].as_f64().unwrap() > 0.8 && report["incomplete"] == false, "{report}");
    let [out, back] = bytes(&report, "red", "tenant:blue");
    assert_eq!([back, out], bytes(&report, "blue", "tenant:red"), "both ends count the same");
    let one = BYTES as u64;
    for (peer, transfers) in
        [("tenant:blue", 6), ("unassigned", 2), ("node", 1), ("service", 1), ("external", 1)]
    {
        for bytes in bytes(&report, "red", peer) {
            // Headers and acknowledgements come to less than a tenth.
            assert!(bytes > transfers * one && bytes * 10 < transfers * one * 11, "{peer}: {bytes}");
        }
    }
    is_told_and_left(&run, agent);
}

/// The tool's forms, and the end of counting.
fn is_told_and_left(run: &Counted, agent: Agent) {
    let (exit, table) = run.tool("--tenant red --peer blue");
    println!("{table}");
    assert!(exit == Some(0) && table.contains("tenant:blue") && table.contains("coverage"), "{table}");
    let (exit, csv) = run.tool("--tenant blue --by-hour -o csv");
    assert!(exit == Some(0) && csv.starts_with("hour,tenant,peer,direction,bytes"), "{csv}");
    assert_eq!(run.tool("--tenant green"), (Some(3), String::new()));
    let before = sum(&run.report());
    agent.stop().unwrap();
    let agent = run.start("off");
    eventually("nothing counts any more", PATIENCE, || {
        ensure!(!run.pods.iter().any(|one| has_table(&one.pod)) && !run.dir().join(USAGE_STATE).exists());
        Ok(())
    })
    .unwrap();
    let metrics = agent.metrics().unwrap();
    assert!(!metrics.shapes().iter().any(|one| one.starts_with("istio_cni_tenant_bytes")));
    assert_eq!(sum(&run.report()), before, "the hour is a line of its file");
    // One, or two around midnight.
    let files = run.dir().read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|file| !file.ends_with("usage-left.json")).collect();
    files.sort();
    assert!(files.iter().all(|file| file.extension().is_some_and(|end| end == "jsonl")), "{files:?}");
    let mut verify = Command::new(testkit::programs().join("cnictl"));
    let verified = verify.args(["audit", "verify"]).args(&files).output().unwrap();
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    agent.stop().unwrap();
    // The directory of the node's agent is the one that it is told.
    let mut own = Command::new(testkit::programs().join("cnictl"));
    let own = own.args(["audit", "usage", "-o", "csv"]).env("STATE_DIR", run.mesh.node.state_dir()).output();
    assert_eq!(String::from_utf8(own.unwrap().stdout).unwrap(), run.tool("-o csv").1);
    // On again, most times in the same hour: what was counted before stays.
    let agent = run.start_again();
    let (after, lines) = (sum(&run.report()), run.tool("--by-hour -o csv").1);
    assert!(run.book().is_ok() && after >= before, "{before} before, {after} after: {lines}");
    agent.stop().unwrap();
}

/// A pod's namespace goes to another tenant, somebody takes the counters away, a pod ends while no agent is there: each byte is counted for the tenant that
/// had it, and what is missing is said.
#[test]
fn what_is_missing_is_said() {
    let mut run = Counted::new();
    let agent = run.start("on");
    run.add("red-web", "ra", true);
    run.add("blue-api", "ba", true);
    run.between("ra", "ba");
    let is_read = |run: &Counted, tenant: &str, least: u64| {
        eventually("it is read", PATIENCE, || {
            let report = run.report();
            let [out, back] = bytes(&report, tenant, "tenant:blue");
            ensure!(out.min(back) > least, "{report}");
            Ok(())
        })
        .unwrap();
    };
    is_read(&run, "red", 2 * BYTES as u64);
    assert_eq!(run.report()["incomplete"], false);
    // The namespace is green's now.
    run.mesh.node.api.delete_object(Resource::NetworkTenants, "", "red");
    run.mesh.node.api.set_object(Resource::NetworkTenants, tenant("green", 3, &spec("red-web", "blue")));
    let both = spec("blue-api", "green");
    run.mesh.node.api.set_object(Resource::NetworkTenants, tenant("blue", 2, &both));
    let of_red = bytes(&run.report(), "red", "tenant:blue");
    eventually("the pod is green's", PATIENCE, || {
        let text = std::fs::read_to_string(run.dir().join(USAGE_STATE))?;
        ensure!(text.contains(r#""name":"red-web/ra","tenant":"green""#), "{text}");
        Ok(())
    })
    .unwrap();
    run.between("ra", "ba");
    is_read(&run, "green", 2 * BYTES as u64);
    let of_red_now = bytes(&run.report(), "red", "tenant:blue");
    for (now, before) in of_red_now.into_iter().zip(of_red) {
        assert!(now >= before && now < before + BYTES as u64, "{before} {now}");
    }
    assert_eq!(run.report()["incomplete"], false);
    // Somebody takes the table.
    run.pod("ra").pod.netns.nft("delete table inet istio-usage-raw").unwrap();
    eventually("it is made again, and said", PATIENCE, || {
        ensure!(has_table(&run.pod("ra").pod) && run.report()["incomplete"] == true);
        Ok(())
    })
    .unwrap();
    run.between("ra", "ba");
    is_read(&run, "green", 4 * BYTES as u64);
    // A pod ends while no agent is there.
    agent.kill().unwrap();
    run.end("ba");
    let agent = run.start("on");
    eventually("the pod is not known any more", PATIENCE, || {
        ensure!(run.book()?.pods().count() == 1);
        let lines = run.book()?.lines();
        ensure!(lines.iter().any(|line| &*line.tenant == "blue" && line.incomplete), "{lines:?}");
        Ok(())
    })
    .unwrap();
    agent.stop().unwrap();
}

/// What is denied between tenants is told with both, found by both, and in the reports of both.
#[test]
fn what_is_denied_between_tenants_names_both() {
    let mut run = Counted::new();
    for (second, name, namespace) in [(1, "red", "red-web"), (2, "blue", "blue-api")] {
        let object = tenant(name, second, &json!({"namespaces": [namespace]}));
        run.mesh.node.api.set_object(Resource::NetworkTenants, object);
    }
    let log = run.mesh.node.state_dir().join("log/audit.jsonl");
    let agent = run.launch("on").env("AUDIT_LOG", log.to_str().unwrap()).env("AUDIT_WINDOW", "1s");
    let agent = agent.ready().unwrap();
    run.add("red-web", "ra", true);
    run.add("blue-api", "ba", true);
    let (ra, ba) = (&run.pod("ra").pod, &run.pod("ba").pod);
    let file = format!("--file {}", log.display());
    let mut text = String::new();
    eventually("it is denied and written", PATIENCE, || {
        let to = (ba.ip, 8080).into();
        let sent = ra.netns.enter(|_| TcpStream::connect_timeout(&to, Duration::from_millis(300)));
        ensure!(sent.unwrap().is_err());
        let exit;
        (exit, text) = cnictl(&format!("audit query --tenant red --peer blue -o jsonl {file}"));
        ensure!(exit == Some(0), "{exit:?}");
        Ok(())
    })
    .unwrap();
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let end = |side: &str| {
        ["tenant", "pod_name", "pod_uid"].map(|key| line[side][key].as_str().unwrap().to_owned())
    };
    assert_eq!(end("source"), ["red", "ra", &ra.uid]);
    assert_eq!(end("destination"), ["blue", "ba", &ba.uid]);
    assert_eq!(cnictl(&format!("audit query --tenant blue --peer red {file}")).0, Some(0));
    assert_eq!(cnictl(&format!("audit query --tenant red --peer green {file}")).0, Some(3));
    let (_, top) = cnictl(&format!("audit top --by tenant {file}"));
    assert!(top.contains("red to blue"), "{top}");
    let report =
        |words: &str| cnictl(&format!("audit report --usage {} {file} {words}", run.dir().display()));
    let (exit, table) = report("--tenant red");
    println!("{table}");
    assert!(exit == Some(0) && table.contains("tenant:blue") && !table.contains("blue-api/ba"), "{table}");
    assert!(report("--tenant red --reveal").1.contains("blue-api/ba"));
    let (_, of_blue) = report("--tenant blue -o json");
    let of_blue: Value = serde_json::from_str(&of_blue).unwrap();
    let violation = &of_blue["violations"][0];
    assert_eq!((&violation["direction"], &violation["peer_tenant"]), (&json!("ingress"), &json!("red")));
    assert!(violation["denied"].as_u64().unwrap() > 0, "{of_blue}");
    assert!(report("--tenant red -o csv").1.contains("violation,egress,tenant:blue,,,,"));
    assert_eq!(report("--tenant green").0, Some(3));
    agent.stop().unwrap();
}
