//! The socket by which ztunnel hears which pods of the node are in the mesh.
//!
//! A layer for each question: [`message`] what is said, [`socket`] how a packet and its descriptor are carried, `session` in which
//! order one ztunnel hears it, `server` which ztunnel hears what.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # async fn example(pods: Arc<dyn zds::Snapshot>) -> Result<(), zds::BindError> {
//! let ztunnels = zds::Ztunnels::new(pods, |event| eprintln!("{event}"));
//! let listener = zds::Listener::bind("/var/run/ztunnel/ztunnel.sock")?;
//! // From here on pods are known; until here a ztunnel that has connected waits.
//! tokio::spawn(listener.serve(ztunnels.clone()));
//! # Ok(()) }
//! ```

mod event;
pub mod message;
mod server;
mod session;
pub mod socket;

use std::os::fd::AsFd;
use std::sync::Arc;

pub use event::{MessageKind, ZtunnelEvent};
pub use message::Workload;
pub use server::{Listener, Ztunnels};
pub use socket::BindError;

/// A network namespace, kept open until it is sent.
pub type NetnsFd = Arc<dyn AsFd + Send + Sync>;

/// A pod that is in the mesh.
pub struct Entry {
    /// Who it is.
    pub workload: Workload,
    /// Where it is. Without it ztunnel keeps what it has of the pod.
    pub netns: Option<NetnsFd>,
}

/// Who is in the mesh. A ztunnel stops every pod that it has and that is not among them, so nothing may be left out for want of something.
pub trait Snapshot: Send + Sync + 'static {
    /// All of them.
    fn entries(&self) -> Vec<Entry>;

    /// What a ztunnel said to a pod that it was told of without being asked to by [`Ztunnels::add`], because it connected or because it is the
    /// newest again: nothing, or why it did not take it. A `Keep`, which has no namespace, proves nothing about the pod. Must not wait.
    fn answered(&self, entry: &Entry, result: Result<(), &str>) {
        let _ = (entry, result);
    }

    /// One of them, by its uid.
    fn entry(&self, uid: &str) -> Option<Entry> {
        self.entries().into_iter().find(|entry| entry.workload.uid == uid)
    }
}

/// A pod that no ztunnel took.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// No ztunnel is connected. A later try may succeed.
    #[error("no ztunnel connection; check that ztunnel runs on this node")]
    NoZtunnel,
    /// It said no.
    #[error("ztunnel refused: {0}")]
    Refused(String),
    /// The connection ended before the answer.
    #[error("the connection to ztunnel ended: {0}")]
    Lost(String),
}

/// Ztunnels that may still have a pod that was removed. Removing again is harmless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a ztunnel may still have the pod: {0}")]
pub struct RemoveError(pub String);
