//! What the cluster says of this node, and what the agent says to it.
//!
//! - [`watch`]: keeps a [`Cluster`]'s [`Index`] up to date with the API server or with a directory of manifests, and tells what happens
//!   as [`Event`]s.
//! - [`kind`]: kinds of objects as data; [`news`]: what is told of them; [`objects`]: a store for any of them; [`peers`]: one for the pods
//!   of the whole cluster.
//! - [`index`]: pods of the node and labels of namespaces, a plain struct.
//! - [`queue`]: keys that are worked on one at a time, with retries.
//! - [`store`]: the last known facts on disk, for the plugin.
//! - [`daemonset`]: what becomes of the agent on this node.
//! - [`time`]: times as Kubernetes writes them.
//! - [`write`]: Events, labels and annotations; [`Writer`] also has the taint of the node.
//!
//! ```no_run
//! # async fn example() -> Result<(), cluster::StoreError> {
//! # use std::{path::Path, sync::Arc};
//! use cluster::{Access, Cluster, ApiConnection, Event, Limits, Source, Store};
//! let account = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
//! let connection = Arc::new(ApiConnection::new(Access::in_cluster("10.96.0.1", "443", account), "1.0.0"));
//! let cluster = Cluster::new();
//! let store = Store::start(Path::new("/var/run/istio-cni"), cluster.clone(), |event| eprintln!("{event:?}"))?;
//! let source = Source::Kubernetes { connection, node: "node-1".into(), own: None, limits: Limits::default() };
//! tokio::spawn(cluster::watch::run(source, cluster.clone(), move |event| match event {
//!     Event::Synced => store.synced(),
//!     Event::Changed(pods) => store.changed(&pods),
//!     event => eprintln!("{event:?}"),
//! }));
//! let facts = cluster.index().facts("shop", "web-0");
//! # Ok(()) }
//! ```

mod connection;
pub mod daemonset;
mod error;
pub mod index;
pub mod kind;
mod lease;
pub mod news;
pub mod objects;
pub mod peers;
pub mod queue;
mod readiness;
mod recovery;
mod rounds;
pub mod store;
mod taint;
mod tenant_status;
pub mod time;
pub mod watch;
pub mod write;

pub use connection::{Access, ApiConnection};
pub use daemonset::{Outlook, OwnPod};
pub use error::Error;
pub use index::Index;
pub use kind::{Kind, ObjectSelection};
pub use lease::{LEASE_DURATION, LeaseCandidate, LeaseHold};
pub use objects::Objects;
pub use peers::Peers;
pub use queue::Queue;
pub use readiness::{WatchName, WatchState};
pub use store::{Store, StoreError, StoreEvent};
pub use watch::{Cluster, Event, FetchError, Limits, ManifestError, Own, Shared, Source, Wanted, WatchError};
pub use write::{EventLimits, EventText, Writer};
