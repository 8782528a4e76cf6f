//! A node as the agent's container and the plugin see it: directories, a cluster, agents as processes, calls of the plugin.

mod agent;
mod log;
pub mod looks;
pub mod mesh;
mod metrics;
mod pod_call;
pub mod wires;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use agent::{Agent, Ended, Launch};
pub use log::Log;
pub use metrics::Metrics;
pub use pod_call::PodCall;

use crate::PodObject;
use crate::apiserver::{ApiServer, Resource};
use crate::plugin::{Answer, Call};

/// Name of the node.
pub const NAME: &str = "n1";

/// Directories of a node and an API server. Everything ends with it.
pub struct Node {
    dir: TempDir,
    /// The cluster.
    pub api: ApiServer,
    /// The plugin's network configuration in [`Node::call`]: nf_tables, and pods from [`Node::manifests`]. Change it as a test needs.
    pub conf: Value,
    address: Ipv4Addr,
}

impl Node {
    /// A node with another component's configuration of two plugins, the plugin in the image, a service account, namespace `default`
    /// and the node in the API. The run directory is the agent's to make.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn new() -> Result<Self> {
        let node = Self::with_image()?;
        std::fs::create_dir(node.account())?;
        std::fs::write(node.conflist(), Self::foreign_conflist())?;
        node.api.write_service_account(&node.account())?;
        node.api.set_namespace("default", &[]);
        node.api.set_object(Resource::Nodes, json!({"metadata": {"name": NAME}, "spec": {}}));
        Ok(node)
    }

    /// A node with directories for CNI and the plugin in the image, and no configuration.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn with_image() -> Result<Self> {
        let node = Self::bare()?;
        for dir in [node.net_dir(), node.bin_source(), node.bin_target()] {
            std::fs::create_dir(dir)?;
        }
        let plugin = crate::programs().join("istio-cni");
        crate::copy_program(&plugin, &node.bin_source().join("istio-cni"))?;
        Ok(node)
    }

    /// A node for calls of the plugin without an agent, which go by a directory of manifests. It is empty, and the API server is not asked.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn bare() -> Result<Self> {
        let dir = TempDir::new()?;
        let [run_dir, state_dir, manifests] = ["run", "state", "manifests"].map(|name| dir.path().join(name));
        std::fs::create_dir(&manifests)?;
        let conf = json!({
            "cniVersion": "1.0.0",
            "name": "k8s-pod-network",
            "type": "istio-cni",
            "plugin_log_level": "info",
            "cni_agent_run_dir": run_dir,
            "state_dir": state_dir,
            "exclude_namespaces": ["kube-system"],
            "pod_namespace": "istio-system",
            "native_nftables": true,
            "facts_timeout": "1s",
            "pod_source": {"manifests": manifests},
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": "/var/run/netns/x"}],
                "ips": [{"address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 0}],
            },
        });
        Ok(Self { dir, api: ApiServer::start()?, conf, address: loopback() })
    }

    /// What another component wrote into the directory of configurations.
    pub fn foreign_conflist() -> &'static str {
        "{\n\t\"name\": \"k8s-pod-network\",\n\t\"cniVersion\": \"1.0.0\",\n\t\"plugins\": [\n\t\t{\"type\": \"calico\", \"mtu\": 0, \
         \"policy\": {\"type\": \"k8s\"}},\n\t\t{\"type\": \"portmap\", \"snat\": true, \"capabilities\": {\"portMappings\": true}}\n\t]\n}\n"
    }

    /// Everything is below this directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of CNI configurations.
    pub fn net_dir(&self) -> PathBuf {
        self.dir().join("net.d")
    }

    /// The other component's configuration, which gets our entry.
    pub fn conflist(&self) -> PathBuf {
        self.net_dir().join("10-calico.conflist")
    }

    /// The binaries in the agent's image.
    pub fn bin_source(&self) -> PathBuf {
        self.dir().join("image")
    }

    /// The directory of plugins on the node.
    pub fn bin_target(&self) -> PathBuf {
        self.dir().join("bin")
    }

    /// The plugin on the node.
    pub fn plugin(&self) -> PathBuf {
        self.bin_target().join("istio-cni")
    }

    /// The run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// The directory that a restart of the machine leaves.
    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// Where pod manifests lie.
    pub fn manifests(&self) -> PathBuf {
        self.dir().join("manifests")
    }

    /// Where libcni keeps results on the node. It is not there before somebody makes it.
    pub fn cache_dir(&self) -> PathBuf {
        self.dir().join("cni")
    }

    /// The plugin's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.run_dir().join("istio-cni-kubeconfig")
    }

    /// The socket of facts and reports.
    pub fn agent_socket(&self) -> PathBuf {
        self.run_dir().join("agent.sock")
    }

    /// The socket of log lines.
    pub fn log_socket(&self) -> PathBuf {
        self.run_dir().join("log.sock")
    }

    /// The service account's directory.
    pub fn account(&self) -> PathBuf {
        self.dir().join("account")
    }

    /// Address of the agent's ports, which no other node of this machine has.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// An agent that is to be started.
    pub fn agent(&self) -> Launch<'_> {
        Launch::new(self)
    }

    /// An agent that reads [`Node::manifests`] and knows no cluster; its ports are closed.
    pub fn manifest_agent(&self) -> Launch<'_> {
        Launch::of_manifests(self)
    }

    /// A ready agent with the usual options.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start(&self) -> Result<Agent> {
        self.agent().ready()
    }

    /// Our entry in a configuration.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn entry_in(&self, path: &Path) -> Result<Value> {
        let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let list: Value = serde_json::from_slice(&text)?;
        let plugins = list["plugins"].as_array().with_context(|| format!("no plugins: {list}"))?;
        let ours: Vec<&Value> = plugins.iter().filter(|plugin| plugin["type"] == "istio-cni").collect();
        anyhow::ensure!(ours.len() == 1, "{} entries of ours: {list}", ours.len());
        Ok(ours[0].clone())
    }

    /// Our entry in the other component's configuration.
    ///
    /// # Errors
    /// As [`Node::entry_in`].
    pub fn entry(&self) -> Result<Value> {
        self.entry_in(&self.conflist())
    }

    /// Adds a pod with a sidecar on this node to the API.
    pub fn sidecar(&self, name: &str, uid: &str) {
        self.api.set_pod(PodObject::named(name).sidecar().uid(uid).on_node(NAME));
    }

    /// Adds a pod to the manifests.
    ///
    /// # Errors
    /// The manifest cannot be written.
    pub fn write_manifest(&self, pod: impl Into<Value>) -> Result<()> {
        let pod = pod.into();
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
        let name = format!("{}_{}.json", text("namespace"), text("name"));
        Ok(std::fs::write(self.manifests().join(name), pod.to_string())?)
    }

    /// A call for pod `default/<pod>` with [`Node::conf`].
    pub fn call(&self, verb: &str, pod: &str, netns: &Path) -> Call {
        let env = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "0123456789abcdef"),
            ("CNI_NETNS", &netns.to_string_lossy()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", &format!("K8S_POD_NAME={pod};IgnoreUnknown=1;K8S_POD_NAMESPACE=default;X=1")),
        ];
        Call {
            env: env.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned()))).collect(),
            stdin: self.conf.to_string().into_bytes(),
        }
    }

    /// Runs ADD for pod `default/<pod>` and expects success.
    ///
    /// # Errors
    /// The call fails; the text has what the plugin printed.
    pub fn add(&self, pod: &str, netns: &Path) -> Result<Answer> {
        let answer = self.call("ADD", pod, netns).run()?;
        anyhow::ensure!(answer.exit == Some(0), "ADD failed: {answer:#?}");
        Ok(answer)
    }

    /// Requests of the plugin to the API so far: their paths.
    pub fn plugin_requests(&self) -> Vec<String> {
        let of_plugin = |request: &crate::apiserver::Request| {
            request.headers.get("user-agent").is_some_and(|agent| agent.starts_with("istio-cni/"))
        };
        self.api.requests().into_iter().filter(of_plugin).map(|request| request.path).collect()
    }
}

/// Every address of 127.0.0.0/8 is this machine's; processes and tests that run at the same time each have others.
fn loopback() -> Ipv4Addr {
    static COUNT: AtomicU16 = AtomicU16::new(1);
    // 12 bits of the process, 11 of the count.
    let count = u32::from(COUNT.fetch_add(1, Ordering::Relaxed)) & 0x7ff;
    Ipv4Addr::from(0x7f80_0000 | (((std::process::id() << 11) | count) & 0x7f_ffff))
}
