//! The facts about a pod as Kubernetes writes them, and as the plugin and the node agent hand them to each other.
//!
//! - [`object`]: the few members of Kubernetes objects that are facts for us, and their conversion into [`capture::Pod`]. Both ways: an
//!   object that the agent keeps is written again in the form in which the API gave it.
//! - [`broken`]: which pods show by their validation container that they are not captured.
//! - [`PodRef`]: which pod is meant.
//! - [`namespace`], [`daemonset`], [`node`], [`service`], [`endpointslice`], [`networkpolicy`], [`tenant`], [`peer`]: what is kept of other objects, a file for each kind.
//! - [`labels`]: labels and what selects by them. [`managers`]: who wrote them.
//! - [`Facts`]: what is known of a pod, as it goes over the agent's socket and into its directory of last known facts.

pub mod broken;
pub mod daemonset;
pub mod endpointslice;
pub mod fields;
mod known;
pub mod labels;
pub mod managers;
mod mapping;
pub mod namespace;
pub mod networkpolicy;
pub mod node;
pub mod object;
pub mod peer;
mod pod_ref;
pub mod service;
pub mod tenant;

pub use daemonset::DaemonSet;
pub use endpointslice::EndpointSlice;
pub use known::Facts;
pub use labels::{LabelSet, Selector};
pub use namespace::Namespace;
pub use networkpolicy::NetworkPolicy;
pub use node::{Node, NodeAddresses};
pub use object::{Object, Unfit};
pub use peer::Peer;
pub use pod_ref::PodRef;
pub use service::Service;
pub use tenant::{NetworkTenant, TenantGrant};
