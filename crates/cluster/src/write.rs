//! What the agent does through the API server.

use std::sync::Arc;
use std::time::Duration;

use facts::{Object, PodRef};
use k8s_openapi::jiff::Timestamp;
use kube::core::Request;
use kube::core::params::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use crate::connection::ApiConnection;
use crate::error::Error;

/// Longest wait for one request. A pod that is being shut down has no more than some seconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);

/// Largest answer that is read.
pub(crate) const MAX_ANSWER: usize = 4 << 20;

/// Longest name of an object (Kubernetes' DNS subdomain) and longest message of an Event (`validateV1EventSeries` and its neighbours in
/// Kubernetes' `pkg/apis/core/validation/events.go`).
const MAX_NAME: usize = 253;
const MAX_MESSAGE: usize = 1024;

/// Writes through the API server, each within two seconds and without repeating: whoever asks decides on that.
#[derive(Debug, Clone)]
pub struct Writer {
    connection: Arc<ApiConnection>,
    node: String,
}

/// What a Kubernetes Event says.
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

// === impl Writer ===

impl Writer {
    /// `node` is named as the source of Events.
    pub fn new(connection: Arc<ApiConnection>, node: impl Into<String>) -> Self {
        Self { connection, node: node.into() }
    }

    /// Whether the API server answers, as one that is ready. Who may not ask that is answered, too.
    ///
    /// # Errors
    /// It does not answer, is not ready, or does not take the account.
    pub async fn server_answers(&self) -> Result<(), Error> {
        let answer = self.connection.ask_whether_ready("ask the API server whether it is ready", LIMIT).await;
        answer.map(drop).or_else(|error| if error.is_answer() { Ok(()) } else { Err(error) })
    }

    /// Creates an Event about a pod, in its namespace.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn create_event(&self, pod: &PodRef, text: EventText<'_>) -> Result<(), Error> {
        let operation = format!("create an Event about pod {}/{}", pod.namespace, pod.name);
        let about = json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
        });
        self.event(&operation, (&pod.namespace, &pod.name), about, text).await
    }

    /// Creates an Event about the node, in namespace `default` and with its name as uid, where kubectl looks for it.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn create_node_event(&self, text: EventText<'_>) -> Result<(), Error> {
        let operation = format!("create an Event about node {}", self.node);
        let about = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node});
        self.event(&operation, ("default", &self.node), about, text).await
    }

    /// Creates an Event about a NetworkPolicy, in its namespace.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn create_policy_event(
        &self,
        namespace: &str,
        name: &str,
        text: EventText<'_>,
    ) -> Result<(), Error> {
        let operation = format!("create an Event about network policy {namespace}/{name}");
        let about = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": namespace, "name": name,
        });
        self.event(&operation, (namespace, name), about, text).await
    }

    /// Creates an Event in a namespace about an object of a name.
    pub(crate) async fn event(
        &self,
        operation: &str,
        (namespace, name): (&str, &str),
        about: Value,
        text: EventText<'_>,
    ) -> Result<(), Error> {
        let now = Timestamp::now();
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": event_name(name, now), "namespace": namespace},
            "involvedObject": about,
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
        let path = format!("/api/v1/namespaces/{}/events", segment(namespace));
        let request = Request::new(path).create(&PostParams::default(), event.to_string().into_bytes());
        self.connection.ask(operation, request, LIMIT, MAX_ANSWER).await.map(drop)
    }

    /// Sets a label of a pod, by way of its status, which needs the least permission. A pod of another uid under the name is left
    /// alone: the server answers 409.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn label_pod(&self, pod: &PodRef, key: &str, value: &str) -> Result<(), Error> {
        let operation = format!("label pod {}/{} with {key}", pod.namespace, pod.name);
        self.patch_metadata(&operation, pod, json!({"labels": {key: value}})).await
    }

    /// The pod as the API server has it now.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked. The status is 404 when the pod is gone, or another one has its name.
    pub async fn pod(&self, pod: &PodRef) -> Result<Object, Error> {
        let (operation, body) = self.get_pod(pod).await?;
        serde_json::from_slice(body.as_ref())
            .map_err(|error| Error::NotUnderstood { operation, reason: error.to_string() })
    }

    /// Who was the last to write one of these labels or annotations of the pod, as far as the API server has noted it.
    ///
    /// # Errors
    /// As [`Self::pod`].
    pub async fn last_manager(&self, pod: &PodRef, keys: &[&str]) -> Result<Option<String>, Error> {
        let (operation, body) = self.get_pod(pod).await?;
        facts::managers::last_manager(body.as_ref(), keys)
            .map_err(|error| Error::NotUnderstood { operation, reason: error.to_string() })
    }

    async fn get_pod(&self, pod: &PodRef) -> Result<(String, impl AsRef<[u8]>), Error> {
        let operation = format!("look at pod {}/{}", pod.namespace, pod.name);
        let request = Request::new(pods_path(pod)).get(&segment(&pod.name), &GetParams::default());
        let body = self.connection.ask(&operation, request, LIMIT, MAX_ANSWER).await?;
        Ok((operation, body))
    }

    /// Deletes a pod with its usual time to end, if it is still the one that was looked at: of this uid, and as of this version.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked. The status is 409 where it is not that one any more.
    pub async fn delete_pod(&self, pod: &PodRef, version: &str) -> Result<(), Error> {
        let operation = format!("delete pod {}/{}", pod.namespace, pod.name);
        let preconditions =
            Preconditions { uid: Some(pod.uid.clone()), resource_version: Some(version.to_owned()) };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let request = Request::new(pods_path(pod)).delete(&segment(&pod.name), &params);
        self.connection.ask(&operation, request, LIMIT, MAX_ANSWER).await.map(drop)
    }

    /// Sets an annotation of a pod, or removes it, in the same way and with the same precondition (the original has none; a late patch would hit
    /// the next pod of the name).
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked. The status is 404 when the pod is gone and 409 when another one has its name.
    pub async fn annotate_pod(&self, pod: &PodRef, key: &str, value: Option<&str>) -> Result<(), Error> {
        let operation = match value {
            Some(value) => format!("annotate pod {}/{} with {key}={value}", pod.namespace, pod.name),
            None => format!("take annotation {key} from pod {}/{}", pod.namespace, pod.name),
        };
        self.patch_metadata(&operation, pod, json!({"annotations": {key: value}})).await
    }

    async fn patch_metadata(&self, operation: &str, pod: &PodRef, mut metadata: Value) -> Result<(), Error> {
        if !pod.uid.is_empty() {
            metadata["uid"] = pod.uid.as_str().into();
        }
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let pods = Request::new(pods_path(pod));
        let request = pods.patch_subresource("status", &segment(&pod.name), &PatchParams::default(), &patch);
        self.connection.ask(operation, request, LIMIT, MAX_ANSWER).await.map(drop)
    }

    pub(crate) fn connection(&self) -> &ApiConnection {
        &self.connection
    }

    pub(crate) fn node(&self) -> &str {
        &self.node
    }
}

fn pods_path(pod: &PodRef) -> String {
    format!("/api/v1/namespaces/{}/pods", segment(&pod.namespace))
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
pub(crate) fn segment(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    name.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests;
