//! Pods that have left the mesh and whose connections through ztunnel are open still.
//!
//! Nobody waits for one with a thread: the kernel tells a socket in the pod's namespace which connections have ended. What is left is
//! looked at in the beginning, when nothing should be left any more, when the kernel had more to tell than it keeps, and now and then.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capture::ambient::{CAPTURE_PORTS, MARK_MASK, ZTUNNEL_MARK};
use facts::PodRef;
use intent::Rules;
use kernel::sockets::{Closings, Cookie, Heard, Sockets, TcpConnection};
use netns::{Inside, Netns};
use telemetry::Scope;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Ambient;
use super::members::Member;
use crate::slots::{Slots, Task, UnfinishedAct};

/// The longest that a pod drains when everything is removed. kubelet gives the agent 30 s in all.
pub(super) const AT_THE_END: Duration = Duration::from_secs(10);
/// An answer to a question for a name, which has no connection that could be seen, comes within this time.
const DATAGRAMS: Duration = Duration::from_millis(100);
/// How often is looked again without a cause.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Between two looks where more happens than the kernel tells.
const BREATH: Duration = Duration::from_millis(200);
/// How long ztunnel may take to close what the kernel does not end.
const ZTUNNEL_CLOSES: Duration = Duration::from_secs(2);
/// All of [`CAPTURE_PORTS`] and some others.
const PORTS: RangeInclusive<u16> = 15001..=15053;

/// What is waited for.
#[derive(Debug, Default)]
pub(super) struct Drains(Mutex<HashMap<String, Drain>>);

/// One pod. Nothing waits for it any more when this is dropped.
#[derive(Debug)]
struct Drain {
    over: watch::Sender<bool>,
    task: AbortHandle,
}

/// How far the wait for a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nobody waits.
    None,
    /// Connections are open.
    Open,
    /// None is, or the time is over.
    Over,
}

/// Why nobody knows what is open.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    #[error("enter the network namespace of the pod: {0}")]
    Enter(#[from] netns::Error),
    #[error("{}", fault::chain(.0))]
    Sockets(#[from] kernel::sockets::Error),
    #[error("wait for the kernel: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Unfinished(#[from] UnfinishedAct),
}

// === impl Drains ===

impl Drains {
    pub(super) fn of(&self, uid: &str) -> Wait {
        match self.all().get(uid) {
            None => Wait::None,
            Some(drain) if *drain.over.borrow() => Wait::Over,
            Some(_) => Wait::Open,
        }
    }

    /// Waits for a pod's connections; `done` is called when there is none any more or the time is over.
    fn start(
        &self,
        uid: &str,
        wait: impl Future<Output = ()> + Send + 'static,
        done: impl FnOnce() + Send + 'static,
    ) {
        let (over, _) = watch::channel(false);
        let told = over.clone();
        let task = tokio::spawn(async move {
            wait.await;
            told.send_replace(true);
            done();
        });
        self.all().insert(uid.to_owned(), Drain { over, task: task.abort_handle() });
    }

    /// Forgets a pod.
    pub(super) fn stop(&self, uid: &str) {
        self.all().remove(uid);
    }

    /// Waits at most until then, after which the pod's time is over.
    pub(super) async fn end_by(&self, uid: &str, deadline: tokio::time::Instant) {
        let Some(mut over) = self.all().get(uid).map(|drain| drain.over.subscribe()) else { return };
        let _ = tokio::time::timeout_at(deadline, over.wait_for(|over| *over)).await;
        if let Some(drain) = self.all().get(uid) {
            drain.over.send_replace(true);
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Drain>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ambient {
    /// Waits, without keeping the caller, until nothing goes through ztunnel any more; then the pod is worked on again.
    pub(super) fn start_drain(&self, member: &Member) {
        let (Some(netns), left) = (member.netns.clone(), self.drain_left(member)) else { return };
        let (log, pod, key, queue) =
            (self.log.clone(), member.key.to_string(), member.key.clone(), self.pods.queue.clone());
        let (slots, of) = (self.pods.slots.clone(), member.key.clone());
        let wait = async move {
            let closed = async {
                if let Err(error) = until_closed(&slots, &of, netns, &log, &pod).await {
                    let text = "the pod's connections through ztunnel are unknown, so it drains for the whole DRAIN_TIMEOUT";
                    log.warn(text, &[("pod", &pod), ("error", &error)]);
                    std::future::pending::<()>().await;
                }
            };
            let _ = tokio::time::timeout(left, closed).await;
        };
        self.pods.drains.start(&member.key.uid, wait, move || queue.push(PodRef::clone(&key)));
    }

    /// How long the pod may drain from now on, by its clock and that of the agent's end.
    pub(super) fn drain_left(&self, member: &Member) -> Duration {
        let now = now();
        let Rules::Drain { since } = member.have.rules else { return Duration::ZERO };
        let past = Duration::from_secs(now.saturating_sub(since));
        let left = self.config.drain_timeout.saturating_sub(past);
        match self.life.ending.get() {
            Some(ending) => {
                left.min((*ending + AT_THE_END).saturating_duration_since(std::time::Instant::now()))
            }
            None => left,
        }
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Waits until no connection of the namespace goes through ztunnel.
async fn until_closed(
    slots: &Arc<Slots>,
    key: &PodRef,
    netns: Arc<Netns>,
    log: &Scope,
    pod: &str,
) -> Result<(), Unknown> {
    tokio::time::sleep(DATAGRAMS).await;
    let inside = netns.clone();
    let listen = move || inside.enter(|inside| Closings::open(inside, &PORTS));
    let mut closings = slots.run(key, Task::Connections, listen).await???;
    // The runtime watches this kind without `unsafe`, and only whether there is something to read.
    let watched = UnixDatagram::from_std(closings.as_fd().try_clone_to_owned()?.into())?;
    let mut told = false;
    loop {
        let open = look(slots, key, netns.clone()).await?;
        if open.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut told, true) {
            let labels: [telemetry::Label<'_>; 2] = [("pod", &pod), ("connections", &open.len())];
            log.info("connections through ztunnel are open still; the pod drains", &labels);
        }
        wait_for(&mut closings, &watched, open).await?;
    }
}

/// Waits until these have closed, or there is reason to look again.
async fn wait_for(
    closings: &mut Closings,
    watched: &UnixDatagram,
    mut open: HashSet<Cookie>,
) -> Result<(), Unknown> {
    let again = tokio::time::sleep(LOOK_AGAIN);
    tokio::pin!(again);
    while !open.is_empty() {
        tokio::select! {
            () = &mut again => return Ok(()),
            ready = watched.readable() => ready?,
        };
        let mut heard = None;
        // All of it is read, so the runtime has to wait for more.
        let _ = watched.try_io(Interest::READABLE, || {
            heard = Some(closings.read());
            Err::<(), _>(ErrorKind::WouldBlock.into())
        });
        match heard.transpose()?.unwrap_or(Heard::Closed(Vec::new())) {
            Heard::Closed(closed) => open.retain(|cookie| !closed.contains(cookie)),
            Heard::Missed => {
                tokio::time::sleep(BREATH).await;
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What ztunnel has of others now. The socket for it is not kept: it needs a buffer, and looks are rare.
async fn look(slots: &Arc<Slots>, key: &PodRef, netns: Arc<Netns>) -> Result<HashSet<Cookie>, Unknown> {
    let list = |inside: &Inside| Sockets::open(inside)?.list(PORTS);
    let found = slots.run(key, Task::Connections, move || netns.enter(list)).await???;
    Ok(found.iter().filter(|connection| is_taken(connection)).map(TcpConnection::cookie).collect())
}

/// Whether ztunnel took it from somebody.
fn is_taken(connection: &TcpConnection) -> bool {
    CAPTURE_PORTS.contains(&connection.local.port())
}

/// Ends what still goes through ztunnel, its own connections to the application and to the world included, so that everybody who has a
/// side of one hears of it. Gives how many were taken from somebody.
///
/// What a connection is translated to must be in force still, or nobody would understand the end.
pub(super) fn end_connections(inside: &Inside) -> Result<usize, kernel::sockets::Error> {
    let mut sockets = Sockets::open(inside)?;
    let taken = sockets.list(PORTS)?.iter().filter(|connection| is_taken(connection)).count();
    if taken == 0 {
        return Ok(0);
    }
    let ztunnels = |connection: &TcpConnection| connection.mark & MARK_MASK == ZTUNNEL_MARK;
    let mut failed = None;
    for connection in sockets.list(0..=u16::MAX)?.iter().filter(|c| is_taken(c) || ztunnels(c)) {
        if let Err(error) = sockets.destroy(connection) {
            failed.get_or_insert(error);
        }
    }
    let Some(failed) = failed else { return Ok(taken) };
    wait_for_ztunnel(&mut sockets)?;
    Err(failed)
}

/// ztunnel has heard that the pod is gone, and closes by itself.
fn wait_for_ztunnel(sockets: &mut Sockets) -> Result<(), kernel::sockets::Error> {
    let start = std::time::Instant::now();
    while start.elapsed() < ZTUNNEL_CLOSES && sockets.list(PORTS)?.iter().any(is_taken) {
        std::thread::sleep(BREATH);
    }
    Ok(())
}
