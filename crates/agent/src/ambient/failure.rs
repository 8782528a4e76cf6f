//! Why a pod is not in the mesh, or not out of it.

mod cause;
mod told;

use std::net::IpAddr;
use std::path::PathBuf;

use capture::decide::Refusal;
use fault::{Fault as _, Retry};
use kernel::conntrack;
use netns::find::MissingNetns;

pub(super) use cause::InKernel;

use super::waiting::WaitCause;
use crate::finder::FindFailure;
use crate::slots::UnfinishedAct;

/// An act that failed. No text of it names the pod: who shows it does, once. Its causes are kept as they are: from them come its text, when it is tried
/// again, and what helps.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AmbientFailure {
    /// The node's namespace is not prepared yet.
    #[error("the agent is still preparing the node's network namespace, see /readyz")]
    NotReady,
    /// No namespace that can be programmed.
    #[error("find the network namespace of the pod: {0}")]
    NotFound(MissingNetns),
    /// The path that the plugin named.
    #[error("open the network namespace {path}: {cause}", path = path.display())]
    Given {
        /// As the plugin said it.
        path: PathBuf,
        /// Why it is none, or not this pod's.
        cause: Unopened,
    },
    /// Rules would not capture it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// All such pods would be one.
    #[error("the pod has no uid, which ztunnel and the sets of addresses need")]
    NoUid,
    /// The pod's namespace cannot be entered.
    #[error("enter the network namespace of the pod: {0}")]
    Enter(#[from] netns::Error),
    /// The kernel did not load its rules, or did not say which are there.
    #[error("program the network namespace of the pod: {0}")]
    Rules(InKernel),
    /// The kernel, or a program, has not ended in time.
    #[error("work in the network namespace of the pod: {0}")]
    Unfinished(#[from] UnfinishedAct),
    /// Rules that could not be removed.
    #[error("remove the rules from the network namespace of the pod: {0}")]
    Cleanup(#[from] Cleanup),
    /// ztunnel did not take it.
    #[error("hand the pod to ztunnel: {0}")]
    Ztunnel(#[from] zds::AddError),
    /// ztunnel could not be told that it is gone.
    #[error("take the pod from ztunnel: {0}")]
    RemoveFromZtunnel(#[from] zds::RemoveError),
    /// The host's sets.
    #[error("note the address {ip} for host probes: {}", fault::chain(cause))]
    Probes {
        /// Which.
        ip: IpAddr,
        /// The kernel's answer.
        cause: kernel::sets::Error,
    },
    /// The API server.
    #[error("{0}")]
    Api(#[from] cluster::Error),
    /// A thread of ours is gone.
    #[error("the work on the pod panicked; this is a defect, please report it: {0}")]
    Panicked(tokio::task::JoinError),
}

/// Why rules of ours are in a namespace still.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cleanup {
    /// It is not found. They redirect to ztunnel still: without that the pod would have no network at all.
    #[error("find it: {0}")]
    NotFound(MissingNetns),
    /// The kernel did not do it.
    #[error("{0}")]
    Kernel(#[from] InKernel),
    /// It did a part.
    #[error(transparent)]
    Incomplete(#[from] kernel::Incomplete),
    /// It has not ended in time.
    #[error(transparent)]
    Unfinished(UnfinishedAct),
    /// Connection tracking stays as the rules had it.
    #[error(transparent)]
    Tracking(#[from] conntrack::Error),
}

/// Why the namespace that a plugin named is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unopened {
    /// The path leads to no namespace here, and there is no descriptor.
    #[error(
        "the agent does not see it below HOST_ROOT ({}), and the plugin, of another version, passed no descriptor of it",
        if .0.is_missing() { "no such file".to_owned() } else { fault::chain(.0) }
    )]
    Unseen(netns::Error),
    /// What the plugin passed is no network namespace.
    #[error("the descriptor that the plugin passed: {0}")]
    NotANamespace(#[from] netns::Error),
    /// It could not be copied.
    #[error("copy its descriptor: {0}; the agent is out of descriptors")]
    Descriptor(std::io::Error),
    /// It is another pod's, or the node's.
    #[error(transparent)]
    NotThePods(#[from] netns::find::NotThePods),
}

// === impl AmbientFailure ===

impl AmbientFailure {
    /// Why the pod is not in, in a word, for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotReady => reason::STARTING,
            Self::NotFound(MissingNetns::OtherOwner | MissingNetns::Several(_)) | Self::Given { .. } => {
                reason::WRONG_NAMESPACE
            }
            Self::NotFound(MissingNetns::Sandbox(_)) | Self::Refused(Refusal::Sandboxed { .. }) => {
                reason::SANDBOX
            }
            Self::NotFound(_) => reason::NO_NAMESPACE,
            Self::Refused(Refusal::Ipv6Off) => reason::IPV6,
            Self::NoUid => reason::NO_UID,
            Self::Unfinished(UnfinishedAct::Overdue { .. } | UnfinishedAct::Crowded(_)) => reason::OVERDUE,
            Self::Unfinished(_) | Self::Enter(_) | Self::Rules(_) | Self::Cleanup(_) | Self::Panicked(_) => {
                reason::RULES
            }
            Self::Ztunnel(_) | Self::RemoveFromZtunnel(_) => reason::ZTUNNEL,
            Self::Probes { .. } => reason::PROBES,
            Self::Api(_) => reason::API,
        }
    }

    /// What is missing on the node, where that is why: then it is no concern of this pod alone.
    pub(crate) fn cause(&self) -> Option<WaitCause> {
        match self {
            Self::NotReady | Self::Probes { .. } => Some(WaitCause::HostSide),
            Self::Ztunnel(zds::AddError::NoZtunnel | zds::AddError::Lost(_)) => Some(WaitCause::Ztunnel),
            // It has answered, about this object.
            Self::Api(error) if matches!(error.status(), Some(400 | 404 | 409 | 413 | 422)) => None,
            Self::Api(_) => Some(WaitCause::ApiServer),
            _ => None,
        }
    }

    /// Whether there is only nobody to take the pod, which says nothing about a pod that was taken before.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::NotReady | Self::Ztunnel(zds::AddError::NoZtunnel | zds::AddError::Lost(_)))
    }

    /// Whether something was begun in the pod's namespace that may be done still.
    pub(crate) fn is_overdue(&self) -> bool {
        matches!(self, Self::Unfinished(UnfinishedAct::Overdue { .. }))
    }

    /// Whether the pod is not meant to be taken in as it is, whatever is in its namespace.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::NoUid)
    }

    /// Whether the pod was to be taken out.
    pub(crate) fn is_on_the_way_out(&self) -> bool {
        matches!(self, Self::Cleanup(_) | Self::RemoveFromZtunnel(_))
    }

    /// Whether the pod's owner is to read of it in an Event: at once where the pod itself is why, else after some tries.
    pub(crate) fn is_for_events(&self, attempt: u32) -> bool {
        match self {
            Self::NotReady | Self::Api(_) => false,
            _ => self.retry() == Retry::OnChange || attempt >= EVENT_AFTER,
        }
    }
}

/// How many tries fail before an Event tells of a failure that is retried at once.
const EVENT_AFTER: u32 = 3;

/// Why a pod is not in, for metrics.
pub(crate) mod reason {
    /// Its first try has not ended.
    pub(crate) const STARTING: &str = "starting";
    /// An agent before this one had it in, and this one has not seen all of it yet.
    pub(crate) const UNCONFIRMED: &str = "unconfirmed";
    /// Its namespace is not found.
    pub(crate) const NO_NAMESPACE: &str = "no-namespace";
    /// A namespace is there that is not the pod's.
    pub(crate) const WRONG_NAMESPACE: &str = "wrong-namespace";
    /// gVisor or Kata Containers.
    pub(crate) const SANDBOX: &str = "sandbox";
    /// It has only IPv6 addresses, which are not captured.
    pub(crate) const IPV6: &str = "ipv6";
    /// It cannot be told from others.
    pub(crate) const NO_UID: &str = "no-uid";
    /// The kernel, or who owns its tables.
    pub(crate) const RULES: &str = "rules";
    /// The kernel, or a program, has not ended in time in its namespace.
    pub(crate) const OVERDUE: &str = "overdue";
    /// ztunnel.
    pub(crate) const ZTUNNEL: &str = "ztunnel";
    /// The node's sets.
    pub(crate) const PROBES: &str = "probes";
    /// The API server.
    pub(crate) const API: &str = "api";
}

impl From<FindFailure> for AmbientFailure {
    fn from(failure: FindFailure) -> Self {
        match failure {
            FindFailure::Missing(missing) => Self::NotFound(missing),
            FindFailure::Panicked(error) => Self::Panicked(error),
        }
    }
}

impl From<tokio::task::JoinError> for AmbientFailure {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Panicked(error)
    }
}

#[cfg(test)]
mod tests;
