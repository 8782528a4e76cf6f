//! Services: addresses and ports that clients see.

use super::{Kind, Resource};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Services;

impl Kind for Services {
    type Object = facts::Service;
    const RESOURCE: Resource =
        Resource { api: "/api/v1", kind: "Service", plural: "services", namespaced: true };
}
