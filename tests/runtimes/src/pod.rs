//! What the kubelet knows of a pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{NODE_NAME, PodObject};

/// The injected container.
const PROXY: &str = "istio-proxy";

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A pod of this node.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Whether it is in the node's network namespace, and no plugin is called for it.
    pub host_network: bool,
    sidecar: bool,
}

impl PodSpec {
    /// A pod with a container `app`.
    pub fn new(namespace: &str, name: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("{number:08x}-0000-4000-8000-00000000cafe"),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            host_network: false,
            sidecar: false,
        }
    }

    /// The same with an injected proxy.
    pub fn sidecar(namespace: &str, name: &str) -> Self {
        let status = json!({"revision": "default", "initContainers": ["istio-init"], "containers": [PROXY]});
        let pod = Self { sidecar: true, ..Self::new(namespace, name) };
        pod.annotate("sidecar.istio.io/status", &status.to_string())
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotate(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Puts it into the node's network namespace.
    #[must_use]
    pub fn on_host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// The annotations that the kubelet gives the runtime: the pod's and its own.
    pub(crate) fn handed_over(&self) -> BTreeMap<String, String> {
        let own =
            [("kubernetes.io/config.seen", "2026-11-29T08:52:38Z"), ("kubernetes.io/config.source", "api")];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.annotations.clone().into_iter().chain(own).collect()
    }

    /// The object in the API, of a pod that does not run yet.
    pub fn object(&self) -> Value {
        let pod =
            PodObject::named(&self.name).in_namespace(&self.namespace).uid(&self.uid).on_node(NODE_NAME);
        let pod = if self.sidecar { pod.sidecar() } else { pod };
        pod.with("/metadata/labels", json!(self.labels))
            .with("/metadata/annotations", json!(self.annotations))
            .with("/spec/hostNetwork", self.host_network)
            .json()
    }
}

/// The status of a pod that runs, which was taken up and got its sandbox at these times.
pub(crate) fn status(addresses: &[IpAddr], taken_up: &str, sandbox_ready: &str) -> Value {
    let all: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let ready = json!({
        "type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": sandbox_ready,
    });
    json!({
        "phase": "Running",
        "podIP": addresses.first(),
        "podIPs": all,
        "startTime": taken_up,
        "conditions": [ready],
    })
}

/// The time as Kubernetes writes it, in whole seconds.
pub(crate) fn now() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().context("start date")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
