//! A node in ambient mode: the agent sees a node's namespace, processes and paths that are all the test's own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::agent::{Agent, Launch};
use super::{NAME, Node};
use crate::apiserver::Resource;
use crate::http::{self, Reply};
use crate::ztunnel::{Script, Ztunnel};
use crate::{PATIENCE, PodObject, TestNetns, eventually};

/// The annotation by which others see whether a pod is in the mesh.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The label of pods and namespaces.
pub const MODE: &str = "istio.io/dataplane-mode";
/// What the chart has.
pub const SELECTORS: &str = "
- podSelector:
    matchLabels: {istio.io/dataplane-mode: ambient}
- podSelector:
    matchExpressions: [{key: istio.io/dataplane-mode, operator: NotIn, values: [none]}]
  namespaceSelector:
    matchLabels: {istio.io/dataplane-mode: ambient}
";

/// A node whose pods can be in the mesh, with namespace `mesh` that is labelled for it and `default` that is not.
pub struct Mesh {
    /// Directories and API server.
    pub node: Node,
    /// The node's network namespace.
    pub host: TestNetns,
    next: AtomicU32,
}

/// A pod that runs, or is about to.
pub struct MeshPod {
    /// Its network namespace, with the address.
    pub netns: TestNetns,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Its address.
    pub ip: IpAddr,
    /// What stands for its process on the node.
    pid: u32,
}

// === impl Mesh ===

impl Mesh {
    /// # Errors
    /// A file cannot be written, or a namespace cannot be made.
    pub fn new() -> Result<Self> {
        let mesh = Self { node: Node::new()?, host: TestNetns::new()?, next: AtomicU32::new(1) };
        std::fs::create_dir_all(mesh.root().join("netns"))?;
        mesh.process(1, mesh.host.path(), "/init.scope", 1)?;
        mesh.write_early_demux("1")?;
        mesh.node.api.set_namespace("mesh", &[(MODE, "ambient")]);
        Ok(mesh)
    }

    /// One with a ready agent and a ztunnel that does what it should.
    ///
    /// # Errors
    /// As [`Mesh::new`], or the agent does not become ready.
    pub fn served() -> Result<(Self, Agent, Ztunnel)> {
        Self::served_by(|agent| agent)
    }

    /// The same with another agent than the usual one.
    ///
    /// # Errors
    /// As [`Mesh::served`].
    pub fn served_by(change: impl FnOnce(Launch<'_>) -> Launch<'_>) -> Result<(Self, Agent, Ztunnel)> {
        let mesh = Self::new()?;
        let agent = change(mesh.agent()).ready()?;
        let ztunnel = mesh.ztunnel()?;
        Ok((mesh, agent, ztunnel))
    }

    /// What the agent takes for the root of the node.
    pub fn root(&self) -> PathBuf {
        self.node.dir().join("host")
    }

    /// The socket of ztunnels.
    pub fn ztunnel_socket(&self) -> PathBuf {
        self.node.dir().join("ztunnel.sock")
    }

    /// The socket of plugins' events.
    pub fn event_socket(&self) -> PathBuf {
        self.node.run_dir().join("pluginevent.sock")
    }

    /// An agent in ambient mode that is to be started.
    pub fn agent(&self) -> Launch<'_> {
        self.node
            .agent()
            .env("AMBIENT_ENABLED", "true")
            .env("AMBIENT_ENABLEMENT_SELECTOR", SELECTORS)
            .env("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "true")
            .env("ALLOW_SWITCH_TO_HOST_NS", "true")
            .env("EXCLUDE_NAMESPACES", "kube-system")
            .env("POD_NAMESPACE", "istio-system")
            .env("CLEANUP_ON_EXIT", "never")
            .env("HOST_ROOT", &self.root().to_string_lossy())
            .env("ZTUNNEL_UDS_ADDRESS", &self.ztunnel_socket().to_string_lossy())
    }

    /// A ready agent.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start(&self) -> Result<Agent> {
        self.agent().ready()
    }

    /// A ztunnel that does what it should. An agent that is ready knows it by then: until it does, it refuses pods.
    ///
    /// # Errors
    /// It cannot connect.
    pub fn ztunnel(&self) -> Result<Ztunnel> {
        let ztunnel = self.ztunnel_that(Script::default())?;
        // One that is not ready has nothing to tell yet.
        let _ = ztunnel.wait_snapshot(Duration::from_secs(1));
        Ok(ztunnel)
    }

    /// A ztunnel with a script of its own.
    ///
    /// # Errors
    /// It cannot connect.
    pub fn ztunnel_that(&self, script: Script) -> Result<Ztunnel> {
        Ztunnel::connect(&self.ztunnel_socket(), script)
    }

    /// Makes a pod's namespace with an address and nothing else.
    ///
    /// # Errors
    /// The namespace cannot be made.
    pub fn sandbox(&self, namespace: &str, name: &str) -> Result<MeshPod> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let [_, _, high, low] = number.to_be_bytes();
        let ip = IpAddr::V4(Ipv4Addr::new(10, 9, high, low));
        let netns = TestNetns::new()?;
        netns.address(ip)?;
        let uid = format!("{number:08x}-0000-4000-8000-00000000cafe");
        let pod =
            MeshPod { netns, name: name.into(), namespace: namespace.into(), uid, ip, pid: 1000 + number };
        let link = self.root().join("netns").join(&pod.uid);
        symlink(pod.netns.path(), link)?;
        Ok(pod)
    }

    /// Another namespace for a pod of the same uid and address, as for a sandbox that was made anew.
    ///
    /// # Errors
    /// The namespace cannot be made.
    pub fn new_sandbox(&self, pod: &mut MeshPod) -> Result<()> {
        pod.netns = TestNetns::new()?;
        pod.netns.address(pod.ip)?;
        let link = self.root().join("netns").join(&pod.uid);
        let _ = std::fs::remove_file(&link);
        symlink(pod.netns.path(), link)?;
        Ok(())
    }

    /// A pod that runs: a process, and an address in the API.
    ///
    /// # Errors
    /// The namespace cannot be made.
    pub fn running(&self, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Result<MeshPod> {
        let pod = self.sandbox(namespace, name)?;
        self.run(&pod)?;
        self.node.api.set_pod(pod.object(labels, true));
        Ok(pod)
    }

    /// Lets the pod's process be seen on the node.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn run(&self, pod: &MeshPod) -> Result<()> {
        let cgroup = format!("/kubepods/burstable/pod{}/{:064x}", pod.uid, pod.pid);
        self.process(pod.pid, pod.netns.path(), &cgroup, 100 + u64::from(pod.pid))
    }

    /// Removes the pod's process, its sandbox and its object.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn delete(&self, pod: &MeshPod) -> Result<()> {
        self.node.api.delete_pod(&pod.namespace, &pod.name);
        self.stop(pod)
    }

    /// Removes the pod's process and its sandbox's file.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn stop(&self, pod: &MeshPod) -> Result<()> {
        let _ = std::fs::remove_dir_all(self.root().join("proc").join(pod.pid.to_string()));
        let _ = std::fs::remove_file(self.root().join("netns").join(&pod.uid));
        Ok(())
    }

    /// A process as procfs shows it.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn process(&self, pid: u32, netns: &Path, cgroup: &str, start: u64) -> Result<()> {
        let dir = self.root().join("proc").join(pid.to_string());
        std::fs::create_dir_all(dir.join("ns"))?;
        symlink(netns, dir.join("ns/net"))?;
        std::fs::write(dir.join("cgroup"), format!("12:pids:{cgroup}\n0::{cgroup}\n"))?;
        std::fs::write(dir.join("comm"), "app\n")?;
        // proc(5): field 22 is the start time.
        let fields = "0 ".repeat(18);
        std::fs::write(dir.join("stat"), format!("{pid} (a) p) S {fields}{start} 0 0\n"))?;
        Ok(())
    }

    /// `net.ipv4.tcp_early_demux` as the agent reads it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_early_demux(&self, value: &str) -> Result<()> {
        let dir = self.root().join("proc/sys/net/ipv4");
        std::fs::create_dir_all(&dir)?;
        Ok(std::fs::write(dir.join("tcp_early_demux"), value)?)
    }

    /// Announces a pod as the plugin does.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn announce(&self, pod: &MeshPod) -> Result<Reply> {
        self.post(&self.event(pod).to_string())
    }

    /// What the plugin says of a pod.
    pub fn event(&self, pod: &MeshPod) -> Value {
        json!({
            "Netns": format!("/netns/{}", pod.uid),
            "PodName": pod.name,
            "PodNamespace": pod.namespace,
            "IPs": [{"Interface": 0, "Address": {"IP": pod.ip, "Mask": "/////w=="}, "Gateway": ""}],
        })
    }

    /// Posts anything to the event socket.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn post(&self, body: &str) -> Result<Reply> {
        http::ask(&self.event_socket(), "POST", "/cmdadd", body)
    }

    /// The pod's annotation in the API.
    pub fn annotation(&self, pod: &MeshPod) -> Option<String> {
        let object = self.node.api.object(Resource::Pods, &pod.namespace, &pod.name)?;
        object["metadata"]["annotations"][REDIRECTION].as_str().map(str::to_owned)
    }

    /// The values that the pod's annotation was patched to, in order.
    pub fn patches(&self, pod: &MeshPod) -> Vec<Option<String>> {
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace, pod.name);
        let patches = self.node.api.patches().into_iter().filter(|patch| patch.path.starts_with(&path));
        let values = patches.filter_map(|patch| {
            Some(patch.body["metadata"]["annotations"].get(REDIRECTION)?.as_str().map(str::to_owned))
        });
        values.collect()
    }

    /// Waits until the pod's annotation has this value.
    ///
    /// # Errors
    /// It does not come to have it.
    pub fn wait_annotation(&self, pod: &MeshPod, value: Option<&str>) -> Result<()> {
        eventually(&format!("pod {} has annotation {value:?}", pod.name), PATIENCE, || {
            let found = self.annotation(pod);
            anyhow::ensure!(found.as_deref() == value, "it has {found:?}");
            Ok(())
        })
    }

    /// Members of a set of the node's, address to uid, by what nft lists.
    ///
    /// # Errors
    /// nft fails.
    pub fn members(&self, set: &str) -> Result<BTreeMap<String, String>> {
        let mut nft = std::process::Command::new("nft");
        nft.args(["-j", "list", "set", "inet", "istio-ambient-nat", set]);
        let listed: Value = serde_json::from_str(&self.host.run(&mut nft)?)?;
        let sets = listed["nftables"].as_array().context("no list")?;
        let set = sets.iter().find_map(|one| one.get("set")).context("no set")?;
        let elements = set["elem"].as_array().map(Vec::as_slice).unwrap_or_default();
        let pair = |element: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            match element.get("elem") {
                Some(inner) => (text(&inner["val"]), text(&inner["comment"])),
                None => (text(element), String::new()),
            }
        };
        Ok(elements.iter().map(pair).collect())
    }

    /// Addresses that host probes are let through to, in whichever backend.
    ///
    /// # Errors
    /// As [`Mesh::members`].
    pub fn probes(&self) -> Result<BTreeMap<String, String>> {
        const SET: &str = "istio-inpod-probes-v4";
        let mut ipset = std::process::Command::new("ipset");
        let listed = self.host.output(ipset.args(["list", SET]))?;
        if !listed.status.success() {
            return self.members(SET);
        }
        let text = String::from_utf8(listed.stdout)?;
        let members = text.lines().filter_map(|line| {
            let (address, uid) = line.split_once(" comment ")?;
            Some((address.to_owned(), uid.trim_matches('"').to_owned()))
        });
        Ok(members.collect())
    }
}

// === impl MeshPod ===

impl MeshPod {
    /// Makes a way out of the pod's namespace, to 203.0.113.0/24, so that there is something to redirect.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn add_way_out(&self) -> Result<()> {
        self.netns.ip(&[
            "link add out0 type veth peer name out1",
            "address add 10.99.0.2/24 dev out0",
            "link set out0 up",
            "link set out1 up",
            "route add 203.0.113.0/24 via 10.99.0.1 dev out0",
        ])
    }

    /// The number of the process that stands for it on the node.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The pod's object; a pod that does not run has no status yet.
    pub fn object(&self, labels: &[(&str, &str)], running: bool) -> Value {
        let pod = PodObject::named(&self.name).in_namespace(&self.namespace).uid(&self.uid).labels(labels);
        let pod = pod.on_node(NAME).with("/spec/serviceAccountName", format!("sa-{}", self.name));
        if running { pod.running(&[self.ip]) } else { pod }.json()
    }

    /// Whether the pod's namespace has rules of ours, in either backend.
    ///
    /// # Errors
    /// A program fails.
    pub fn has_rules(&self) -> Result<bool> {
        let nft = self.netns.run(std::process::Command::new("nft").args(["list", "tables"]))?;
        let iptables = self.netns.run(&mut std::process::Command::new("iptables-save"))?;
        Ok(nft.contains("istio-ambient-nat") || iptables.contains("ISTIO_"))
    }

    /// Whether what is new goes to ztunnel, by the rules of either backend.
    ///
    /// # Errors
    /// A program fails.
    pub fn is_redirected(&self) -> Result<bool> {
        let nft = self.netns.run(std::process::Command::new("nft").args(["list", "ruleset"]))?;
        let iptables = self.netns.run(&mut std::process::Command::new("iptables-save"))?;
        Ok([nft, iptables].iter().any(|rules| rules.contains("15001")))
    }

    /// Whether the namespace has nothing of ours at all: rules, policy routing, routes.
    ///
    /// # Errors
    /// A program fails.
    pub fn is_clean(&self) -> Result<bool> {
        let ip = |args: &[&str]| self.netns.run(std::process::Command::new("ip").args(args));
        // The routing table does not exist while nothing is in it.
        let routes = ip(&["route", "show", "table", "all"])?;
        Ok(!self.has_rules()? && !ip(&["rule"])?.contains("32764") && !routes.contains("table 100"))
    }
}
