//! All ztunnels: in the order in which they connected.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::event::ZtunnelEvent;
use crate::session::{Ask, Session, SessionEnd, SessionOrder, SessionPeer};
use crate::socket::{BindError, Bound, Packets};
use crate::{AddError, NetnsFd, RemoveError, Snapshot, Workload};

/// Time between two accepts. A user that may not ask costs none of it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Time between two words about users that may not ask.
const TELL_PAUSE: Duration = Duration::from_secs(1);
/// Orders that wait for one ztunnel.
const WAITING: usize = 100;
/// Connections at once. There are two during a rolling restart; a connection without a hello is closed after five seconds.
const MAX_CONNECTIONS: usize = 32;

/// Where events go.
pub(crate) type Tell = Arc<dyn Fn(ZtunnelEvent) + Send + Sync>;

/// A socket that ztunnels can connect to, and that is not served yet.
pub struct Listener(Bound);

/// All ztunnels that are connected.
#[derive(Clone)]
pub struct Ztunnels(Arc<Shared>);

struct Shared {
    /// The newest last. Never held while something is waited for.
    peers: Mutex<Vec<Arc<SessionPeer>>>,
    number: AtomicU64,
    snapshot: Arc<dyn Snapshot>,
    tell: Tell,
}

/// A place in the list, given back whatever happens.
struct Place {
    ztunnels: Ztunnels,
    peer: Arc<SessionPeer>,
    end: SessionEnd,
}

// === impl Listener ===

impl Listener {
    /// Listens on a path, or on an abstract address that begins with `@`.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(address: &str) -> Result<Self, BindError> {
        Bound::new(address).map(Self)
    }

    /// Serves ztunnels until the future is dropped, which ends every connection and removes the socket.
    pub async fn serve(self, ztunnels: Ztunnels) {
        let own = rustix::process::geteuid().as_raw();
        let mut sessions = JoinSet::new();
        let mut next = Instant::now();
        let mut untold = Instant::now();
        loop {
            tokio::time::sleep_until(next).await;
            let accepted = tokio::select! {
                accepted = self.0.accept() => accepted,
                Some(_) = sessions.join_next() => continue,
            };
            let refused = |reason: String| (ztunnels.0.tell)(ZtunnelEvent::Refused { reason });
            match accepted {
                Err(error) => {
                    next = Instant::now() + ACCEPT_PAUSE;
                    (ztunnels.0.tell)(ZtunnelEvent::NotAccepted { error: error.to_string() });
                }
                // The file's mode lets only root in; an abstract address has none.
                Ok((_, uid)) if uid != 0 && uid != own => {
                    // Such a user may come a thousand times a second, and must not fill the log either.
                    if untold <= Instant::now() {
                        untold = Instant::now() + TELL_PAUSE;
                        refused(format!("user {uid} is neither root nor this agent's"));
                    }
                }
                Ok(_) if sessions.len() >= MAX_CONNECTIONS => {
                    refused(format!("{MAX_CONNECTIONS} are connected already"));
                }
                Ok((packets, _)) => {
                    next = Instant::now() + ACCEPT_PAUSE;
                    sessions.spawn(ztunnels.clone().session(packets));
                }
            }
        }
    }
}

// === impl Ztunnels ===

impl Ztunnels {
    /// `snapshot` is asked whenever a ztunnel connects; `tell` hears what happens, and must not wait for anything.
    pub fn new(snapshot: Arc<dyn Snapshot>, tell: impl Fn(ZtunnelEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared {
            peers: Mutex::default(),
            number: AtomicU64::new(1),
            snapshot,
            tell: Arc::new(tell),
        }))
    }

    /// Hands a pod to the newest ztunnel and waits until it has taken it.
    ///
    /// # Errors
    /// It has not, as far as is known.
    pub async fn add(&self, workload: Workload, netns: NetnsFd) -> Result<(), AddError> {
        let newest = self.peers().last().cloned().ok_or(AddError::NoZtunnel)?;
        match ask(&newest, SessionOrder::Add { workload, netns }).await {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(AddError::Refused(error)),
            None => Err(AddError::Lost("it ended before the answer".to_owned())),
        }
    }

    /// Takes a pod from every ztunnel. What one says to that does not matter.
    ///
    /// # Errors
    /// A connection ended meanwhile.
    pub async fn remove(&self, uid: &str) -> Result<(), RemoveError> {
        let peers = self.peers().clone();
        let mut lost = Vec::new();
        for peer in peers {
            if ask(&peer, SessionOrder::Del { uid: uid.to_owned() }).await.is_none() {
                lost.push(format!("the connection of ztunnel {} ended", peer.number));
            }
        }
        if lost.is_empty() { Ok(()) } else { Err(RemoveError(lost.join("; "))) }
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        self.peers().len()
    }

    /// Whether a ztunnel that is connected has the pod.
    pub fn have(&self, uid: &str) -> bool {
        self.peers().iter().any(|ztunnel| ztunnel.has(uid))
    }

    /// Whether the newest ztunnel was sent all pods. Until then its answer about a pod is pending.
    pub fn is_informed(&self) -> bool {
        self.peers().last().is_some_and(|newest| newest.is_informed())
    }

    async fn session(self, packets: Packets) {
        let (sender, orders) = mpsc::channel(WAITING);
        let number = self.0.number.fetch_add(1, Ordering::Relaxed);
        let peer = Arc::new(SessionPeer::new(number, sender));
        let connected = {
            let mut peers = self.peers();
            peers.push(peer.clone());
            peers.len()
        };
        // From here on it is the newest; later messages wait for its snapshot.
        (self.0.tell)(ZtunnelEvent::Connected { ztunnel: number, connected });
        let mut place = Place {
            ztunnels: self.clone(),
            peer: peer.clone(),
            end: SessionEnd::Broken("the agent ends".to_owned()),
        };
        let session = Session { packets, peer, orders, tell: self.0.tell.clone() };
        place.end = session.run(&*self.0.snapshot).await;
    }

    /// Sends the ztunnel that is the newest again the pods that only the disconnected one had.
    fn send_missing_pods(&self, newest: &Arc<SessionPeer>) {
        let entries = self.0.snapshot.entries().into_iter().filter(|entry| entry.netns.is_some());
        let uids = entries.map(|entry| entry.workload.uid).filter(|uid| !newest.has(uid));
        let uids: Vec<String> = uids.collect();
        if uids.is_empty() {
            return;
        }
        (self.0.tell)(ZtunnelEvent::Resent { ztunnel: newest.number, pods: uids.len() });
        let (snapshot, newest) = (self.0.snapshot.clone(), newest.clone());
        tokio::spawn(async move {
            for uid in uids {
                if send_missing_pod(&*snapshot, &newest, uid).await.is_none() {
                    return;
                }
            }
        });
    }

    fn peers(&self) -> MutexGuard<'_, Vec<Arc<SessionPeer>>> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a ztunnel a pod in its current state; `None` when the connection ended. Pods come, move and leave while others are sent.
async fn send_missing_pod(snapshot: &dyn Snapshot, newest: &SessionPeer, uid: String) -> Option<()> {
    let Some(entry) = snapshot.entry(&uid).filter(|_| !newest.has(&uid)) else { return Some(()) };
    let Some(netns) = entry.netns.clone() else { return Some(()) };
    let answer = ask(newest, SessionOrder::Add { workload: entry.workload.clone(), netns }).await?;
    snapshot.answered(&entry, answer.as_ref().map_err(String::as_str).copied());
    // One that left meanwhile was taken from this ztunnel, perhaps before it was added.
    if snapshot.entry(&uid).is_none() {
        let _ = ask(newest, SessionOrder::Del { uid }).await?;
    }
    Some(())
}

/// The answer, with the ztunnel's error; `None` when the connection ended.
async fn ask(peer: &SessionPeer, order: SessionOrder) -> Option<Result<(), String>> {
    let (reply, answer) = oneshot::channel();
    peer.orders.send(Ask { order, reply }).await.ok()?;
    answer.await.ok()
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self { ztunnels, peer, end } = self;
        let (connected, newest) = {
            let mut peers = ztunnels.peers();
            let was_newest = peers.last().is_some_and(|last| Arc::ptr_eq(last, peer));
            peers.retain(|other| !Arc::ptr_eq(other, peer));
            (peers.len(), peers.last().cloned().filter(|_| was_newest))
        };
        let regular = matches!(end, SessionEnd::Closed);
        let (ztunnel, reason) = (peer.number, end.to_string());
        (ztunnels.0.tell)(ZtunnelEvent::Disconnected { ztunnel, connected, reason, regular });
        if let Some(newest) = newest
            && tokio::runtime::Handle::try_current().is_ok()
        {
            ztunnels.send_missing_pods(&newest);
        }
    }
}
