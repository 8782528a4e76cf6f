//! Keeps an index up to date with what the API server or a directory of manifests says.
//!
//! kube's own watcher is not used; its client, its requests and its connection are. An agent has to tell whether a watch stands, also
//! while nothing happens (readiness, `istio_cni_…` metrics); a broken line must not lose an event; HTTP 410 at the start of a watch
//! must lead to a new list; a server that closes at once must not be asked in a tight loop; and no line may be of any length. None of
//! these can be had from outside of that watcher.

mod event;
mod fetch;
mod manifests;
mod own;
mod read;
mod reflector;
mod sink;
mod standing;
#[cfg(test)]
mod tests;
mod wanted;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use facts::{Facts, PodRef};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use crate::connection::ApiConnection;
use crate::daemonset::{self, OwnPod, Seen};
use crate::index::Index;
use crate::kind::{Namespaces, ObjectSelection, Pods};
use crate::news::ObjectKey;
pub use crate::readiness::{WatchName, WatchState};
use crate::recovery::Outage;
pub use event::{Event, ObjectChange, Told, WatchError};
pub use fetch::FetchError;
use fetch::{Fetcher, Question, Questions};
pub use manifests::ManifestError;
pub use own::Own;
use own::watch_own;
use reflector::Reflector;
use sink::{AllNamespaces, NodePods, Sink};
use standing::Standing;
pub use wanted::{Shared, Wanted};

/// Where the state of the cluster comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The API server: the pods of one node, all namespaces.
    Kubernetes {
        /// Shared with [`crate::write::Writer`].
        connection: Arc<ApiConnection>,
        /// `spec.nodeName` of the pods.
        node: String,
        /// The agent's own pod, whose DaemonSet and node are watched too; nothing: they are not.
        own: Option<OwnPod>,
        /// How long is waited for what.
        limits: Limits,
    },
    /// A directory of manifests, all of whose pods count as this node's. It may describe namespaces, too.
    Manifests {
        /// The directory; it need not exist yet.
        dir: PathBuf,
        /// The API server that tells of the agent's own DaemonSet and node, where there is one.
        own: Option<Own>,
    },
}

/// How long a watch waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For the head of the answer to a list or watch, and for each object of a list.
    pub answer: Duration,
    /// For anything on a watch, before the connection is taken for dead and a new one is made. API servers send a bookmark about once
    /// a minute.
    pub silence: Duration,
    /// How long a watch has to stand to count as working, when nothing comes.
    pub settle: Duration,
    /// Objects of a whole list, over all of its pages.
    pub objects: usize,
    /// Their bytes, as they come.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(90),
            settle: Duration::from_secs(1),
            // Ten times the namespaces that Kubernetes is made for, and a hundred times the pods of a node.
            objects: 100_000,
            // A node's pods have some KB each. Half of the memory that the chart gives.
            bytes: 128 << 20,
        }
    }
}

/// The index and how current it is, shared by the watches and everybody who reads. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    shared: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    index: RwLock<Index>,
    state: Mutex<WatchState>,
    seen: Mutex<Seen>,
    /// Taken by [`run`].
    wanted: Mutex<Wanted>,
    ask: mpsc::Sender<Question>,
    /// Taken by [`run`].
    questions: Mutex<Option<Questions>>,
}

/// Questions that wait to be asked; whoever has one more waits, too.
const MAX_QUESTIONS: usize = 64;

// === impl Cluster ===

impl Cluster {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, and these kinds are watched as well.
    pub fn wanting(wanted: Wanted) -> Self {
        let cluster = Self::default();
        *cluster.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        cluster
    }

    /// The index, for a moment: nothing that waits may be done while it is held.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.shared.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the API server for a pod that is not known, or looks at the directory of manifests anew, and waits at most `limit`. Afterwards the index knows it as if by its watch; what the
    /// watches have told is never replaced by something older. However many ask for a pod, the server is asked once, and again after a second.
    ///
    /// # Errors
    /// See [`FetchError`]. While the server is away, it is not asked.
    pub async fn fetch(&self, namespace: &str, name: &str, limit: Duration) -> Result<(), FetchError> {
        let (answer, answered) = oneshot::channel();
        let question = Question { key: ObjectKey::new(namespace, name), answer };
        let asked = async {
            // Either end is gone where there are no watches any more.
            self.shared.ask.send(question).await.map_err(|_| FetchError::NoServer)?;
            answered.await.map_err(|_| FetchError::NoServer)?
        };
        tokio::time::timeout(limit, asked).await.unwrap_or(Err(FetchError::Late))
    }

    /// How the watches are.
    pub fn state(&self) -> WatchState {
        self.state_mut().clone()
    }

    /// See [`Index::remember`].
    pub(crate) fn remember(&self, facts: Facts) {
        self.index_mut().remember(facts);
    }

    /// What was seen of the agent's DaemonSet and of the node.
    pub fn seen(&self) -> Seen {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.shared.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> MutexGuard<'_, WatchState> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Inner {
    fn default() -> Self {
        let (ask, questions) = mpsc::channel(MAX_QUESTIONS);
        let (index, state, seen, wanted) = <(RwLock<_>, Mutex<_>, Mutex<_>, Mutex<_>)>::default();
        Self { index, state, seen, wanted, ask, questions: Mutex::new(Some(questions)) }
    }
}

/// Watches until dropped; to be called once for a cluster. `observer` is told everything that happens, on the watching task: it must not wait.
pub async fn run(source: Source, cluster: Cluster, observer: impl Fn(Event) + Send + Sync) -> Infallible {
    let reporter = Reporter { cluster: &cluster, observer: &observer };
    let questions = cluster.shared.questions.lock().unwrap_or_else(PoisonError::into_inner).take();
    let wanted = std::mem::take(&mut *cluster.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner));
    match source {
        Source::Manifests { dir, own } => {
            reporter.expect([WatchName::MANIFESTS]);
            let own = async {
                let Some(Own { connection, node, pod, limits }) = &own else {
                    return std::future::pending().await;
                };
                tokio::select! {
                    never = connection.recovery().run(connection, |outage| reporter.outage(outage)) => never,
                    never = watch_own(connection, node, pod, *limits, &reporter) => never,
                }
            };
            tokio::select! {
                never = manifests::watch(&dir, &reporter, questions, &wanted) => never,
                never = own => never,
            }
        }
        Source::Kubernetes { connection, node, own, limits } => {
            let wishes = wanted.wishes();
            let wanted_now = wishes.iter().filter(|one| one.is_wanted()).map(|one| one.what());
            reporter.expect([WatchName::PODS, WatchName::NAMESPACES].into_iter().chain(wanted_now));
            let own = async {
                match &own {
                    Some(own) => watch_own(&connection, &node, own, limits, &reporter).await,
                    None => std::future::pending().await,
                }
            };
            let wished = wishes.iter().map(|wish| wish.run(&connection, limits, &reporter));
            let mut wished: FuturesUnordered<_> = wished.collect();
            // none of them ends
            tokio::select! {
                never = watch_node(&connection, &node, limits, &reporter, questions) => never,
                never = connection.recovery().run(&connection, |outage| reporter.outage(outage)) => never,
                Some(never) = wished.next() => never,
                never = own => never,
            }
        }
    }
}

/// Watches the pods of a node and all namespaces, and answers questions for pods.
async fn watch_node(
    connection: &ApiConnection,
    node: &str,
    limits: Limits,
    reporter: &Reporter<'_>,
    questions: Option<Questions>,
) -> Infallible {
    let fetch = async {
        let fetcher = Fetcher { connection, reporter, node };
        match questions {
            Some(mut questions) => fetcher.run(&mut questions).await,
            None => std::future::pending().await,
        }
    };
    let of_node = ObjectSelection::fields(format!("spec.nodeName={node}"), format!("of node {node}"));
    let (pods, namespaces) = (NodePods(reporter), AllNamespaces(reporter));
    let selected = (WatchName::PODS, of_node);
    let pods = Reflector::<Pods>::new(connection, selected, limits, reporter, &pods).run();
    let selected = (WatchName::NAMESPACES, ObjectSelection::all());
    let namespaces = Reflector::<Namespaces>::new(connection, selected, limits, reporter, &namespaces).run();
    tokio::select! {
        never = fetch => never,
        never = pods => never,
        never = namespaces => never,
    }
}

/// What the watches tell, to the observer and to [`Cluster::state`].
struct Reporter<'a> {
    cluster: &'a Cluster,
    observer: &'a (dyn Fn(Event) + Send + Sync),
}

impl Reporter<'_> {
    fn tell(&self, event: Event) {
        (self.observer)(event);
    }

    /// Changes the index, tells what changed by that, and whether the index is complete by that.
    fn update(&self, change: impl FnOnce(&mut Index) -> Vec<PodRef>) {
        let mut index = self.cluster.index_mut();
        let changed = change(&mut index);
        let synced = index.is_synced();
        let namespaces = index.take_changed_namespaces();
        drop(index);
        if !namespaces.is_empty() {
            self.tell(Event::NamespacesChanged(namespaces));
        }
        if !changed.is_empty() {
            self.tell(Event::Changed(changed));
        }
        if synced && !std::mem::replace(&mut self.cluster.state_mut().synced, true) {
            self.tell(Event::Synced);
        }
    }

    /// Changes what was seen of the agent's DaemonSet and of the node, and tells what follows from it.
    fn see(&self, change: impl FnOnce(&mut Seen)) {
        let mut seen = self.cluster.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.clone();
        change(&mut seen);
        let outlook = (*seen != before).then(|| daemonset::decide(&seen));
        drop(seen);
        if let Some(outlook) = outlook {
            self.tell(Event::Outlook(outlook));
        }
    }

    fn expect(&self, watches: impl IntoIterator<Item = WatchName>) {
        let mut state = self.cluster.state_mut();
        watches.into_iter().for_each(|what| state.expect(what));
    }

    fn unexpect(&self, what: WatchName) {
        self.cluster.state_mut().unexpect(what);
    }

    fn listed(&self, what: WatchName) {
        if self.cluster.state_mut().set_listed(what) {
            self.tell(Event::Listed { what });
        }
    }

    fn set_stands(&self, what: WatchName, error: Option<&WatchError>) {
        self.cluster.state_mut().set_stands(what, error);
    }

    fn outage(&self, outage: Outage) {
        self.tell(match outage {
            Outage::Reason(error) => {
                self.cluster.state_mut().last_error = Some(error.to_string());
                Event::ServerAway { error }
            }
            Outage::Over { lasted } => Event::ServerBack { away_for: lasted },
        });
    }

    fn unreadable(&self, what: WatchName, error: impl Into<WatchError>) {
        self.tell(Event::Unreadable { what, error: error.into() });
    }
}
