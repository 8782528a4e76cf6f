//! A ztunnel that follows a script, and checks on its side every rule of ztunnel's protocol. It proxies nothing.

mod wire;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use wire::{MAX_PACKET, ack, nack};
use wire::{Packet, Socket};

/// How long the thread sleeps in the kernel before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);
/// How often it tries to connect.
const RECONNECT: Duration = Duration::from_millis(20);

/// What the agent said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A pod to serve.
    Add {
        /// Uid.
        uid: String,
        /// Name.
        name: String,
        /// Namespace.
        namespace: String,
        /// Service account.
        service_account: String,
    },
    /// A pod to go on with.
    Keep(String),
    /// A pod to stop serving.
    Del(String),
    /// The end of the snapshot.
    SnapshotSent,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// All is well.
    Ack,
    /// An error.
    Nack(String),
    /// Nothing.
    Silence,
    /// All is well, but later.
    Late(Duration),
    /// All is well, twice.
    Twice,
    /// These bytes.
    Bytes(Vec<u8>),
    /// The connection is closed.
    Close,
}

/// The first packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// Version 1.
    V1,
    /// None.
    Silence,
    /// These packets.
    Packets(Vec<Vec<u8>>),
}

type Answers = Box<dyn FnMut(&Request) -> Answer + Send>;
type Proxies = Box<dyn FnMut(&str, BorrowedFd<'_>) + Send>;

/// What it does.
pub struct Script {
    hello: Hello,
    answers: Answers,
    proxies: Proxies,
    reconnects: bool,
}

/// A pod that it serves.
#[derive(Debug)]
struct Served {
    workload: Workload,
    /// The namespace, as long as the pod is served.
    fd: OwnedFd,
}

/// A pod that it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Device and inode of its network namespace.
    pub netns: (u64, u64),
}

#[derive(Default)]
struct State {
    served: BTreeMap<String, Served>,
    requests: Vec<(Instant, Request)>,
    /// Since the last connection.
    remembered: Vec<String>,
    kept: Vec<String>,
    snapshots: usize,
    /// Whether the snapshot of this connection is complete.
    synced: bool,
    connections: usize,
    connected: bool,
    started: usize,
    stopped: usize,
    violations: Vec<String>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    ending: AtomicBool,
}

/// A running one; it is gone when dropped.
pub struct Ztunnel {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

// === impl Script ===

impl Default for Script {
    /// Says hello and takes everything.
    fn default() -> Self {
        Self {
            hello: Hello::V1,
            answers: Box::new(|_| Answer::Ack),
            proxies: Box::new(|_, _| {}),
            reconnects: false,
        }
    }
}

impl Script {
    /// Answers as the closure says.
    pub fn answering(answers: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        Self { answers: Box::new(answers), ..Self::default() }
    }

    /// Calls the closure with uid and namespace of each pod that is to be served, before it is acknowledged: what stands in for a proxy can be
    /// started there.
    #[must_use]
    pub fn starting(self, proxies: impl FnMut(&str, BorrowedFd<'_>) + Send + 'static) -> Self {
        Self { proxies: Box::new(proxies), ..self }
    }

    /// Begins otherwise.
    #[must_use]
    pub fn hello(self, hello: Hello) -> Self {
        Self { hello, ..self }
    }

    /// Connects again when the agent ends the connection, and goes on serving meanwhile.
    #[must_use]
    pub fn reconnecting(self) -> Self {
        Self { reconnects: true, ..self }
    }
}

// === impl Ztunnel ===

impl Ztunnel {
    /// Connects to a path, or to an abstract address that begins with `@`.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(address: &Path, script: Script) -> Result<Self> {
        let socket = Socket::connect(address)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { connected: true, ..State::default() }),
            changed: Condvar::new(),
            ending: AtomicBool::new(false),
        });
        let (worker, address) = (shared.clone(), address.to_owned());
        let thread = std::thread::Builder::new().name("ztunnel".into()).spawn(move || {
            worker.work(socket, &address, script);
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The pods that it serves, by uid.
    pub fn workloads(&self) -> BTreeMap<String, Workload> {
        let state = self.shared.state();
        state.served.iter().map(|(uid, served)| (uid.clone(), served.workload.clone())).collect()
    }

    /// The namespace of a pod that it serves, as the agent handed it over.
    ///
    /// # Errors
    /// It does not serve the pod, or this process has no descriptor left.
    pub fn namespace(&self, uid: &str) -> Result<OwnedFd> {
        let state = self.shared.state();
        let Some(served) = state.served.get(uid) else { bail!("pod {uid} is not served") };
        Ok(served.fd.try_clone()?)
    }

    /// What the agent said so far, and when.
    pub fn requests(&self) -> Vec<(Instant, Request)> {
        self.shared.state().requests.clone()
    }

    /// How often it was asked to serve a pod.
    pub fn adds(&self, uid: &str) -> usize {
        let state = self.shared.state();
        let is = |request: &Request| matches!(request, Request::Add { uid: other, .. } if other == uid);
        state.requests.iter().filter(|(_, request)| is(request)).count()
    }

    /// Pods that it was asked to go on with since it connected last.
    pub fn kept(&self) -> Vec<String> {
        self.shared.state().kept.clone()
    }

    /// Proxies started and stopped so far (ztunnel's `proxies_started`, `proxies_stopped`).
    pub fn proxies(&self) -> (usize, usize) {
        let state = self.shared.state();
        (state.started, state.stopped)
    }

    /// Rules of the protocol that the agent has broken.
    pub fn violations(&self) -> Vec<String> {
        self.shared.state().violations.clone()
    }

    /// Whether the connection stands.
    pub fn is_connected(&self) -> bool {
        self.shared.state().connected
    }

    /// Waits until the snapshot is complete.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_snapshot(&self, limit: Duration) -> Result<()> {
        self.wait("the snapshot", limit, |state| state.synced)
    }

    /// Waits for the end of the connection.
    ///
    /// # Errors
    /// It stands.
    pub fn wait_end(&self, limit: Duration) -> Result<()> {
        self.wait("the end of the connection", limit, |state| !state.connected)
    }

    /// Waits until it serves so many pods.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_served(&self, pods: usize, limit: Duration) -> Result<()> {
        self.wait(&format!("{pods} pods served"), limit, |state| state.served.len() == pods)
    }

    /// Waits until it has heard so much.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_requests(&self, count: usize, limit: Duration) -> Result<()> {
        self.wait(&format!("{count} requests"), limit, |state| state.requests.len() >= count)
    }

    fn wait(&self, what: &str, limit: Duration, done: impl Fn(&State) -> bool) -> Result<()> {
        let end = Instant::now() + limit;
        let mut state = self.shared.state();
        while !done(&state) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{what}: not within {limit:?}; it heard {:?}", state.requests);
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Ends it and waits until it is gone.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        self.end();
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    fn work(&self, first: Socket, address: &Path, mut script: Script) {
        let mut socket = Some(first);
        loop {
            match socket.take() {
                Some(socket) => {
                    self.change(|state| {
                        (state.connected, state.synced) = (true, false);
                        state.connections += 1;
                        state.remembered.clear();
                        state.kept.clear();
                    });
                    let _ = self.session(&socket, &mut script);
                    drop(socket);
                    self.change(|state| (state.connected, state.synced) = (false, false));
                }
                None => std::thread::sleep(RECONNECT),
            }
            if self.is_ending() || !script.reconnects {
                return;
            }
            socket = Socket::connect(address).ok();
        }
    }

    fn session(&self, socket: &Socket, script: &mut Script) -> Result<()> {
        // Nothing may come before the hello.
        if socket.is_readable(LOOK)? && matches!(script.hello, Hello::V1) {
            // An agent that ends closes what it has not accepted, too.
            if socket.is_ended()? {
                return Ok(());
            }
            self.violation("something came before the hello".to_owned());
        }
        match &script.hello {
            Hello::V1 => socket.send(&[0x08, 0x01])?,
            Hello::Silence => {}
            Hello::Packets(packets) => packets.iter().try_for_each(|packet| socket.send(packet))?,
        }
        loop {
            while !socket.is_readable(LOOK)? {
                if self.is_ending() {
                    return Ok(());
                }
            }
            let Some(Packet { bytes, fds, truncated }) = socket.receive()? else { return Ok(()) };
            let request = match self.understand(&bytes, fds.len(), truncated) {
                Ok(request) => request,
                Err(problem) => {
                    self.violation(problem);
                    return Ok(());
                }
            };
            if let (Request::Add { uid, .. }, Some(fd)) = (&request, fds.first()) {
                (script.proxies)(uid, fd.as_fd());
            }
            let answer = (script.answers)(&request);
            // Lock-step: nothing else before the answer.
            if socket.is_readable(Duration::ZERO)? && !socket.is_ended()? {
                self.violation(format!("another message before the answer to {request:?}"));
            }
            self.take(request, fds, &answer);
            if !self.reply(socket, answer)? {
                return Ok(());
            }
        }
    }

    /// Whether the session goes on.
    fn reply(&self, socket: &Socket, answer: Answer) -> Result<bool> {
        match answer {
            Answer::Ack => socket.send(&ack())?,
            Answer::Nack(error) => socket.send(&nack(&error))?,
            Answer::Silence => {}
            Answer::Late(pause) => {
                let end = Instant::now() + pause;
                while Instant::now() < end && !self.is_ending() {
                    std::thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
                }
                socket.send(&ack())?;
            }
            Answer::Twice => {
                socket.send(&ack())?;
                socket.send(&ack())?;
            }
            Answer::Bytes(bytes) => socket.send(&bytes)?,
            Answer::Close => return Ok(false),
        }
        Ok(true)
    }

    fn violation(&self, text: String) {
        self.change(|state| state.violations.push(text));
    }

    fn understand(&self, bytes: &[u8], fds: usize, truncated: bool) -> Result<Request, String> {
        if truncated {
            return Err(format!("a packet of more than {MAX_PACKET} bytes, or more than one descriptor"));
        }
        let request = wire::request(bytes)?;
        let wanted = usize::from(matches!(request, Request::Add { .. }));
        if fds != wanted {
            return Err(format!("{fds} descriptors with {request:?}"));
        }
        let synced = self.state().synced;
        match &request {
            Request::Keep(_) | Request::SnapshotSent if synced => {
                return Err(format!("{request:?} after the snapshot: ztunnel ends itself over that"));
            }
            Request::Add { uid, .. } | Request::Keep(uid) | Request::Del(uid) if uid.is_empty() => {
                return Err("a message without a uid".to_owned());
            }
            _ => {}
        }
        Ok(request)
    }

    fn take(&self, request: Request, fds: Vec<OwnedFd>, answer: &Answer) {
        let refused = matches!(answer, Answer::Nack(_) | Answer::Bytes(_) | Answer::Close);
        let identity = fds.first().map(|fd| wire::namespace(fd.as_fd()));
        self.change(|state| {
            state.requests.push((Instant::now(), request.clone()));
            match request {
                Request::Add { uid, name, namespace, service_account } => {
                    let netns = match identity {
                        Some(Ok(netns)) => netns,
                        Some(Err(problem)) => return state.violations.push(problem),
                        None => return,
                    };
                    state.remembered.push(uid.clone());
                    let same = state.served.get(&uid).is_some_and(|served| served.workload.netns == netns);
                    if same || refused {
                        return;
                    }
                    let Some(fd) = fds.into_iter().next() else { return };
                    state.started += 1;
                    let workload = Workload { name, namespace, service_account, netns };
                    if state.served.insert(uid, Served { workload, fd }).is_some() {
                        state.stopped += 1;
                    }
                }
                Request::Keep(uid) => {
                    state.remembered.push(uid.clone());
                    state.kept.push(uid);
                }
                Request::Del(uid) => {
                    state.remembered.retain(|other| *other != uid);
                    if state.served.remove(&uid).is_some() {
                        state.stopped += 1;
                    }
                }
                Request::SnapshotSent => {
                    let State { served, remembered, stopped, .. } = state;
                    let before = served.len();
                    served.retain(|uid, _| remembered.contains(uid));
                    *stopped += before - served.len();
                    (state.synced, state.snapshots) = (true, state.snapshots + 1);
                }
            }
        });
    }
}
