//! What the tests share: the chain under test, the pods, and questions asked over TCP.

use std::fs;
use std::path::PathBuf;

use node::{CriError, Node, Outcome, PodSpec, Sandbox};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node's address on the bridge.
pub(crate) const GATEWAY: &str = "10.88.0.1";
/// The same for IPv6, in the tests that use it.
pub(crate) const GATEWAY6: &str = "fd00:88::1";
/// The plugin under test, as the conflist names it.
pub(crate) const PLUGIN: &str = "istio-cni";
/// A port on which the node answers `node`.
pub(crate) const NODE_PORT: u16 = 9999;
/// A port on which every pod's app answers `app`.
pub(crate) const APP_PORT: u16 = 8080;

/// A node whose chain ends with `istio-cni`, and the two directories that the plugin is given.
pub(crate) struct Mesh {
    pub(crate) node: Node,
    dirs: TempDir,
}

/// The parts of a conflist, for tests that change one.
pub(crate) struct Chain {
    pub(crate) version: &'static str,
    pub(crate) bridge: Value,
    pub(crate) between: Vec<Value>,
    pub(crate) plugin: Value,
}

impl Mesh {
    /// The usual chain, with the nf_tables or the iptables backend.
    pub(crate) fn start(native_nftables: bool) -> Self {
        Self::start_with(|chain| chain.plugin["native_nftables"] = json!(native_nftables))
    }

    /// Another chain.
    pub(crate) fn start_with(change: impl FnOnce(&mut Chain)) -> Self {
        let dirs = tempfile::Builder::new().prefix("mesh-").tempdir().expect("a directory");
        for name in ["run", "manifests"] {
            fs::create_dir(dirs.path().join(name)).expect("a directory");
        }
        let mut chain = Chain {
            version: "1.0.0",
            bridge: bridge(),
            between: Vec::new(),
            plugin: json!({
                "type": PLUGIN,
                "plugin_log_level": "debug",
                "cni_agent_run_dir": dirs.path().join("run"),
                "exclude_namespaces": ["kube-system"],
                "pod_source": {"manifests": dirs.path().join("manifests")},
                "native_nftables": true,
            }),
        };
        change(&mut chain);
        let mut plugins = vec![chain.bridge];
        plugins.append(&mut chain.between);
        plugins.push(chain.plugin);
        let conflist = json!({"cniVersion": chain.version, "name": "mesh", "plugins": plugins});
        let node = Node::start(&conflist, &[(PLUGIN, &testkit::programs().join(PLUGIN))])
            .expect("a node with containerd");
        serve_node_port(&node);
        Self { node, dirs }
    }

    /// Writes the pod's manifest where the plugin looks for it.
    pub(crate) fn admit(&self, pod: &PodSpec) {
        let name = format!("{}_{}.json", pod.namespace, pod.name);
        let text = serde_json::to_vec_pretty(&pod.manifest()).expect("a manifest");
        fs::write(self.manifests().join(name), text).expect("a manifest is written");
    }

    /// Admits and runs the pod.
    pub(crate) fn run(&self, pod: &PodSpec) -> Result<Sandbox, CriError> {
        self.admit(pod);
        self.node.run_pod(pod)
    }

    /// Admits the pod as it is and runs its sandbox only: the plugin sees all, no container is started.
    pub(crate) fn must_run_bare(&self, pod: &PodSpec) -> Sandbox {
        self.admit(pod);
        let bare = PodSpec { containers: Vec::new(), ..pod.clone() };
        self.node
            .run_pod(&bare)
            .unwrap_or_else(|error| panic!("run {}: {error}\n{}", pod.name, self.plugin_log()))
    }

    /// Like [`Mesh::run`], for a pod that must come up; a refusal is printed with the plugin's log.
    pub(crate) fn must_run(&self, pod: &PodSpec) -> Sandbox {
        self.run(pod).unwrap_or_else(|error| panic!("run {}: {error}\n{}", pod.name, self.plugin_log()))
    }

    /// The plugin's `cni_agent_run_dir`.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dirs.path().join("run")
    }

    /// The directory of manifests.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.dirs.path().join("manifests")
    }

    /// What `nft` lists in the pod's network namespace.
    pub(crate) fn tables(&self, pod: &Sandbox) -> String {
        let listed = self.node.exec_in_pod(pod, &["nft", "list", "tables"]).expect("nft runs");
        assert_eq!(listed.code, 0, "nft list tables: {}", listed.stderr);
        listed.stdout
    }

    /// What all calls of the plugin logged.
    pub(crate) fn plugin_log(&self) -> String {
        let calls = self.node.calls().expect("records");
        calls.iter().filter(|c| c.plugin == PLUGIN).map(|c| format!("{}: {}", c.verb(), c.stderr)).collect()
    }

    /// DEL calls of the plugin since the last look.
    pub(crate) fn dels(&self) -> Vec<node::Call> {
        let dels = self.node.calls_of(PLUGIN, "DEL").expect("records");
        self.node.forget_calls().expect("forgotten");
        dels
    }
}

/// Lets the node answer on [`NODE_PORT`], until it reboots.
pub(crate) fn serve_node_port(node: &Node) {
    let port = NODE_PORT.to_string();
    node.serve(&["busybox", "nc", "-ll", "-p", &port, "-e", "echo", "node"]).expect("the node's listener");
}

/// `bridge` in front: addresses from 10.88.0.0/16, the node reachable, no masquerading.
pub(crate) fn bridge() -> Value {
    json!({
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    })
}

/// A pod whose container `app`, user 1000, answers `app` on its port.
pub(crate) fn echo_pod(namespace: &str, name: &str) -> PodSpec {
    let listen = format!("exec nc -ll -p {APP_PORT} -e echo app");
    PodSpec::new(namespace, name).container("app", 1000, &["sh", "-c", &listen], &[])
}

/// The same with an injected proxy: user 1337 answers `outbound` on 15001 and `inbound` on 15006.
pub(crate) fn sidecar_pod(namespace: &str, name: &str) -> PodSpec {
    let proxy = "nc -ll -p 15006 -e echo inbound & exec nc -ll -p 15001 -e echo outbound";
    echo_pod(namespace, name).annotate("sidecar.istio.io/status", "{}").container(
        "istio-proxy",
        1337,
        &["sh", "-c", proxy],
        &["proxy", "sidecar"],
    )
}

/// Connects from a container and returns what the other end says.
pub(crate) fn ask_from_container(node: &Node, pod: &Sandbox, container: &str, to: &str, port: u16) -> String {
    answer(|| node.exec_sync(pod, container, &["nc", "-w", "3", to, &port.to_string()]).expect("nc runs"))
}

/// Connects from the node and returns what the other end says.
pub(crate) fn ask_from_node(node: &Node, to: &str, port: u16) -> String {
    answer(|| node.exec(&["busybox", "nc", "-w", "3", to, &port.to_string()]).expect("nc runs"))
}

/// Whether connections of a sandbox without containers go to its proxy's port, where nothing listens, or to the node, which answers.
pub(crate) fn is_captured_bare(node: &Node, pod: &Sandbox) -> bool {
    let port = NODE_PORT.to_string();
    let asked = node.exec_in_pod(pod, &["busybox", "nc", "-w", "3", GATEWAY, &port]).expect("nc runs");
    match (asked.stdout.trim(), asked.stderr.contains("refused")) {
        ("", true) => true,
        ("node", false) => false,
        _ => panic!("neither captured nor not: {asked:?}"),
    }
}

/// Connects to and from a pod that has to be captured, with or without containers.
pub(crate) fn check_captured(node: &Node, pod: &Sandbox, what: &str) {
    if pod.containers.is_empty() {
        assert!(is_captured_bare(node, pod), "{what} is not captured");
        return;
    }
    assert_eq!(ask_from_container(node, pod, "app", GATEWAY, NODE_PORT), "outbound", "from {what}");
    let ip = node.status(pod).expect("a status").ip;
    assert_eq!(ask_from_node(node, &ip, APP_PORT), "inbound", "to {what}");
}

/// Asks until something answers: a container's listener comes up a moment after the container.
fn answer(ask: impl Fn() -> Outcome) -> String {
    let answer = testkit::eventually("an answer", testkit::PATIENCE, || {
        let outcome = ask();
        let said = outcome.stdout.trim();
        anyhow::ensure!(!said.is_empty(), "{outcome:?}");
        Ok(said.to_owned())
    });
    answer.unwrap_or_else(|error| panic!("{error:#}"))
}
