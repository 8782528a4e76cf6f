//! Objects as the API has them, in a plain world.

use std::collections::BTreeMap;
use std::net::IpAddr;

use facts::object::{METADATA_NAME, REDIRECTION};
use facts::{Namespace, Peer, TenantGrant};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::probes::ProbedPod;
use super::{PlainPod, PlainWorld};
use crate::World as _;
use crate::tenancy::TENANT_LABEL;

/// A kind of object that policies go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainKind {
    /// Its labels.
    Namespace,
    /// Its addresses.
    Node,
    /// Labels, addresses and named ports.
    Pod,
    /// Who may reach whom.
    NetworkPolicy,
    /// Addresses that stand for pods.
    Service,
    /// The pods that these stand for.
    EndpointSlice,
    /// Whose pods reach each other.
    NetworkTenant,
    /// Which other tenants may come.
    TenantGrant,
}

/// The names of the kinds, and of their lists in a cluster.
const KINDS: [(PlainKind, &str, &str); 8] = [
    (PlainKind::Namespace, "Namespace", "namespaces"),
    (PlainKind::Node, "Node", "nodes"),
    (PlainKind::Pod, "Pod", "pods"),
    (PlainKind::NetworkPolicy, "NetworkPolicy", "networkpolicies"),
    (PlainKind::Service, "Service", "services"),
    (PlainKind::EndpointSlice, "EndpointSlice", "endpointslices"),
    (PlainKind::NetworkTenant, "NetworkTenant", "networktenants"),
    (PlainKind::TenantGrant, "TenantGrant", "tenantgrants"),
];

/// The annotation of a node with those of its own addresses that are not in its status, such as a bridge's.
const MORE_ADDRESSES: &str = "test/addresses";

#[derive(Debug, Deserialize)]
struct Named {
    metadata: NamedMetadata,
    #[serde(default)]
    status: AddressedStatus,
}

#[derive(Debug, Deserialize)]
struct NamedMetadata {
    name: Box<str>,
    #[serde(default)]
    namespace: Box<str>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AddressedStatus {
    addresses: Vec<NodeAddress>,
}

#[derive(Debug, Deserialize)]
struct NodeAddress {
    address: String,
}

// === impl PlainKind ===

impl PlainKind {
    /// By its name, such as `Pod`.
    pub fn parse(name: &str) -> Option<Self> {
        KINDS.iter().find(|(_, known, _)| *known == name).map(|(kind, ..)| *kind)
    }

    /// By the name of a list of such objects, such as `pods`.
    pub fn of_list(list: &str) -> Option<Self> {
        KINDS.iter().find(|(_, _, name)| *name == list).map(|(kind, ..)| *kind)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, ..)| *kind == self).map_or("object", |(_, name, _)| name)
    }

    /// Adds or replaces an object.
    ///
    /// # Errors
    /// It is not one of the kind.
    pub fn put(self, world: &mut PlainWorld, object: &RawValue) -> Result<(), serde_json::Error> {
        let Named { metadata, status } = read(object)?;
        let (namespace, name) = (metadata.namespace(), &*metadata.name);
        match self {
            Self::Namespace => {
                let Namespace { labels } = read(object)?;
                // What is known of its tenant is none of the object's.
                let before = world.namespace_labels(name).and_then(|labels| labels.get(TENANT_LABEL));
                let tenant = before.map(|tenant| (TENANT_LABEL.to_owned(), tenant.to_owned()));
                // An API server gives it the label of its name.
                let own =
                    labels.iter().filter(|(key, _)| *key != TENANT_LABEL).chain([(METADATA_NAME, name)]);
                let tenant = tenant.iter().map(|(key, value)| (key.as_str(), value.as_str()));
                let labels = own.chain(tenant).collect();
                world.put_namespace(name, Namespace { labels });
            }
            Self::Node => {
                let more = metadata.annotation(MORE_ADDRESSES).unwrap_or_default();
                let written = status.addresses.iter().map(|one| one.address.as_str()).chain(more.split(','));
                // A node's names are among them.
                let addresses: Vec<IpAddr> = written.filter_map(|one| one.trim().parse().ok()).collect();
                world.put_node(name, addresses);
            }
            Self::Pod => {
                let facts: Peer = read(object)?;
                // What asks how a pod is decides over no verdict, so that it may be odd.
                let probed = read::<ProbedPod>(object).map(|pod| pod.ports(&facts)).unwrap_or_default();
                world.probes.insert((namespace.into(), name.into()), probed);
                world.put_pod(PlainPod {
                    namespace: namespace.into(),
                    name: name.into(),
                    is_enrolled: metadata.annotation(REDIRECTION) == Some("enabled"),
                    facts,
                });
            }
            Self::NetworkPolicy => world.put_networkpolicy(&read(object)?),
            Self::Service => world.put_service(namespace, name, read(object)?),
            Self::EndpointSlice => world.put_slice(namespace, name, read(object)?),
            Self::NetworkTenant => world.put_tenant(read(object)?),
            Self::TenantGrant => {
                world.put_grant(TenantGrant { namespace: namespace.into(), ..read(object)? });
            }
        }
        Ok(())
    }

    /// Takes an object away, by its name.
    ///
    /// # Errors
    /// It has none.
    pub fn delete(self, world: &mut PlainWorld, object: &RawValue) -> Result<(), serde_json::Error> {
        let Named { metadata, .. } = read(object)?;
        let (namespace, name) = (metadata.namespace(), &*metadata.name);
        match self {
            Self::Namespace => world.remove_namespace(name),
            Self::Node => world.remove_node(name),
            Self::Pod => world.remove_pod(namespace, name),
            Self::NetworkPolicy => world.remove_networkpolicy(namespace, name),
            Self::Service => world.remove_service(namespace, name),
            Self::EndpointSlice => world.remove_slice(namespace, name),
            Self::NetworkTenant => world.remove_tenant(name),
            Self::TenantGrant => world.remove_grant(namespace, name),
        }
        Ok(())
    }
}

// === impl NamedMetadata ===

impl NamedMetadata {
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Where an object is that names no namespace, as for the API server.
    fn namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }
}

fn read<T: DeserializeOwned>(object: &RawValue) -> Result<T, serde_json::Error> {
    serde_json::from_str(object.get())
}
