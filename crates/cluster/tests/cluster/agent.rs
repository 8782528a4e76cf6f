//! What stands for the node agent: a cluster that is kept up to date, and everything that was told about it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::{Access, ApiConnection, Cluster, Event, Limits, Source, WatchName};
use facts::PodRef;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::apiserver::ApiServer;
use testkit::{PATIENCE, PodObject, Wait};
use tokio::task::JoinHandle;

/// The node whose pods are watched.
pub(crate) const NODE: &str = "n1";

/// Short enough for tests of what takes a minute otherwise.
pub(crate) const LIMITS: Limits = Limits {
    answer: Duration::from_secs(2),
    silence: Duration::from_millis(1500),
    settle: Duration::from_millis(100),
    objects: 4000,
    bytes: 16 << 20,
};

pub(crate) struct Agent {
    pub(crate) cluster: Cluster,
    events: Arc<Mutex<Vec<Event>>>,
    task: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    pub(crate) fn start(source: Source) -> Self {
        Self::start_with(source, Cluster::new())
    }

    pub(crate) fn start_with(source: Source, cluster: Cluster) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn({
            let (cluster, events) = (cluster.clone(), events.clone());
            async move {
                cluster::watch::run(source, cluster, move |event| events.lock().unwrap().push(event)).await;
            }
        });
        Self { cluster, events, task }
    }

    /// Waits until `check` holds.
    pub(crate) async fn until(&self, what: &str, mut check: impl FnMut(&Self) -> bool) {
        let wait = Wait::new(what, PATIENCE);
        let seen = || format!("{:?}\n{:#?}", self.cluster.state(), self.events());
        while !check(self) {
            tokio::time::sleep(wait.pause(seen).unwrap()).await;
        }
    }

    pub(crate) async fn synced(&self) {
        self.until("the first sync", |agent| agent.cluster.state().synced).await;
    }

    /// `namespace/name` of all pods, sorted.
    pub(crate) fn pods(&self) -> Vec<String> {
        let index = self.cluster.index();
        index.pods().map(|pod| format!("{}/{}", pod.namespace(), pod.name())).collect()
    }

    /// A label of a pod, empty if there is no such label or pod.
    pub(crate) fn label(&self, namespace: &str, name: &str, label: &str) -> String {
        let facts = self.cluster.index().facts(namespace, name);
        let labels = facts.and_then(|facts| facts.pod.metadata.clone()).and_then(|metadata| metadata.labels);
        labels.and_then(|labels| labels.get(label).cloned()).flatten().unwrap_or_default()
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// Forgets what was told so far.
    pub(crate) fn forget(&self) {
        self.events.lock().unwrap().clear();
    }

    /// All keys that were told as changed, in order.
    pub(crate) fn changed(&self) -> Vec<PodRef> {
        let events = self.events().into_iter();
        events
            .filter_map(|event| if let Event::Changed(keys) = event { Some(keys) } else { None })
            .flatten()
            .collect()
    }

    /// The errors of failed lists and watches, and the pauses after them.
    pub(crate) fn failures(&self, of: WatchName) -> Vec<(String, Duration)> {
        let failed = |event| match event {
            Event::WatchFailed { what, error, retry_in, .. } if what == of => {
                Some((error.to_string(), retry_in))
            }
            _ => None,
        };
        self.events().into_iter().filter_map(failed).collect()
    }

    /// Why the server was away, each time that was told.
    pub(crate) fn away(&self) -> Vec<String> {
        let events = self.events().into_iter();
        events
            .filter_map(
                |event| if let Event::ServerAway { error } = event { Some(error.to_string()) } else { None },
            )
            .collect()
    }

    /// How long outages lasted that are over.
    pub(crate) fn outages(&self) -> Vec<Duration> {
        let events = self.events().into_iter();
        events
            .filter_map(
                |event| if let Event::ServerBack { away_for } = event { Some(away_for) } else { None },
            )
            .collect()
    }

    pub(crate) fn restored(&self, of: WatchName) -> bool {
        self.events().iter().any(|event| matches!(event, Event::WatchRestored { what, .. } if *what == of))
    }

    pub(crate) fn relists(&self, of: WatchName) -> usize {
        self.events().iter().filter(|event| matches!(event, Event::Relisted { what } if *what == of)).count()
    }

    /// What has been listed, in the order in which that was told.
    pub(crate) fn listed(&self) -> Vec<WatchName> {
        let events = self.events().into_iter();
        events
            .filter_map(|event| if let Event::Listed { what } = event { Some(what) } else { None })
            .collect()
    }

    /// What could not be read.
    pub(crate) fn unreadable(&self) -> Vec<String> {
        let events = self.events().into_iter();
        events
            .filter_map(|event| {
                if let Event::Unreadable { error, .. } = event { Some(error.to_string()) } else { None }
            })
            .collect()
    }
}

/// A server, and a service account for it.
pub(crate) struct Setup {
    pub(crate) server: ApiServer,
    pub(crate) account: TempDir,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self::of(ApiServer::start().unwrap())
    }

    pub(crate) fn of(server: ApiServer) -> Self {
        let account = tempfile::tempdir().unwrap();
        server.write_service_account(account.path()).unwrap();
        server.set_namespace("shop", &[("team", "red")]);
        Self { server, account }
    }

    pub(crate) fn connection(&self) -> Arc<ApiConnection> {
        let (host, port) = (self.server.address().ip().to_string(), self.server.address().port().to_string());
        Arc::new(ApiConnection::new(Access::in_cluster(&host, &port, self.account.path()), "1.2.3"))
    }

    pub(crate) fn source(&self) -> Source {
        Source::Kubernetes { connection: self.connection(), node: NODE.into(), own: None, limits: LIMITS }
    }

    pub(crate) fn agent(&self) -> Agent {
        Agent::start(self.source())
    }

    /// One that has listed everything, and whose watches stand.
    pub(crate) async fn synced_agent(&self) -> Agent {
        let agent = self.agent();
        agent.synced().await;
        self.watched(&agent).await;
        agent
    }

    pub(crate) async fn watched(&self, agent: &Agent) {
        agent.until("both watches", |_| self.server.watches() == 2).await;
    }

    pub(crate) fn set_pod(&self, name: &str, label: &str) {
        self.server.set_pod(pod("shop", name, label));
    }

    /// The paths of requests that contain `part`.
    pub(crate) fn requests(&self, part: &str) -> Vec<String> {
        self.server
            .requests()
            .into_iter()
            .map(|request| request.path)
            .filter(|path| path.contains(part))
            .collect()
    }
}

pub(crate) fn pod(namespace: &str, name: &str, label: &str) -> Value {
    let pod = PodObject::named(name).in_namespace(namespace).label("v", label).on_node(NODE);
    pod.annotations(&[("sidecar.istio.io/status", "{}"), ("example.com/secret", "x")])
        .with("/metadata/managedFields", json!([{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]))
        .with("/spec/containers/0/image", "app")
        .with("/spec/containers/0/env", json!([{"name": "PASSWORD", "value": "hush"}]))
        .running(&[[10, 1, 2, 3].into()])
        .with("/status/conditions", json!([{"type": "Ready", "status": "True"}]))
        .json()
}
