//! Whether a Service that a tenant allows its pods is reached.

use facts::networkpolicy::Entries;
use facts::tenant::{GrantTarget, TenantPeer, TenantRule, TenantService};
use facts::{NetworkTenant, Service, TenantGrant};

/// Whether a Service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceReach {
    /// It is there, and its side agrees or is of no tenant.
    Reached,
    /// There is no such Service.
    Missing,
    /// It is a name of something outside, which is not followed.
    ExternalName,
    /// It is in another tenant, of which neither a grant nor a rule agrees.
    NoConsent,
}

impl ServiceReach {
    /// A word for why it is not reached; nothing where it is.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Reached => None,
            Self::Missing => Some("ServiceNotFound"),
            Self::ExternalName => Some("ExternalName"),
            Self::NoConsent => Some("NoConsent"),
        }
    }

    /// Of a Service that `tenant` allows its pods: `found` if it is there, in a namespace of tenant `owner` with these grants.
    pub fn of<'g>(
        (tenant, service): (&NetworkTenant, &TenantService),
        found: Option<&Service>,
        owner: Option<&NetworkTenant>,
        grants: impl Iterator<Item = &'g TenantGrant>,
    ) -> Self {
        match found {
            None => Self::Missing,
            Some(found) if found.is_external_name => Self::ExternalName,
            Some(_) if !agrees((tenant, service), owner, grants) => Self::NoConsent,
            Some(_) => Self::Reached,
        }
    }
}

/// Whether the side of a Service agrees to something of this tenant: what exactly, its rules and grants say.
fn agrees<'g>(
    (tenant, service): (&NetworkTenant, &TenantService),
    owner: Option<&NetworkTenant>,
    mut grants: impl Iterator<Item = &'g TenantGrant>,
) -> bool {
    let Some(owner) = owner.filter(|owner| owner.name != tenant.name) else { return true };
    let is_granted = grants.any(|grant| {
        let is_meant = |target: &GrantTarget| match target {
            GrantTarget::Service(name) => name.as_ref().is_none_or(|name| *name == service.name),
            GrantTarget::Pod(_) | GrantTarget::Pods(_) => true,
        };
        grant.from.contains(&tenant.name) && grant.to.iter().any(is_meant)
    });
    let is_peer = |peer: &TenantPeer| match peer {
        TenantPeer::Pods { tenant: of, .. } => of.as_ref().is_none_or(|of| *of == tenant.name),
        TenantPeer::Block(_) => true,
        TenantPeer::Entity(_) => false,
    };
    let allows = |rule: &TenantRule| match &rule.peers {
        _ if rule.denies => false,
        Entries::Any => true,
        Entries::Of(peers) => peers.iter().any(is_peer),
    };
    is_granted || owner.ingress.iter().any(allows)
}
