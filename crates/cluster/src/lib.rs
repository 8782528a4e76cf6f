//! What the cluster says of this node, and what the agent says to it.
//!
//! - [`watch`]: keeps a [`Cluster`]'s [`Index`] up to date with the API server or with a directory of manifests, and tells what happens
//!   as [`Event`]s.
//! - [`index`]: pods of the node and labels of namespaces, a plain struct.
//! - [`queue`]: keys that are worked on one at a time, with retries.
//! - [`store`]: the last known facts on disk, for the plugin.
//! - [`write`]: Events, labels, and whether the agent is about to be replaced.

mod backoff;
mod connection;
mod error;
pub mod index;
pub mod queue;
pub mod store;
pub mod watch;
pub mod write;

pub use connection::{Access, Connection};
pub use error::Error;
pub use index::{Index, PodKey};
pub use queue::Queue;
pub use store::{Store, StoreError, StoreEvent};
pub use watch::{Cluster, Event, Limits, Source, State, WatchError, What};
pub use write::{UpgradeState, Writer};
