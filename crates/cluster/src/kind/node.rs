//! Nodes: of its own the agent watches what DaemonSets go by, of all their addresses where tenants are enforced.

use super::{Kind, Resource};
use crate::readiness::WatchName;

/// What DaemonSets go by.
#[derive(Debug, Clone, Copy)]
pub struct Nodes;

/// Addresses.
#[derive(Debug, Clone, Copy)]
pub struct NodesByAddress;

const RESOURCE: Resource = Resource { api: "/api/v1", kind: "Node", plural: "nodes", namespaced: false };

impl Kind for Nodes {
    type Object = facts::Node;
    const RESOURCE: Resource = RESOURCE;
}

impl Kind for NodesByAddress {
    type Object = facts::NodeAddresses;
    const RESOURCE: Resource = RESOURCE;
    const WATCH: WatchName = WatchName::ALL_NODES;
}
