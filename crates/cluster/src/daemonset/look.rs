//! Asking the API server once: at the start whose pod the agent's is, at the end what becomes of it.

use std::time::Duration;

use facts::Node;
use facts::object::Header;
use kube::core::Request;
use kube::core::params::GetParams;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{DEFAULT_NAME, DaemonSet, OwnPod, Seen};
use crate::connection::ApiConnection;
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

    /// Whether kubelet says of the node that it is shutting down.
    ///
    /// # Errors
    /// The API server does not say.
    pub async fn node_shuts_down(&self) -> Result<bool, Error> {
        let node: Node = get(self.connection(), "Node", "/api/v1/nodes", self.node(), LIMIT).await?;
        Ok(node.is_shutting_down())
    }

    /// What was seen, brought up to date as far as the API server answers, within two seconds; and why not, where it does not.
    pub async fn look_again(&self, seen: &Seen, own: &OwnPod) -> (Seen, Vec<Error>) {
        let mut seen = seen.clone();
        let connection = self.connection();
        let (pod, set, node) = tokio::join!(
            OwnPodObject::get(connection, own, LIMIT),
            self.own_set(&seen.name, own),
            get(connection, "Node", "/api/v1/nodes", self.node(), LIMIT),
        );
        let mut errors = Vec::new();
        seen.pod_stays = matches!(&pod, Ok(Some(pod)) if !pod.is_ending());
        match set {
            Ok((name, set)) => {
                seen.name = name;
                match set {
                    Some(set) => seen.there(set),
                    None => seen.gone(),
                }
            }
            Err(error) => errors.push(error),
        }
        match node {
            Ok(node) => seen.node = Some(node),
            Err(error) if error.says_absent("nodes", self.node()) => seen.node = None,
            Err(error) => errors.push(error),
        }
        (seen, errors)
    }

    /// The agent's DaemonSet and its name, which is the given one if that is known.
    async fn own_set(&self, name: &str, own: &OwnPod) -> Result<(String, Option<DaemonSet>), Error> {
        let find = async {
            let name = match name {
                "" => name_of(self.connection(), own, LIMIT).await?,
                known => known.to_owned(),
            };
            let sets = path(&own.namespace);
            match get(self.connection(), DAEMONSET, &sets, &name, LIMIT).await {
                Ok(set) => Ok((name, Some(set))),
                Err(error) if error.says_absent_or_no_more("daemonsets", &name) => Ok((name, None)),
                Err(error) => Err(error),
            }
        };
        let late = |_| Error::TimedOut { operation: format!("get {DAEMONSET} {name}"), after: LIMIT };
        tokio::time::timeout(LIMIT, find).await.map_err(late)?
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

/// The name of the agent's DaemonSet: that of its pod's owner, and [`DEFAULT_NAME`] for a pod that has none, is gone or is not known.
///
/// # Errors
/// The API server does not say.
pub(crate) async fn name_of(
    connection: &ApiConnection,
    own: &OwnPod,
    limit: Duration,
) -> Result<String, Error> {
    let pod = OwnPodObject::get(connection, own, limit).await?;
    Ok(pod.and_then(OwnPodObject::into_daemonset).unwrap_or_else(|| DEFAULT_NAME.to_owned()))
}

/// The agent's own pod: who owns it, and whether it is being deleted.
#[derive(Debug, Deserialize)]
struct OwnPodObject {
    metadata: OwnMetadata,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnMetadata {
    #[serde(default)]
    owner_references: Vec<Owner>,
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Owner {
    kind: String,
    name: String,
    #[serde(default)]
    controller: bool,
}

impl OwnPodObject {
    /// Nothing where the pod is not known, or does not exist (any more).
    async fn get(connection: &ApiConnection, own: &OwnPod, limit: Duration) -> Result<Option<Self>, Error> {
        if own.name.is_empty() {
            return Ok(None);
        }
        let pods = format!("/api/v1/namespaces/{}/pods", segment(&own.namespace));
        match get(connection, "Pod", &pods, &own.name, limit).await {
            Err(error) if error.says_absent_or_no_more("pods", &own.name) => Ok(None),
            result => result.map(Some),
        }
    }

    fn is_ending(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    fn into_daemonset(self) -> Option<String> {
        let mut owners = self.metadata.owner_references.into_iter();
        owners.find(|owner| owner.controller && owner.kind == DAEMONSET).map(|owner| owner.name)
    }
}

pub(super) async fn get<T: DeserializeOwned>(
    connection: &ApiConnection,
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
