//! What happens between the agent and ztunnels, for its log and its metrics.

use std::fmt;

/// A kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// A pod to serve.
    Add,
    /// A pod to go on with.
    Keep,
    /// A pod to stop serving.
    Del,
    /// The end of the snapshot.
    Snapshot,
}

/// Something that happened. `ztunnel` is the number of the connection.
#[derive(Debug, Clone, PartialEq)]
pub enum ZtunnelEvent {
    /// A ztunnel has connected.
    Connected {
        /// Number of the connection.
        ztunnel: u64,
        /// Connections now.
        connected: usize,
    },
    /// A ztunnel is gone.
    Disconnected {
        /// Number of the connection.
        ztunnel: u64,
        /// Connections left.
        connected: usize,
        /// Why.
        reason: String,
        /// It went as it should.
        regular: bool,
    },
    /// A ztunnel has taken a message.
    Acked {
        /// Number of the connection.
        ztunnel: u64,
        /// Of the message.
        kind: MessageKind,
        /// Whom it was about: name, uid and service account; empty for the end of the snapshot.
        about: String,
        /// Until the answer was there.
        seconds: f64,
    },
    /// A ztunnel has refused a message.
    Nacked {
        /// Number of the connection.
        ztunnel: u64,
        /// Of the message.
        kind: MessageKind,
        /// As in [`ZtunnelEvent::Acked`].
        about: String,
        /// Its words.
        error: String,
    },
    /// The newest ztunnel is gone, and the one before it hears of the pods that only that one had.
    Resent {
        /// Number of the connection that hears.
        ztunnel: u64,
        /// Pods.
        pods: usize,
    },
    /// Somebody connected who may not, or is one too many.
    Refused {
        /// Why.
        reason: String,
    },
    /// A connection could not be accepted.
    NotAccepted {
        /// The system's words.
        error: String,
    },
}

impl MessageKind {
    /// In metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Keep => "keep",
            Self::Del => "del",
            Self::Snapshot => "snapshot",
        }
    }
}

impl ZtunnelEvent {
    /// Somebody should look at it.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::Disconnected { regular, .. } => !regular,
            Self::Nacked { .. } | Self::Refused { .. } | Self::NotAccepted { .. } => true,
            Self::Connected { .. } | Self::Acked { .. } | Self::Resent { .. } => false,
        }
    }

    /// There are very many of them.
    pub fn is_detail(&self) -> bool {
        matches!(self, Self::Acked { .. })
    }
}

impl fmt::Display for ZtunnelEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { ztunnel, connected } => {
                write!(f, "ztunnel {ztunnel} has connected; {connected} are connected")
            }
            Self::Disconnected { ztunnel, connected, reason, .. } => {
                write!(f, "ztunnel {ztunnel} is gone: {reason}; {connected} are connected")
            }
            Self::Acked { ztunnel, kind, about, seconds } => {
                write!(f, "ztunnel {ztunnel} took {} {about} in {:.3} ms", kind.name(), seconds * 1000.0)
            }
            Self::Nacked { ztunnel, kind, about, error } => {
                write!(f, "ztunnel {ztunnel} refused {} {about}: {error}", kind.name())
            }
            Self::Resent { ztunnel, pods } => {
                write!(
                    f,
                    "ztunnel {ztunnel} is the newest again and is sent {pods} pods that it did not have"
                )
            }
            Self::Refused { reason } => write!(f, "a connection to the ztunnel socket was refused: {reason}"),
            Self::NotAccepted { error } => write!(f, "accept a ztunnel: {error}"),
        }
    }
}
