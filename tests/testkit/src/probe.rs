//! Real connections and datagrams, and where they arrived.
//!
//! [`Listeners`] wait on many ports of a namespace; a [`Flow`] is one attempt to reach one of them. A listener answers
//! every connection and datagram with an [`Arrival`]: its own port, the address that the packet was for before a
//! redirect, and the source address it saw. So the client's [`Outcome`] says which listener it reached and how.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use testkit::probe::{Flow, Listener, Listeners};
//! let pod = testkit::Pod::new(testkit::Families::Dual)?;
//! let _proxy = Listeners::start(&pod, [Listener::tcp(15001)])?;
//! let outcome = Flow::from(&pod).user(1000, 1000).tcp("1.2.3.4:80".parse()?)?;
//! println!("{outcome}"); // reached :15001, for 1.2.3.4:80, from 10.77.0.2:41234
//! # Ok(())
//! # }
//! ```

mod bytes;
mod client;
mod datagram;
mod listener;
pub(crate) mod sockets;

use std::fmt;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::namespace::TestNetns;

pub use bytes::{answer_bytes, transfer};
pub use client::{Flow, USUAL_PATIENCE};
pub use listener::{Listener, Listeners, Record};

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// One of our listeners answered.
    Reached(Arrival),
    /// Something else took the connection and said nothing of ours in time.
    Silent,
    /// A TCP reset or an ICMP "port unreachable".
    Refused,
    /// No answer in time, as when the packet was dropped.
    TimedOut,
    /// No route, not permitted, or another error of the local kernel.
    Failed(rustix::io::Errno),
}

/// What a listener saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The port that the listener is bound to.
    pub listener_port: u16,
    /// The socket's own address. With TPROXY it is the address that the client wanted.
    pub local: SocketAddr,
    /// `SO_ORIGINAL_DST`: the address before a redirect. None for UDP, and where nothing tracks connections.
    pub original_dst: Option<SocketAddr>,
    /// The source address as the listener sees it.
    pub peer: SocketAddr,
}

/// One TCP attempt as `uid` and `gid`; see [`Flow`] for more choices.
///
/// # Errors
/// When the namespace or the user cannot be entered; a failed connection is an [`Outcome`].
pub fn tcp(from: &TestNetns, uid: u32, gid: u32, dst: SocketAddr) -> anyhow::Result<Outcome> {
    Flow::from(from).user(uid, gid).tcp(dst)
}

/// One UDP datagram and its answer, as `uid` and `gid`.
///
/// # Errors
/// As [`tcp`].
pub fn udp(from: &TestNetns, uid: u32, gid: u32, dst: SocketAddr) -> anyhow::Result<Outcome> {
    Flow::from(from).user(uid, gid).udp(dst)
}

// === impl Outcome ===

impl Outcome {
    /// The arrival, if one of our listeners was reached.
    #[must_use]
    pub fn arrival(&self) -> Option<&Arrival> {
        match self {
            Self::Reached(arrival) => Some(arrival),
            _ => None,
        }
    }

    /// The port of the listener that was reached.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.arrival().map(|a| a.listener_port)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached(arrival) => write!(f, "reached {arrival}"),
            Self::Silent => write!(f, "connected to something that is no test listener"),
            Self::Refused => write!(f, "refused"),
            Self::TimedOut => write!(f, "timed out"),
            Self::Failed(errno) => write!(f, "failed: {errno}"),
        }
    }
}

// === impl Arrival ===

impl Arrival {
    /// The address that the client wanted: before a redirect if there was one, else the socket's own.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.original_dst.unwrap_or(self.local)
    }

    fn to_text(self) -> String {
        json!({
            "testkit": self.listener_port,
            "local": self.local.to_string(),
            "original_dst": self.original_dst.map(|a| a.to_string()),
            "peer": self.peer.to_string(),
        })
        .to_string()
            + "\n"
    }

    /// Reads what a listener sent; also the body of an answer of [`Listener::http`]. None if it is something else.
    #[must_use]
    pub fn from_text(text: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let address = |key: &str| value[key].as_str().and_then(|text| text.parse().ok());
        Some(Self {
            listener_port: value["testkit"].as_u64().and_then(|port| port.try_into().ok())?,
            local: address("local")?,
            original_dst: address("original_dst"),
            peer: address("peer")?,
        })
    }
}

impl fmt::Display for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ":{}, for {}, from {}", self.listener_port, self.destination(), self.peer)
    }
}
