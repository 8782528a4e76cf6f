//! What people read of a failure: the cause first, then what was being done, last what helps.

use std::borrow::Cow;

use fault::{Fault, Retry};

use super::{AmbientFailure, Cleanup, Unopened};
use crate::slots::UnfinishedAct;

impl Fault for AmbientFailure {
    /// Rules that are to go are asked for again and again, whatever keeps them: the pod has no network with them alone.
    fn retry(&self) -> Retry {
        match self {
            Self::Rules(cause) => cause.retry(),
            Self::NotFound(_)
            | Self::Given { .. }
            | Self::Refused(_)
            | Self::NoUid
            | Self::Enter(_)
            | Self::Unfinished(UnfinishedAct::Overdue { .. }) => Retry::OnChange,
            Self::NotReady
            | Self::Cleanup(_)
            | Self::Ztunnel(_)
            | Self::RemoveFromZtunnel(_)
            | Self::Probes { .. }
            | Self::Api(_)
            | Self::Unfinished(_)
            | Self::Panicked(_) => Retry::Backoff,
        }
    }

    fn operation(&self) -> &str {
        match self {
            Self::NotFound(_) => "find the network namespace of the pod",
            Self::Given { .. } => "open the network namespace of the pod",
            Self::Enter(_) => "enter the network namespace of the pod",
            Self::Rules(_) => "program the network namespace of the pod",
            Self::Unfinished(_) => "work in the network namespace of the pod",
            Self::Cleanup(_) => "remove the rules from the network namespace of the pod",
            Self::Ztunnel(_) => "hand the pod to ztunnel",
            Self::RemoveFromZtunnel(_) => "take the pod from ztunnel",
            Self::Probes { .. } => "let host probes through to the pod",
            Self::NotReady | Self::Refused(_) | Self::NoUid | Self::Api(_) | Self::Panicked(_) => "",
        }
    }

    fn root_cause(&self) -> String {
        match self {
            Self::Rules(cause) | Self::Cleanup(Cleanup::Kernel(cause)) => cause.cause(),
            Self::NotFound(missing) => missing.to_string(),
            Self::Given { path, cause } => format!("{}: {cause}", path.display()),
            Self::Enter(error) => fault::chain(error),
            Self::Unfinished(unfinished) => unfinished.to_string(),
            Self::Cleanup(cause) => fault::chain(cause),
            Self::Ztunnel(zds::AddError::NoZtunnel) => "no ztunnel connection".to_owned(),
            Self::Ztunnel(error) => error.to_string(),
            Self::RemoveFromZtunnel(error) => error.to_string(),
            Self::Probes { ip, cause } => format!("{ip}: {}", fault::chain(cause)),
            Self::NotReady | Self::Refused(_) | Self::NoUid | Self::Api(_) | Self::Panicked(_) => {
                self.to_string()
            }
        }
    }

    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Rules(cause) | Self::Cleanup(Cleanup::Kernel(cause)) => cause.advice().map(Cow::Borrowed),
            Self::Given { cause: Unopened::Unseen(_), .. } => Some(
                "update the plugin, mount the path's directory into the agent's container, or set containerd's \
                 netns_mounts_under_state_dir to false"
                    .into(),
            ),
            Self::Ztunnel(zds::AddError::NoZtunnel) => Some("check that ztunnel runs on this node".into()),
            _ => None,
        }
    }
}
