//! What is around tenants: those of the Services, nodes and endpoints that some tenant or grant goes by.

use std::collections::{BTreeMap, BTreeSet};

use facts::networkpolicy::Entries;
use facts::service::SystemRole;
use facts::tenant::{GrantTarget, TenantDefault, TenantEntity, TenantPeer, TenantRule};
use facts::{EndpointSlice, NetworkTenant};
use policy::tenancy::{API_SERVER, DNS_CACHE, DNS_NAMESPACE, ServiceEnds, ServiceKey, TenantSurroundings};

use super::TenantStores;
use crate::state::PolicyState;

impl PolicyState {
    /// Only what sections can go by is looked at, which are few of a cluster's Services.
    pub(super) fn surroundings(&self, stores: &TenantStores) -> TenantSurroundings {
        let (tenants, grants) = (stores.tenants.read(), stores.grants.read());
        let (services, slices) = self.sources.services.read();
        let mut needed: BTreeSet<(&str, &str)> = BTreeSet::from([API_SERVER]);
        let named = tenants.iter().flat_map(|(_, _, tenant)| &tenant.services);
        needed.extend(named.map(|service| (&*service.namespace, &*service.name)));
        for (namespace, _, grant) in grants.iter() {
            for target in &grant.to {
                let GrantTarget::Service(name) = target else { continue };
                let all = services.in_namespace(namespace).map(|(name, _)| name);
                let meant = all.filter(|one| name.as_deref().is_none_or(|name| name == *one));
                needed.extend(meant.map(|name| (namespace, name)));
            }
        }
        let of_role = |namespace: &str, role| -> Vec<ServiceKey> {
            let found = services.in_namespace(namespace).filter(|(_, service)| service.role == Some(role));
            found.map(|(name, _)| (namespace.into(), name.into())).collect()
        };
        let dns = of_role(DNS_NAMESPACE, SystemRole::Dns);
        let mesh = self.sources.mesh_namespaces.iter();
        let mesh: Vec<ServiceKey> = mesh.flat_map(|namespace| of_role(namespace, SystemRole::Mesh)).collect();
        needed.extend(dns.iter().chain(&mesh).map(|(namespace, name)| (&**namespace, &**name)));
        let namespaces: BTreeSet<&str> = needed.iter().map(|(namespace, _)| *namespace).collect();
        let mut parts: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
        for namespace in namespaces {
            for (_, slice) in slices.in_namespace(namespace) {
                parts.entry((namespace, &slice.service)).or_default().push(slice);
            }
        }
        let ends = |(namespace, name): (&str, &str)| {
            let service = services.get(namespace, name)?;
            let parts = parts.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
            Some(((namespace.into(), name.into()), ServiceEnds::of(service, &parts.iter().copied())))
        };
        let nodes = stores.nodes.read();
        let goes_by_outside = tenants.iter().any(|(_, _, tenant)| goes_by_outside(tenant));
        let inside = goes_by_outside.then(|| {
            let of_nodes = nodes.iter().flat_map(|(_, _, node)| node.0.iter());
            of_nodes.chain(services.iter().flat_map(|(_, _, service)| service.addresses.iter()))
        });
        TenantSurroundings {
            services: needed.iter().copied().filter_map(ends).collect(),
            dns_caches: vec![DNS_CACHE],
            own_node: nodes.get("", self.local.own_node()).map(|node| node.0.to_vec()).unwrap_or_default(),
            inside: inside.into_iter().flatten().copied().map(Into::into).collect(),
            dns,
            mesh,
        }
    }
}

/// Whether a tenant says something of what is outside of the cluster.
fn goes_by_outside(tenant: &NetworkTenant) -> bool {
    let is_world = |peer: &TenantPeer| matches!(peer, TenantPeer::Entity(TenantEntity::World));
    let names_it = |rule: &TenantRule| match &rule.peers {
        Entries::Any => false,
        Entries::Of(peers) => peers.iter().any(is_world),
    };
    tenant.external == TenantDefault::Allow || tenant.ingress.iter().chain(&tenant.egress).any(names_it)
}
