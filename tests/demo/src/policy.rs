//! Network policies: pods that only friends may reach, one behind a sidecar and one in ambient mode, from their first packet on.
//!
//! ```text
//!   [ pod ]    ── veth ──┐
//!   [ client ] ── veth ── [ node ] ── veth ── [ world ]
//! ```
//!
//! What counts is which connections arrive. By a node port the world comes with the node's own address, as kubelet does.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::probe::{Flow, Listener, Listeners, Outcome};
use testkit::ztunnel::Ztunnel;
use testkit::{Agent, PATIENCE, PodCall, PodObject, TestNetns, eventually};

use crate::backend::Backend;
use crate::expectations::{APP, INBOUND};
use crate::removal;
use testkit::wires::{self, GATEWAY, NODE};

/// A packet that is dropped costs the whole of it.
const DENIED_AFTER: Duration = Duration::from_millis(150);
/// The same where it is tried again and again.
const NEXT_TRY: Duration = Duration::from_millis(20);
/// The longest from a label to the first connection that it allows.
const AT_ONCE: Duration = Duration::from_secs(1);
/// By which source a pod in the mesh tells probes.
const PROBE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 7, 127));
/// The policy that selects both pods.
const POLICY: &str = "only-friends";
/// What of it fails for the client before it has the label, and what lets it in with it.
const MISSED: &str = "default/only-friends ingress[0]: peer failed";
const MATCHED: &str = "allowed: by default/only-friends ingress[0] from[0] ports[0]";
/// Its label of those who may come in.
const FRIEND: (&str, &str) = ("role", "friend");
/// The port of the node that leads to the client, which no policy selects.
const OPEN_NODE_PORT: u16 = 30080;

/// What was observed.
#[derive(Debug, Serialize)]
pub(crate) struct PolicyReport {
    pub(crate) backend: Backend,
    pub(crate) pods: Vec<PolicedPod>,
    /// What `cnictl` says of the client's connection to the first pod, before the label and after it.
    pub(crate) explained: Vec<Explained>,
    /// Where a connection from the world by a node port came from in the eyes of a pod that no policy selects.
    pub(crate) node_port_source: IpAddr,
    pub(crate) problems: Vec<String>,
}

/// A command, and what it printed.
#[derive(Debug, Serialize)]
pub(crate) struct Explained {
    pub(crate) command: String,
    pub(crate) text: String,
}

/// A pod that a policy selects.
#[derive(Debug, Serialize)]
pub(crate) struct PolicedPod {
    pub(crate) pod: String,
    pub(crate) mode: &'static str,
    /// What became of a connection as soon as the ADD was over.
    pub(crate) first: String,
    /// Of one from the node, as kubelet's probes.
    pub(crate) kubelet: String,
    /// Of one from the world by a port of the node, which comes to the pod with the same source.
    pub(crate) node_port: String,
    /// Of one from the client, once it had the label.
    pub(crate) labelled: String,
    pub(crate) labelled_ms: f64,
}

/// Everything that runs.
struct Scene {
    mesh: Mesh,
    agent: Agent,
    world: TestNetns,
    client: MeshPod,
    _client: Listeners,
    ztunnel: Ztunnel,
}

/// Plays it.
///
/// # Errors
/// A step could not be done.
pub(crate) fn run(programs: &Path, backend: Backend) -> Result<PolicyReport> {
    testkit::use_programs(programs);
    let scene = Scene::new(backend)?;
    let mut namespaces = vec![removal::inode(&scene.client.netns)?, removal::inode(&scene.world)?];
    let mut problems = Vec::new();
    let (mut pods, mut started) = (Vec::new(), Vec::new());
    for (number, mode) in (1_u16..).zip(["sidecar", "ambient"]) {
        let (pod, report) = scene.start(mode, OPEN_NODE_PORT + number, &mut problems)?;
        namespaces.push(removal::inode(&pod.0.netns)?);
        started.push(pod);
        pods.push(report);
    }
    let asked = started.first().map(|(pod, _)| &*pod.name).context("no pod was started")?;
    let mut explained = vec![scene.explain(asked, &["denied: no rule matches", MISSED], &mut problems)?];
    let labelled = Instant::now();
    scene.label_client(&[FRIEND]);
    for ((pod, _), report) in started.iter().zip(&mut pods) {
        scene.look_labelled(pod, labelled, report, &mut problems)?;
    }
    explained.push(scene.explain(asked, &[MATCHED], &mut problems)?);
    let node_port_source = scene.node_port_source()?;
    if node_port_source != IpAddr::V4(GATEWAY) {
        problems
            .push(format!("by a node port the world has to come as the node, it came as {node_port_source}"));
    }
    drop(started);
    problems.extend(scene.end()?);
    problems.extend(removal::holders(&namespaces)?);
    Ok(PolicyReport { backend, pods, explained, node_port_source, problems })
}

// === impl PolicyReport ===

impl PolicyReport {
    /// How many did what they have to: four of each pod, and the one of the client's node port.
    pub(crate) fn connections(&self) -> usize {
        if self.problems.is_empty() { 4 * self.pods.len() + 1 } else { 0 }
    }
}

// === impl Scene ===

impl Scene {
    fn new(backend: Backend) -> Result<Self> {
        let (mesh, world) = (Mesh::new()?, TestNetns::new()?);
        wires::connect_world(&mesh, &world)?;
        let client = mesh.running("default", "client", &[])?;
        wires::connect_pod(&mesh, &client, "client")?;
        mesh.node.api.set_object(Resource::NetworkPolicies, policy());
        // What a service proxy does where the client's address is not kept.
        mesh.host.nft(
            "table ip proxy { chain in { type nat hook prerouting priority dstnat; }
             chain out { type nat hook postrouting priority srcnat; ct status dnat masquerade; }; }",
        )?;
        let native = if backend == Backend::Nftables { "true" } else { "false" };
        let agent = mesh.agent().env("NATIVE_NFTABLES", native).env("POLICY_ENFORCEMENT", "on").ready()?;
        let ztunnel = mesh.ztunnel()?;
        ztunnel.wait_snapshot(PATIENCE)?;
        let listeners = Listeners::start(&client.netns, [Listener::tcp(APP)])?;
        let scene = Self { mesh, agent, world, client, _client: listeners, ztunnel };
        scene.open_node_port(OPEN_NODE_PORT, &scene.client)?;
        Ok(scene)
    }

    /// A port of the node that leads to a pod.
    fn open_node_port(&self, port: u16, pod: &MeshPod) -> Result<()> {
        let to = SocketAddr::new(pod.ip, APP);
        self.mesh.host.nft(&format!("add rule ip proxy in iifname uplink tcp dport {port} dnat to {to}"))
    }

    /// A pod starts, and is connected to at once.
    fn start(
        &self,
        mode: &'static str,
        node_port: u16,
        problems: &mut Vec<String>,
    ) -> Result<((MeshPod, Listeners), PolicedPod)> {
        let pod = self.mesh.sandbox("default", mode)?;
        wires::connect_pod(&self.mesh, &pod, mode)?;
        self.open_node_port(node_port, &pod)?;
        let object = object(&pod, mode);
        self.mesh.node.api.set_pod(object);
        // In place of the application, of the sidecar and of ztunnel.
        let listeners = Listeners::start(&pod.netns, [Listener::tcp(APP), Listener::tcp(INBOUND)])?;
        PodCall::new(&self.mesh.node, &pod.name, &pod.uid, pod.netns.path())?.at(pod.ip).add()?;
        let to = SocketAddr::new(pod.ip, APP);
        let first = Flow::from(&self.client.netns).patience(DENIED_AFTER).tcp(to)?;
        let by_port = SocketAddr::new(NODE.into(), node_port);
        let by_port = Flow::from(&self.world).patience(DENIED_AFTER).tcp(by_port)?;
        for (what, outcome) in [("the first packet", &first), ("one by a node port", &by_port)] {
            if !matches!(outcome, Outcome::TimedOut) {
                problems.push(format!("{mode}: {what} has to be dropped, it {outcome}"));
            }
        }
        let arrived = listeners.take_records().len();
        if arrived > 0 {
            problems.push(format!("{mode}: {arrived} connections came in that the policy denies"));
        }
        let kubelet = Flow::from(&self.mesh.host).tcp(to)?;
        let source = kubelet.arrival().map(|arrival| arrival.peer.ip());
        let expected = if mode == "ambient" { PROBE } else { IpAddr::V4(GATEWAY) };
        if source != Some(expected) {
            problems.push(format!("{mode}: the node has to reach it from {expected}, it {kubelet}"));
        }
        let report = PolicedPod {
            pod: format!("default/{}", pod.name),
            mode,
            first: shown(&first),
            kubelet: shown(&kubelet),
            node_port: shown(&by_port),
            labelled: String::new(),
            labelled_ms: 0.0,
        };
        Ok(((pod, listeners), report))
    }

    /// Asks the agent, by `cnictl`, of the client's connection to a pod. `wanted` has to be in the answer.
    fn explain(&self, pod: &str, wanted: &[&str], problems: &mut Vec<String>) -> Result<Explained> {
        let words =
            format!("policy explain --from default/{} --to default/{pod} --port {APP}", self.client.name);
        let mut command = Command::new(testkit::programs().join("cnictl"));
        command.args(words.split(' ')).arg("--net-dir").arg(self.mesh.node.net_dir());
        let output = self.mesh.host.output(&mut command)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !wanted.iter().all(|wanted| text.contains(wanted)) || !text.contains("evidence: the agent") {
            let error = String::from_utf8_lossy(&output.stderr);
            problems.push(format!("cnictl {words} has to say {}, it said {text}{error}", wanted.join(", ")));
        }
        Ok(Explained { command: format!("cnictl {words}"), text })
    }

    /// As `kubectl label` does it.
    fn label_client(&self, labels: &[(&str, &str)]) {
        self.mesh.node.api.set_pod(self.client.object(labels, true));
    }

    /// Whether the label has opened a pod to the client, and to nobody else.
    fn look_labelled(
        &self,
        pod: &MeshPod,
        labelled: Instant,
        report: &mut PolicedPod,
        problems: &mut Vec<String>,
    ) -> Result<()> {
        let to = SocketAddr::new(pod.ip, APP);
        let reached = eventually("the label opens the pod", PATIENCE, || {
            let outcome = Flow::from(&self.client.netns).patience(NEXT_TRY).tcp(to)?;
            ensure!(outcome.port().is_some(), "a connection {outcome}");
            Ok(outcome)
        })?;
        let took = labelled.elapsed();
        (report.labelled, report.labelled_ms) = (shown(&reached), took.as_secs_f64() * 1000.0);
        if took > AT_ONCE || reached.port() != Some(INBOUND) {
            problems.push(format!(
                "{}: the label has to open it at once, it took {took:?} and {reached}",
                pod.name
            ));
        }
        Ok(())
    }

    /// What a pod that no policy selects sees of the world by a node port.
    fn node_port_source(&self) -> Result<IpAddr> {
        let outcome = Flow::from(&self.world).tcp(SocketAddr::new(NODE.into(), OPEN_NODE_PORT))?;
        let arrival = outcome
            .arrival()
            .with_context(|| format!("the node port does not lead to the client, it {outcome}"))?;
        Ok(arrival.peer.ip())
    }

    fn end(self) -> Result<Vec<String>> {
        let mut problems: Vec<String> = self.ztunnel.violations();
        let ended = self.agent.stop()?;
        if !ended.status.success() {
            problems.push(format!("SIGTERM has to end the agent with 0, it was {}", ended.status));
        }
        Ok(problems)
    }
}

fn policy() -> Value {
    json!({"metadata": {"namespace": "default", "name": POLICY}, "spec": {
        "podSelector": {"matchLabels": {"app": "shop"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {FRIEND.0: FRIEND.1}}}], "ports": [{"port": APP}]}],
    }})
}

/// A pod that is about to start.
fn object(pod: &MeshPod, mode: &str) -> PodObject {
    let object = PodObject::named(&pod.name).in_namespace(&pod.namespace).uid(&pod.uid).label("app", "shop");
    let object = object.on_node(testkit::NODE_NAME);
    if mode == "ambient" { object.label(MODE, "ambient") } else { object.sidecar() }
}

/// What a person reads of an attempt.
fn shown(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Reached(arrival) => format!(":{}, from {}", arrival.listener_port, arrival.peer.ip()),
        other => other.to_string(),
    }
}
