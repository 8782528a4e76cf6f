//! Pods as a runtime knows them.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::TestNetns;

use crate::libcni::Attachment;
use crate::machine::Machine;
use crate::pod::PodSpec;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A pod and its network namespace.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    pub(crate) pod: PodSpec,
    /// Absent on the node's network, and when the pod was stopped or the machine rebooted.
    pub(crate) netns: Option<TestNetns>,
    /// The network that it was added to, and how.
    pub(crate) attachment: Attachment,
    pub(crate) network: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) stopped: bool,
}

/// What a runtime knows. Its calls do not hold each other up.
#[derive(Debug, Default)]
pub struct Sandboxes(Mutex<Vec<Sandbox>>);

// === impl Sandbox ===

impl Sandbox {
    /// A pod before its ADD.
    pub(crate) fn new(machine: &Machine, pod: &PodSpec, network: &str) -> Result<Self> {
        let id = format!("{:08x}", NEXT.fetch_add(1, Ordering::Relaxed)).repeat(8);
        let mut sandbox = Self {
            netns: None,
            attachment: Attachment::default(),
            network: network.to_owned(),
            addresses: Vec::new(),
            stopped: false,
            pod: pod.clone(),
            id,
        };
        if pod.host_network {
            return Ok(sandbox);
        }
        let netns = TestNetns::new()?;
        let path = machine.netns_dir().join(format!("cni-{}", &sandbox.id[..16]));
        symlink(netns.path(), &path)?;
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &pod.namespace),
            ("K8S_POD_NAME", &pod.name),
            ("K8S_POD_INFRA_CONTAINER_ID", &sandbox.id),
            ("K8S_POD_UID", &pod.uid),
        ];
        sandbox.attachment = Attachment {
            container_id: sandbox.id.clone(),
            netns: path.to_string_lossy().into_owned(),
            if_name: "eth0".to_owned(),
            cni_args: args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            capability_args: [("io.kubernetes.cri.pod-annotations".to_owned(), json!(pod.handed_over()))]
                .into_iter()
                .collect(),
        };
        sandbox.netns = Some(netns);
        Ok(sandbox)
    }

    /// Takes the addresses of a result.
    pub(crate) fn set_addresses(&mut self, result: &Value) {
        let ips = result["ips"].as_array().into_iter().flatten();
        let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
        self.addresses = ips.filter_map(address).collect();
    }

    /// Removes the network namespace.
    pub(crate) fn remove_netns(&mut self) {
        // A reboot has removed it.
        let _ = std::fs::remove_file(&self.attachment.netns);
        self.netns = None;
    }
}

// === impl Sandboxes ===

impl Sandboxes {
    pub(crate) fn add(&self, sandbox: Sandbox) -> String {
        let id = sandbox.id.clone();
        self.all().push(sandbox);
        id
    }

    pub(crate) fn all(&self) -> MutexGuard<'_, Vec<Sandbox>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn with<T>(&self, id: &str, act: impl FnOnce(&mut Sandbox) -> T) -> Result<T> {
        let mut all = self.all();
        let sandbox = all.iter_mut().find(|sandbox| sandbox.id == id);
        Ok(act(sandbox.with_context(|| format!("no sandbox {id}"))?))
    }

    /// The addresses that the runtime tells of a pod.
    pub fn addresses(&self, id: &str) -> Vec<IpAddr> {
        self.with(id, |sandbox| sandbox.addresses.clone()).unwrap_or_default()
    }

    /// Runs a program in a pod's network namespace; gives what it printed.
    ///
    /// # Errors
    /// The pod has none, or the program fails.
    pub fn inside(&self, id: &str, command: &mut Command) -> Result<String> {
        self.with(id, |sandbox| sandbox.netns.as_ref().context("no namespace")?.run(command))?
    }

    /// Whether the pod's namespace has the rules of a sidecar.
    ///
    /// # Errors
    /// As [`Sandboxes::inside`].
    pub fn is_captured(&self, id: &str) -> Result<bool> {
        let tables = self.inside(id, Command::new("nft").args(["list", "tables"]))?;
        Ok(tables.contains("istio-proxy-nat"))
    }

    /// Whether the pod's namespace has the redirects of ambient mode, in either backend.
    ///
    /// # Errors
    /// As [`Sandboxes::inside`].
    pub fn is_in_mesh(&self, id: &str) -> Result<bool> {
        let nft = self.inside(id, Command::new("nft").args(["list", "ruleset"]))?;
        let iptables = self.inside(id, &mut Command::new("iptables-save"))?;
        let redirects = |rules: &str, owner: &str| rules.contains(owner) && rules.contains("15001");
        Ok(redirects(&nft, "istio-ambient-nat") || redirects(&iptables, "ISTIO_OUTPUT"))
    }

    /// Takes the lock by which calls of the plugin in the pod's namespace wait for each other, as a process of the pod can.
    ///
    /// # Errors
    /// Somebody has it.
    pub fn lock(&self, id: &str) -> Result<File> {
        let file = self.with(id, |sandbox| File::open(&sandbox.attachment.netns))??;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    }

    /// Container and interface of each attachment.
    pub(crate) fn attachments(&self) -> Vec<(String, String)> {
        let all = self.all();
        let attached = all.iter().filter(|sandbox| !sandbox.pod.host_network);
        attached.map(|sandbox| (sandbox.id.clone(), sandbox.attachment.if_name.clone())).collect()
    }

    pub(crate) fn remove(&self, id: &str) {
        self.all().retain(|sandbox| sandbox.id != id);
    }

    /// All namespaces go.
    pub(crate) fn reboot(&self) {
        for sandbox in self.all().iter_mut() {
            sandbox.remove_netns();
            sandbox.addresses.clear();
        }
    }
}
