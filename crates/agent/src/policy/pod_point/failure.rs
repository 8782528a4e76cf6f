//! Failures in pods' namespaces.

use fault::{Fault, Retry};

use crate::finder::FindFailure;
use crate::slots::UnfinishedAct;

/// Why a pod does not have the rules of its policies.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodPointFailure {
    /// Its node's processes cannot be seen.
    #[error("open the node's network namespace: {0}")]
    Host(netns::Error),
    /// It is not there, or cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// It is not found.
    #[error(transparent)]
    Find(#[from] FindFailure),
    /// Nothing of it runs yet, and the plugin may have left a guard.
    #[error("no process of the pod is there yet; until then it may be isolated")]
    NotYet,
    /// It is another pod's by now.
    #[error("{0}")]
    Foreign(#[from] netns::find::NotThePods),
    /// Its interfaces.
    #[error("{}", fault::chain(.0))]
    Interfaces(#[from] kernel::pair::PairError),
    /// Not in time.
    #[error(transparent)]
    Unfinished(#[from] UnfinishedAct),
    /// Its rules.
    #[error(transparent)]
    Rules(#[from] kernel::Error),
    /// Its rules are left.
    #[error(transparent)]
    Left(#[from] kernel::Incomplete),
    /// So is what an agent of before or a plugin made.
    #[error(transparent)]
    Remains(#[from] kernel::LeaveError),
    /// What counts its traffic is left.
    #[error(transparent)]
    Meter(#[from] enforcement::MeterError),
    /// Its sets.
    #[error(transparent)]
    Sets(#[from] kernel::sets::Error),
    /// It needs more than it may have.
    #[error(
        "its policies need {found} elements in its sets and POLICY_POD_POINT_MAX is {most}; it is isolated instead"
    )]
    TooMany {
        /// So many.
        found: usize,
        /// The option.
        most: usize,
    },
}

impl Fault for PodPointFailure {
    fn retry(&self) -> Retry {
        if matches!(self, Self::TooMany { .. }) { Retry::OnChange } else { Retry::Backoff }
    }
}
