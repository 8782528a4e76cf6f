//! A double of the Kubernetes API server: pods over TLS, with credentials that are really checked and faults on demand.
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

mod certificates;
mod connection;
mod kubeconfig;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use certificates::Certificates;
pub use kubeconfig::{Credentials, Trust};

/// What the server does instead of answering properly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Accepts the connection and never says a byte, not even for TLS.
    HangBeforeTls,
    /// Reads the request and never answers.
    Hang,
    /// Closes with a RST as soon as the connection stands.
    ResetBeforeTls,
    /// Reads the request and closes with a RST.
    Reset,
    /// Reads the request and closes in good order, without an answer.
    Close,
    /// Speaks plain HTTP on the TLS port.
    PlainHttp,
    /// 200 with a web page.
    Html,
    /// 200 with bytes that are no HTTP.
    Garbage,
    /// 200 with this body instead of the pod.
    Body(String),
    /// Half of the body that its length announces.
    Truncated,
    /// Half of the body in chunks, without the last chunk.
    TruncatedChunks,
    /// One byte of the body in every such interval.
    Slow(Duration),
    /// A body of that many bytes, which are spaces before the object.
    Oversized(usize),
    /// The same, without a length: chunked.
    OversizedChunks(usize),
    /// A `Status` object with this HTTP status.
    Status {
        /// HTTP status code.
        code: u16,
        /// `Retry-After`, in seconds.
        retry_after: Option<u64>,
    },
    /// A web page with this HTTP status, as load balancers send it.
    HtmlStatus(u16),
    /// A redirect to this location.
    Redirect(String),
    /// No fault, but the answer comes in chunks of that many bytes.
    Chunked(usize),
}

impl Fault {
    /// A `Status` object without `Retry-After`.
    pub fn status(code: u16) -> Self {
        Fault::Status { code, retry_after: None }
    }
}

/// A request as it came in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path as sent, still percent-encoded.
    pub path: String,
    /// Headers; names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Whether the client showed a certificate that our authority signed.
    pub client_certificate: bool,
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
    pods: BTreeMap<(String, String), Value>,
    token: String,
    admission: Admission,
    fault: Option<Fault>,
    fail_next: Option<(usize, Fault)>,
    requests: Vec<Request>,
    connections: usize,
}

struct Shared {
    state: Mutex<State>,
    stopped: AtomicBool,
    tls: Arc<rustls::ServerConfig>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The fault for this connection; a counted one is used up by it.
    fn next_fault(&self) -> Option<Fault> {
        let mut state = self.state();
        state.connections += 1;
        match state.fail_next.take() {
            Some((count, fault)) => {
                state.fail_next = (count > 1).then(|| (count - 1, fault.clone()));
                Some(fault)
            }
            None => state.fault.clone(),
        }
    }
}

/// A running server; it ends when dropped.
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    certificates: Certificates,
    acceptor: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Listens on an ephemeral port of 127.0.0.1 with a certificate for 127.0.0.1 and `kubernetes.default.svc`, which a fresh
    /// authority signed. A bearer token or a client certificate is required.
    ///
    /// # Errors
    /// When certificates cannot be made or the port cannot be bound.
    pub fn start() -> Result<Self> {
        let certificates = Certificates::generate().context("make certificates")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind the API server double")?;
        let address = listener.local_addr()?;
        let state = State { token: "token-of-the-node-agent".into(), ..State::default() };
        let tls = certificates.server_config().context("configure TLS")?;
        let shared = Arc::new(Shared { state: Mutex::new(state), stopped: AtomicBool::new(false), tls });
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Ok(Self { address, shared, certificates, acceptor: Some(acceptor) })
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

    /// Adds or replaces a pod, found by its `metadata` (namespace `default` when absent).
    pub fn set_pod(&self, pod: Value) {
        let member = |name: &str| pod["metadata"][name].as_str().map(String::from);
        let key =
            (member("namespace").unwrap_or_else(|| "default".into()), member("name").unwrap_or_default());
        self.shared.state().pods.insert(key, pod);
    }

    /// Removes a pod; the next question for it is answered with 404.
    pub fn delete_pod(&self, namespace: &str, name: &str) {
        self.shared.state().pods.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Replaces the token that is accepted; kubeconfigs written before hold the old one, which has thereby expired.
    pub fn set_token(&self, token: &str) {
        self.shared.state().token = token.into();
    }

    /// Accepts requests without credentials.
    pub fn admit_everyone(&self) {
        self.shared.state().admission = Admission::Everyone;
    }

    /// Answers 403 to valid credentials, as without a role.
    pub fn forbid_everyone(&self) {
        self.shared.state().admission = Admission::Nobody;
    }

    /// Lets every connection meet this fault, until changed.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.shared.state().fault = fault;
    }

    /// Lets the next `count` connections meet this fault, before the permanent one applies again.
    pub fn fail_next(&self, count: usize, fault: Fault) {
        self.shared.state().fail_next = (count > 0).then_some((count, fault));
    }

    /// The requests read so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// Number of connections accepted so far, whether or not a request came.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // wakes the acceptor; the threads of hanging connections see the flag and end by themselves
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopped() {
            return;
        }
        if let Ok(stream) = stream {
            let shared = shared.clone();
            // an error here is the client's going away, which is the client's test's business
            std::thread::spawn(move || drop(connection::serve(stream, &shared)));
        }
    }
}
