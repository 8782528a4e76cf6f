//! Whether the node's rules see a pod's packets, and where a pod's interface enters the node.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use kernel::pair::PodInterface;
use netns::Netns;
use policy::index::LocalName;
use ruleset::Family;
use tokio::sync::{oneshot, watch};

use super::{Policies, PolicyRequest};

/// A pod whose network is there.
#[derive(Debug, Clone)]
pub struct AttachedPod {
    /// Which.
    pub pod: LocalName,
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// Its interface in the cluster's network.
    pub interface: PodInterface,
    /// Its addresses there.
    pub addresses: Vec<IpAddr>,
    /// Nothing of it runs yet, and nothing of an earlier time can be there.
    pub is_starting: bool,
}

/// What a test of a pod's packets came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeSight {
    /// The node's rules see them.
    Seen,
    /// They do not, so that policies are enforced in the pod.
    Unseen(UnseenReason),
}

/// Why the node's rules do not see a pod's packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnseenReason {
    /// The pod's interface has no other end in the node's namespace: macvlan, ipvlan, a card of its own.
    NoPair,
    /// Packets between ports of its bridge do not come to netfilter.
    Bridge {
        /// The bridge.
        bridge: String,
        /// Which packets.
        family: Family,
    },
    /// Datagrams that the pod's end sent did not come by.
    NotCounted,
    /// It could not be tested.
    Failed(String),
}

// === impl UnseenReason ===

impl UnseenReason {
    /// For metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoPair => "no_pair",
            Self::Bridge { .. } => "bridge",
            Self::NotCounted => "not_counted",
            Self::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for UnseenReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPair => f.write_str("its interface has no other end in the node's network namespace"),
            Self::Bridge { bridge, family } => {
                let setting = match family {
                    Family::V4 => "bridge-nf-call-iptables",
                    Family::V6 => "bridge-nf-call-ip6tables",
                };
                write!(f, "packets between ports of bridge {bridge} pass no rules; set net.bridge.{setting} to 1")
            }
            Self::NotCounted => f.write_str(
                "a datagram from its interface did not come to the node's rules; something takes packets before, such as eBPF",
            ),
            Self::Failed(error) => write!(f, "it cannot be tested: {error}"),
        }
    }
}

// === impl Policies ===

impl Policies {
    /// Pods of which it is to be tested whether the node sees their packets. Whoever can find a pod's network tells it by [`Self::look`].
    pub fn untested(&self) -> watch::Receiver<BTreeSet<LocalName>> {
        self.untested.subscribe()
    }

    /// Tests whether the node sees a pod's packets, and enforces its policies where that says.
    pub async fn look(&self, at: AttachedPod) {
        let (answer, answered) = oneshot::channel();
        // There is nobody to tell any more.
        let _ = self.requests.send(PolicyRequest::Look(at, answer)).await;
        let _ = answered.await;
    }
}
