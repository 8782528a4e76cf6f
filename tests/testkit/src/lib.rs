//! What the test suites stand on: nodes and pods of the test's own, real packets, and lists of what the kernel has. There is one of each:
//!
//! - [`Node`]: directories, a cluster, agents as processes ([`Agent`]) and calls of the plugin; [`Mesh`] adds the node's network namespace,
//!   processes and pods in ambient mode.
//! - [`PodObject`]: a pod as Kubernetes describes it.
//! - [`eventually`] and [`until`]: the way to wait; [`Wait`] for asynchronous tests.
//! - [`at_once`], [`at_most`]: cases of one test that wait beside each other.
//! - [`http`]: a request over a port or a unix socket, also a broken one.
//! - [`plugin`]: a call of the plugin; [`PodCall`] by what the agent wrote.
//! - [`apiserver`]: the cluster's API server; [`ztunnel`]: a ztunnel that follows a script and checks the agent; [`relay`]: what a ztunnel does
//!   with a pod's connections.
//! - [`TestNetns`]: a fresh namespace; [`Pod`]: one with interfaces to a *peer* that plays the rest of the world.
//! - [`probe`]: connections and datagrams with the address where they arrived; [`rules`]: what the kernel lists, in a form that compares.
//! - [`programs`]: where the executables under test are.
//!
//! All of it needs root and fails without. Programs needed: `ip`, `nft`, and the `iptables` family.

pub mod apiserver;
mod cases;
pub mod http;
mod namespace;
mod node;
mod object;
pub mod openssl;
pub mod plugin;
mod pod;
pub mod probe;
mod process;
mod programs;
pub mod relay;
pub mod rules;
mod user;
mod wait;
pub mod ztunnel;

pub use cases::{at_most, at_once};
pub use namespace::TestNetns;
pub use node::mesh::{Mesh, MeshPod};
pub use node::{Agent, Ended, Launch, Log, Metrics, NAME as NODE_NAME, Node, PodCall, looks, mesh, wires};
pub use object::PodObject;
pub use pod::{Families, Interface, Pod, wait_until_up};
pub use process::Process;
pub use programs::{copy_program, programs, use_programs};
pub use user::as_user;
pub use wait::{PATIENCE, Wait, eventually, until};

/// Asserts that the text has every one of the parts.
///
/// # Panics
/// One is not there.
#[track_caller]
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}
