//! Asking the API server once: at the start whose pod the agent's is, at the end what becomes of it.

use std::time::Duration;

use facts::object::Header;
use kube::core::Request;
use kube::core::params::GetParams;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{DEFAULT_NAME, DaemonSet, OwnPod, Seen};
use crate::connection::Connection;
use crate::error::{Error, place};
use crate::write::{MAX_ANSWER, Writer, segment};

/// Longest wait at the end. A pod that is being shut down has no more than some seconds.
pub(super) const LIMIT: Duration = Duration::from_secs(2);

impl Writer {
    /// The uid of a pod, without which `kubectl describe` does not show its Events.
    ///
    /// # Errors
    /// The API server does not say.
    pub async fn pod_uid(&self, pod: &OwnPod) -> Result<String, Error> {
        let pods = format!("/api/v1/namespaces/{}/pods", segment(&pod.namespace));
        let pod: WithUid = get(self.connection(), "Pod", &pods, &pod.name, LIMIT).await?;
        Ok(pod.metadata.uid)
    }

    /// Whether the API server has a node of this agent's name.
    ///
    /// # Errors
    /// The API server does not say.
    pub async fn has_node(&self) -> Result<bool, Error> {
        match get::<Header>(self.connection(), "Node", "/api/v1/nodes", self.node(), LIMIT).await {
            Ok(_) => Ok(true),
            Err(error) if error.says_absent("nodes", self.node()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What was seen, brought up to date as far as the API server answers, within two seconds; and why not, where it does not.
    pub async fn look_again(&self, seen: &Seen, namespace: &str) -> (Seen, Vec<Error>) {
        let mut seen = seen.clone();
        if seen.name.is_empty() {
            DEFAULT_NAME.clone_into(&mut seen.name);
        }
        let (connection, sets) = (self.connection(), path(namespace));
        let (set, node) = tokio::join!(
            get::<DaemonSet>(connection, DAEMONSET, &sets, &seen.name, LIMIT),
            get(connection, "Node", "/api/v1/nodes", self.node(), LIMIT),
        );
        let mut errors = Vec::new();
        match set {
            Ok(set) => seen.there(set),
            Err(error) if error.says_absent("daemonsets", &seen.name) => seen.gone(),
            Err(error) => errors.push(error),
        }
        match node {
            Ok(node) => seen.node = Some(node),
            Err(error) if error.says_absent("nodes", self.node()) => seen.node = None,
            Err(error) => errors.push(error),
        }
        (seen, errors)
    }
}

#[derive(Debug, Deserialize)]
struct WithUid {
    metadata: Uid,
}

#[derive(Debug, Deserialize)]
struct Uid {
    uid: String,
}

pub(super) const DAEMONSET: &str = "DaemonSet";

/// The path of a namespace's DaemonSets.
pub(crate) fn path(namespace: &str) -> String {
    format!("/apis/apps/v1/namespaces/{}/daemonsets", segment(namespace))
}

/// The name of the DaemonSet that the agent's pod belongs to, if it belongs to one.
///
/// # Errors
/// The API server does not say.
pub(crate) async fn owner(
    connection: &Connection,
    pod: &OwnPod,
    limit: Duration,
) -> Result<Option<String>, Error> {
    #[derive(Deserialize)]
    struct Owner {
        kind: String,
        name: String,
        #[serde(default)]
        controller: bool,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        #[serde(default)]
        owner_references: Vec<Owner>,
    }
    #[derive(Deserialize)]
    struct Pod {
        metadata: Metadata,
    }
    let path = format!("/api/v1/namespaces/{}/pods", segment(&pod.namespace));
    let pod: Pod = get(connection, "Pod", &path, &pod.name, limit).await?;
    let mut owners = pod.metadata.owner_references.into_iter();
    Ok(owners.find(|owner| owner.controller && owner.kind == DAEMONSET).map(|owner| owner.name))
}

pub(super) async fn get<T: DeserializeOwned>(
    connection: &Connection,
    kind: &str,
    path: &str,
    name: &str,
    limit: Duration,
) -> Result<T, Error> {
    let operation = format!("get {kind} {name}");
    let request = Request::new(path).get(&segment(name), &GetParams::default());
    let body = connection.ask(&operation, request, limit, MAX_ANSWER).await?;
    // Something in between may answer 200 to anything.
    let header = serde_json::from_slice::<Header>(&body).ok();
    if header.and_then(|header| header.kind).as_deref() != Some(kind) {
        return Err(Error::NotUnderstood { operation, reason: format!("is not a {kind}") });
    }
    let not_understood = |error| Error::NotUnderstood { operation: operation.clone(), reason: place(&error) };
    serde_json::from_slice(&body).map_err(not_understood)
}
