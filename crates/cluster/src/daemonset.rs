//! What becomes of the agent on this node, by what was seen of its DaemonSet and of the node.
//!
//! An agent that ends takes the plugin off the node only if nothing follows it, and for that it needs evidence: an object that it saw. That
//! it could not look (a refusal, a time-out, an API server that is away) is no evidence, because each of these also comes with an upgrade,
//! with a pod that is deleted by force, and with an API server that starts.

pub(crate) mod look;
mod removal;

use facts::daemonset::Misplaced;
use facts::{DaemonSet, Node};

/// Name of the agent's DaemonSet, where its pod does not name another one as its owner. The chart knows no other.
pub const DEFAULT_NAME: &str = "istio-cni-node";

/// The agent's own pod. Its owner is the DaemonSet that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPod {
    /// Its namespace, which is the DaemonSet's too.
    pub namespace: String,
    /// Its name; empty where it is not known.
    pub name: String,
}

/// The DaemonSet as it was seen last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sight {
    /// It was not seen, and that it does not exist was not seen either.
    #[default]
    Never,
    /// It exists.
    There(DaemonSet),
    /// It existed when it was seen first, and does not any more.
    Deleted,
    /// It existed, and was deleted without its pods.
    Orphaned,
    /// It did not exist at any time.
    Absent,
}

/// Everything that was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The DaemonSet's name; empty until it is known.
    pub name: String,
    /// The DaemonSet.
    pub daemonset: Sight,
    /// The node, while it is known.
    pub node: Option<Node>,
    /// The agent's own pod was looked at and is not being deleted. Who only watches does not know.
    pub pod_stays: bool,
}

/// What becomes of the agent on this node. The text goes on after the DaemonSet's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Outlook {
    /// Another agent follows: this one is replaced, or the node restarts.
    #[error("exists and is for this node, so another agent follows")]
    Follows,
    /// The deletion was seen.
    #[error("was deleted")]
    Deleted,
    /// The API server says that there is none, and there was none before.
    #[error("does not exist")]
    Absent,
    /// It exists, and is not for this node any more.
    #[error("is not for this node any more: {0}")]
    Unwanted(Misplaced),
    /// A taint keeps new pods off, and the agent's pod is not being deleted: its container starts again.
    #[error("has no new pods on this node ({0}), and this agent's pod stays: its container starts again")]
    Stays(Misplaced),
    /// Nothing was seen that decides it.
    #[error("{0}")]
    Unknown(String),
}

const ORPHANED: &str = "was deleted without its pods (--cascade=orphan), which go on";

/// What becomes of the agent, by what was seen and nothing else.
pub fn decide(seen: &Seen) -> Outlook {
    let set = match &seen.daemonset {
        Sight::Never => return Outlook::Unknown("was not seen".into()),
        Sight::Deleted => return Outlook::Deleted,
        Sight::Absent => return Outlook::Absent,
        Sight::Orphaned => return Outlook::Unknown(ORPHANED.into()),
        Sight::There(set) => set,
    };
    if set.leaves_pods {
        return Outlook::Unknown(ORPHANED.into());
    }
    if set.is_deleting {
        return Outlook::Deleted;
    }
    match (&set.placement, &seen.node) {
        (Err(senseless), _) => {
            Outlook::Unknown(format!("has a node affinity that is not valid: {senseless}"))
        }
        (Ok(placement), None) if placement.is_anywhere() => Outlook::Follows,
        (Ok(_), None) => Outlook::Unknown("exists, and the object of this node was not seen".into()),
        (Ok(placement), Some(node)) => match placement.misplaced(node) {
            Ok(None) => Outlook::Follows,
            Ok(Some(misplaced @ Misplaced::TaintForNew(_))) if seen.pod_stays => Outlook::Stays(misplaced),
            Ok(Some(misplaced)) => Outlook::Unwanted(misplaced),
            Err(senseless) => Outlook::Unknown(format!("has a node affinity that is not valid: {senseless}")),
        },
    }
}

// === impl Outlook ===

impl Outlook {
    /// Whether it is evidence that no agent follows on this node.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Deleted | Self::Absent | Self::Unwanted(_))
    }
}

// === impl Seen ===

impl Seen {
    /// The DaemonSet exists. One that was made anew under the name counts like any other.
    pub(crate) fn there(&mut self, set: DaemonSet) {
        self.daemonset = Sight::There(set);
    }

    /// The API server says that it does not exist.
    pub(crate) fn gone(&mut self) {
        self.daemonset = match &self.daemonset {
            Sight::Never | Sight::Absent => Sight::Absent,
            Sight::There(set) if set.leaves_pods => Sight::Orphaned,
            Sight::Orphaned => Sight::Orphaned,
            Sight::There(_) | Sight::Deleted => Sight::Deleted,
        };
    }
}

#[cfg(test)]
mod tests;
