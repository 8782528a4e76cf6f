//! DaemonSets, of which the agent watches its own.

use super::{Kind, Resource};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct DaemonSets;

impl Kind for DaemonSets {
    type Object = facts::DaemonSet;
    const RESOURCE: Resource =
        Resource { api: "/apis/apps/v1", kind: "DaemonSet", plural: "daemonsets", namespaced: true };
}
