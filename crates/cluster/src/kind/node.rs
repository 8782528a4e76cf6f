//! Nodes, of which the agent watches its own.

use super::{Kind, Resource};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Nodes;

impl Kind for Nodes {
    type Object = facts::Node;
    const RESOURCE: Resource = Resource { api: "/api/v1", kind: "Node", plural: "nodes", namespaced: false };
}
