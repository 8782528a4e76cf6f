//! Pods as an agent that has ended left them: their facts and namespaces, and in these what was loaded, and what became of it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use applied::Origin;
use applied::sandbox::{self, Sandbox};
use serde_json::{Value, json};
use testkit::TestNetns;
use testkit::rules::{Family, Variant};

use crate::{Files, Run};

/// A node's directories, with pods.
pub(crate) struct Fleet {
    pub(crate) files: Files,
    pub(crate) pods: Vec<(String, TestNetns)>,
}

/// A pod: the parts of its object that decide, and what its namespace holds.
pub(crate) struct Prepared<'a> {
    pub(crate) name: &'a str,
    /// Of `metadata`: labels and annotations.
    pub(crate) metadata: Value,
    /// Of `spec`, besides containers of an application.
    pub(crate) spec: Value,
    pub(crate) loaded: &'a [&'a str],
    /// Commands of nft afterwards.
    pub(crate) then: &'a str,
}

/// The plugin's entry of the chart in ambient mode.
const ENTRY: &str = r#"{"type": "istio-cni", "ambient_enabled": true, "pod_namespace": "istio-system", "exclude_namespaces": ["kube-system"],
   "enablement_selectors": [
    {"podSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}},
    {"podSelector": {"matchExpressions": [{"key": "istio.io/dataplane-mode", "operator": "NotIn", "values": ["none"]}]},
     "namespaceSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}}]}"#;

impl Fleet {
    pub(crate) fn new() -> Self {
        let files = Files::new();
        for dir in ["net.d", "run", "run/facts"] {
            fs::create_dir(files.path(dir)).unwrap();
        }
        let mut entry: Value = serde_json::from_str(ENTRY).unwrap();
        entry["cni_agent_run_dir"] = json!(files.path("run"));
        let list = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}, entry]});
        files.write("net.d/10-net.conflist", &list.to_string());
        Self { files, pods: Vec::new() }
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.files.path("run")
    }

    /// Writes the facts of a pod as an agent keeps them.
    pub(crate) fn facts(&self, namespace: &str, name: &str, metadata: &Value, spec: &Value) {
        let mut object = json!({"kind": "Pod", "metadata": metadata, "spec": spec});
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["name"] = json!(name);
        object["metadata"]["uid"] = json!(uid(name));
        if object["spec"]["containers"].is_null() {
            object["spec"]["containers"] = json!([{"name": "app"}]);
        }
        let facts = json!({"pod": object, "namespace_labels": {"kubernetes.io/metadata.name": namespace}});
        self.files.write(&format!("run/facts/{namespace}_{name}.json"), &facts.to_string());
        self.files.write(&format!("{name}.json"), &object.to_string());
    }

    /// Writes what a runtime's call leaves: where the pod of this name is.
    pub(crate) fn sandbox(&self, name: &str, netns: &TestNetns, address: &str) {
        let origin = Origin {
            netns: netns.netns().id(),
            pod: format!("shop/{name}"),
            uid: uid(name),
            interface: "eth0".to_owned(),
            addresses: vec![address.parse().unwrap()],
        };
        let path = netns.path().to_owned();
        sandbox::write(&self.run_dir(), name, "eth0", &Sandbox { origin, path }).unwrap();
    }

    /// A pod with a namespace of its own.
    pub(crate) fn pod(&mut self, pod: &Prepared<'_>) {
        self.facts("shop", pod.name, &pod.metadata, &pod.spec);
        let netns = TestNetns::new().unwrap();
        let address = format!("10.9.{}.{}", self.pods.len() / 250, self.pods.len() % 250 + 1);
        netns.address(format!("{address}/16")).unwrap();
        self.sandbox(pod.name, &netns, &address);
        for options in pod.loaded {
            self.load(&netns, pod.name, options);
        }
        if !pod.then.is_empty() {
            netns.nft(pod.then).unwrap();
        }
        self.pods.push((pod.name.to_owned(), netns));
    }

    /// Loads what `cnictl render` prints; the options choose the manifest, the backend and labels.
    pub(crate) fn load(&self, netns: &TestNetns, name: &str, options: &str) {
        let manifest = if options.contains('@') { String::new() } else { format!("@{name}.json") };
        let line = format!("render {manifest} --conf @net.d/10-net.conflist --namespace-labels= {options}");
        let text = self.files.run(&line).ok();
        for command in text.lines().filter_map(|line| line.strip_prefix("# first: ")) {
            netns.run(Command::new("sh").args(["-c", command])).unwrap();
        }
        if options.contains("iptables") {
            netns.iptables_restore(Variant::Nft, Family::V4, &text).unwrap();
        } else {
            netns.nft(&text).unwrap();
        }
    }

    pub(crate) fn netns(&self, name: &str) -> &TestNetns {
        &self.pods.iter().find(|(known, _)| known == name).unwrap().1
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        self.files.command(&format!("{line} --net-dir @net.d --run-dir @run"))
    }

    pub(crate) fn run(&self, line: &str) -> Run {
        Run::of(&self.command(line).output().unwrap())
    }
}

/// The uid that a pod of this name has.
fn uid(name: &str) -> String {
    format!("uid-of-{name}")
}

/// `metadata` of a pod that the injector has handled.
pub(crate) fn injected() -> Value {
    json!({"labels": {"app": "web"}, "annotations": {"sidecar.istio.io/status": "{}"}})
}

/// `spec` of a pod with a sidecar.
pub(crate) fn with_proxy() -> Value {
    json!({"containers": [{"name": "app"}, {"name": "istio-proxy", "args": ["proxy", "sidecar"]}]})
}

/// `metadata` of a pod of ambient mode.
pub(crate) fn ambient() -> Value {
    json!({"labels": {"app": "cart", "istio.io/dataplane-mode": "ambient"}})
}
