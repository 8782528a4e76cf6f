//! Why an operation failed, ready for the runtime.

use std::time::Duration;

use facts::networkpolicy::Isolation;
use ruleset::Backend;
use telemetry::Logger;

use crate::sources::NoFacts;

/// Anything that makes an operation fail after its input was understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperationFailure {
    /// The pod's facts are not to be had.
    #[error(transparent)]
    Facts(#[from] NoFacts),
    /// It took too long.
    #[error(
        "gave up after {:.1} s (add_timeout) while waiting for {waiting_for}; look for its cause in the lines before, on the node and in the \
         API server",
        after.as_secs_f64()
    )]
    TimedOut {
        /// The limit.
        after: Duration,
        /// What was going on.
        waiting_for: &'static str,
    },
    /// The system gave no thread.
    #[error("start a thread for the pod's setup: {0}; the node is out of processes or memory")]
    Thread(std::io::Error),
    /// An annotation of the pod cannot be used.
    #[error(transparent)]
    Annotation(#[from] capture::annotations::AnnotationError),
    /// A variable of the runtime's environment cannot be used.
    #[error(transparent)]
    Environment(#[from] capture::annotations::EnvironmentError),
    /// The node agent did not take the pod into the mesh.
    #[error(transparent)]
    Handover(#[from] crate::handover::Error),
    /// The selectors of ambient mode mean nothing.
    #[error(
        "enablement_selectors of the configuration cannot be used: {0}; correct the value of the chart or of AMBIENT_ENABLEMENT_SELECTOR"
    )]
    Selectors(#[from] capture::select::EnablementSelectorError),
    /// Whether the pod is to be in the mesh is not to be told.
    #[error(
        "whether the pod belongs to the mesh depends on labels, and those of its namespace are unavailable: {0}; it is not started outside of \
         the mesh without an answer"
    )]
    Labels(String),
    /// The pod cannot be captured.
    #[error(transparent)]
    Refused(#[from] capture::decide::Refusal),
    /// The pod's namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The runtime named no namespace.
    #[error("CNI_NETNS is empty: the runtime did not say which network namespace is the pod's")]
    NoNetns,
    /// The namespace is the one that the node itself uses.
    #[error(
        "network namespace {path:?} is the node's own; rules in it would capture the whole node's traffic, so nothing was changed"
    )]
    HostNetns {
        /// CNI_NETNS.
        path: String,
    },
    /// Policies isolate the pod, and nothing puts them into force.
    #[error(
        "policies isolate the pod ({isolation}), and the node agent has not put them into force: {why}; check that the istio-cni-node pod of this node runs; \
         POLICY_UNPREPARED=closed starts such pods isolated instead"
    )]
    Unprepared {
        /// The directions in which they do.
        isolation: Isolation,
        /// What the agent said, or that there is none.
        why: String,
    },
    /// The namespace has no address.
    #[error(transparent)]
    Address(#[from] capture::plan::NoAddress),
    /// The kernel did not take the rules or did not answer.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The backend that the configuration asks for is not there.
    #[error(
        "{}; native_nftables asks for {backend} only: NATIVE_NFTABLES=auto (chart: global.nativeNftables) takes what the node has",
        fault::chain(.cause)
    )]
    OnlyBackend {
        /// What is asked for.
        backend: Backend,
        /// What is missing.
        cause: kernel::Error,
    },
}

impl OperationFailure {
    /// Whether this node lacks what rules are loaded with.
    pub(crate) fn is_backend_missing(&self) -> bool {
        matches!(self, Self::OnlyBackend { .. }) || matches!(self, Self::Kernel(error) if error.is_neither())
    }

    /// As an error of the CNI protocol. The code is the one that upstream gives for everything of its own, since runtimes and kubelet
    /// treat all of them alike.
    pub(crate) fn into_cni(self, what: &str) -> cni::Error {
        cni::Error::internal(format!("{what}: {}", fault::chain(&self)))
    }
}

/// Panics become log lines; the protocol layer turns them into an error for the runtime.
pub(crate) fn log_panics(log: &Logger) {
    let log = log.clone();
    std::panic::set_hook(Box::new(move |info| {
        let trace = std::backtrace::Backtrace::force_capture();
        log.error(&format!("istio-cni panicked: {info}"), &[("stack", &trace)]);
    }));
}
