//! A server with pods, and what it tells.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use netns::Netns;
pub(crate) use testkit::PATIENCE;
use testkit::TestNetns;
use testkit::ztunnel::{Script, Ztunnel};
use zds::{AddError, Entry, Listener, NetnsFd, Snapshot, Workload, ZtunnelEvent, Ztunnels};

#[derive(Default)]
struct Pods(Mutex<BTreeMap<String, (Workload, Option<NetnsFd>)>>, Mutex<Vec<Told>>);

/// A pod by its name, whether its namespace went along, and what the ztunnel said to it.
pub(crate) type Told = (String, bool, Result<(), String>);

impl Snapshot for Pods {
    fn entries(&self) -> Vec<Entry> {
        let pods = self.0.lock().unwrap();
        pods.values()
            .map(|(workload, netns)| Entry { workload: workload.clone(), netns: netns.clone() })
            .collect()
    }

    fn answered(&self, entry: &Entry, result: Result<(), &str>) {
        let result = result.map_err(str::to_owned);
        self.1.lock().unwrap().push((entry.workload.name.clone(), entry.netns.is_some(), result));
    }
}

pub(crate) struct Server {
    pub ztunnels: Ztunnels,
    pods: Arc<Pods>,
    events: Arc<Mutex<Vec<ZtunnelEvent>>>,
    task: tokio::task::JoinHandle<()>,
    address: String,
    _dir: Option<tempfile::TempDir>,
}

pub(crate) fn workload(name: &str) -> Workload {
    Workload {
        uid: format!("uid-of-{}", name.chars().take(30).collect::<String>()),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        service_account: "default".to_owned(),
    }
}

/// Descriptors of this process. Other tests run in it, too, so differences of a few mean nothing.
pub(crate) fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn descriptor(netns: &TestNetns) -> NetnsFd {
    Arc::new(Netns::open(netns.path()).unwrap())
}

impl Server {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("z.sock").to_str().unwrap().to_owned();
        Self { _dir: Some(dir), ..Self::on(&address) }
    }

    pub(crate) fn on(address: &str) -> Self {
        let (pods, events) = (Arc::new(Pods::default()), Arc::new(Mutex::new(Vec::new())));
        let told = events.clone();
        let ztunnels = Ztunnels::new(pods.clone(), move |event| told.lock().unwrap().push(event));
        let task = tokio::spawn(Listener::bind(address).unwrap().serve(ztunnels.clone()));
        Self { ztunnels, pods, events, task, address: address.to_owned(), _dir: None }
    }

    pub(crate) fn ztunnel(&self, script: Script) -> Ztunnel {
        Ztunnel::connect(Path::new(&self.address), script).unwrap()
    }

    /// The pod is in the mesh from before.
    pub(crate) fn enrol(&self, name: &str, netns: Option<&TestNetns>) {
        let workload = workload(name);
        let pod = (workload.clone(), netns.map(descriptor));
        self.pods.0.lock().unwrap().insert(workload.uid, pod);
    }

    pub(crate) fn leave(&self, name: &str) {
        self.pods.0.lock().unwrap().remove(&workload(name).uid);
    }

    /// The pod comes into the mesh.
    pub(crate) async fn add(&self, name: &str, netns: &TestNetns) -> Result<(), AddError> {
        self.enrol(name, Some(netns));
        self.ztunnels.add(workload(name), descriptor(netns)).await
    }

    /// What ztunnels said to pods that nobody handed them just then, sorted.
    pub(crate) fn told(&self) -> Vec<Told> {
        let mut told = self.pods.1.lock().unwrap().clone();
        told.sort();
        told
    }

    pub(crate) fn events(&self) -> Vec<ZtunnelEvent> {
        self.events.lock().unwrap().clone()
    }

    /// The numbers of connections that were told, in order.
    pub(crate) fn counts(&self) -> Vec<usize> {
        let count = |event: ZtunnelEvent| match event {
            ZtunnelEvent::Connected { connected, .. } | ZtunnelEvent::Disconnected { connected, .. } => {
                Some(connected)
            }
            _ => None,
        };
        self.events().into_iter().filter_map(count).collect()
    }

    pub(crate) fn wait_connected(&self, count: usize) {
        let told = || self.counts().last().copied().unwrap_or_default();
        let connected = || self.ztunnels.connected() == count && told() == count;
        let seen = || format!("{} are: {:?}", self.ztunnels.connected(), self.events());
        testkit::until(&format!("{count} are connected"), PATIENCE, connected, seen).unwrap();
    }

    pub(crate) fn wait_event(&self, is: impl Fn(&ZtunnelEvent) -> bool, what: &str) {
        let happened = || self.events().iter().any(&is);
        testkit::until(what, PATIENCE, happened, || format!("{:?}", self.events())).unwrap();
    }

    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
