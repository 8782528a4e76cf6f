//! A double of the Kubernetes API server over TLS, with credentials that are really checked and faults on demand.
//!
//! It gets, lists (in pages) and watches (with bookmarks, and 410 for what is forgotten) pods and namespaces, gets nodes and daemonsets, services, endpointslices and networkpolicies,
//! takes Events, says whether it is ready, and creates, patches (merge patches and JSON patches) and deletes objects. Everything has versions from one counter, as in a cluster.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use testkit::apiserver::{ApiServer, Credentials, Fault};
//! let server = ApiServer::start()?;
//! server.set_pod(serde_json::json!({"kind": "Pod", "metadata": {"name": "web", "namespace": "shop"}}));
//! server.fail_next(2, Fault::status(503));
//! let run_dir = tempfile::tempdir()?;
//! let kubeconfig = server.write_kubeconfig(run_dir.path(), Credentials::Token)?;
//! # Ok(()) }
//! ```

mod answer;
mod certificates;
mod connection;
mod control;
mod fault;
mod jsonpatch;
mod kubeconfig;
mod objects;
mod request;
mod watch;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use certificates::Certificates;
use fault::Faults;
pub use fault::{Fault, WatchFault};
pub use kubeconfig::{Credentials, Trust};
use objects::{Key, Objects};
pub use objects::{Resource, Snapshot};
pub use request::Request;

/// Requests that are remembered; the oldest go first.
const REQUESTS: usize = 10_000;

/// A patch as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Path and query.
    pub path: String,
    /// What was to be merged, or a list of operations.
    pub body: Value,
}

/// Who may read pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Admission {
    #[default]
    Credentials,
    Everyone,
    Nobody,
}

#[derive(Default)]
struct State {
    objects: Objects,
    token: String,
    /// The pod that the token is bound to, and its uid: without it the token is worth nothing.
    bound: Option<(Key, String)>,
    admission: Admission,
    /// What no role allows: a resource, perhaps with its part, and verbs.
    denied: Vec<(String, Vec<String>)>,
    faults: Faults,
    /// Ordered so far; each watch knows how many of them it has met.
    watch_faults: Vec<(Resource, WatchFault)>,
    /// Ordered so far.
    bookmarks: usize,
    bookmark_interval: Option<Duration>,
    /// Whether a watch from a forgotten version is refused with status 410, or begins and gets an `ERROR` event.
    gone_by_status: bool,
    requests: std::collections::VecDeque<Request>,
    patches: Vec<Patch>,
    connections: usize,
    watches: usize,
    /// To end them when the server stops.
    streams: BTreeMap<usize, TcpStream>,
}

impl State {
    fn remember(&mut self, request: &Request) {
        self.requests.push_back(request.clone());
        if self.requests.len() > REQUESTS {
            self.requests.pop_front();
        }
    }
}

struct Shared {
    state: Mutex<State>,
    /// Something changed that a watch may wait for.
    changed: Condvar,
    /// Counts stops: connections of an earlier number end.
    epoch: AtomicU64,
    /// Numbers the streams of all listeners.
    accepted: AtomicUsize,
    tls: Arc<rustls::ServerConfig>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::SeqCst) != epoch
    }

    /// Counts a connection; gives the fault for it.
    fn connected(&self) -> Option<Fault> {
        let mut state = self.state();
        state.connections += 1;
        state.faults.take()
    }
}

/// A running server; it ends when dropped.
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    certificates: Certificates,
    /// One for each network namespace in which it listens.
    acceptors: Mutex<Vec<Acceptor>>,
}

struct Acceptor {
    listener: TcpListener,
    thread: JoinHandle<()>,
}

impl ApiServer {
    /// Listens on an ephemeral port of 127.0.0.1 with a certificate for 127.0.0.1 and `kubernetes.default.svc`, which a fresh
    /// authority signed. A bearer token or a client certificate is required.
    ///
    /// # Errors
    /// When certificates cannot be made or the port cannot be bound.
    pub fn start() -> Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// The same on another address, which is in the certificate, in the network namespace of the calling thread. Port 0 is any.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(address: SocketAddr) -> Result<Self> {
        let certificates = Certificates::generate(address.ip()).context("make certificates")?;
        let state = State { token: "token-of-the-node-agent".into(), ..State::default() };
        let tls = certificates.server_config().context("configure TLS")?;
        let (changed, epoch, accepted) = (Condvar::new(), AtomicU64::new(0), AtomicUsize::new(0));
        let shared = Arc::new(Shared { state: Mutex::new(state), changed, epoch, accepted, tls });
        let listener = TcpListener::bind(address).context("bind the API server double")?;
        let address = listener.local_addr()?;
        let acceptors = Mutex::new(vec![Acceptor::start(listener, &shared)?]);
        Ok(Self { address, shared, certificates, acceptors })
    }

    /// Closes everything: connections are refused and what stood is cut. What it knows stays.
    pub fn stop(&self) {
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.shared.changed.notify_all();
        for acceptor in self.acceptors().drain(..) {
            // wakes the thread that accepts, also from another network namespace
            let _ = rustix::net::shutdown(&acceptor.listener, rustix::net::Shutdown::Both);
            let _ = acceptor.thread.join();
        }
        for stream in std::mem::take(&mut self.shared.state().streams).into_values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Listens again on the same address, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn restart(&self) -> Result<()> {
        self.stop();
        self.listen_here()
    }

    /// Listens on the same address in the network namespace of the calling thread as well.
    ///
    /// # Errors
    /// When the port is taken there.
    pub fn listen_here(&self) -> Result<()> {
        let listener = TcpListener::bind(self.address).context("bind the API server double again")?;
        self.acceptors().push(Acceptor::start(listener, &self.shared)?);
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Its authority, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.certificates.ca
    }

    fn acceptors(&self) -> MutexGuard<'_, Vec<Acceptor>> {
        self.acceptors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Acceptor {
    fn start(listener: TcpListener, shared: &Arc<Shared>) -> Result<Self> {
        let (accepting, shared) = (listener.try_clone()?, shared.clone());
        let epoch = shared.epoch.load(Ordering::SeqCst);
        let thread = std::thread::spawn(move || accept(&accepting, &shared, epoch));
        Ok(Self { listener, thread })
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, epoch: u64) {
    for stream in listener.incoming() {
        if shared.ended(epoch) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        if let Ok(copy) = stream.try_clone() {
            shared.state().streams.insert(number, copy);
        }
        let shared = shared.clone();
        std::thread::spawn(move || {
            // an error here is the client's going away, which is the client's test's business
            let _ = connection::serve(stream, &shared, epoch);
            if !shared.ended(epoch) {
                shared.state().streams.remove(&number);
            }
        });
    }
}
