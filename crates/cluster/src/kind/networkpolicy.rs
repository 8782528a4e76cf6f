//! Policies of traffic to and from pods.

use super::{Kind, Resource};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct NetworkPolicies;

impl Kind for NetworkPolicies {
    type Object = facts::NetworkPolicy;
    const RESOURCE: Resource = Resource {
        api: "/apis/networking.k8s.io/v1",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        namespaced: true,
    };
}
