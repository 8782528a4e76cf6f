//! The agent's own DaemonSet and node, by which it knows what becomes of it.

use std::convert::Infallible;
use std::sync::Arc;

use super::reflector::Reflector;
use super::sink;
use super::{Limits, Reporter, Standing, WatchName};
use crate::connection::ApiConnection;
use crate::daemonset::{self, OwnPod};
use crate::kind::{DaemonSets, Nodes, ObjectSelection};

/// The agent's own DaemonSet and node at the API server.
#[derive(Debug, Clone)]
pub struct Own {
    /// Shared with [`crate::write::Writer`].
    pub connection: Arc<ApiConnection>,
    /// Name of the node.
    pub node: String,
    /// The agent's own pod.
    pub pod: OwnPod,
    /// How long is waited for what.
    pub limits: Limits,
}

/// Watches the agent's DaemonSet and node.
pub(super) async fn watch_own(
    connection: &ApiConnection,
    node: &str,
    own: &OwnPod,
    limits: Limits,
    reporter: &Reporter<'_>,
) -> Infallible {
    let set = async {
        let name = own_daemonset(connection, own, limits, reporter).await;
        reporter.see(|seen| name.clone_into(&mut seen.name));
        let sink = sink::OwnObject::daemonset(reporter, &own.namespace, &name);
        let selected = (WatchName::DAEMONSET, ObjectSelection::one(Some(&own.namespace), &name));
        Reflector::<DaemonSets>::new(connection, selected, limits, reporter, &sink).run().await
    };
    let sink = sink::OwnObject::node(reporter, node);
    let selected = (WatchName::NODE, ObjectSelection::one(None, node));
    let node = Reflector::<Nodes>::new(connection, selected, limits, reporter, &sink).run();
    tokio::select! {
        never = node => never,
        never = set => never,
    }
}
/// The name of the DaemonSet that the agent's pod belongs to. It is asked for until the API server says it: by a guess, a DaemonSet of another name
/// would count as one that does not exist.
async fn own_daemonset(
    connection: &ApiConnection,
    own: &OwnPod,
    limits: Limits,
    reporter: &Reporter<'_>,
) -> String {
    let mut standing = Standing::new(WatchName::DAEMONSET, reporter, Some(connection.recovery()));
    loop {
        match daemonset::look::name_of(connection, own, limits.answer).await {
            Ok(name) => {
                standing.works();
                return name;
            }
            Err(error) => standing.failed(error).await,
        }
    }
}
