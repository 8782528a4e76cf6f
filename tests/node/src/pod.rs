//! What a test asks for: pods and their containers, both as the kubelet would ask the runtime and as a Kubernetes manifest.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testkit::PodObject;

/// A pod to run.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name, unique within the namespace.
    pub name: String,
    /// The API server's identity of the pod.
    pub uid: String,
    /// Annotations, in the sandbox's request and in the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Labels, in the sandbox's request and in the manifest.
    pub labels: BTreeMap<String, String>,
    /// Containers, started in this order.
    pub containers: Vec<ContainerSpec>,
}

/// A container of a pod, from the busybox image.
#[derive(Debug, Clone, Default)]
pub struct ContainerSpec {
    /// Name, unique within the pod.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// More arguments: what the manifest shows as `args`.
    pub args: Vec<String>,
    /// Environment, also in the manifest.
    pub env: BTreeMap<String, String>,
    /// Uid and gid of the process.
    pub user: i64,
}

impl PodSpec {
    /// A pod without containers.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{namespace}-{name}"),
            ..Self::default()
        }
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a container that runs `command` as user and group `user`.
    #[must_use]
    pub fn container(mut self, name: &str, user: i64, command: &[&str], args: &[&str]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        self.containers.push(ContainerSpec {
            name: name.to_owned(),
            command: owned(command),
            args: owned(args),
            env: BTreeMap::new(),
            user,
        });
        self
    }

    /// Sets a variable in the container added last.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        if let Some(last) = self.containers.last_mut() {
            last.env.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    /// The pod as a manifest (`kind: Pod`).
    #[must_use]
    pub fn manifest(&self) -> Value {
        let containers: Vec<Value> = self
            .containers
            .iter()
            .map(|c| {
                let env = c.env.iter().map(|(name, value)| json!({"name": name, "value": value}));
                json!({
                    "env": env.collect::<Vec<_>>(),
                    "name": c.name,
                    "image": crate::APP_IMAGE,
                    "command": c.command,
                    "args": c.args,
                    "securityContext": {"runAsUser": c.user, "runAsGroup": c.user},
                })
            })
            .collect();
        let pod = PodObject::named(&self.name).in_namespace(&self.namespace).uid(&self.uid);
        pod.with("/metadata/annotations", json!(self.annotations))
            .with("/metadata/labels", json!(self.labels))
            .with("/spec/containers", containers)
            .json()
    }
}
