//! A node as the agent's container sees it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::apiserver::{ApiServer, Resource};

use crate::agent::{Agent, Launch};

/// Name of the node.
pub const NAME: &str = "n1";

/// Directories of a node and an API server. Everything ends with it.
pub struct Node {
    dir: TempDir,
    /// The cluster.
    pub api: ApiServer,
    address: Ipv4Addr,
}

impl Node {
    /// A node with another component's configuration of two plugins, the plugin in the image, a service account, namespace `default`
    /// and the node in the API. The run directory is the agent's to make.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn new() -> Result<Self> {
        let node = Self { dir: TempDir::new()?, api: ApiServer::start()?, address: loopback() };
        for dir in [node.net_dir(), node.bin_source(), node.bin_target(), node.account()] {
            std::fs::create_dir(dir)?;
        }
        std::fs::write(node.conflist(), Self::foreign_conflist())?;
        let plugin = testkit::programs().join("istio-cni");
        testkit::copy_program(&plugin, &node.bin_source().join("istio-cni"))?;
        node.api.write_service_account(&node.account())?;
        node.api.set_namespace("default", &[]);
        node.api.set_object(Resource::Nodes, json!({"metadata": {"name": NAME}}));
        Ok(node)
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
        self.api.set_pod(pod_object(name, uid, NAME));
    }

    /// Requests of the plugin to the API so far: their paths.
    pub fn plugin_requests(&self) -> Vec<String> {
        let of_plugin = |request: &testkit::apiserver::Request| {
            request.headers.get("user-agent").is_some_and(|agent| agent.starts_with("istio-cni/"))
        };
        self.api.requests().into_iter().filter(of_plugin).map(|request| request.path).collect()
    }
}

/// A pod with an injected sidecar, in namespace `default`.
pub fn pod_object(name: &str, uid: &str, node: &str) -> Value {
    let mut pod = plugin_tests::sidecar_pod(name);
    pod["metadata"]["uid"] = json!(uid);
    pod["spec"]["nodeName"] = json!(node);
    pod
}

/// Every address of 127.0.0.0/8 is this machine's; processes and tests that run at the same time each have others.
fn loopback() -> Ipv4Addr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id().to_le_bytes();
    Ipv4Addr::new(127, 128 | pid[1], pid[0], COUNT.fetch_add(1, Ordering::Relaxed))
}
