//! What the agent does through the API server.

mod affinity;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::core::Request;
use kube::core::params::{GetParams, Patch, PatchParams, PostParams};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::connection::Connection;
use crate::error::{Error, place};
use crate::index::PodKey;
use affinity::{Node, NodeSelector};

/// Longest wait for one request. A pod that is being shut down has no more than some seconds.
const LIMIT: Duration = Duration::from_secs(2);

/// Largest answer that is read.
const MAX_ANSWER: usize = 4 << 20;

/// Longest name of an object (Kubernetes' DNS subdomain) and longest message of an Event (`validateV1EventSeries` and its neighbours in
/// Kubernetes' `pkg/apis/core/validation/events.go`).
const MAX_NAME: usize = 253;
const MAX_MESSAGE: usize = 1024;

/// Writes through the API server, each within two seconds and without repeating: whoever asks decides on that.
#[derive(Debug, Clone)]
pub struct Writer {
    connection: Arc<Connection>,
    node: String,
}

/// What a Kubernetes Event says about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventText<'a> {
    /// Whether it is a `Warning`, or else `Normal`.
    pub warning: bool,
    /// A word in upper camel case, such as `StartedWithoutCapture`.
    pub reason: &'a str,
    /// For people; cut after 1024 bytes.
    pub message: &'a str,
    /// `source.component`, such as `istio-cni-node`.
    pub component: &'a str,
}

/// What becomes of the agent's DaemonSet on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpgradeState {
    /// It exists and wants a pod on this node: the agent is being replaced, or the node restarts.
    Stays,
    /// It exists, and its required node affinity does not hold for this node (any more).
    AffinityMismatch,
    /// It is being deleted.
    Deleting,
    /// It does not exist.
    NotFound,
    /// Our credentials are no longer valid, as after the service account has been removed.
    Unauthorized,
    /// We may not look.
    Forbidden,
    /// It cannot be told.
    Unknown(UpgradeError),
}

/// Why it cannot be told what becomes of the agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// The API server does not say.
    #[error(transparent)]
    Api(#[from] Error),
    /// The affinity means nothing.
    #[error("evaluate the node affinity of DaemonSet {name}: {reason}; correct the DaemonSet")]
    Affinity {
        /// Namespace and name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    deletion_timestamp: Option<String>,
    labels: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct DaemonSet {
    #[serde(default)]
    metadata: Metadata,
    /// As it stands; [`NodeSelector`] is somewhere in it.
    #[serde(default)]
    spec: Value,
}

#[derive(Debug, Deserialize)]
struct NodeObject {
    #[serde(default)]
    metadata: Metadata,
}

// === impl Writer ===

impl Writer {
    /// `node` is named as the source of Events.
    pub fn new(connection: Arc<Connection>, node: impl Into<String>) -> Self {
        Self { connection, node: node.into() }
    }

    /// Creates an Event about a pod, in its namespace.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn create_event(&self, pod: &PodKey, text: EventText<'_>) -> Result<(), Error> {
        let operation = format!("create an Event about pod {}/{}", pod.namespace, pod.name);
        let now = Timestamp::now();
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": event_name(&pod.name, now), "namespace": pod.namespace},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
            },
            "type": if text.warning { "Warning" } else { "Normal" },
            "reason": text.reason,
            "message": &text.message[..text.message.floor_char_boundary(MAX_MESSAGE)],
            "source": {"component": text.component, "host": self.node},
            "reportingComponent": text.component,
            "reportingInstance": self.node,
            "firstTimestamp": whole_seconds(now),
            "lastTimestamp": whole_seconds(now),
            "count": 1,
        });
        let path = format!("/api/v1/namespaces/{}/events", segment(&pod.namespace));
        let request = Request::new(path).create(&PostParams::default(), event.to_string().into_bytes());
        self.connection.ask(&operation, request, LIMIT, MAX_ANSWER).await.map(drop)
    }

    /// Sets a label of a pod, by way of its status, which needs the least permission. A pod of another uid under the name is left
    /// alone: the server answers 409.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn label_pod(&self, pod: &PodKey, key: &str, value: &str) -> Result<(), Error> {
        let operation = format!("label pod {}/{} with {key}", pod.namespace, pod.name);
        self.patch_metadata(&operation, pod, json!({"labels": {key: value}})).await
    }

    /// Sets an annotation of a pod, or removes it, in the same way and with the same precondition (AA-53 has none; a late patch would hit
    /// the next pod of the name).
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked. The status is 404 when the pod is gone and 409 when another one has its name.
    pub async fn annotate_pod(&self, pod: &PodKey, key: &str, value: Option<&str>) -> Result<(), Error> {
        let operation = match value {
            Some(value) => format!("annotate pod {}/{} with {key}={value}", pod.namespace, pod.name),
            None => format!("take annotation {key} from pod {}/{}", pod.namespace, pod.name),
        };
        self.patch_metadata(&operation, pod, json!({"annotations": {key: value}})).await
    }

    async fn patch_metadata(&self, operation: &str, pod: &PodKey, mut metadata: Value) -> Result<(), Error> {
        if !pod.uid.is_empty() {
            metadata["uid"] = pod.uid.as_str().into();
        }
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let pods = Request::new(format!("/api/v1/namespaces/{}/pods", segment(&pod.namespace)));
        let request = pods.patch_subresource("status", &segment(&pod.name), &PatchParams::default(), &patch);
        self.connection.ask(operation, request, LIMIT, MAX_ANSWER).await.map(drop)
    }

    /// Whether the agent is about to be replaced by another, from its DaemonSet and this node (AA-100).
    pub async fn daemonset_state(&self, namespace: &str, name: &str) -> UpgradeState {
        match self.daemonset(namespace, name).await {
            Ok(state) => state,
            Err(UpgradeError::Api(error)) => match error.status() {
                Some(401) => UpgradeState::Unauthorized,
                Some(403) => UpgradeState::Forbidden,
                _ => UpgradeState::Unknown(error.into()),
            },
            Err(error) => UpgradeState::Unknown(error),
        }
    }

    async fn daemonset(&self, namespace: &str, name: &str) -> Result<UpgradeState, UpgradeError> {
        let operation = format!("get DaemonSet {namespace}/{name}");
        let path = format!("/apis/apps/v1/namespaces/{}/daemonsets", segment(namespace));
        let set: DaemonSet = match self.get(&operation, path, name).await {
            Err(error) if error.status() == Some(404) => return Ok(UpgradeState::NotFound),
            set => set?,
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(UpgradeState::Deleting);
        }
        let required = &set.spec["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        if required.is_null() {
            return Ok(UpgradeState::Stays);
        }
        let broken = |reason| UpgradeError::Affinity { name: format!("{namespace}/{name}"), reason };
        let selector = NodeSelector::deserialize(required).map_err(|error| broken(error.to_string()))?;
        let operation = format!("get node {}", self.node);
        let node: NodeObject = self.get(&operation, "/api/v1/nodes".into(), &self.node).await?;
        let labels = node.metadata.labels.unwrap_or_default();
        let node = Node { name: &self.node, labels: &labels };
        let matches = selector.matches(&node).map_err(|error| broken(error.to_string()))?;
        Ok(if matches { UpgradeState::Stays } else { UpgradeState::AffinityMismatch })
    }

    async fn get<T: DeserializeOwned>(&self, operation: &str, path: String, name: &str) -> Result<T, Error> {
        let request = Request::new(path).get(&segment(name), &GetParams::default());
        let body = self.connection.ask(operation, request, LIMIT, MAX_ANSWER).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::NotUnderstood { operation: operation.into(), reason: place(&error) })
    }
}

/// Unique per pod and moment, as other components name theirs, and no longer than allowed.
fn event_name(pod: &str, now: Timestamp) -> String {
    let suffix = format!(".{:x}", now.as_nanosecond());
    let room = MAX_NAME.saturating_sub(suffix.len());
    let pod = &pod[..pod.floor_char_boundary(room)];
    format!("{}{suffix}", pod.trim_end_matches(['.', '-']))
}

/// RFC 3339 without fractions, which `metav1.Time` has not.
fn whole_seconds(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Names are Kubernetes names; anything else in one must not become another path.
fn segment(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    name.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests;
