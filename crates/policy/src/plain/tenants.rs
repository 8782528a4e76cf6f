//! Tenants of a plain world.

use std::collections::BTreeSet;

use facts::object::METADATA_NAME;
use facts::service::SystemRole;
use facts::{Namespace, NetworkTenant, TenantGrant};

use super::{PlainWorld, key};
use crate::Section;
use crate::tenancy::{
    DNS_CACHE, DNS_NAMESPACE, ServiceKey, TENANT_LABEL, TenantMembership, TenantSurroundings, tenant_section,
};
use crate::world::World as _;

/// Where the mesh's control plane is, unless it is told otherwise.
const MESH_NAMESPACE: &str = "istio-system";

impl PlainWorld {
    /// Adds or replaces a tenant. [`Self::settle_tenants`] makes something of it.
    pub fn put_tenant(&mut self, tenant: NetworkTenant) {
        self.tenants.insert(tenant.name.clone(), tenant);
    }

    /// Takes a tenant away.
    pub fn remove_tenant(&mut self, name: &str) {
        self.tenants.remove(name);
    }

    /// Adds or replaces a grant.
    pub fn put_grant(&mut self, grant: TenantGrant) {
        self.grants.insert(key(&grant.namespace, &grant.name), grant);
    }

    /// Takes a grant away.
    pub fn remove_grant(&mut self, namespace: &str, name: &str) {
        self.grants.remove(&key(namespace, name));
    }

    /// All tenants of which the objects are known, in the order of their names.
    pub fn tenants(&self) -> impl Iterator<Item = &NetworkTenant> {
        self.tenants.values()
    }

    /// A tenant of which the object is known.
    pub fn tenant(&self, name: &str) -> Option<&NetworkTenant> {
        self.tenants.get(name)
    }

    /// All grants of which the objects are known.
    pub fn grants(&self) -> impl Iterator<Item = &TenantGrant> {
        self.grants.values()
    }

    /// All namespaces of which something is known, with their labels.
    pub fn labelled_namespaces(&self) -> impl Iterator<Item = (&str, &facts::LabelSet)> {
        self.namespaces.iter().map(|(name, namespace)| (&**name, &namespace.labels))
    }

    /// Whether it is known what tenants come to, and not their objects: as an agent tells it.
    pub fn has_sections_only(&self) -> bool {
        !self.is_settled && self.policies.keys().any(|name| name.section == Section::Tenant)
    }

    /// Which tenant has which namespace, by the objects.
    pub fn membership(&self) -> TenantMembership {
        let mut membership = TenantMembership::default();
        for (name, namespace) in self.namespaces.iter().filter(|(name, _)| !self.unseen.contains(*name)) {
            membership.namespace(name, Some(namespace.labels.clone()));
        }
        for (name, tenant) in &self.tenants {
            membership.tenant(name, Some(tenant));
        }
        membership
    }

    /// Makes policies of tenants and grants, and tells the namespaces which tenant they have. To be called after what they go by has changed; without
    /// tenants it does nothing. A rule for the pod's own node means any node here, because a plain world is not that of one.
    pub fn settle_tenants(&mut self) {
        if self.tenants.is_empty() && !self.is_settled {
            return;
        }
        self.is_settled = true;
        self.policies.retain(|name, _| name.section != Section::Tenant);
        let membership = self.membership();
        let named = membership.owners().map(|(namespace, _)| Box::from(namespace));
        let all: BTreeSet<Box<str>> = self.namespaces.keys().cloned().chain(named).collect();
        for name in all {
            // One that a tenant names is its before its object is known.
            let own = || {
                let tenant = membership.owner(&name).map(|tenant| (TENANT_LABEL, tenant));
                [(METADATA_NAME, &*name)].into_iter().chain(tenant).collect()
            };
            let known = membership.labels(&name);
            if known.is_none() {
                self.unseen.insert(name.clone());
            }
            let labels = known.unwrap_or_else(own);
            self.namespaces.insert(name, Namespace { labels });
        }
        let around = self.around_tenants();
        let of_tenant = |tenant: &NetworkTenant| {
            let is_its = |grant: &&TenantGrant| membership.owner(&grant.namespace) == Some(&*tenant.name);
            tenant_section(tenant, &self.grants.values().filter(is_its).collect::<Vec<_>>(), &around, self)
        };
        let sections: Vec<_> = self.tenants.values().filter_map(of_tenant).collect();
        sections.into_iter().for_each(|terms| self.put_policy(terms));
    }

    fn around_tenants(&self) -> TenantSurroundings {
        let of_role = |of: &str, role| -> Vec<ServiceKey> {
            let found = self.services();
            let found =
                found.filter(|(namespace, _, service)| *namespace == of && service.role == Some(role));
            found.map(|(namespace, name, _)| (namespace.into(), name.into())).collect()
        };
        let around = TenantSurroundings::of(self, "");
        TenantSurroundings {
            dns: of_role(DNS_NAMESPACE, SystemRole::Dns),
            dns_caches: vec![DNS_CACHE],
            mesh: of_role(MESH_NAMESPACE, SystemRole::Mesh),
            own_node: self.nodes().flat_map(|(_, addresses)| addresses).copied().collect(),
            ..around
        }
    }

    /// Live pods of the namespaces of a tenant.
    pub fn pods_of_tenant(&self, tenant: &str) -> usize {
        let is_its = |namespace: &str| {
            self.namespace_labels(namespace).is_some_and(|labels| labels.get(TENANT_LABEL) == Some(tenant))
        };
        self.live_pods().filter(|pod| is_its(&pod.namespace)).count()
    }
}
