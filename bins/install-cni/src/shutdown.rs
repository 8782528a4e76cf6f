//! The end: whether a new version of this agent is to follow, or everything is to be removed.

use cluster::{UpgradeState, Writer};
use telemetry::Scope;

use crate::config::{Cleanup, Config};

/// Name of the agent's DaemonSet (I-59).
const DAEMONSET: &str = "istio-cni-node";
/// How often an API server that does not tell is asked.
const TRIES: u32 = 2;

/// Whether to take the plugin off the node. Where the plugin stays, pods go on being captured: it asks the API server itself, or what this agent
/// knew last.
pub(crate) async fn is_to_clean_up(config: &Config, writer: Option<&Writer>, log: &Scope) -> bool {
    let (clean, reason) = match (config.cleanup, writer) {
        (Cleanup::Always, _) => (true, "cleanup-on-exit is always".to_owned()),
        (Cleanup::Never, _) => (false, "cleanup-on-exit is never".to_owned()),
        (Cleanup::Auto, Some(writer)) if !config.namespace.is_empty() => decide(config, writer).await,
        (Cleanup::Auto, _) => (true, "there is no DaemonSet that could bring another agent".to_owned()),
    };
    let what = if clean { "taking the plugin off this node" } else { "leaving the plugin on this node" };
    log.info(format!("{what}: {reason}"), &[]);
    clean
}

/// The table AA-100, for both modes. It differs for an API server that cannot be asked: that says nothing about an uninstallation, and removing the
/// plugin would let pods start outside of the mesh.
async fn decide(config: &Config, writer: &Writer) -> (bool, String) {
    let name = format!("DaemonSet {}/{DAEMONSET}", config.namespace);
    for _ in 0..TRIES {
        return match writer.daemonset_state(&config.namespace, DAEMONSET).await {
            UpgradeState::Stays => (false, format!("{name} exists, so another agent follows")),
            UpgradeState::AffinityMismatch => (true, format!("{name} is not for this node any more")),
            UpgradeState::Deleting => (true, format!("{name} is being deleted")),
            UpgradeState::NotFound => (true, format!("{name} does not exist")),
            UpgradeState::Unauthorized => (true, "the service account is gone".to_owned()),
            UpgradeState::Forbidden => (
                true,
                format!("this agent may not look at {name}, as with the original's roles in sidecar mode"),
            ),
            UpgradeState::Unknown(_) => continue,
        };
    }
    (false, format!("the API server does not tell what becomes of {name}"))
}
