//! What is kept of a pod of another node: how policies see it.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};

use crate::labels::LabelSet;
use crate::networkpolicy::{NumberOrName, PolicyProtocol, port_number};
use crate::object::addresses;

/// A pod as policies see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its labels.
    pub labels: LabelSet,
    /// Its addresses, in the order in which it has them.
    pub addresses: Box<[IpAddr]>,
    /// The ports that its containers name, sorted.
    pub ports: Box<[NamedPort]>,
    /// How far it is.
    pub phase: Phase,
    /// Whether it shares its node's network.
    pub host_network: bool,
    /// Whether it is being deleted.
    pub is_deleting: bool,
    /// When it was created: the digits of `creationTimestamp`, year first, or 0.
    pub created: u64,
    /// The node that it runs on; empty before it has one.
    pub node: Box<str>,
}

/// What decides between pods that claim one address: the greatest has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRight {
    has_not_ended: bool,
    stays: bool,
    created: u64,
}

/// A port that a container names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: PolicyProtocol,
    /// Its number.
    pub number: u16,
}

/// `status.phase` of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not all of its containers have started.
    #[default]
    Pending,
    /// At least one of its containers runs.
    Running,
    /// All of its containers have ended well.
    Succeeded,
    /// All of its containers have ended, not all of them well.
    Failed,
    /// Its node does not say.
    Unknown,
}

/// Most named ports of a pod that count; more than any pod has.
const MAX_PORTS: usize = 1024;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    labels: LabelSet,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: Option<Box<str>>,
    host_network: Option<bool>,
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    restart_policy: Option<String>,
    ports: Option<Vec<WirePort>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WirePort {
    name: Option<Box<str>>,
    protocol: Option<String>,
    container_port: Option<NumberOrName>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<crate::object::PodIp>>,
}

// === impl Peer ===

impl Peer {
    /// Whether policies are about it and selectors mean it: it has an address and a network of its own, and has not ended.
    pub fn is_live(&self) -> bool {
        !self.addresses.is_empty() && !self.host_network && !self.phase.is_terminal()
    }

    /// Its right to its addresses.
    pub fn right(&self) -> AddressRight {
        AddressRight::new(self.phase, self.is_deleting, self.created)
    }
}

impl AddressRight {
    /// One that has not ended goes before one that has, then one that stays before one that is being deleted, then the younger before the older.
    pub fn new(phase: Phase, is_deleting: bool, created: u64) -> Self {
        Self { has_not_ended: !phase.is_terminal(), stays: !is_deleting, created }
    }
}

impl Phase {
    /// Whether its containers have ended for good.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }

    fn parse(text: &str) -> Self {
        match text {
            "Running" => Self::Running,
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            "Pending" | "" => Self::Pending,
            _ => Self::Unknown,
        }
    }
}

impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { metadata, spec, status } = Wire::deserialize(deserializer)?;
        // Sidecars are init containers that go on.
        let sidecars = spec.init_containers.into_iter().flatten();
        let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
        let containers = spec.containers.into_iter().flatten().chain(sidecars);
        let ports = containers.filter_map(|container| container.ports).flatten().filter_map(WirePort::named);
        let mut ports: Vec<NamedPort> = ports.take(MAX_PORTS).collect();
        ports.sort_unstable();
        ports.dedup();
        let digits = metadata.creation_timestamp.unwrap_or_default();
        let digits: String = digits.chars().filter(char::is_ascii_digit).take(14).collect();
        Ok(Self {
            node: spec.node_name.unwrap_or_default(),
            labels: metadata.labels,
            addresses: status.addresses(),
            ports: ports.into(),
            phase: Phase::parse(status.phase.as_deref().unwrap_or_default()),
            host_network: spec.host_network.unwrap_or_default(),
            is_deleting: metadata.deletion_timestamp.is_some(),
            created: digits.parse().unwrap_or_default(),
        })
    }
}

impl WirePort {
    /// Nothing for a port that no policy can name.
    fn named(self) -> Option<NamedPort> {
        let name = self.name.filter(|name| !name.is_empty())?;
        let protocol = PolicyProtocol::parse(self.protocol.as_deref()).ok()?;
        let NumberOrName::Number(number) = self.container_port? else { return None };
        Some(NamedPort { name, protocol, number: port_number(number).ok()? })
    }
}

impl Status {
    /// `podIPs`, else `podIP`. What is no address is left out.
    fn addresses(&self) -> Box<[IpAddr]> {
        addresses(self.pod_ips.as_deref(), self.pod_ip.as_deref()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_policies_see_of_a_pod_is_kept() {
        let text = r#"{"metadata": {"name": "web", "labels": {"app": "web"}, "creationTimestamp": "2026-11-29T10:00:05Z",
                "deletionTimestamp": "2026-11-29T11:00:00Z", "annotations": {"a": "b"}},
            "spec": {"nodeName": "n1", "hostNetwork": true,
                "initContainers": [{"name": "setup", "ports": [{"name": "early", "containerPort": 1}]},
                    {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "admin", "containerPort": 15000}]}],
                "containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"name": "odd", "containerPort": 0}]}]},
            "status": {"phase": "Running", "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}, {"ip": "fd00::2"}, {"ip": "x"}]}}"#;
        let peer: Peer = serde_json::from_str(text).unwrap();
        let ports: Vec<_> =
            peer.ports.iter().map(|port| (&*port.name, port.protocol.name(), port.number)).collect();
        assert_eq!(ports, [("admin", "TCP", 15000), ("dns", "UDP", 53), ("http", "TCP", 8080)]);
        assert_eq!(peer.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>(), ["10.1.0.2", "fd00::2"]);
        assert_eq!(
            (peer.labels.get("app"), peer.phase, peer.created),
            (Some("web"), Phase::Running, 20_261_129_100_005)
        );
        assert!(peer.host_network && peer.is_deleting && !peer.is_live());
        assert_eq!(&*peer.node, "n1");
    }

    #[test]
    fn a_pod_lives_from_its_first_address_to_its_end() {
        let peer = |text: &str| serde_json::from_str::<Peer>(text).unwrap();
        for (text, live) in [
            (r#"{"status": {"phase": "Pending"}}"#, false),
            (r#"{"status": {"phase": "Pending", "podIP": "10.1.0.2"}}"#, true),
            (r#"{"status": {"phase": "Running", "podIP": "10.1.0.2", "podIPs": []}}"#, true),
            (
                r#"{"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Running", "podIP": "10.1.0.2"}}"#,
                true,
            ),
            (r#"{"status": {"phase": "Lost", "podIP": "10.1.0.2"}}"#, true),
            (r#"{"status": {"phase": "Succeeded", "podIP": "10.1.0.2"}}"#, false),
            (r#"{"status": {"phase": "Failed", "podIP": "10.1.0.2"}}"#, false),
            (
                r#"{"spec": {"hostNetwork": true}, "status": {"phase": "Running", "podIP": "192.0.2.1"}}"#,
                false,
            ),
            (r#"{"metadata": {"deletionTimestamp": null, "labels": null}}"#, false),
        ] {
            assert_eq!(peer(text).is_live(), live, "{text}");
        }
    }
}
