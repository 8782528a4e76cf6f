//! What is told of tenants.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use facts::tenant::{TenantEnforcement, TenantFaults, TenantService};
use facts::{NetworkTenant, Selector};
use policy::World as _;
use policy::tenancy::{ClaimState, NamespaceClaim, ServiceReach};

use super::TenantStores;
use crate::state::{FollowStage, PolicyState, world};

/// All tenants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantOverview {
    /// In the order of their names.
    pub tenants: Vec<TenantReport>,
    /// How many nodes the cluster has.
    pub nodes: usize,
}

/// A tenant, and what its objects come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantReport {
    /// Its name.
    pub name: Box<str>,
    /// `metadata.generation`.
    pub generation: u64,
    /// The generation that is in force on this node.
    pub in_force: Option<u64>,
    /// What becomes of what it denies.
    pub enforcement: TenantEnforcement,
    /// What became of the namespaces that it claims.
    pub claims: Arc<[NamespaceClaim]>,
    /// Services of others.
    pub services: Vec<ReachedService>,
    /// Its pods in the cluster.
    pub pods: usize,
    /// What of it is not understood.
    pub faults: TenantFaults,
}

/// A Service that a tenant's pods are allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReachedService {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Whether they reach it.
    pub reach: ServiceReach,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses behind it that are ready.
    pub endpoints: usize,
}

/// What of a tenant is in force on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantStanding {
    /// Its name.
    pub name: Box<str>,
    /// The generation that is in force.
    pub generation: u64,
    /// What becomes of what it denies.
    pub enforcement: TenantEnforcement,
    /// Its pods on this node.
    pub pods: usize,
    /// Claims of it that an older tenant has.
    pub refused: usize,
    /// What of it is not understood.
    pub faults: TenantFaults,
}

impl PolicyState {
    /// All tenants; nothing before everything was listed.
    pub(crate) fn tenant_overview(&mut self) -> Option<TenantOverview> {
        let sources = self.sources.clone();
        let stores = sources.tenants.as_ref()?;
        if self.stage == FollowStage::Lists || !stores.is_listed() {
            return None;
        }
        let tenants: Vec<_> = stores.tenants.read().iter().map(|(_, _, tenant)| tenant.clone()).collect();
        let claims: Vec<_> = tenants.iter().map(|tenant| self.tenants.claims(&tenant.name)).collect();
        let pods = self.pods_by_tenant();
        let report = |(tenant, claims): (&Arc<NetworkTenant>, _)| {
            let pods = pods.get(&*tenant.name).copied().unwrap_or_default();
            self.report(stores, tenant, claims, pods)
        };
        let reports = tenants.iter().zip(claims).map(report).collect();
        Some(TenantOverview { tenants: reports, nodes: stores.nodes.read().len() })
    }

    /// How many pods of the cluster are a tenant's.
    fn pods_by_tenant(&self) -> BTreeMap<&str, usize> {
        let peers = self.sources.peers.read();
        let world = world(&peers, &self.local, &self.namespaces);
        let mut found = BTreeMap::new();
        for (namespace, owner) in self.tenants.membership.owners() {
            *found.entry(owner).or_default() += world.pods_in(namespace, &Selector::default()).count();
        }
        found
    }

    fn report(
        &self,
        stores: &TenantStores,
        tenant: &NetworkTenant,
        claims: Arc<[NamespaceClaim]>,
        pods: usize,
    ) -> TenantReport {
        TenantReport {
            name: tenant.name.clone(),
            generation: tenant.generation,
            in_force: self.tenants.made.get(&tenant.name).copied(),
            enforcement: tenant.enforcement,
            claims,
            services: tenant.services.iter().map(|service| self.reached(stores, tenant, service)).collect(),
            pods,
            faults: tenant.faults.clone(),
        }
    }

    fn reached(
        &self,
        stores: &TenantStores,
        tenant: &NetworkTenant,
        service: &TenantService,
    ) -> ReachedService {
        let TenantService { namespace, name, .. } = service;
        let (services, slices) = self.sources.services.read();
        let found = services.get(namespace, name);
        let parts = slices.in_namespace(namespace).filter(|(_, slice)| slice.service == *name);
        let endpoints = parts.flat_map(|(_, slice)| &slice.endpoints).filter(|endpoint| endpoint.ready);
        let (tenants, grants) = (stores.tenants.read(), stores.grants.read());
        let owner = self.tenants.membership.owner(namespace).and_then(|owner| tenants.get("", owner));
        let grants = grants.in_namespace(namespace).map(|(_, grant)| &**grant);
        ReachedService {
            namespace: namespace.clone(),
            name: name.clone(),
            reach: ServiceReach::of(
                (tenant, service),
                found.map(|found| &**found),
                owner.map(|owner| &**owner),
                grants,
            ),
            addresses: found.map(|service| service.addresses.to_vec()).unwrap_or_default(),
            endpoints: endpoints.map(|endpoint| endpoint.addresses.len()).sum(),
        }
    }

    /// What is in force on this node.
    pub(super) fn tenant_standings(&self) -> Vec<TenantStanding> {
        let Some(stores) = &self.sources.tenants else { return Vec::new() };
        let mut pods: BTreeMap<&str, usize> = BTreeMap::new();
        for (pod, ..) in self.index.pods() {
            if let Some(owner) = self.tenants.membership.owner(&pod.namespace) {
                *pods.entry(owner).or_default() += 1;
            }
        }
        let tenants = stores.tenants.read();
        let standing = |(name, generation): (&str, u64)| {
            let tenant = tenants.get("", name)?;
            let claims = self.tenants.membership.claims(name);
            let is_refused = |claim: &&NamespaceClaim| matches!(claim.state, ClaimState::Refused(_));
            Some(TenantStanding {
                name: name.into(),
                generation,
                enforcement: tenant.enforcement,
                pods: pods.get(name).copied().unwrap_or_default(),
                refused: claims.iter().filter(is_refused).count(),
                faults: tenant.faults.clone(),
            })
        };
        let made = self.tenants.made.iter().map(|(name, generation)| (&**name, *generation));
        made.filter_map(standing).collect()
    }
}
