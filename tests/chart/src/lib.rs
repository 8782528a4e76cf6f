//! Renders the chart with the Helm that `scripts/setup` installs, and reads what comes out.

mod schema;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

pub use schema::check_fields;

/// What one rendering gave, in the order of the output.
#[derive(Debug)]
pub struct Objects(Vec<Value>);

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Renders the chart for namespace `mesh` with these arguments of `helm template`, such as `["--set", "hub=x"]`.
///
/// # Errors
/// When Helm is missing, refuses the values, or writes no proper YAML. The text is Helm's own.
pub fn render(args: &[&str]) -> Result<Objects> {
    let output = helm(args)?;
    if !output.status.success() {
        bail!("helm template {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    parse(&String::from_utf8(output.stdout)?)
}

/// As [`render`], with one `--set` for each value.
///
/// # Errors
/// As [`render`].
pub fn render_set(values: &[&str]) -> Result<Objects> {
    let args: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
    render(&args)
}

/// Reads a stream of YAML documents; empty ones are left out. A name given twice in one map is an error.
///
/// # Errors
/// When it is no YAML or has an object without apiVersion, kind or name.
pub fn parse(text: &str) -> Result<Objects> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let objects: Vec<Value> = documents.into_iter().filter(|document| !document.is_null()).collect();
    for object in &objects {
        for field in ["/apiVersion", "/kind", "/metadata/name"] {
            let value = object.pointer(field).and_then(Value::as_str).unwrap_or_default();
            ensure!(!value.is_empty(), "an object without {field}: {object}");
        }
    }
    Ok(Objects(objects))
}

fn helm(args: &[&str]) -> Result<Output> {
    let program = root().join(".cache/bin/helm");
    Command::new(&program)
        .args(["template", "istio-cni", "deploy/charts/istio-cni", "--namespace", "mesh"])
        .args(args)
        .current_dir(root())
        .output()
        .with_context(|| format!("run {}: scripts/setup installs it", program.display()))
}

// === impl Objects ===

impl Objects {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Value> {
        self.0.iter()
    }

    /// `kind/name` of each, sorted.
    pub fn names(&self) -> Vec<String> {
        let text = |object: &Value, field| {
            object.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let mut names: Vec<String> =
            self.iter().map(|o| format!("{}/{}", text(o, "/kind"), text(o, "/metadata/name"))).collect();
        names.sort();
        names
    }

    /// The object of this kind and name.
    pub fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    }

    /// The object of this kind and name.
    ///
    /// # Panics
    /// When it is not there.
    pub fn get(&self, kind: &str, name: &str) -> &Value {
        self.find(kind, name).unwrap_or_else(|| panic!("no {kind}/{name} among {:?}", self.names()))
    }

    /// The agent's container.
    ///
    /// # Panics
    /// When there is no DaemonSet.
    pub fn container(&self) -> &Value {
        &self.get("DaemonSet", "istio-cni-node")["spec"]["template"]["spec"]["containers"][0]
    }

    /// The value of an option in the ConfigMap.
    ///
    /// # Panics
    /// When there is no ConfigMap.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.get("ConfigMap", "istio-cni-config")["data"][name].as_str()
    }

    /// Path on the node of the folder that the agent sees at `mount`.
    ///
    /// # Panics
    /// When there is no DaemonSet.
    pub fn host_path(&self, mount: &str) -> Option<&str> {
        let volume = self.mount(mount)?["name"].clone();
        let volumes = &self.get("DaemonSet", "istio-cni-node")["spec"]["template"]["spec"]["volumes"];
        volumes.as_array()?.iter().find(|v| v["name"] == volume)?["hostPath"]["path"].as_str()
    }

    /// The mount at that path in the agent's container.
    ///
    /// # Panics
    /// When there is no DaemonSet.
    pub fn mount(&self, path: &str) -> Option<&Value> {
        self.container()["volumeMounts"].as_array()?.iter().find(|mount| mount["mountPath"] == path)
    }

    /// What one ClusterRole allows, as `group resources names: verbs` with sorted words, a line for each rule.
    ///
    /// # Panics
    /// When it is not there.
    pub fn rights(&self, role: &str) -> Vec<String> {
        let words = |list: &Value| {
            let mut words: Vec<&str> =
                list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            words.sort_unstable();
            words.join(",")
        };
        let rules = self.get("ClusterRole", role)["rules"].as_array().cloned().unwrap_or_default();
        rules
            .iter()
            .map(|rule| {
                let names = words(&rule["resourceNames"]);
                let names = if names.is_empty() { names } else { format!("[{names}]") };
                let group = words(&rule["apiGroups"]);
                let group = if group.is_empty() { "core".to_owned() } else { group };
                format!("{group} {}{names}: {}", words(&rule["resources"]), words(&rule["verbs"]))
            })
            .collect()
    }
}
