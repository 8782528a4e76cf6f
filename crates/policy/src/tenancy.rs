//! What tenants and grants mean.
//!
//! A tenant is a policy of the section [`Section::Tenant`](crate::Section): whom it isolates, in an order of rules of which the first one that matches
//! denies or hands on to NetworkPolicies. So tenants share groups, classes and rules with all other policies.
//!
//! - [`TenantMembership`]: which tenant has which namespace.
//! - [`tenant_section`]: a tenant, with the grants of its namespaces, as a policy.
//! - [`TenantSurroundings`]: what is to be known for that of Services and nodes.
//!
//! Which tenant a namespace has is told as one of the namespace's labels that nobody can write, [`TENANT_LABEL`]. So the set of a tenant's pods follows its
//! namespaces as any set follows labels, on disk as in the index. A namespace that is not known yet has no tenant: until it is known its pods are to be
//! kept isolated by whoever starts them.

mod membership;
mod peers;
mod reach;
mod section;
mod surroundings;
#[cfg(test)]
mod tests;

pub use membership::{ClaimState, NamespaceClaim, TENANT_LABEL, TenantMembership};
pub use reach::ServiceReach;
pub use section::{tenant_name, tenant_section};
pub use surroundings::{
    API_SERVER, DNS_CACHE, DNS_NAMESPACE, ServiceEnds, ServiceKey, ServicePortEnds, TenantSurroundings,
};
