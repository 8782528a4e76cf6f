//! Asks the API server for single pods that the watches have not brought yet: the runtime starts a pod while they may be behind or away.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{OptionFuture, join};
use futures_util::stream::FuturesUnordered;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use super::sink::{AllNamespaces, NodePods};
use super::{Reporter, Sink, read};
use crate::connection::ApiConnection;
use crate::error::{Error, place};
use crate::kind::{Kind, Namespaces, Pods};
use crate::news::{News, ObjectKey};
use crate::write::segment;

/// Longest wait for an object. Whoever asks may wait less.
const LIMIT: Duration = Duration::from_secs(2);

/// Largest object that is read.
const MAX_OBJECT: usize = 8 << 20;

/// Pods that are asked for at one time.
const MAX_RUNNING: usize = 8;

/// A pod is asked for once in this time, however many ask.
const AGAIN: Duration = Duration::from_secs(1);

/// Answers that are remembered for that.
const MAX_REMEMBERED: usize = 1024;

/// Why a pod is not known though the API server was asked for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The server has no such pod, or no such namespace.
    #[error("the API server does not know it")]
    NotFound,
    /// It belongs to another node.
    #[error("the API server says that it is not on this node")]
    Elsewhere,
    /// The server is away, so that it was not asked.
    #[error("the API server is away")]
    Away,
    /// There is no server to ask.
    #[error("there is no API server to ask")]
    NoServer,
    /// The directory of manifests does not have it.
    #[error("no manifest describes it")]
    NoManifest,
    /// The answer was not there in time.
    #[error("it was not found out in time")]
    Late,
    /// The question failed.
    #[error(transparent)]
    Api(#[from] Error),
}

/// Somebody wants to know a pod.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) key: ObjectKey,
    pub(super) answer: oneshot::Sender<Result<(), FetchError>>,
}

/// Where questions come in, before and while there is somebody to answer them.
pub(super) type Questions = mpsc::Receiver<Question>;

pub(super) struct Fetcher<'a> {
    pub(super) connection: &'a ApiConnection,
    pub(super) reporter: &'a Reporter<'a>,
    pub(super) node: &'a str,
}

/// What is being asked, and what was lately.
#[derive(Default)]
struct Asked {
    waiting: HashMap<ObjectKey, Vec<oneshot::Sender<Result<(), FetchError>>>>,
    answers: HashMap<ObjectKey, (Instant, Result<(), FetchError>)>,
}

/// What [`facts::Object`] leaves out.
#[derive(Debug, Deserialize)]
struct Placed {
    #[serde(default)]
    spec: Placement,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Placement {
    node_name: Option<String>,
}

// === impl Fetcher ===

impl Fetcher<'_> {
    /// Answers questions until dropped.
    pub(super) async fn run(self, questions: &mut Questions) -> Infallible {
        let mut asked = Asked::default();
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(question) = questions.recv(), if running.len() < MAX_RUNNING => {
                    if let Some(key) = asked.take(question) {
                        running.push(async { (self.fetch(&key).await, key) });
                    }
                }
                Some((answer, key)) = running.next() => asked.answer(key, answer),
                else => std::future::pending().await,
            }
        }
    }

    /// Brings a pod, and its namespace if that is not known either, into the index.
    async fn fetch(&self, ObjectKey { namespace, name }: &ObjectKey) -> Result<(), FetchError> {
        if self.connection.recovery().is_away() {
            return Err(FetchError::Away);
        }
        let known = self.reporter.cluster.index().has_namespace(namespace);
        let namespaces = OptionFuture::from((!known).then(|| self.get::<Namespaces>("", namespace)));
        let (pod, labels) = join(self.get::<Pods>(namespace, name), namespaces).await;
        let (pod, labels) = (pod?, labels.transpose()?);
        let placed: Placed = serde_json::from_slice(&pod).map_err(|error| not_understood(place(&error)))?;
        if placed.spec.node_name.as_deref() != Some(self.node) {
            return Err(FetchError::Elsewhere);
        }
        if let Some(labels) = labels {
            apply::<Namespaces>(&AllNamespaces(self.reporter), &labels)?;
        }
        apply::<Pods>(&NodePods(self.reporter), &pod)
    }

    async fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<Bytes, FetchError> {
        let request = K::RESOURCE.get(namespace, name);
        let operation =
            format!("get {} {}", K::RESOURCE.kind.to_lowercase(), ObjectKey::new(namespace, name));
        match self.connection.ask(&operation, request, LIMIT, MAX_OBJECT).await {
            Ok(object) => Ok(object),
            Err(error) if error.says_absent(K::RESOURCE.plural, &segment(name)) => Err(FetchError::NotFound),
            Err(error) => {
                // The next pod must not wait for the same.
                self.connection.recovery().doubt();
                Err(error.into())
            }
        }
    }
}

fn apply<K: Kind>(sink: &impl Sink<K::Object>, text: &[u8]) -> Result<(), FetchError> {
    let text: &RawValue = serde_json::from_slice(text).map_err(|error| not_understood(place(&error)))?;
    let (item, _) = read::object::<K>(text).map_err(|misfit| not_understood(misfit.reason))?;
    sink.take(News::Fetched(item));
    Ok(())
}

// === impl Asked ===

impl Asked {
    /// The key of a question, if the server is to be asked.
    fn take(&mut self, Question { key, answer }: Question) -> Option<ObjectKey> {
        if let Some((_, known)) = self.answers.get(&key).filter(|(at, _)| at.elapsed() < AGAIN) {
            // Who no longer listens needs no answer.
            let _ = answer.send(known.clone());
            return None;
        }
        let waiting = self.waiting.entry(key.clone()).or_default();
        waiting.push(answer);
        (waiting.len() == 1).then_some(key)
    }

    fn answer(&mut self, key: ObjectKey, answer: Result<(), FetchError>) {
        for waiting in self.waiting.remove(&key).into_iter().flatten() {
            let _ = waiting.send(answer.clone());
        }
        self.answers.retain(|_, (at, _)| at.elapsed() < AGAIN);
        if self.answers.len() < MAX_REMEMBERED {
            self.answers.insert(key, (Instant::now(), answer));
        }
    }
}

fn not_understood(reason: String) -> Error {
    Error::NotUnderstood { operation: "get an announced pod".into(), reason }
}
