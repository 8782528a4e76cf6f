//! Connections that stay open while a pod enters the mesh and leaves it, and on which questions are asked and answered all the time.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use testkit::TestNetns;
use testkit::relay::Relayed;

use super::loops::{Phase, Route};

/// Where everything is said again.
const PORT: u16 = 7007;
/// How long an answer may take. A packet that is lost is sent again after a second at most.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(10);

/// A server that says everything again, until this is dropped.
pub(crate) struct Echo<'a> {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    namespace: &'a TestNetns,
}

/// A connection on which somebody talks.
pub(crate) struct Held {
    route: Route,
    since: Phase,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Option<String>)>,
}

/// What became of it.
#[derive(Debug, Serialize)]
pub(crate) struct HeldReport {
    pub(crate) route: Route,
    /// When it was opened.
    pub(crate) since: &'static str,
    /// Questions that were answered.
    pub(crate) answers: usize,
    /// Why no more were; nothing if it was open to the end.
    pub(crate) end: Option<String>,
}

/// Whether it is one of these.
pub(crate) fn is_held(relayed: &Relayed) -> bool {
    relayed.to.port() == PORT
}

// === impl Echo ===

impl<'a> Echo<'a> {
    pub(crate) fn start(namespace: &'a TestNetns) -> Result<Self> {
        let listener = namespace.enter(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
        let listener = listener.context("listen for what is to be said again")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if told.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::spawn(move || say_again(stream));
            }
        });
        Ok(Self { address, stop, thread: Some(thread), namespace })
    }
}

impl Drop for Echo<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // It waits for a connection.
        let woken = self.namespace.enter(|_| TcpStream::connect_timeout(&self.address, PATIENCE));
        if let (Ok(Ok(_)), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn say_again(mut stream: TcpStream) {
    let mut bytes = [0; 64];
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

// === impl Held ===

impl Held {
    /// Connects from a namespace and begins to talk.
    ///
    /// # Errors
    /// Nobody answers.
    pub(crate) fn open(since: Phase, route: Route, from: &TestNetns, to: IpAddr) -> Result<Self> {
        let to = SocketAddr::new(to, PORT);
        let stream = from.enter(|_| TcpStream::connect_timeout(&to, PATIENCE))?;
        let mut stream = stream.with_context(|| format!("open a connection to {to} that is to last"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        ask(&mut stream).context("ask on a connection that is to last")?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut answers = 1;
            while !told.load(Ordering::SeqCst) {
                if let Err(error) = ask(&mut stream) {
                    return (answers, Some(error.to_string()));
                }
                answers += 1;
                std::thread::sleep(PAUSE);
            }
            (answers, None)
        });
        Ok(Self { route, since, stop, thread })
    }

    /// Hangs up.
    pub(crate) fn end(self) -> HeldReport {
        self.stop.store(true, Ordering::SeqCst);
        let talked = self.thread.join();
        let (answers, end) = talked.unwrap_or_else(|_| (0, Some("the thread that asks panicked".to_owned())));
        HeldReport { route: self.route, since: self.since.text(), answers, end }
    }
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])
}

// === impl HeldReport ===

impl HeldReport {
    pub(crate) fn problem(&self) -> Option<String> {
        let end = self.end.as_ref()?;
        let route = self.route.text();
        Some(format!("{route}: a connection from {} ended after {} answers: {end}", self.since, self.answers))
    }
}
