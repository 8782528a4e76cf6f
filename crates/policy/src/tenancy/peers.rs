//! Peers of tenants as peers of policies.

use std::net::IpAddr;

use facts::Selector;
use facts::labels::{Operator, Requirement};
use facts::networkpolicy::{Block, Entries};
use facts::tenant::{TenantEntity, TenantPeer};
use ipnet::IpNet;

use super::TENANT_LABEL;
use super::surroundings::{API_SERVER, TenantSurroundings};
use crate::terms::{NamespaceTerm, PeerTerm, PodTerm};

/// The label with a namespace's name that the API server gives each (Kubernetes `corev1.LabelMetadataName`).
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Pods of some tenants.
pub(super) fn of_tenants<'a>(tenants: impl Iterator<Item = &'a str>) -> PodTerm {
    in_namespaces([one_of(TENANT_LABEL, tenants)], Selector::default())
}

/// Pods of no tenant.
pub(super) fn unassigned() -> PodTerm {
    let without = Requirement { key: TENANT_LABEL.into(), operator: Operator::DoesNotExist };
    in_namespaces([without], Selector::default())
}

/// A single address.
pub(super) fn address(address: IpAddr) -> PeerTerm {
    range(address.into())
}

/// A range of addresses.
pub(super) fn range(net: IpNet) -> PeerTerm {
    PeerTerm::Block(Block { net, except: Box::default() })
}

/// The peers of a rule.
pub(super) fn of_rule(peers: &Entries<TenantPeer>, around: &TenantSurroundings) -> Entries<PeerTerm> {
    let Entries::Of(peers) = peers else { return Entries::Any };
    let mut found = Vec::new();
    for peer in peers {
        match peer {
            TenantPeer::Pods { tenant, namespaces, labels } => {
                let tenant = tenant.as_deref().map(|tenant| one_of(TENANT_LABEL, [tenant].into_iter()));
                let names = namespaces.as_deref().map(|names| {
                    let names = names.iter().map(|name| &**name);
                    one_of(NAMESPACE_NAME, names)
                });
                let term = in_namespaces(tenant.into_iter().chain(names), labels.clone());
                found.push(PeerTerm::Pods(term));
            }
            TenantPeer::Block(block) => found.push(PeerTerm::Block(block.clone())),
            TenantPeer::Entity(entity) => of_entity(*entity, around, &mut found),
        }
    }
    Entries::Of(found.into())
}

fn of_entity(entity: TenantEntity, around: &TenantSurroundings, found: &mut Vec<PeerTerm>) {
    match entity {
        TenantEntity::Node => found.extend(around.own_node.iter().map(|one| address(*one))),
        TenantEntity::ApiServer => {
            let reached = api_server(around).map(|service| service.reached(&Entries::Any));
            found.extend(reached.into_iter().flatten().flat_map(|(_, all)| all).map(address));
        }
        TenantEntity::World => found.push(outside(around)),
        TenantEntity::Unassigned => found.push(PeerTerm::Pods(unassigned())),
    }
}

/// What is outside of the cluster.
pub(super) fn outside(around: &TenantSurroundings) -> PeerTerm {
    PeerTerm::Outside(around.inside.iter().copied().collect())
}

/// The Service by which the API server is reached.
pub(super) fn api_server(around: &TenantSurroundings) -> Option<&super::ServiceEnds> {
    around.service(API_SERVER.0, API_SERVER.1)
}

fn in_namespaces(requirements: impl IntoIterator<Item = Requirement>, pods: Selector) -> PodTerm {
    PodTerm { namespaces: NamespaceTerm::Labelled(Selector::new(requirements)), labels: pods }
}

fn one_of<'a>(key: &str, values: impl Iterator<Item = &'a str>) -> Requirement {
    let mut values: Vec<Box<str>> = values.map(Box::from).collect();
    values.sort_unstable();
    values.dedup();
    Requirement { key: key.into(), operator: Operator::In(values.into()) }
}
