//! What the agent does through the API server.

mod event;
mod event_book;
mod reasons;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use facts::{Object, PodRef};
use kube::core::Request;
use kube::core::params::{DeleteParams, GetParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use crate::connection::ApiConnection;
use crate::error::Error;
pub use event::EventText;
use event_book::EventBook;
pub use event_book::EventLimits;
pub use reasons::{EventReason, REASONS};

/// Longest wait for one request. A pod that is being shut down has no more than some seconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);

/// Largest answer that is read.
pub(crate) const MAX_ANSWER: usize = 4 << 20;

/// Writes through the API server, each within two seconds and without repeating: whoever asks decides on that.
#[derive(Debug, Clone)]
pub struct Writer {
    connection: Arc<ApiConnection>,
    node: String,
    /// Who writes Events: the agent's pod.
    instance: String,
    /// Shared by all clones: limits are the node's.
    events: Arc<Mutex<EventBook>>,
}

// === impl Writer ===

impl Writer {
    /// `node` is named as the source of Events.
    pub fn new(connection: Arc<ApiConnection>, node: impl Into<String>) -> Self {
        let (node, book) = (node.into(), EventBook::new(EventLimits::default()));
        Self { connection, instance: node.clone(), node, events: Arc::new(Mutex::new(book)) }
    }

    /// With this pod as the one that writes Events, and as many Events as these limits allow.
    #[must_use]
    pub fn reporting(self, instance: &str, limits: EventLimits) -> Self {
        let instance = if instance.is_empty() { self.node.clone() } else { instance.to_owned() };
        let events = Arc::new(Mutex::new(EventBook::new(limits)));
        Self { instance, events, ..self }
    }

    /// Whether the API server answers, as one that is ready. Who may not ask that is answered, too.
    ///
    /// # Errors
    /// It does not answer, is not ready, or does not take the account.
    pub async fn server_answers(&self) -> Result<(), Error> {
        let answer = self.connection.ask_whether_ready("ask the API server whether it is ready", LIMIT).await;
        answer.map(drop).or_else(|error| if error.is_answer() { Ok(()) } else { Err(error) })
    }

    /// Sets a label of a pod, by way of its status, which needs the least permission. A pod of another uid under the name is left
    /// alone.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked. The status is 404 when the pod is gone and 409 when another one has its name.
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
        match self.connection.ask(operation, request, LIMIT, MAX_ANSWER).await {
            // Another pod has the name by now, in the words of `ValidateObjectMetaAccessorUpdate` of Kubernetes' `pkg/api/validation`.
            Err(Error::Status { code: 422, message, operation, about, retry_after })
                if message.contains("metadata.uid") =>
            {
                Err(Error::Status { code: 409, message, operation, about, retry_after })
            }
            answer => answer.map(drop),
        }
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

/// Names are Kubernetes names; anything else in one must not become another path.
pub(crate) fn segment(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    name.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests;
