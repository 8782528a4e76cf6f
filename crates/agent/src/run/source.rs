//! Where what is known of pods comes from, and whom this agent may ask and tell.

use std::sync::Arc;

use cluster::{Access, ApiConnection, EventLimits, Limits, Own, Source, Writer};
use telemetry::Scope;

use crate::config::{AgentConfig, PodsOrigin};

/// Where the cluster's state comes from, the way to write to it, and the way to ask about this agent's DaemonSet.
pub(super) fn source(config: &AgentConfig, log: &Scope) -> (Source, Option<Writer>, Option<Writer>) {
    let connect = |access: &Access| {
        let unreadable = access.unreadable_authorities();
        if unreadable > 0 {
            let text = "certificates of the API server's list of authorities cannot be read and are ignored";
            log.warn(text, &[("certificates", &unreadable)]);
        }
        let connection = Arc::new(ApiConnection::new(access.clone(), env!("CARGO_PKG_VERSION")));
        let writer = Writer::new(connection.clone(), config.node.clone());
        (writer.reporting(&config.pod.name, EventLimits::default()), connection)
    };
    let (node, limits, own) = (config.node.clone(), Limits::default(), config.own_pod.clone());
    match &config.pods {
        PodsOrigin::Manifests { dir, cluster } => {
            let own = own.zip(cluster.as_ref()).map(|(pod, access)| {
                let (writer, connection) = connect(access);
                (Own { connection, node, pod, limits }, writer)
            });
            let (own, own_set) = own.unzip();
            (Source::Manifests { dir: dir.clone(), own }, None, own_set)
        }
        PodsOrigin::Kubernetes(access) => {
            let (writer, connection) = connect(access);
            let own_set = own.is_some().then(|| writer.clone());
            (Source::Kubernetes { connection, node, own, limits }, Some(writer), own_set)
        }
    }
}
