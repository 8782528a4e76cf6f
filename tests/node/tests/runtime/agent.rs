//! A node of a cluster: its chain ends with the plugin because the node agent put it there.

mod account;
mod ambient;
mod away;
mod configuration;
mod disk;
mod drift;
mod isolation;
mod load;
mod policy;
mod upgrade;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netns::Netns;
use node::{CriError, Node, PodSpec, Program, Sandbox, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::apiserver::{ApiServer, Resource};
use testkit::{http, until};

use crate::fixture::{PLUGIN, bridge, serve_node_port};
use account::Account;

/// The API server's port on the node's loopback.
const API_PORT: u16 = 6443;
/// `spec.nodeName` of the node's pods.
const NODE_NAME: &str = "node-1";
/// Where the agent runs.
const AGENT_NAMESPACE: &str = "istio-system";
/// The plugin's and the agent's directory; gone after a reboot, as on most machines.
const RUN_DIR: &str = "/run/istio-cni";
/// The file that another component has written.
const CONFLIST: &str = "10-chain.conflist";

/// How long anything may take that the agent or containerd does on its own.
const LIMIT: Duration = Duration::from_secs(30);

/// A node, the API server that its pods come from, and the agent. Options of the agent are files, as in a mounted ConfigMap.
pub(crate) struct Cluster {
    // Its threads are in the node's network: it goes first.
    pub(crate) api: ApiServer,
    agent: Mutex<Option<Program>>,
    pub(crate) node: Node,
    account: Account,
    dirs: TempDir,
}

impl Cluster {
    /// A node with the agent, installed and ready, and the API server.
    pub(crate) fn start(options: &[(&str, &str)]) -> Self {
        let cluster = Self::without_agent(options);
        cluster.start_agent();
        cluster.wait_ready();
        cluster
    }

    /// The same before the agent comes.
    pub(crate) fn without_agent(options: &[(&str, &str)]) -> Self {
        let dirs = tempfile::Builder::new().prefix("cluster-").tempdir().expect("a directory");
        for name in ["config", "programs"] {
            fs::create_dir(dirs.path().join(name)).expect("a directory");
        }
        let program = testkit::programs().join(PLUGIN);
        let copy = dirs.path().join("programs").join(PLUGIN);
        testkit::copy_program(&program, &copy).expect("the plugin is copied");
        let conflist = json!({"cniVersion": "1.0.0", "name": "mesh", "plugins": [bridge()]});
        let node = Node::start(&conflist, &[]).expect("a node with containerd");
        serve_node_port(&node);
        let api = inside(&node, || ApiServer::start_on((Ipv4Addr::LOCALHOST, API_PORT).into()));
        let api = api.expect("an API server");
        api.set_namespace("default", &[]);
        api.set_object(Resource::Nodes, json!({"metadata": {"name": NODE_NAME}}));
        let account = Account::new(dirs.path().join("account"), &api);
        let cluster = Self { api, agent: Mutex::default(), node, account, dirs };
        for (name, value) in options {
            cluster.set_option(name, Some(value));
        }
        cluster
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.dirs.path().join(name)
    }

    /// Sets an option by its variable's name, or takes it back.
    pub(crate) fn set_option(&self, name: &str, value: Option<&str>) {
        let path = self.dir("config").join(name);
        match value {
            Some(value) => replace(&path, value),
            None => fs::remove_file(path).expect("the option was set"),
        }
    }

    /// Runs the closure in the node's network.
    pub(crate) fn inside<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        inside(&self.node, f)
    }

    /// The API server answers again, after [`ApiServer::stop`] or a reboot.
    pub(crate) fn restart_api(&self) {
        self.inside(|| self.api.restart()).expect("the API server is back");
    }

    // === the agent ===

    pub(crate) fn start_agent(&self) {
        let log = OpenOptions::new().create(true).append(true).open(self.dir("agent.log")).expect("its log");
        let programs = testkit::programs().join("install-cni").to_string_lossy().into_owned();
        let net_dir = self.node.conf_dir();
        let bin_dir = self.node.bin_dir();
        let paths = [
            ("--mounted-cni-net-dir", net_dir.as_path()),
            ("--mounted-cni-bin-dirs", &bin_dir),
            ("--cni-bin-source-dir", &self.dir("programs")),
            ("--cni-agent-run-dir", RUN_DIR.as_ref()),
            ("--state-dir", &self.dir("state")),
            ("--service-account-dir", self.account.dir()),
            ("--config-dir", &self.dir("config")),
        ];
        let mut command = vec![programs, "--log_output_level=all:debug".to_owned()];
        command.extend(paths.iter().map(|(flag, path)| format!("{flag}={}", path.display())));
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let port = API_PORT.to_string();
        let env = [
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", &*port),
            ("NODE_NAME", NODE_NAME),
            ("POD_NAMESPACE", AGENT_NAMESPACE),
            ("HOST_ROOT", "/"),
        ];
        let agent = self.node.spawn(&command, &env, log).expect("the agent starts");
        assert!(self.agent().replace(agent).is_none(), "one agent at a time");
    }

    /// SIGKILL, as when the machine is out of memory.
    pub(crate) fn kill_agent(&self) {
        self.end_agent(Signal::KILL);
    }

    /// SIGTERM, as the kubelet sends it.
    pub(crate) fn terminate_agent(&self) {
        let status = self.end_agent(Signal::TERM);
        assert!(status.success(), "the agent ends well: {status}\n{}", self.agent_log());
    }

    fn end_agent(&self, signal: Signal) -> ExitStatus {
        let mut agent = self.agent().take().expect("the agent runs");
        agent.signal(signal).expect("a signal");
        agent.wait(LIMIT).expect("the agent ends")
    }

    /// After a reboot there is none.
    pub(crate) fn forget_agent(&self) {
        drop(self.agent().take());
    }

    fn agent(&self) -> MutexGuard<'_, Option<Program>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn agent_log(&self) -> String {
        fs::read_to_string(self.dir("agent.log")).unwrap_or_default()
    }

    /// Status and body of an answer of the agent's. 0 when it does not answer.
    pub(crate) fn get(&self, port: u16, path: &str) -> (u16, String) {
        let reply = self.inside(|| http::get((Ipv4Addr::LOCALHOST, port).into(), path));
        reply.map_or_else(|_| (0, String::new()), |reply| (reply.status, reply.body))
    }

    pub(crate) fn readyz(&self) -> (u16, String) {
        self.get(8000, "/readyz")
    }

    /// A sample of the agent's metrics, by its name and labels as printed.
    pub(crate) fn metric(&self, sample: &str) -> Option<f64> {
        let (_, text) = self.get(15014, "/metrics");
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
    }

    /// Waits until the agent is ready and containerd has read what it wrote.
    pub(crate) fn wait_ready(&self) {
        self.wait_for("a ready agent", || self.readyz().0 == 200);
        self.wait_for("containerd to read it", || self.is_loaded() && self.entry().is_some());
    }

    /// Whether containerd uses the conflist as it is on disk.
    pub(crate) fn is_loaded(&self) -> bool {
        let text = fs::read(self.on_node(&self.conflist())).unwrap_or_default();
        let on_disk = serde_json::from_slice::<Value>(&text);
        matches!((on_disk, self.node.cni_config()), (Ok(on_disk), Ok(loaded)) if on_disk == loaded)
    }

    /// The plugin's entry in the conflist that containerd uses.
    pub(crate) fn entry(&self) -> Option<Value> {
        let loaded = self.node.cni_config().ok()?;
        loaded["plugins"].as_array()?.iter().find(|plugin| plugin["type"] == PLUGIN).cloned()
    }

    pub(crate) fn wait_for(&self, what: &str, met: impl Fn() -> bool) {
        let seen = || format!("/readyz: {:?}\n{}", self.readyz(), self.agent_log());
        until(what, LIMIT, met, seen).unwrap_or_else(|error| panic!("{error:#}"));
    }

    // === files ===

    pub(crate) fn conflist(&self) -> PathBuf {
        self.node.conf_dir().join(CONFLIST)
    }

    /// The node may have mounted something there that is not to be seen from outside.
    pub(crate) fn on_node(&self, path: &Path) -> PathBuf {
        self.node.path(&path.to_string_lossy())
    }

    /// A file or directory in the run directory.
    pub(crate) fn run_dir(&self, name: &str) -> PathBuf {
        self.node.path(RUN_DIR).join(name)
    }

    // === pods ===

    /// The pod as the API server has it.
    pub(crate) fn object(pod: &PodSpec, node_name: &str) -> Value {
        let mut object = pod.manifest();
        object["spec"]["nodeName"] = node_name.into();
        object
    }

    /// Lets the API server have the pod.
    pub(crate) fn admit(&self, pod: &PodSpec) {
        self.api.set_pod(Self::object(pod, NODE_NAME));
    }

    /// The same; returns when the agent knows it.
    pub(crate) fn admit_known(&self, pods: &[PodSpec]) {
        pods.iter().for_each(|pod| self.admit(pod));
        for pod in pods {
            let file = self.run_dir("facts").join(format!("{}_{}.json", pod.namespace, pod.name));
            let is_kept = || fs::read_to_string(&file).is_ok_and(|text| text.contains(&pod.uid));
            self.wait_for("facts of the pod", is_kept);
        }
    }

    /// Runs the sandbox of a pod that the API server may or may not have.
    pub(crate) fn run_bare(&self, pod: &PodSpec) -> Result<Sandbox, CriError> {
        self.node.run_pod(&PodSpec { containers: Vec::new(), ..pod.clone() })
    }

    /// The same for one that must come up.
    pub(crate) fn must_run_bare(&self, pod: &PodSpec) -> Sandbox {
        self.run_bare(pod).unwrap_or_else(|error| self.not_run(pod, &error))
    }

    /// Runs the pod with its containers.
    pub(crate) fn must_run(&self, pod: &PodSpec) -> Sandbox {
        self.node.run_pod(pod).unwrap_or_else(|error| self.not_run(pod, &error))
    }

    fn not_run(&self, pod: &PodSpec, error: &CriError) -> ! {
        panic!("run {}: {error}\nthe agent's log:\n{}", pod.name, self.agent_log())
    }

    /// The plugin's own lines about a pod, oldest first.
    pub(crate) fn plugin_lines(&self, pod: &PodSpec) -> Vec<Value> {
        let text = fs::read_to_string(self.run_dir("istio-cni.log")).unwrap_or_default();
        let name = format!("{}/{}", pod.namespace, pod.name);
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["pod"] == *name).collect()
    }

    /// Where the plugin had the facts from when it captured the pod last; empty when it never did.
    pub(crate) fn facts_source(&self, pod: &PodSpec) -> String {
        let lines = self.plugin_lines(pod);
        let captured = lines.iter().rev().find(|line| line["msg"] == "pod is captured");
        captured.and_then(|line| line["facts_source"].as_str()).unwrap_or_default().to_owned()
    }

    /// Whether a line about the pod has this text.
    pub(crate) fn has_logged(&self, pod: &PodSpec, text: &str) -> bool {
        self.plugin_lines(pod).iter().any(|line| line["msg"].as_str().is_some_and(|msg| msg.contains(text)))
    }
}

fn inside<R: Send>(node: &Node, f: impl FnOnce() -> R + Send) -> R {
    let netns = Netns::open(format!("/proc/{}/ns/net", node.init_pid())).expect("the node's network");
    netns.enter(|_| f()).expect("entered")
}

/// Replaces a file as a whole.
fn replace(path: &Path, text: &str) {
    let unfinished = path.with_file_name(".unfinished");
    File::create(&unfinished).and_then(|mut file| file.write_all(text.as_bytes())).expect("a file");
    fs::rename(&unfinished, path).expect("renamed");
}
