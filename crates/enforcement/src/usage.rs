//! Whose traffic is counted on this node, and by which classes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use facts::networkpolicy::Entries;
use facts::tenant::{TenantDefault, TenantEntity, TenantPeer};
use facts::{NetworkTenant, Selector};
use policy::index::LocalName;
use policy::tenancy::TENANT_LABEL;
use policy::{PolicyPod as _, World as _};
use usage::{PeerClass, UsageClass, UsagePlan};

use super::state::{FollowStage, PolicyState, world};
use super::tenants::TenantStores;
use super::world::ClusterWorld;

/// Most members of a class at one pod: each costs memory in the kernel, at each pod of the tenant. A class with more is not told from what is outside.
const MOST_MEMBERS: usize = 8_192;

/// What is to be counted on this node.
#[derive(Debug, Clone, Default)]
pub struct UsageOverview {
    /// Pods of this node that are a tenant's.
    pub pods: Vec<(LocalName, Box<str>)>,
    /// How they are counted, by tenant.
    pub plans: BTreeMap<Box<str>, Arc<UsagePlan>>,
    /// Tenants with a class that is too large to be told from others.
    pub crowded: BTreeSet<Box<str>>,
}

/// The addresses of each class of a cluster.
struct ClassMembers {
    tenants: BTreeMap<Box<str>, Arc<[IpAddr]>>,
    unassigned: Arc<[IpAddr]>,
    nodes: Arc<[IpAddr]>,
    services: Arc<[IpAddr]>,
}

// === impl PolicyState ===

impl PolicyState {
    /// Nothing where it is not known yet.
    pub(super) fn usage_overview(&self) -> Option<UsageOverview> {
        let stores = self.sources.tenants.as_ref()?;
        if self.stage != FollowStage::Follows {
            return (self.stage == FollowStage::Idle).then(UsageOverview::default);
        }
        let peers = self.sources.peers.read();
        let world = world(&peers, &self.local, &self.namespaces);
        let owner = |namespace: &str| self.tenants.membership.owner(namespace);
        let mut found = UsageOverview::default();
        for pod in world.local_pods() {
            if let Some(tenant) = owner(pod.namespace()).filter(|_| !pod.addresses().is_empty()) {
                let name = LocalName { namespace: pod.namespace().into(), name: pod.name().into() };
                found.pods.push((name, tenant.into()));
            }
        }
        let tenants: BTreeSet<Box<str>> = found.pods.iter().map(|(_, tenant)| tenant.clone()).collect();
        if tenants.is_empty() {
            return Some(found);
        }
        let all = stores.tenants.read();
        let named: BTreeMap<&str, BTreeSet<Box<str>>> = tenants
            .iter()
            .map(|name| (&**name, self.named_by(name, all.get("", name).map(|one| &**one), stores)))
            .collect();
        let needed: BTreeSet<&str> =
            named.iter().flat_map(|(own, others)| others.iter().map(|one| &**one).chain([*own])).collect();
        let members = self.class_members(&world, &needed, stores);
        for name in &tenants {
            let tenant = all.get("", name).map(|one| &**one);
            let (plan, is_crowded) = plan(name, tenant, &named[&**name], &members);
            found.plans.insert(name.clone(), Arc::new(plan));
            if is_crowded {
                found.crowded.insert(name.clone());
            }
        }
        Some(found)
    }

    /// The other tenants that rules of a tenant, its Services or its namespaces' grants name.
    fn named_by(
        &self,
        name: &str,
        tenant: Option<&NetworkTenant>,
        stores: &TenantStores,
    ) -> BTreeSet<Box<str>> {
        let mut found = BTreeSet::new();
        let owner = |namespace: &str| self.tenants.membership.owner(namespace);
        if let Some(tenant) = tenant {
            for peer in tenant.ingress.iter().chain(&tenant.egress).flat_map(|rule| peers_of(&rule.peers)) {
                if let TenantPeer::Pods { tenant, namespaces, .. } = peer {
                    found.extend(tenant.clone());
                    let owners = namespaces.iter().flatten().filter_map(|namespace| owner(namespace));
                    found.extend(owners.map(Box::from));
                }
            }
            found.extend(tenant.services.iter().filter_map(|one| owner(&one.namespace)).map(Box::from));
        }
        for (namespace, _, grant) in stores.grants.read().iter() {
            if owner(namespace) == Some(name) {
                found.extend(grant.from.iter().cloned());
            }
        }
        found.remove(name);
        found
    }

    fn class_members(
        &self,
        world: &ClusterWorld<'_>,
        needed: &BTreeSet<&str>,
        stores: &TenantStores,
    ) -> ClassMembers {
        let everything = Selector::default();
        let (mut tenants, mut unassigned) = (BTreeMap::<Box<str>, Vec<IpAddr>>::new(), Vec::new());
        for namespace in world.namespaces() {
            let labels = world.namespace_labels(namespace);
            let members = match labels.and_then(|labels| labels.get(TENANT_LABEL)) {
                Some(tenant) if needed.contains(tenant) => tenants.entry(tenant.into()).or_default(),
                Some(_) => continue,
                None => &mut unassigned,
            };
            for pod in world.pods_in(namespace, &everything) {
                members.extend_from_slice(pod.addresses());
            }
        }
        let nodes = stores.nodes.read();
        let (services, _slices) = self.sources.services.read();
        ClassMembers {
            tenants: tenants.into_iter().map(|(name, members)| (name, sorted(members))).collect(),
            unassigned: sorted(unassigned),
            nodes: sorted(nodes.iter().flat_map(|(_, _, node)| node.0.iter().copied()).collect()),
            services: sorted(services.iter().flat_map(|(_, _, one)| one.addresses.iter().copied()).collect()),
        }
    }
}

/// The classes of a tenant, and whether one of them is too large.
fn plan(
    name: &str,
    tenant: Option<&NetworkTenant>,
    named: &BTreeSet<Box<str>>,
    members: &ClassMembers,
) -> (UsagePlan, bool) {
    let of_tenant = |name: &str| members.tenants.get(name).cloned().unwrap_or_default();
    let mut all = vec![(PeerClass::Own, of_tenant(name))];
    all.extend(named.iter().map(|other| (PeerClass::Tenant(other.clone()), of_tenant(other))));
    if tenant.is_some_and(meets_unassigned) {
        all.push((PeerClass::Unassigned, members.unassigned.clone()));
    }
    all.push((PeerClass::Service, members.services.clone()));
    all.push((PeerClass::Node, members.nodes.clone()));
    let before = all.len();
    all.retain(|(_, members)| members.len() <= MOST_MEMBERS);
    let is_crowded = all.len() < before;
    (
        UsagePlan {
            classes: all.into_iter().map(|(class, members)| UsageClass { class, members }).collect(),
        },
        is_crowded,
    )
}

/// Whether pods of no tenant may be at the other end of what is not denied.
fn meets_unassigned(tenant: &NetworkTenant) -> bool {
    let is_it = |peer: &TenantPeer| matches!(peer, TenantPeer::Entity(TenantEntity::Unassigned));
    let mut rules = tenant.ingress.iter().chain(&tenant.egress);
    tenant.unassigned != TenantDefault::Deny
        || rules.any(|rule| peers_of(&rule.peers).iter().any(is_it))
        || !tenant.services.is_empty()
}

fn peers_of(peers: &Entries<TenantPeer>) -> &[TenantPeer] {
    match peers {
        Entries::Any => &[],
        Entries::Of(peers) => peers,
    }
}

fn sorted(mut all: Vec<IpAddr>) -> Arc<[IpAddr]> {
    all.sort_unstable();
    all.dedup();
    all.into()
}
