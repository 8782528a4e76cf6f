//! Why a pod is not in the mesh, or not out of it.

use std::net::IpAddr;
use std::path::PathBuf;

/// When it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// After a growing pause.
    Backoff,
    /// When the pod or the node has changed, at the latest with the next verification.
    OnChange,
}

/// A step that failed. The text reaches people: in the log, in an Event, and through the plugin in kubelet's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The node's namespace is not prepared yet.
    #[error("the agent is still preparing the node's network namespace, see /readyz")]
    NotReady,
    /// No namespace that can be programmed.
    #[error("find the network namespace of the pod: {0}")]
    NotFound(netns::find::Missing),
    /// The path that the plugin named.
    #[error("open the network namespace {path}: {cause}", path = path.display())]
    Given {
        /// As the plugin said it.
        path: PathBuf,
        /// Why it is none, or not this pod's.
        cause: String,
    },
    /// A sandbox with a network of its own inside.
    #[error(
        "the pod runs in a {sandbox} sandbox (runtime class {class}), whose traffic does not pass the namespace's rules; \
         label the pod istio.io/dataplane-mode=none to run it outside of the mesh, or name the class in KERNEL_NETWORK_RUNTIME_CLASSES if it \
         uses the kernel's network stack"
    )]
    Sandboxed {
        /// Such as gVisor.
        sandbox: &'static str,
        /// `spec.runtimeClassName`.
        class: String,
    },
    /// All such pods would be one.
    #[error(
        "the pod has no uid, by which ztunnel and the sets of addresses know it; a pod of a manifest can be in the mesh only with metadata.uid"
    )]
    NoUid,
    /// The pod's namespace cannot be entered.
    #[error("enter the network namespace of the pod: {0}")]
    Enter(#[from] netns::Error),
    /// The kernel.
    #[error("program the network namespace of the pod: {0}")]
    Rules(String),
    /// Rules that could not be removed.
    #[error("remove the rules from the network namespace of the pod: {0}")]
    Cleanup(String),
    /// ztunnel did not take it.
    #[error("hand the pod to ztunnel: {0}")]
    Ztunnel(#[from] zds::AddError),
    /// ztunnel could not be told that it is gone.
    #[error("take the pod from ztunnel: {0}")]
    Unztunnel(#[from] zds::RemoveError),
    /// The host's sets.
    #[error("note the address {ip} for host probes: {cause}")]
    Probes {
        /// Which.
        ip: IpAddr,
        /// The kernel's words.
        cause: String,
    },
    /// The API server.
    #[error("{0}")]
    Api(#[from] cluster::Error),
    /// A thread of ours is gone.
    #[error("the work on the pod panicked; this is a defect, please report it: {0}")]
    Panicked(String),
}

// === impl Failure ===

impl Failure {
    /// When it is tried again.
    pub(crate) fn again(&self) -> Again {
        match self {
            Self::NotFound(_)
            | Self::Given { .. }
            | Self::Sandboxed { .. }
            | Self::NoUid
            | Self::Enter(_)
            | Self::Rules(_) => Again::OnChange,
            Self::NotReady
            | Self::Cleanup(_)
            | Self::Ztunnel(_)
            | Self::Unztunnel(_)
            | Self::Probes { .. }
            | Self::Api(_)
            | Self::Panicked(_) => Again::Backoff,
        }
    }
}

impl From<tokio::task::JoinError> for Failure {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Panicked(error.to_string())
    }
}
