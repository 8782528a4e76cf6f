//! Objects of cases, as the API has them.

use std::net::IpAddr;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::CaseError;
use crate::{PlainPod, PlainWorld};

/// A kind of object that cases have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaseKind {
    Namespace,
    Node,
    Pod,
    NetworkPolicy,
    Service,
    EndpointSlice,
}

/// The names of the kinds, and of their lists in a cluster.
const KINDS: [(CaseKind, &str, &str); 6] = [
    (CaseKind::Namespace, "Namespace", "namespaces"),
    (CaseKind::Node, "Node", "nodes"),
    (CaseKind::Pod, "Pod", "pods"),
    (CaseKind::NetworkPolicy, "NetworkPolicy", "networkpolicies"),
    (CaseKind::Service, "Service", "services"),
    (CaseKind::EndpointSlice, "EndpointSlice", "endpointslices"),
];

/// The annotation of a node with those of its own addresses that are not in its status, such as a bridge's.
const MORE_ADDRESSES: &str = "test/addresses";

/// What an agent writes on the pods that are in ambient mode.
const REDIRECTION: &str = "ambient.istio.io/redirection";

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
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
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

/// The kind of a cluster's list.
pub(super) fn kind_of(list: &str) -> Option<CaseKind> {
    KINDS.iter().find(|(_, _, name)| *name == list).map(|(kind, ..)| *kind)
}

// === impl CaseKind ===

impl CaseKind {
    pub(super) fn parse(name: &str) -> Option<Self> {
        KINDS.iter().find(|(_, known, _)| *known == name).map(|(kind, ..)| *kind)
    }

    /// Adds or replaces an object.
    pub(super) fn put(self, world: &mut PlainWorld, object: &RawValue) -> Result<(), CaseError> {
        let Named { metadata, status } = self.read(object)?;
        let (namespace, name) = (&*metadata.namespace, &*metadata.name);
        match self {
            Self::Namespace => world.put_namespace(name, self.read(object)?),
            Self::Node => {
                let more = metadata.annotations.get(MORE_ADDRESSES).map(String::as_str).unwrap_or_default();
                let written = status.addresses.iter().map(|one| one.address.as_str()).chain(more.split(','));
                // A node's names are among them.
                let addresses: Vec<IpAddr> = written.filter_map(|one| one.trim().parse().ok()).collect();
                world.put_node(name, addresses);
            }
            Self::Pod => world.put_pod(PlainPod {
                namespace: namespace.into(),
                name: name.into(),
                is_enrolled: metadata.annotations.get(REDIRECTION).is_some_and(|value| value == "enabled"),
                facts: self.read(object)?,
            }),
            Self::NetworkPolicy => world.put_networkpolicy(&self.read(object)?),
            Self::Service => world.put_service(namespace, name, self.read(object)?),
            Self::EndpointSlice => world.put_slice(namespace, name, self.read(object)?),
        }
        Ok(())
    }

    /// Takes an object away, by its name.
    pub(super) fn delete(self, world: &mut PlainWorld, object: &RawValue) -> Result<(), CaseError> {
        let Named { metadata, .. } = self.read(object)?;
        let (namespace, name) = (&*metadata.namespace, &*metadata.name);
        match self {
            Self::Namespace => world.remove_namespace(name),
            Self::Node => world.remove_node(name),
            Self::Pod => world.remove_pod(namespace, name),
            Self::NetworkPolicy => world.remove_networkpolicy(namespace, name),
            Self::Service => world.remove_service(namespace, name),
            Self::EndpointSlice => world.remove_slice(namespace, name),
        }
        Ok(())
    }

    fn read<T: DeserializeOwned>(self, object: &RawValue) -> Result<T, CaseError> {
        serde_json::from_str(object.get())
            .map_err(|cause| CaseError::Object { kind: format!("{self:?}"), cause })
    }
}
