//! What the kernel holds against what it should hold, for every pod of this node that should be captured, of all modes.
//!
//! A mode says which pods are expected and what their namespaces should hold ([`VerifiedMode`]), and puts right what differs. The [`PodVerifier`] looks: when
//! the kernel says that something was changed, and by turns. What it knows of each pod is the answer to metrics, people and `cnictl`.

mod census;
mod config;
mod culprit;
mod defect;
mod entry;
mod haste;
mod identity;
mod look;
mod policy;
mod rounds;
mod settle;
mod told;
mod verifier;
mod watch;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use ::verification::{Culprit, DataPlaneMode, Drifted, VerificationState};
use facts::PodRef;
use kernel::watch::Fingerprint;
use netns::{Inside, Netns};
use ruleset::Plan;

use crate::backends::Backends;

pub(crate) use census::rule_counts;
pub(crate) use config::VerifyConfig;
pub(crate) use culprit::{node_writer, printable};
pub(crate) use identity::{NetnsIdentity, identity};
pub(crate) use verifier::{PodVerifier, VerifierParts};
pub(crate) use watch::NetnsWatch;

/// What a call of a mode comes to, later.
pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What is done inside of a pod's namespace, without waiting for anybody.
pub(crate) type ActAtOnce = Box<dyn FnOnce(&Inside) + Send>;

/// A mode whose pods are verified.
pub(crate) trait VerifiedMode: Send + Sync {
    /// Every pod of the node that should be captured in this mode, each exactly once: what is wanted, whatever was done. It must not wait.
    fn expected(&self) -> Vec<ExpectedPod>;

    /// What its plans are loaded by.
    fn backends(&self) -> Arc<Backends>;

    /// Whether work of this agent is under way in the pod's namespace, so that what changes there is ours.
    fn is_at_work(&self, uid: &str) -> bool;

    /// Whether rules of another plan are going to be loaded, by what somebody has changed in the namespace, so that it is of no use to compare with this
    /// one. It says so once.
    fn is_superseded(&self, _pod: &PodRef, _inside: &Inside) -> bool {
        false
    }

    /// Somebody else changes rules of the pod just now: what cannot wait until that is quiet, to be done inside of its namespace.
    fn at_once(&self, _pod: &PodRef) -> Option<ActAtOnce> {
        None
    }

    /// Looks at what else it wants to know of a namespace that is as planned, inside of it. `rules` is what all its rules were then, where the kernel
    /// tells.
    fn inspect(&self, _pod: &PodRef, _inside: &Inside, _plan: &Arc<Plan>, _rules: Option<&Fingerprint>) {}

    /// A comparison has ended like this. It must not wait.
    fn compared(&self, pod: &PodRef, comparison: &Comparison);

    /// Puts right what differs, under the pod's turn, after a second look at the namespace's identity; open connections are spared.
    fn repair<'a>(&'a self, pod: &'a PodRef) -> Later<'a, Result<RepairResult, RepairFailure>>;

    /// What a pod's namespace should hold now, in a mode where a repair finds out: it may have been by another plan than the one that was compared.
    fn retargeted(&self, _pod: &PodRef) -> Option<VerificationTarget> {
        None
    }

    /// Once in an interval: looks again for the namespaces of pods that have none, and at what is no pod's.
    fn round(self: Arc<Self>) -> Later<'static, ()>;
}

/// A pod that should be captured.
#[derive(Debug, Clone)]
pub(crate) struct ExpectedPod {
    pub(crate) pod: PodRef,
    pub(crate) mode: DataPlaneMode,
    /// When it started, where that is known.
    pub(crate) born: Option<SystemTime>,
    /// What failed when it was to be captured, in words.
    pub(crate) trouble: Option<String>,
    /// What is compared, or why nothing can be.
    pub(crate) target: Result<VerificationTarget, VerificationState>,
}

/// What a pod's namespace should hold.
#[derive(Debug, Clone)]
pub(crate) struct VerificationTarget {
    pub(crate) netns: Arc<Netns>,
    pub(crate) found: FoundBy,
    pub(crate) plan: Arc<Plan>,
    /// The pod's. One of them has to be in the namespace.
    pub(crate) addresses: Vec<IpAddr>,
    /// TCP ports on which somebody has to listen, for that what is captured arrives.
    pub(crate) listeners: Vec<u16>,
    /// Whoever listens there has been started, as far as is known.
    pub(crate) proxy_started: bool,
    /// Everything besides the kernel is as it should be: in ambient mode, a connected ztunnel has the pod.
    pub(crate) acknowledged: bool,
}

/// How a namespace was found, by which it is looked whether it is the pod's still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FoundBy {
    /// By a path that the runtime removes with the sandbox.
    Path,
    /// By a process of the pod, which may end before the pod does.
    Process,
    /// By a descriptor: no path leads there from here.
    Descriptor,
}

/// What a comparison comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// Nothing differs.
    Equal,
    /// This differs.
    Differs(Vec<kernel::Difference>),
    /// The sandbox is gone, or its path leads to another namespace.
    Moved,
    /// It was not compared: another plan's rules are going to be loaded.
    Superseded,
    /// Nobody can tell.
    Failed { reason: ::verification::UnverifiableReason, text: String },
}

/// What a repair came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RepairResult {
    /// Something differed and is put right.
    PutRight,
    /// Nothing differed any more.
    WasRight,
    /// It differs, and is to be left so now.
    Left,
}

/// Why something is not put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepairFailure {
    /// The pod's state by that, where it is not that it differs.
    pub(crate) state: Option<VerificationState>,
    /// With its cause and what to do; it does not name the pod.
    pub(crate) text: String,
}

/// What is known of a pod that should be captured.
#[derive(Debug, Clone)]
pub(crate) struct PodVerification {
    pub(crate) pod: PodRef,
    pub(crate) mode: DataPlaneMode,
    pub(crate) state: VerificationState,
    /// When it was last seen to be as planned; absent where this agent has not seen it so.
    pub(crate) last_verified: Option<SystemTime>,
    /// What differs now.
    pub(crate) drift: Vec<Drifted>,
    /// The same in words, at most [`MAX_DIFFERENCES`] of it.
    pub(crate) differences: Vec<String>,
    /// What differs is that nothing of ours is there.
    pub(crate) is_without_rules: bool,
    /// Who made the last drift.
    pub(crate) culprit: Option<Culprit>,
    /// Why it is not verified, in words.
    pub(crate) problem: Option<String>,
    /// Ports on which nobody listens, though somebody should; absent where that was not asked.
    pub(crate) missing_listeners: Option<Vec<u16>>,
    /// Conflicts of severity error that are known.
    pub(crate) conflicts: usize,
    pub(crate) netns: Option<Arc<Netns>>,
    pub(crate) plan: Option<Arc<Plan>>,
}

/// Differences of a pod that are kept in words.
pub(crate) const MAX_DIFFERENCES: usize = 20;

#[cfg(test)]
mod tests;
