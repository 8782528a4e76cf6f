//! A private machine with a real container runtime, for tests.
//!
//! A [`Node`] is containerd and runc in mount, network, pid, uts and ipc namespaces of their own. Pods are run through the
//! container runtime interface, as the kubelet does; the runtime calls the CNI plugins of a given chain, and every such call
//! is recorded ([`Call`]). Nothing stays behind when the node is dropped.
//!
//! Needs root and the Debian packages `containerd runc containernetworking-plugins busybox-static iproute2 util-linux`, and
//! `protobuf-compiler` to build.

mod calls;
mod cri;
mod image;
mod machine;
mod node;
mod pod;
mod program;

pub use calls::Call;
pub use cri::{CniStatus, CriError, Outcome, Sandbox, SandboxStatus};
pub use image::APP as APP_IMAGE;
pub use node::Node;
pub use pod::{ContainerSpec, PodSpec};
pub use program::{Program, Signal};
