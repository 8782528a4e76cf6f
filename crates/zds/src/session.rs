//! One ztunnel: hello, snapshot, then one request at a time.

use std::collections::HashSet;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::event::{MessageKind, ZtunnelEvent};
use crate::message::{
    DelWorkload, KeepWorkload, MAX_PACKET, Payload, SnapshotSent, Workload, read_answer, read_hello,
};
use crate::server::Tell;
use crate::socket::{Packets, Received};
use crate::{NetnsFd, Snapshot};

/// For the first packet.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// For writing a message, and again for its answer.
const MESSAGE_LIMIT: Duration = Duration::from_secs(5);

/// What a ztunnel is to be told.
pub(crate) enum SessionOrder {
    Add { workload: Workload, netns: NetnsFd },
    Del { uid: String },
}

/// An order, and who wants to hear of it. Whoever has given up meanwhile does not stop it.
pub(crate) struct Ask {
    pub(crate) order: SessionOrder,
    pub(crate) reply: oneshot::Sender<Result<(), String>>,
}

/// What others see of a session.
pub(crate) struct SessionPeer {
    pub(crate) number: u64,
    pub(crate) orders: mpsc::Sender<Ask>,
    /// Pods that it has taken, or was told to keep.
    told: Mutex<HashSet<String>>,
    /// It has heard of all pods.
    informed: AtomicBool,
}

/// Why a session ends.
pub(crate) enum SessionEnd {
    /// As ztunnel ends its connections.
    Closed,
    /// Something that should not be.
    Broken(String),
}

/// The working side of a session.
pub(crate) struct Session {
    pub(crate) packets: Packets,
    pub(crate) peer: Arc<SessionPeer>,
    pub(crate) orders: mpsc::Receiver<Ask>,
    pub(crate) tell: Tell,
}

// === impl SessionPeer ===

impl SessionPeer {
    pub(crate) fn new(number: u64, orders: mpsc::Sender<Ask>) -> Self {
        Self { number, orders, told: Mutex::default(), informed: AtomicBool::new(false) }
    }

    /// Whether its snapshot is over.
    pub(crate) fn is_informed(&self) -> bool {
        self.informed.load(Ordering::SeqCst)
    }

    /// Whether it has a pod.
    pub(crate) fn has(&self, uid: &str) -> bool {
        self.told().contains(uid)
    }

    fn told(&self) -> MutexGuard<'_, HashSet<String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Session ===

impl Session {
    /// Goes on until the connection ends.
    pub(crate) async fn run(mut self, snapshot: &dyn Snapshot) -> SessionEnd {
        match self.serve(snapshot).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn serve(&mut self, snapshot: &dyn Snapshot) -> Result<std::convert::Infallible, SessionEnd> {
        self.hello().await?;
        self.snapshot(snapshot).await?;
        self.peer.informed.store(true, Ordering::SeqCst);
        // From here on neither Keep nor SnapshotSent may be sent: ztunnel ends itself over that. Only `snapshot` sends them.
        loop {
            tokio::select! {
                biased;
                unasked = self.packets.receive() => return Err(unexpected_packet(unasked)),
                ask = self.orders.recv() => match ask {
                    Some(ask) => self.carry_out(ask).await?,
                    None => return Err(SessionEnd::Closed),
                },
            }
        }
    }

    async fn hello(&self) -> Result<(), SessionEnd> {
        let packet = match timeout(HELLO_LIMIT, self.packets.receive()).await {
            Err(_) => return Err(SessionEnd::Broken(format!("no hello within {} s", HELLO_LIMIT.as_secs()))),
            Ok(received) => packet(received, "the hello")?,
        };
        // Whatever it speaks: a later version that cannot deal with us says so itself.
        read_hello(&packet)
            .map(drop)
            .map_err(|error| SessionEnd::Broken(format!("the hello is not valid: {error}")))
    }

    /// All pods as they are now. One that is refused must not keep the others from being told.
    async fn snapshot(&self, snapshot: &dyn Snapshot) -> Result<(), SessionEnd> {
        for entry in snapshot.entries() {
            let about = about(&entry.workload);
            let kind = if entry.netns.is_some() { MessageKind::Add } else { MessageKind::Keep };
            let payload = match kind {
                MessageKind::Add => Payload::add(&entry.workload),
                _ => Payload::Keep(KeepWorkload { uid: entry.workload.uid.clone() }),
            };
            match self.exchange(kind, &about, payload, entry.netns.as_ref()).await {
                Ok(()) => {
                    snapshot.answered(&entry, Ok(()));
                    self.peer.told().insert(entry.workload.uid);
                }
                Err(Failed::Refused(error)) => snapshot.answered(&entry, Err(&error)),
                Err(Failed::Ended(end)) => return Err(end),
            }
        }
        match self.exchange(MessageKind::Snapshot, "", Payload::SnapshotSent(SnapshotSent {}), None).await {
            Err(Failed::Ended(end)) => Err(end),
            Ok(()) | Err(Failed::Refused(_)) => Ok(()),
        }
    }

    async fn carry_out(&self, ask: Ask) -> Result<(), SessionEnd> {
        let result = match ask.order {
            SessionOrder::Add { workload, netns } => {
                let payload = Payload::add(&workload);
                let result = self.exchange(MessageKind::Add, &about(&workload), payload, Some(&netns)).await;
                if result.is_ok() {
                    self.peer.told().insert(workload.uid);
                }
                result
            }
            SessionOrder::Del { uid } => {
                let payload = Payload::Del(DelWorkload { uid: uid.clone() });
                self.peer.told().remove(&uid);
                self.exchange(MessageKind::Del, &uid, payload, None).await
            }
        };
        // Nobody may be waiting any more.
        match result {
            Ok(()) => drop(ask.reply.send(Ok(()))),
            Err(Failed::Refused(error)) => drop(ask.reply.send(Err(error))),
            // The end of the session is the answer.
            Err(Failed::Ended(end)) => return Err(end),
        }
        Ok(())
    }

    /// One message and its answer. After any failure but a refusal it is not known which message an answer would be for, so the connection
    /// ends; ztunnel comes again and gets a snapshot.
    async fn exchange(
        &self,
        kind: MessageKind,
        about: &str,
        payload: Payload,
        netns: Option<&NetnsFd>,
    ) -> Result<(), Failed> {
        let bytes = payload.packet();
        let ztunnel = self.peer.number;
        let about = about.to_owned();
        if bytes.len() > MAX_PACKET {
            let error = format!("the message has {} bytes and {MAX_PACKET} are allowed", bytes.len());
            (self.tell)(ZtunnelEvent::Nacked { ztunnel, kind, about, error: error.clone() });
            return Err(Failed::Refused(error));
        }
        let start = Instant::now();
        let broken = |what: &dyn fmt::Display| {
            Failed::Ended(SessionEnd::Broken(format!("{} {about}: {what}", kind.name())))
        };
        match timeout(MESSAGE_LIMIT, self.packets.send(&bytes, netns.map(|netns| netns.as_fd()))).await {
            Err(_) => return Err(broken(&format!("not taken within {} s", MESSAGE_LIMIT.as_secs()))),
            Ok(Err(error)) => return Err(broken(&error)),
            Ok(Ok(())) => {}
        }
        let answer = match timeout(MESSAGE_LIMIT, self.packets.receive()).await {
            Err(_) => return Err(broken(&format!("no answer within {} s", MESSAGE_LIMIT.as_secs()))),
            Ok(received) => packet(received, "its answer").map_err(Failed::Ended)?,
        };
        let error =
            read_answer(&answer).map_err(|error| broken(&format!("its answer is not valid: {error}")))?;
        if error.is_empty() {
            (self.tell)(ZtunnelEvent::Acked { ztunnel, kind, about, seconds: start.elapsed().as_secs_f64() });
            Ok(())
        } else {
            (self.tell)(ZtunnelEvent::Nacked { ztunnel, kind, about, error: error.clone() });
            Err(Failed::Refused(error))
        }
    }
}

/// A message that was not taken.
enum Failed {
    Refused(String),
    Ended(SessionEnd),
}

fn packet(received: std::io::Result<Received>, what: &str) -> Result<Vec<u8>, SessionEnd> {
    match received {
        Ok(Received::Packet(packet)) => Ok(packet),
        Ok(Received::End) => {
            Err(SessionEnd::Broken(format!("it closed the connection instead of sending {what}")))
        }
        Ok(Received::Invalid(how)) => Err(SessionEnd::Broken(format!("it sent {how} as {what}"))),
        Err(error) => Err(SessionEnd::Broken(format!("receive {what}: {error}"))),
    }
}

/// What a ztunnel says while nothing is asked: only that it goes.
fn unexpected_packet(received: std::io::Result<Received>) -> SessionEnd {
    match received {
        Ok(Received::End) => SessionEnd::Closed,
        Ok(Received::Packet(_)) => SessionEnd::Broken("it sent an unexpected packet".to_owned()),
        Ok(Received::Invalid(how)) => SessionEnd::Broken(format!("it sent {how} unexpectedly")),
        Err(error) => SessionEnd::Broken(format!("receive: {error}")),
    }
}

fn about(workload: &Workload) -> String {
    format!("{} (uid {}, service account {})", workload.pod(), workload.uid, workload.service_account)
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("it closed the connection"),
            Self::Broken(reason) => f.write_str(reason),
        }
    }
}
