//! What is kept of a Node: what DaemonSets go by.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;

/// Taints under these domains say what state a node is in: not ready, cordoned, short of memory, not set up yet. The controller lets its
/// pods tolerate most of them. None of them says that the DaemonSet is not meant for the node.
const OF_THE_STATE: [&str; 2] = ["node.kubernetes.io/", "node.cloudprovider.kubernetes.io/"];

/// What kubelet says in its condition `Ready` while it ends the pods of a machine that shuts down (`ShutdownStatus` in Kubernetes'
/// `pkg/kubelet/nodeshutdown`).
const SHUTTING_DOWN: &str = "node is shutting down";

/// A node: what DaemonSets go by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) shuts_down: bool,
}

/// The addresses of a node, of all that is known of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeAddresses(pub Box<[IpAddr]>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
    pub(crate) effect: String,
}

// === impl Node ===

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Metadata {
            name: String,
            #[serde(default)]
            labels: Option<BTreeMap<String, String>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Spec {
            taints: Option<Vec<Taint>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Status {
            conditions: Option<Vec<Condition>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Condition {
            r#type: String,
            status: String,
            message: Option<String>,
        }
        #[derive(Deserialize)]
        struct Object {
            metadata: Metadata,
            #[serde(default)]
            spec: Spec,
            #[serde(default)]
            status: Status,
        }
        let Object { metadata, spec, status } = Object::deserialize(deserializer)?;
        let ends = |condition: &Condition| {
            condition.r#type == "Ready"
                && condition.status == "False"
                && condition.message.as_ref().is_some_and(|message| message.contains(SHUTTING_DOWN))
        };
        let shuts_down = status.conditions.iter().flatten().any(ends);
        let (labels, taints) = (metadata.labels.unwrap_or_default(), spec.taints.unwrap_or_default());
        Ok(Self { name: metadata.name, labels, taints, shuts_down })
    }
}

// === impl NodeAddresses ===

impl<'de> Deserialize<'de> for NodeAddresses {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Address {
            address: String,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Status {
            addresses: Option<Vec<Address>>,
        }
        #[derive(Deserialize)]
        struct Object {
            #[serde(default)]
            status: Status,
        }
        let status = Object::deserialize(deserializer)?.status;
        // Names of hosts are among them.
        let addresses = status.addresses.into_iter().flatten().filter_map(|one| one.address.parse().ok());
        let mut addresses: Vec<IpAddr> = addresses.collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(Self(addresses.into()))
    }
}

impl Node {
    /// Whether its kubelet says that the machine is shutting down.
    pub fn is_shutting_down(&self) -> bool {
        self.shuts_down
    }

    /// Whether it has a taint of this key.
    pub fn has_taint(&self, key: &str) -> bool {
        self.taints.iter().any(|taint| taint.key == key)
    }
}

// === impl Taint ===

impl Taint {
    pub(crate) fn evicts(&self) -> bool {
        self.effect == "NoExecute"
    }

    pub(crate) fn keeps_off(&self) -> bool {
        (self.evicts() || self.effect == "NoSchedule")
            && !OF_THE_STATE.iter().any(|domain| self.key.starts_with(domain))
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_deref() {
            None | Some("") => write!(f, "{}:{}", self.key, self.effect),
            Some(value) => write!(f, "{}={value}:{}", self.key, self.effect),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_addresses_of_any_type_and_no_names() {
        let text = r#"{"metadata": {"name": "n1"}, "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.7"}, {"type": "Hostname", "address": "n1"},
            {"type": "ExternalIP", "address": "2001:db8::7"}, {"type": "InternalIP", "address": "192.0.2.7"}]}}"#;
        let NodeAddresses(found) = serde_json::from_str(text).unwrap();
        assert_eq!(*found, ["192.0.2.7", "2001:db8::7"].map(|one| one.parse::<IpAddr>().unwrap()));
        let none: NodeAddresses = serde_json::from_str(r#"{"metadata": {"name": "n1"}}"#).unwrap();
        assert_eq!(none, NodeAddresses::default());
    }
}
