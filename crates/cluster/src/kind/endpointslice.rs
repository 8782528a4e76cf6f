//! Where connections to Services go.

use super::{Kind, Resource};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct EndpointSlices;

impl Kind for EndpointSlices {
    type Object = facts::EndpointSlice;
    const RESOURCE: Resource = Resource {
        api: "/apis/discovery.k8s.io/v1",
        kind: "EndpointSlice",
        plural: "endpointslices",
        namespaced: true,
    };
}
