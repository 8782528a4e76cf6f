//! The facts about a pod that decide its capture, free of any Kubernetes or wire type.
//!
//! Whoever knows a source (the API, a manifest, the node agent) converts into these at its edge.

use std::collections::BTreeMap;

/// The facts of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`; absent in a manifest that was never submitted.
    pub uid: Option<String>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`. Untrusted text; [`crate`] parses what it uses.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.labels` of its namespace, where the source of the facts knows them.
    pub namespace_labels: Option<BTreeMap<String, String>>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.runtimeClassName`, which is not empty.
    pub runtime_class: Option<String>,
    /// `spec.securityContext.runAsUser`, for containers that do not say their own.
    pub run_as_user: Option<i64>,
    /// `spec.securityContext.runAsGroup`, likewise and by itself.
    pub run_as_group: Option<i64>,
    /// `spec.initContainers`, in order.
    pub init_containers: Vec<Container>,
    /// `spec.containers`, in order.
    pub containers: Vec<Container>,
}

/// One container of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// Name.
    pub name: String,
    /// `args`.
    pub args: Vec<String>,
    /// `env` in order; a `valueFrom` entry has the empty value.
    pub env: Vec<(String, String)>,
    /// `securityContext.runAsUser`; where it is absent, [`Pod::run_as_user`] holds.
    pub run_as_user: Option<i64>,
    /// `securityContext.runAsGroup`; where it is absent, [`Pod::run_as_group`] holds.
    pub run_as_group: Option<i64>,
    /// An init container with `restartPolicy: Always`, which is a native sidecar.
    pub restarts_always: bool,
}

impl Pod {
    /// Init containers, then regular containers.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers)
    }
}
