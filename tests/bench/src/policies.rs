//! Network policies on a node of a large cluster: 10,000 pods in 200 namespaces, 1,000 policies, 110 pods of this node, 100,000 addresses in groups.
//!
//! An agent works as on a node; when something is in force is heard from the kernel. Beside what comes from a change in the API server there is what
//! the kernel alone takes for the same elements.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernel::KeptSockets;
use kernel::nft::{PartedTable, Thoroughness};
use netns::{Host, Netns};
use podsource::AgentSource;
use ruleset::{
    Contents, Element, Family, Key, KeyType, Ruleset, Set, SetDelta, Table, TableDelta, TableKind,
};
use rundir::policy::PrepareRequest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::{Agent, Launch, NODE_NAME, PodCall, PodObject, TestNetns};

use crate::agent::{SETTLE, processor_time, processor_times, resident};
use crate::ambient::wait_for;
use crate::measures::{Measure, namespace};
use crate::report::Report;
use crate::sample::{Samples, time};

pub(crate) const ALL: &[Measure] = &[
    Measure { name: "policies: an ADD", run: adds },
    Measure { name: "policies: a large cluster", run: large },
    Measure { name: "policies: ten times as large a cluster", run: larger },
];

const NAMESPACES: usize = 200;
const PODS_EACH: usize = 50;
const POLICIES_EACH: usize = 5;
/// Of each of the first namespaces so many pods are on this node.
const LOCAL_NAMESPACES: usize = 11;
const LOCAL_EACH: usize = 10;
/// Labels of each pod, with values that divide all pods in four: a group for each value of each label.
const LABELS: usize = 10;
const VALUES: usize = 4;
/// Without a transaction for so long nothing more comes of an event.
const QUIET: Duration = Duration::from_millis(25);
/// How long anything here may take.
const LONGEST: Duration = Duration::from_secs(60);
/// How often something happens in a busy cluster.
const CHURN: Duration = Duration::from_millis(50);
/// How long that is watched.
const WATCHED: Duration = Duration::from_secs(10);
/// Events whose work is measured together: a single one takes too little.
const EVENTS: usize = 100;

/// A node in a cluster.
struct Scene {
    mesh: Mesh,
}

/// What is heard of transactions in the node's namespace.
pub(crate) struct Commits(KeptSockets);

fn group(label: usize, value: usize) -> Value {
    json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {format!("k{label}"): format!("v{value}")}}})
}

/// A pod of the cluster; `turned`: all of its labels have other values.
fn pod(number: usize, turned: usize) -> Value {
    let (namespace, in_it) = (number / PODS_EACH, number % PODS_EACH);
    let is_local = namespace < LOCAL_NAMESPACES && in_it < LOCAL_EACH;
    let object = PodObject::named(&format!("pod-{number}")).in_namespace(&format!("ns-{namespace}"));
    let object = object.uid(&format!("uid-{number}")).on_node(if is_local { NODE_NAME } else { "n2" });
    let mut object = object.label("app", &format!("a{}", in_it % POLICIES_EACH));
    for label in 0..if namespace < NAMESPACES { LABELS } else { 0 } {
        let value = (number / (label + 1) + label * in_it + turned) % VALUES;
        object = object.label(&format!("k{label}"), &format!("v{value}"));
    }
    object.running(&[address(number)]).json()
}

fn address(number: usize) -> IpAddr {
    // As many as fit into a network of cluster size.
    Ipv4Addr::from(0x0a40_0000 + u32::try_from(number).unwrap_or(u32::MAX)).into()
}

/// A policy of a namespace: seven of ten by selectors, the others by blocks, each second one also for what leaves. Those of the node's namespaces are
/// about groups of the whole cluster.
fn policy(namespace: usize, number: usize) -> Value {
    let at = namespace * POLICIES_EACH + number;
    let peer = |shift: usize| match at % 10 {
        0..7 if namespace < LOCAL_NAMESPACES => {
            let number = (3 * at + 13 * shift) % (LABELS * VALUES);
            group(number / VALUES, number % VALUES)
        }
        0..7 => {
            json!({"podSelector": {"matchLabels": {"app": format!("a{}", (number + shift) % POLICIES_EACH)}}})
        }
        _ => json!({"ipBlock": {"cidr": format!("198.18.{}.0/24", (at + shift) % 256)}}),
    };
    let mut spec = json!({"podSelector": {"matchLabels": {"app": format!("a{number}")}},
        "policyTypes": ["Ingress"], "ingress": [{"from": [peer(0), peer(1), peer(3)], "ports": [{"port": 8080}]}]});
    if at.is_multiple_of(2) {
        spec["policyTypes"] = json!(["Ingress", "Egress"]);
        spec["egress"] = json!([{"to": [peer(2)], "ports": [{"port": 8080}]}]);
    }
    let (name, of) = (format!("p-{number}"), format!("ns-{namespace}"));
    json!({"metadata": {"name": name, "namespace": of, "uid": format!("{of}-{name}")}, "spec": spec})
}

// === impl Scene ===

impl Scene {
    /// With so many times as many pods and policies; what comes on top is in namespaces of its own.
    fn new(times: usize) -> Result<Self> {
        let mesh = Mesh::new()?;
        let api = &mesh.node.api;
        for namespace in 0..NAMESPACES * times {
            api.set_namespace(&format!("ns-{namespace}"), &[]);
            (0..POLICIES_EACH)
                .for_each(|number| api.set_object(Resource::NetworkPolicies, policy(namespace, number)));
        }
        (0..NAMESPACES * PODS_EACH * times).for_each(|number| api.set_pod(pod(number, 0)));
        Ok(Self { mesh })
    }

    fn agent(&self, enforcement: &str) -> Launch<'_> {
        self.mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", enforcement)
    }

    /// A pod of another node has other labels: it leaves ten groups and comes to ten others.
    fn turn(&self, event: usize) {
        let number = LOCAL_NAMESPACES * PODS_EACH + event % (PODS_EACH * 100);
        self.mesh.node.api.set_pod(pod(number, 1 + event / (PODS_EACH * 100)));
    }

    fn commits(&self) -> Result<Commits> {
        Commits::of(&self.mesh)
    }

    /// What the agent's threads use for some events, each carried out before the next: of an event.
    fn work(&self, agent: &Agent, commits: &mut Commits, round: usize) -> Result<Duration> {
        let used = |agent: &Agent| Ok::<u64, anyhow::Error>(processor_times(agent)?.values().sum());
        let before = used(agent)?;
        for event in 0..EVENTS {
            self.turn(round * EVENTS + event);
            commits.settled()?;
        }
        Ok(Duration::from_nanos((used(agent)? - before) / EVENTS as u64))
    }
}

// === impl Commits ===

impl Commits {
    /// In the node's namespace.
    pub(crate) fn of(mesh: &Mesh) -> Result<Self> {
        Ok(Self(KeptSockets::open(&Arc::new(Netns::open(mesh.host.path())?))?))
    }

    /// When the last of the transactions was heard of that come now.
    pub(crate) fn settled(&mut self) -> Result<Instant> {
        let end = Instant::now() + LONGEST;
        let mut last = None;
        while last.is_none_or(|last: Instant| last.elapsed() < QUIET) {
            ensure!(Instant::now() < end, "nothing was written");
            let quiet = Timespec { tv_sec: 0, tv_nsec: QUIET.subsec_nanos().into() };
            let heard = poll(
                &mut self.0.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
                Some(&quiet),
            )?;
            let now = Instant::now();
            if heard > 0 && !self.0.take_events()?.commits.is_empty() {
                last = Some(now);
            }
        }
        last.context("nothing was written")
    }

    /// Forgets what was heard.
    pub(crate) fn forget(&mut self) -> Result<()> {
        std::thread::sleep(QUIET);
        self.0.take_events().map(drop)?;
        Ok(())
    }
}

/// An ADD with policies and one without, in turn. Policies of ten classes select the pods.
fn adds(runs: usize, report: &mut Report) -> Result<()> {
    const CLASSES: usize = 10;
    let scenes = [Mesh::new()?, Mesh::new()?];
    let mut agents = Vec::new();
    for (mesh, enforcement) in scenes.iter().zip(["on", "off"]) {
        for class in 0..CLASSES {
            let policy = json!({"metadata": {"name": format!("c-{class}"), "namespace": "default"}, "spec": {
                "podSelector": {"matchLabels": {"app": format!("c{class}")}}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [group(class, 0)]}], "egress": [{"to": [group(class, 1)]}]}});
            mesh.node.api.set_object(Resource::NetworkPolicies, policy);
        }
        for number in 0..runs {
            let object = PodObject::named(&format!("web-{number}")).sidecar().uid(&format!("uid-{number}"));
            mesh.node.api.set_pod(object.label("app", &format!("c{}", number % CLASSES)).on_node(NODE_NAME));
        }
        let agent =
            mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", enforcement).ready()?;
        wait_for("the agent knows all pods", || Ok(agent.metric("istio_cni_pods")? as usize == runs))?;
        agents.push(agent);
    }
    let snapshot = scenes[0].node.state_dir().join("policies.snapshot");
    wait_for("policies are on disk", || {
        Ok(std::fs::read_to_string(&snapshot).is_ok_and(|text| text.contains("c-9")))
    })?;
    let (mut with, mut without, mut questions) = (Samples::default(), Samples::default(), Samples::default());
    for number in 0..runs {
        for (mesh, samples) in scenes.iter().zip([&mut with, &mut without]) {
            let netns = namespace()?;
            let call =
                PodCall::new(&mesh.node, &format!("web-{number}"), &format!("uid-{number}"), netns.path())?;
            let call = call.at(address(number));
            let (mut command, stdin) = call.command("ADD");
            samples.push(time(&mut command, &stdin)?);
        }
        questions.push(question(&scenes[0], number, CLASSES)?);
    }
    report.cost(
        "policies: an ADD of an isolated pod : without enforcement",
        &with,
        &without,
        Duration::from_micros(600),
    );
    report.time(
        "policies: the plugin's question of an ADD, p50",
        questions.median(),
        Duration::from_micros(600),
    );
    report.time(
        "policies: the plugin's question of an ADD, p99",
        questions.quantile(0.99),
        Duration::from_millis(3),
    );
    Ok(())
}

/// What a plugin asks for a pod whose addresses nobody knows.
fn question(mesh: &Mesh, number: usize, classes: usize) -> Result<Duration> {
    let netns = TestNetns::new()?;
    let labels = [("app".to_owned(), format!("c{}", number % classes))];
    let request = PrepareRequest {
        uid: format!("uid-{number}"),
        namespace: "default".into(),
        name: format!("web-{number}"),
        container: format!("c0ffee-{number}"),
        labels: Some(labels.into()),
        addresses: vec![address(20_000 + number)],
        interface: "eth0".into(),
        ..PrepareRequest::default()
    };
    let agent = AgentSource::new(&mesh.node.run_dir(), "bench");
    let start = Instant::now();
    let answer = agent.prepare(&request, netns.netns().as_fd(), Duration::from_secs(1))?;
    let took = start.elapsed();
    ensure!(answer.in_force && answer.isolation.ingress, "{answer:?}");
    Ok(took)
}

fn large(runs: usize, report: &mut Report) -> Result<()> {
    let scene = Scene::new(1)?;
    let off = scene.agent("off").ready()?;
    std::thread::sleep(SETTLE);
    let without = resident(&off)?;
    off.stop()?;
    let start = Instant::now();
    let agent = scene.agent("on").ready()?;
    report.time(
        "policies: start of the agent until all is in force",
        start.elapsed(),
        Duration::from_secs(3),
    );
    let elements = elements(&scene.mesh.host)?;
    eprintln!("  {elements} elements");
    ensure!(elements >= 99_000, "only {elements} elements");
    std::thread::sleep(SETTLE);
    let with = resident(&agent)?.saturating_sub(without);
    report.size("policies: memory of the agent, beside one that enforces none", with, 10_000_000);
    let mut commits = scene.commits()?;
    events(&scene, &mut commits, runs, report)?;
    created(&scene, &mut commits, runs.min(50), report)?;
    let before = processor_time(&agent)?;
    let (began, mut event) = (Instant::now(), 0);
    while began.elapsed() < WATCHED {
        scene.turn(10_000 + event);
        event += 1;
        std::thread::sleep(CHURN.saturating_mul(event as u32).saturating_sub(began.elapsed()));
    }
    let used = processor_time(&agent)?.saturating_sub(before);
    report.share(
        "policies: 20 events of pods in a second, of a core",
        used.as_secs_f64() / began.elapsed().as_secs_f64(),
        0.02,
    );
    agent.stop()?;
    report.size("policies: memory of the kernel", kernel_memory(&scene.mesh.host)?, 20_000_000);
    Ok(())
}

/// From the change in the API server until the kernel has all of it; and what the kernel takes for the same elements.
fn events(scene: &Scene, commits: &mut Commits, runs: usize, report: &mut Report) -> Result<()> {
    let mut floor = Floor::new()?;
    let (mut ours, mut base) = (Samples::default(), Samples::default());
    commits.forget()?;
    for event in 0..runs {
        let start = Instant::now();
        scene.turn(event);
        ours.push(commits.settled()?.saturating_duration_since(start));
        base.push(floor.event(event)?);
    }
    let text = "policies: a pod's event in 20 groups, from the API server to the kernel";
    report.time(&format!("{text}, p50"), ours.median(), Duration::from_micros(500));
    report.time(&format!("{text}, p99"), ours.quantile(0.99), Duration::from_millis(5));
    report.time("policies: the elements of such an event alone, p50", base.median(), None);
    report.time("policies: the elements of such an event alone, p99", base.quantile(0.99), None);
    Ok(())
}

/// A policy that isolates pods of this node comes and goes.
fn created(scene: &Scene, commits: &mut Commits, runs: usize, report: &mut Report) -> Result<()> {
    let mut samples = Samples::default();
    for run in 0..runs {
        let namespace = format!("ns-{}", run % LOCAL_NAMESPACES);
        let policy = json!({"metadata": {"name": "new", "namespace": namespace, "uid": format!("new-{run}")}, "spec": {
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [group(run % LABELS, 0), {"ipBlock": {"cidr": "198.19.0.0/16"}}]}]}});
        let start = Instant::now();
        scene.mesh.node.api.set_object(Resource::NetworkPolicies, policy);
        samples.push(commits.settled()?.saturating_duration_since(start));
        scene.mesh.node.api.delete_object(Resource::NetworkPolicies, &namespace, "new");
        commits.settled()?;
    }
    let text = "policies: a policy for ten pods, from the API server to the kernel";
    report.time(&format!("{text}, p50"), samples.median(), Duration::from_millis(5));
    report.time(&format!("{text}, p99"), samples.quantile(0.99), Duration::from_millis(25));
    Ok(())
}

/// What an event costs does not grow with the cluster.
fn larger(_: usize, report: &mut Report) -> Result<()> {
    let mut spent = Vec::new();
    for times in [1, 10] {
        let scene = Scene::new(times)?;
        let agent = scene.agent("on").ready()?;
        std::thread::sleep(SETTLE);
        let mut commits = scene.commits()?;
        let mut samples = Samples::default();
        for round in 0..5 {
            samples.push(scene.work(&agent, &mut commits, round)?);
        }
        if times > 1 {
            report.size(
                "policies: RSS of the agent, 100,000 pods and 10,000 policies",
                resident(&agent)?,
                60_000_000,
            );
        }
        spent.push(samples);
    }
    let [small, large] = &spent[..] else { unreachable!("there are two") };
    report.ratio("policies: processor time of an event, 100,000 pods : 10,000", large, small, 1.2);
    Ok(())
}

/// How many elements the table of policies has, by what nft lists.
fn elements(host: &TestNetns) -> Result<usize> {
    let text = host.run(Command::new("nft").args(["-j", "list", "table", "inet", "istio-policy-mangle"]))?;
    let listed: Value = serde_json::from_str(&text)?;
    let objects = listed["nftables"].as_array().context("no list")?;
    let count = |kind: &str| -> usize {
        objects.iter().filter_map(|one| one.get(kind)?["elem"].as_array().map(Vec::len)).sum()
    };
    Ok(count("set") + count("map"))
}

/// What goes when the table goes.
pub(crate) fn kernel_memory(host: &TestNetns) -> Result<u64> {
    let used = || -> Result<u64> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0)
        };
        Ok((field("Slab:") + field("VmallocUsed:") + field("Percpu:")) * 1024)
    };
    let before = used()?;
    host.nft("delete table inet istio-policy-mangle")?;
    // Elements are freed after a grace period of the kernel's.
    std::thread::sleep(SETTLE);
    Ok(before.saturating_sub(used()?))
}

/// Sets as those of the groups, without an agent.
struct Floor {
    _netns: TestNetns,
    table: PartedTable,
}

impl Floor {
    fn new() -> Result<Self> {
        let netns = TestNetns::new()?;
        let sets: Vec<Set> =
            (0..2 * LABELS).map(|set| Set::kept(name(set), KeyType::Address(Family::V4))).collect();
        let mut contents = Contents::default();
        for set in 0..2 * LABELS {
            let members =
                (0..NAMESPACES * PODS_EACH / VALUES).map(|number| Element::from(Key::from(address(number))));
            let mut delta = SetDelta::default();
            members.for_each(|member| delta.add(member));
            contents.apply(&name(set), &delta);
        }
        let table = Table { kind: TableKind::Mangle, sets, chains: Vec::new() };
        let wanted = Ruleset {
            owner: "bench".into(),
            known_chains: Vec::new().into(),
            ipv6: true,
            tables: vec![table],
        };
        let table = Host::open(netns.path())?.enter(|inside| -> Result<PartedTable> {
            let mut table = PartedTable::open(inside, "bench", TableKind::Mangle)?;
            table.ensure(&wanted, &contents, Thoroughness::Everything)?;
            Ok(table)
        })??;
        Ok(Self { _netns: netns, table })
    }

    /// An address comes to ten sets, and leaves ten others.
    fn event(&mut self, event: usize) -> Result<Duration> {
        let (mut gains, mut losses) = (TableDelta::default(), TableDelta::default());
        let new = Key::from(address(50_000 + event));
        (0..LABELS).for_each(|set| gains.of(name(set)).add(new));
        (LABELS..2 * LABELS).for_each(|set| losses.of(name(set)).remove(Key::from(address(event))));
        let start = Instant::now();
        self.table.change(&gains)?;
        self.table.change(&losses)?;
        Ok(start.elapsed())
    }
}

fn name(set: usize) -> String {
    format!("group-{set}")
}
