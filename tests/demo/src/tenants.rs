//! Tenants: red cannot reach blue until a grant opens one port, and the audit file says who denied what to whom.
//!
//! ```text
//!   [ red-web/web ]  ── veth ── [ node ] ── veth ── [ blue-api/api ]
//!   [ red-db/db ]    ── veth ──┘
//! ```

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::wires;
use testkit::{Agent, PATIENCE, eventually};

use crate::backend::Backend;
use crate::removal;

/// Who hears nothing for so long is not answered.
const SILENCE: Duration = Duration::from_millis(100);
/// The longest from a grant to the first connection that it allows.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Namespace and name of each pod.
const PODS: [(&str, &str); 3] = [("red-web", "web"), ("red-db", "db"), ("blue-api", "api")];
/// The port that the grant opens, and one that it does not.
const OPENED: u16 = 8443;
const CLOSED: u16 = 8080;

/// What was observed.
#[derive(Debug, Serialize)]
pub(crate) struct TenantReport {
    pub(crate) backend: Backend,
    pub(crate) connections: Vec<TenantConnection>,
    pub(crate) granted_ms: f64,
    /// The line of the audit file about a denied connection.
    pub(crate) audit: Value,
    /// What `cnictl tenants list` says.
    pub(crate) listed: String,
    pub(crate) problems: Vec<String>,
}

/// A connection, before and after the grant.
#[derive(Debug, Serialize)]
pub(crate) struct TenantConnection {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) port: u16,
    pub(crate) before: String,
    pub(crate) after: String,
}

struct Scene {
    mesh: Mesh,
    agent: Agent,
    pods: Vec<(MeshPod, Listeners)>,
    audit: std::path::PathBuf,
}

/// Plays it.
///
/// # Errors
/// A step could not be done.
pub(crate) fn run(programs: &Path, backend: Backend) -> Result<TenantReport> {
    testkit::use_programs(programs);
    let scene = Scene::new(backend)?;
    let namespaces: Vec<u64> =
        scene.pods.iter().map(|(pod, _)| removal::inode(&pod.netns)).collect::<Result<_>>()?;
    let mut problems = Vec::new();
    // From, to, port, and whether it passes before and after the grant.
    let cases = [
        ("web", "db", CLOSED, [true, true]),
        ("web", "api", OPENED, [false, true]),
        ("web", "api", CLOSED, [false, false]),
        ("api", "web", OPENED, [false, false]),
    ];
    eventually("tenants are apart", PATIENCE, || {
        ensure!(scene.connect("web", "api", OPENED)?.1.is_none(), "red reaches blue");
        Ok(())
    })?;
    let mut connections = Vec::new();
    for (from, to, port, [wanted, _]) in cases {
        let (before, reached) = scene.connect(from, to, port)?;
        if reached.is_some() != wanted {
            problems.push(format!("{from} -> {to}:{port} before the grant: it {before}"));
        }
        let [from, to] = [from, to].map(|name| scene.name(name));
        connections.push(TenantConnection { from, to, port, before, after: String::new() });
    }
    let granted = scene.grant()?;
    for ((from, to, port, [_, wanted]), connection) in cases.into_iter().zip(&mut connections) {
        let (after, reached) = scene.connect(from, to, port)?;
        if reached.is_some() != wanted {
            problems.push(format!("{from} -> {to}:{port} after the grant: it {after}"));
        }
        connection.after = after;
    }
    if granted > AT_ONCE {
        problems.push(format!("the grant has to be in force at once, it took {granted:?}"));
    }
    let audit = scene.audited()?;
    let listed =
        scene.cnictl("tenants list", &["--net-dir", &scene.mesh.node.net_dir().to_string_lossy()])?;
    if listed.matches(" yes ").count() != 2 {
        problems.push(format!("cnictl tenants list has to say that both tenants are current: {listed}"));
    }
    problems.extend(scene.end()?);
    problems.extend(removal::holders(&namespaces)?);
    let granted_ms = granted.as_secs_f64() * 1000.0;
    Ok(TenantReport { backend, connections, granted_ms, audit, listed, problems })
}

// === impl TenantReport ===

impl TenantReport {
    /// How many did what they have to.
    pub(crate) fn connections(&self) -> usize {
        if self.problems.is_empty() { 2 * self.connections.len() } else { 0 }
    }
}

// === impl Scene ===

impl Scene {
    fn new(backend: Backend) -> Result<Self> {
        let mesh = Mesh::new()?;
        mesh.host.set_sysctl("net.ipv4.ip_forward", "1")?;
        let mut pods = Vec::new();
        for (namespace, name) in PODS {
            mesh.node.api.set_namespace(namespace, &[]);
            let pod = mesh.running(namespace, name, &[("app", name)])?;
            wires::connect_pod(&mesh, &pod, name)?;
            let listeners = Listeners::start(&pod.netns, [OPENED, CLOSED].map(Listener::tcp))?;
            pods.push((pod, listeners));
        }
        let put = |resource, name: &str, spec: Value| {
            let metadata = json!({"name": name, "generation": 1});
            mesh.node.api.set_object(resource, json!({"metadata": metadata, "spec": spec}));
        };
        put(Resource::NetworkTenants, "blue", json!({"namespaces": ["blue-api"]}));
        let rule = json!({"name": "to-blue", "action": "Allow", "peers": [{"tenant": "blue"}]});
        let rules = json!({"egressRules": [rule]});
        put(
            Resource::NetworkTenants,
            "red",
            json!({"namespaces": ["red-web", "red-db"], "networkPolicy": rules}),
        );
        let audit = mesh.node.state_dir().join("audit/audit.jsonl");
        let native = if backend == Backend::Nftables { "true" } else { "false" };
        let agent = mesh.agent().env("NATIVE_NFTABLES", native).env("AMBIENT_ENABLED", "false");
        let agent = agent.env("POLICY_ENFORCEMENT", "on").env("TENANTS_ENFORCEMENT", "on");
        let agent = agent.env("AUDIT_LOG", &audit.to_string_lossy()).env("AUDIT_WINDOW", "1s").ready()?;
        Ok(Self { mesh, agent, pods, audit })
    }

    fn pod(&self, name: &str) -> Result<&MeshPod> {
        let pods = self.pods.iter().map(|(pod, _)| pod);
        pods.into_iter().find(|pod| pod.name == name).context("no such pod")
    }

    fn name(&self, name: &str) -> String {
        self.pod(name).map(|pod| format!("{}/{name}", pod.namespace)).unwrap_or_default()
    }

    /// What became of a connection, and the port that took it.
    fn connect(&self, from: &str, to: &str, port: u16) -> Result<(String, Option<u16>)> {
        let to = SocketAddr::new(self.pod(to)?.ip, port);
        let outcome = Flow::from(&self.pod(from)?.netns).patience(SILENCE).tcp(to)?;
        let text = if outcome.port().is_some() { "connected".to_owned() } else { outcome.to_string() };
        Ok((text, outcome.port()))
    }

    /// Blue's namespace lets red come, on one port. Gives how long that takes.
    fn grant(&self) -> Result<Duration> {
        let spec = json!({"from": [{"tenant": "red"}], "to": [{"kind": "Pod", "podSelector": {}}], "ports": [{"port": OPENED}]});
        let metadata = json!({"namespace": "blue-api", "name": "red-may-come"});
        let began = Instant::now();
        self.mesh.node.api.set_object(Resource::TenantGrants, json!({"metadata": metadata, "spec": spec}));
        eventually("the grant opens the port", PATIENCE, || {
            ensure!(self.connect("web", "api", OPENED)?.1.is_some(), "it is closed");
            Ok(())
        })?;
        Ok(began.elapsed())
    }

    /// The line about the connection to the port that no grant opens, which names the tenant, its row and both pods.
    fn audited(&self) -> Result<Value> {
        let file = self.audit.to_string_lossy().into_owned();
        eventually("the audit file has a line", PATIENCE, || {
            let text = self.cnictl("audit query -o jsonl", &["--file", &file])?;
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let is_it = |line: &Value| {
                let text = line.to_string();
                ["tenant blue", "\"rule\":\"defaults.other\"", "web", "api"]
                    .iter()
                    .all(|word| text.contains(word))
                    && text.contains(&CLOSED.to_string())
            };
            lines.into_iter().find(is_it).with_context(|| format!("no line names tenant and pods: {text}"))
        })
    }

    fn cnictl(&self, words: &str, more: &[&str]) -> Result<String> {
        let mut command = Command::new(testkit::programs().join("cnictl"));
        let output = self.mesh.host.output(command.args(words.split(' ')).args(more))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cnictl {words}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn end(self) -> Result<Vec<String>> {
        let ended = self.agent.stop()?;
        let failed = (!ended.status.success())
            .then(|| format!("SIGTERM has to end the agent with 0, it was {}", ended.status));
        Ok(failed.into_iter().collect())
    }
}
