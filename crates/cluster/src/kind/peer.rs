//! Pods of any node, as policies see them. They are kept in [`crate::Peers`].

use super::{Kind, Resource};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct PeerPods;

impl Kind for PeerPods {
    type Object = facts::Peer;
    const RESOURCE: Resource = Resource { api: "/api/v1", kind: "Pod", plural: "pods", namespaced: true };
}
