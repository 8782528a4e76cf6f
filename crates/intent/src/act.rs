//! The acts: each changes one thing of a pod, and can be repeated.

use std::fmt;
use std::net::IpAddr;

use crate::have::RedirectionMark;

/// One thing that is done for a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Act {
    /// The pod's network namespace is found, or opened where the runtime says it is.
    Locate,
    /// The pod has these addresses from now on; those of before are to leave the node's sets.
    TakeAddresses(Vec<IpAddr>),
    /// Addresses that are not the pod's any more leave the node's sets.
    RemoveStaleProbes,
    /// Rules that redirect to ztunnel come into the namespace.
    LoadRules {
        /// Connections that are open go on past ztunnel. A pod without a process has none.
        spare: bool,
    },
    /// What differs from the plan is put right, sparing what is open.
    RepairRules,
    /// A ztunnel takes the pod.
    TellZtunnel,
    /// The pod's addresses come into the node's sets, so that probes pass by ztunnel.
    AddProbes,
    /// The pod's annotation has this value, or is gone.
    Annotate(Option<RedirectionMark>),
    /// Only those rules stay that let open connections go on: nothing new is redirected.
    Drain,
    /// Nothing goes through ztunnel any more, or the time for that is over.
    Wait,
    /// The pod's addresses leave the node's sets.
    RemoveProbes,
    /// Ztunnels let go of the pod.
    RemoveFromZtunnel,
    /// What still goes through ztunnel ends, for both sides.
    EndConnections,
    /// No rule and no route of ours is in the namespace.
    RemoveRules,
    /// The namespace picks up connections again that it has not seen begin.
    RestoreTracking,
    /// Connection tracking remembers nothing that was redirected.
    ForgetEntries,
    /// Nothing is known of the pod any more, on disk either.
    Forget,
}

// === impl Act ===

impl Act {
    /// One act of each kind.
    pub const KINDS: [Self; 18] = [
        Self::Locate,
        Self::TakeAddresses(Vec::new()),
        Self::RemoveStaleProbes,
        Self::LoadRules { spare: true },
        Self::RepairRules,
        Self::TellZtunnel,
        Self::AddProbes,
        Self::Annotate(Some(RedirectionMark::Enabled)),
        Self::Annotate(None),
        Self::Drain,
        Self::Wait,
        Self::RemoveProbes,
        Self::RemoveFromZtunnel,
        Self::EndConnections,
        Self::RemoveRules,
        Self::RestoreTracking,
        Self::ForgetEntries,
        Self::Forget,
    ];

    /// Its name: tests kill the agent after the act that they name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Locate => "locate",
            Self::TakeAddresses(_) => "take-addresses",
            Self::RemoveStaleProbes => "remove-stale-probes",
            Self::LoadRules { .. } => "load-rules",
            Self::RepairRules => "repair-rules",
            Self::TellZtunnel => "tell-ztunnel",
            Self::AddProbes => "add-probes",
            Self::Annotate(Some(_)) => "annotate",
            Self::Annotate(None) => "remove-annotation",
            Self::Drain => "drain",
            Self::Wait => "wait",
            Self::RemoveProbes => "remove-probes",
            Self::RemoveFromZtunnel => "remove-from-ztunnel",
            Self::EndConnections => "end-connections",
            Self::RemoveRules => "remove-rules",
            Self::RestoreTracking => "restore-tracking",
            Self::ForgetEntries => "forget-entries",
            Self::Forget => "forget",
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
