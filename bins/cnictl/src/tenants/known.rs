//! Tenants by whatever tells of them: the agent, its snapshot, or manifests.

use facts::NetworkTenant;
use facts::tenant::TenantEnforcement;
use policy::tenancy::{NamespaceClaim, ServiceReach, TENANT_LABEL, TenantMembership};
use policy::{PlainWorld, PolicyTerms, PolicyWorld as _, Section};
use rundir::policy::{StandingWord, TenantClaimReport, TenantServiceReport, TenantStateReport};

use crate::output::VerbAnswer;
use crate::pods::NOTHING;
use crate::policy::KnownCluster;

/// How the enforcement of tenants stands, where there are none.
pub(super) fn nothing(known: &KnownCluster) -> VerbAnswer {
    let text = match (known.standing, &known.tenants) {
        (Some(StandingWord::NotListed), _) => "the agent has not listed everything yet that tenants go by",
        (Some(_), None) => "tenants are not enforced on this node (TENANTS_ENFORCEMENT=off)",
        _ => "there is no such tenant",
    };
    VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(String::new(), text.to_owned()) }
}

/// All tenants, in the order of their names.
pub(super) fn tenants(known: &KnownCluster) -> Vec<TenantStateReport> {
    let world = &known.world;
    if let Some(told) = &known.tenants {
        return told.clone();
    }
    if world.has_sections_only() {
        return sections(world).map(|terms| of_section(world, terms)).collect();
    }
    let membership = world.membership();
    world.tenants().map(|tenant| of_object(world, &membership, tenant)).collect()
}

/// What tenants come to that judge something.
pub(super) fn sections(world: &PlainWorld) -> impl Iterator<Item = &PolicyTerms> {
    world.policies().filter(|terms| terms.name.section == Section::Tenant)
}

fn of_object(world: &PlainWorld, membership: &TenantMembership, tenant: &NetworkTenant) -> TenantStateReport {
    let claim = |NamespaceClaim { namespace, state }: NamespaceClaim| TenantClaimReport {
        name: namespace.to_string(),
        state: state.name().to_owned(),
        tenant: state.older().unwrap_or_default().to_owned(),
    };
    let service = |one: &facts::tenant::TenantService| {
        let owner = membership.owner(&one.namespace).and_then(|owner| world.tenant(owner));
        let grants = world.grants().filter(|grant| grant.namespace == one.namespace);
        let found = world.service(&one.namespace, &one.name);
        TenantServiceReport {
            namespace: one.namespace.to_string(),
            name: one.name.to_string(),
            reason: ServiceReach::of((tenant, one), found, owner, grants)
                .reason()
                .unwrap_or_default()
                .to_owned(),
        }
    };
    TenantStateReport {
        name: tenant.name.to_string(),
        generation: tenant.generation,
        in_force: None,
        enforcement: tenant.enforcement.name().to_owned(),
        namespaces: membership.claims(&tenant.name).into_iter().map(claim).collect(),
        services: tenant.services.iter().map(service).collect(),
        pods: world.pods_of_tenant(&tenant.name),
        faults: tenant.faults.texts().collect(),
    }
}

/// A snapshot keeps what tenants come to, without what was not understood and without those that judge nothing.
fn of_section(world: &PlainWorld, terms: &PolicyTerms) -> TenantStateReport {
    let name = &*terms.name.name;
    let own = world.labelled_namespaces().filter(|(_, labels)| labels.get(TENANT_LABEL) == Some(name));
    let claim = |(namespace, _): (&str, _)| TenantClaimReport {
        name: namespace.to_owned(),
        state: "Member".to_owned(),
        tenant: String::new(),
    };
    let enforcement = match terms.ingress.is_tried_out {
        true => TenantEnforcement::Audit,
        false => TenantEnforcement::Enforce,
    };
    TenantStateReport {
        name: name.to_owned(),
        enforcement: enforcement.name().to_owned(),
        namespaces: own.map(claim).collect(),
        pods: world.pods_of_tenant(name),
        ..TenantStateReport::default()
    }
}
