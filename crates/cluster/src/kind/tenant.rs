//! Tenants, and the consents of namespaces' owners.

use super::{Kind, Resource};

const API: &str = "/apis/tenancy.istio-cni.io/v1alpha1";

/// Tenants.
#[derive(Debug, Clone, Copy)]
pub struct NetworkTenants;

/// Consents.
#[derive(Debug, Clone, Copy)]
pub struct TenantGrants;

impl Kind for NetworkTenants {
    type Object = facts::NetworkTenant;
    const RESOURCE: Resource =
        Resource { api: API, kind: "NetworkTenant", plural: "networktenants", namespaced: false };
    const IS_OPTIONAL: bool = true;
}

impl Kind for TenantGrants {
    type Object = facts::TenantGrant;
    const RESOURCE: Resource =
        Resource { api: API, kind: "TenantGrant", plural: "tenantgrants", namespaced: true };
    const IS_OPTIONAL: bool = true;
}
