//! A real Envoy in a test pod, as Istio's sidecar without a control plane.
//!
//! [`Envoy`] runs the program that `scripts/setup` installs, as Istio does inside a [`testkit::Pod`], with the two listeners
//! to which a captured pod's traffic goes. Each marks the answers that go through it, so an [`Answer`] says which listeners
//! a request went through, and the [`testkit::probe::Arrival`] in it says which source address the application saw.
//! [`dns`] has the same for the proxy's resolver. [`Plugin`] captures a pod as a container runtime would have it captured.

pub mod bootstrap;
pub mod dns;
mod http;
mod plugin;
mod process;
mod user;

pub use http::{Answer, Request};
pub use plugin::{Backend, Manifest, Plugin};
pub use process::Envoy;
pub use user::User;
