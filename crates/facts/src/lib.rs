//! The facts about a pod as Kubernetes writes them, and as the plugin and the node agent hand them to each other.
//!
//! - [`object`]: the few members of Kubernetes objects that are facts for us, and their conversion into [`capture::Pod`]. Both ways: an
//!   object that the agent keeps is written again in the form in which the API gave it.
//! - [`PodRef`]: which pod is meant.
//! - [`exchange`]: what goes over the agent's socket and into its directory of last known facts.

pub mod exchange;
pub mod object;
mod pod_ref;

pub use exchange::{Facts, Report};
pub use object::{Object, Unfit};
pub use pod_ref::PodRef;
