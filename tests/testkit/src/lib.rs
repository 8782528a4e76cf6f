//! What the test suites stand on: pods as network namespaces, real packets through them, and lists of what the kernel
//! has.
//!
//! - [`TestNetns`]: a fresh namespace; run closures and programs inside.
//! - [`Pod`]: a namespace with interfaces to a *peer* that plays the rest of the world.
//! - [`rules`]: what the kernel lists, in a form that compares.
//! - [`programs`]: where the executables under test are.
//! - [`ztunnel`]: a ztunnel that follows a script and checks the agent.
//! - [`relay`]: what a ztunnel does with a pod's connections.
//! - [`probe`]: connections and datagrams with the address where they arrived.
//!
//! All of it needs root and fails without. Programs needed: `ip`, `nft`, and the `iptables` family.

pub mod apiserver;
mod namespace;
pub mod openssl;
mod pod;
pub mod probe;
mod process;
mod programs;
pub mod relay;
pub mod rules;
pub mod ztunnel;

pub use namespace::TestNetns;
pub use pod::{Families, Interface, Pod};
pub use process::Process;
pub use programs::{copy_program, programs, use_programs};
