//! Pods that are not captured any more and whose connections through a proxy, a sidecar or ztunnel, are open still.
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

use facts::PodRef;
use kernel::sockets::{Closings, Cookie, Heard, Sockets, TcpConnection};
use netns::{Inside, Netns};
use telemetry::Scope;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::slots::{Slots, Task, UnfinishedAct};

/// An answer to a question for a name, which has no connection that could be seen, comes within this time.
const DATAGRAMS: Duration = Duration::from_millis(100);
/// How often is looked again without a cause.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Between two looks where more happens than the kernel tells.
const BREATH: Duration = Duration::from_millis(200);
/// How long a proxy may take to close what the kernel does not end.
const PROXY_CLOSES: Duration = Duration::from_secs(2);
/// The range of a proxy that has no port.
const NO_PORT: RangeInclusive<u16> = RangeInclusive::new(1, 0);

/// What shows that a connection goes through a pod's proxy.
#[derive(Debug, Clone)]
pub(crate) struct Through {
    /// The proxy's ports that connections are redirected to, or that carry those of others.
    pub(crate) ports: Vec<u16>,
    /// The mark, and the bits of it that count, of what the proxy itself connects, where it marks that.
    pub(crate) mark: Option<(u32, u32)>,
    /// Such connections are all that shows what the proxy took: what it takes keeps its addresses.
    pub(crate) is_transparent: bool,
}

/// What is waited for.
#[derive(Debug, Default)]
pub(crate) struct Drains(Mutex<HashMap<String, Drain>>);

/// One pod. Nothing waits for it any more when this is dropped.
#[derive(Debug)]
struct Drain {
    over: watch::Sender<bool>,
    task: AbortHandle,
}

/// How far the wait for a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nobody waits.
    None,
    /// Connections are open.
    Open,
    /// None is, or the time is over.
    Over,
}

/// Why it is not known what is open.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
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
    pub(crate) fn of(&self, uid: &str) -> Wait {
        match self.all().get(uid) {
            None => Wait::None,
            Some(drain) if *drain.over.borrow() => Wait::Over,
            Some(_) => Wait::Open,
        }
    }

    /// Waits for a pod's connections; `done` is called when there is none any more or the time is over.
    pub(crate) fn start(
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
    pub(crate) fn stop(&self, uid: &str) {
        self.all().remove(uid);
    }

    /// Waits at most until then, after which the pod's time is over.
    pub(crate) async fn end_by(&self, uid: &str, deadline: tokio::time::Instant) {
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

impl Through {
    /// All of its ports, and perhaps some others.
    fn range(&self) -> RangeInclusive<u16> {
        let ends = (self.ports.iter().min(), self.ports.iter().max());
        if let (Some(first), Some(last)) = ends { *first..=*last } else { NO_PORT }
    }

    /// Where such connections are looked for.
    fn looked_at(&self) -> RangeInclusive<u16> {
        if self.is_transparent { 0..=u16::MAX } else { self.range() }
    }

    /// Whether the proxy took it from somebody, or made it for one that it took.
    fn is_taken(&self, connection: &TcpConnection) -> bool {
        self.ports.contains(&connection.local.port()) || self.is_transparent && self.is_marked(connection)
    }

    /// Whether the proxy has it to the application or to the world.
    fn is_marked(&self, connection: &TcpConnection) -> bool {
        self.mark.is_some_and(|(mark, mask)| connection.mark & mask == mark)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A pod that drains, for the time that it may take.
pub(crate) struct Draining {
    pub(crate) pod: PodRef,
    pub(crate) netns: Arc<Netns>,
    pub(crate) through: Through,
    pub(crate) slots: Arc<Slots>,
    pub(crate) log: Scope,
}

impl Draining {
    /// Waits until no connection of the namespace goes through the proxy, or so much time is over.
    pub(crate) async fn wait(self, left: Duration) {
        let closed = async {
            if let Err(error) = self.until_closed().await {
                let text = "the pod's connections through its proxy are unknown, so it drains for the whole DRAIN_TIMEOUT";
                self.log.warn(text, &[("pod", &self.pod), ("error", &error)]);
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(left, closed).await;
    }

    async fn until_closed(&self) -> Result<(), Unknown> {
        tokio::time::sleep(DATAGRAMS).await;
        let (inside, range) = (self.netns.clone(), self.through.range());
        let listen = move || inside.enter(|inside| Closings::open(inside, &range));
        let mut closings = self.slots.run(&self.pod, Task::Connections, listen).await???;
        // The runtime watches this kind without `unsafe`, and only whether there is something to read.
        let watched = UnixDatagram::from_std(closings.as_fd().try_clone_to_owned()?.into())?;
        let mut told = false;
        loop {
            let open = self.look().await?;
            if open.is_empty() {
                return Ok(());
            }
            if !std::mem::replace(&mut told, true) {
                self.log.info(
                    "connections through the pod's proxy are open still; the pod drains",
                    &[("pod", &self.pod), ("connections", &open.len())],
                );
            }
            wait_for(&mut closings, &watched, open).await?;
        }
    }

    /// What the proxy has of others now. The socket for it is not kept: it needs a buffer, and looks are rare.
    async fn look(&self) -> Result<HashSet<Cookie>, Unknown> {
        let (netns, through) = (self.netns.clone(), self.through.clone());
        let list = move |inside: &Inside| Sockets::open(inside)?.list(through.looked_at());
        let found = self.slots.run(&self.pod, Task::Connections, move || netns.enter(list)).await???;
        let taken = found.iter().filter(|connection| self.through.is_taken(connection));
        Ok(taken.map(TcpConnection::cookie).collect())
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

/// Ends what still goes through the proxy, its own connections to the application and to the world included where they are known, so that
/// everybody who has a side of one hears of it. Gives how many were taken from somebody.
///
/// What a connection is translated to must be in force still, or nobody would understand the end.
pub(crate) fn end_connections(inside: &Inside, through: &Through) -> Result<usize, kernel::sockets::Error> {
    let mut sockets = Sockets::open(inside)?;
    let is_taken = |connection: &TcpConnection| through.is_taken(connection);
    let taken = sockets.list(through.looked_at())?.iter().filter(|connection| is_taken(connection)).count();
    if taken == 0 {
        return Ok(0);
    }
    let its = |connection: &TcpConnection| is_taken(connection) || through.is_marked(connection);
    let mut failed = None;
    for connection in sockets.list(0..=u16::MAX)?.iter().filter(|connection| its(connection)) {
        if let Err(error) = sockets.destroy(connection) {
            failed.get_or_insert(error);
        }
    }
    let Some(failed) = failed else { return Ok(taken) };
    // A proxy that has heard that the pod is gone closes by itself.
    let start = std::time::Instant::now();
    while start.elapsed() < PROXY_CLOSES && sockets.list(through.looked_at())?.iter().any(is_taken) {
        std::thread::sleep(BREATH);
    }
    Err(failed)
}
