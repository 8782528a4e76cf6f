//! A node without a container runtime, and what calls CNI plugins there as a runtime does.
//!
//! - [`Machine`]: the node: CNI directories with the reference plugins, an API server double, a network namespace.
//! - [`Containerd`], [`CriO`]: which verbs a runtime calls, when, with what, and what it makes of an answer. Both are a [`Runtime`].
//! - [`Kubelet`]: when a pod's sandbox is asked for, and what the API server is told of it.
//! - [`libcni`]: how a list of plugins is called, and what is kept of it on disk.
//! - [`recording`]: what the real ones sent. The tests compare the doubles with it.
//!
//! Pods are network namespaces with addresses that the reference plugin `bridge` gives; no process runs in them.

mod containerd;
mod crio;
mod kubelet;
pub mod libcni;
mod machine;
mod pod;
pub mod recording;
mod sandbox;

use anyhow::Result;

pub use containerd::Containerd;
pub use crio::CriO;
pub use kubelet::{Kubelet, Started};
pub use machine::Machine;
pub use pod::PodSpec;
pub use sandbox::Sandboxes;

/// What the kubelet asks of a runtime.
pub trait Runtime: Sync {
    /// `Status`: why the network is not ready, if so.
    fn network_not_ready(&self) -> Option<String>;

    /// `RunPodSandbox`: the ID of the sandbox.
    ///
    /// # Errors
    /// A plugin fails; the text is what the kubelet shows.
    fn run(&self, pod: &PodSpec) -> Result<String>;

    /// `StopPodSandbox`. May be repeated.
    ///
    /// # Errors
    /// A plugin fails; the sandbox stays.
    fn stop(&self, sandbox: &str) -> Result<()>;

    /// `RemovePodSandbox`.
    ///
    /// # Errors
    /// As [`Runtime::stop`].
    fn remove(&self, sandbox: &str) -> Result<()>;

    /// The pods that it knows.
    fn sandboxes(&self) -> &Sandboxes;

    /// The process ends and starts again; pods run on. Returns when it answers.
    fn restart(&self);

    /// The machine starts again: namespaces are gone, what is on disk is there. Returns when the runtime answers.
    fn reboot(&self);

    /// The calls of plugins since the last question.
    fn take_calls(&self) -> Vec<libcni::Call>;
}
