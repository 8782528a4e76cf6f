//! What is kept of an EndpointSlice: where a Service's connections go.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};

use crate::networkpolicy::{PolicyProtocol, PortError, port_number};

/// A part of the endpoints of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service, in the slice's namespace; empty where it says none.
    pub service: Box<str>,
    /// Its endpoints. Those with names in the place of addresses have none.
    pub endpoints: Box<[Endpoint]>,
    /// The ports that all of them have.
    pub ports: Box<[EndpointPort]>,
}

/// Where connections may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses.
    pub addresses: Box<[IpAddr]>,
    /// Whether connections go to it.
    pub ready: bool,
    /// Whether it answers, though it may be ending.
    pub serving: bool,
    /// Whether it is ending.
    pub terminating: bool,
}

/// A port of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// That of the Service's port.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: PolicyProtocol,
    /// Its number; nothing: the Service's own.
    pub number: Option<u16>,
}

/// The label by which a slice says whose it is (Kubernetes `discovery.LabelServiceName`).
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    metadata: Metadata,
    endpoints: Option<Vec<WireEndpoint>>,
    ports: Option<Vec<WirePort>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    labels: crate::labels::LabelSet,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WirePort {
    name: Option<Box<str>>,
    protocol: Option<String>,
    port: Option<i64>,
}

impl<'de> Deserialize<'de> for EndpointSlice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { metadata, endpoints, ports } = Wire::deserialize(deserializer)?;
        let port = |WirePort { name, protocol, port }| {
            let protocol = PolicyProtocol::parse(protocol.as_deref())?;
            let number = port.map(port_number).transpose()?;
            Ok::<_, PortError>(EndpointPort { name: name.unwrap_or_default(), protocol, number })
        };
        // An API server lets any number be stored. What is no port leads nowhere, and the others do all the same.
        let ports = ports.into_iter().flatten().filter_map(|one: WirePort| port(one).ok()).collect();
        Ok(Self {
            service: metadata.labels.get(SERVICE_NAME).unwrap_or_default().into(),
            endpoints: endpoints.into_iter().flatten().map(Endpoint::from).collect(),
            ports,
        })
    }
}

impl From<WireEndpoint> for Endpoint {
    fn from(WireEndpoint { addresses, conditions }: WireEndpoint) -> Self {
        let Conditions { ready, serving, terminating } = conditions.unwrap_or_default();
        // What is not said counts as the API documents it.
        let ready = ready.unwrap_or(true);
        let addresses = addresses.into_iter().flatten().filter_map(|address| address.parse().ok()).collect();
        Self {
            addresses,
            ready,
            serving: serving.unwrap_or(ready),
            terminating: terminating.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_that_are_not_said_count_as_the_api_says() {
        let text = r#"{"metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.1.0.2"]},
                {"addresses": ["10.1.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["a.example"], "conditions": {"ready": false}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "", "port": null}]}"#;
        let slice: EndpointSlice = serde_json::from_str(text).unwrap();
        assert_eq!(&*slice.service, "web");
        let said: Vec<_> = slice
            .endpoints
            .iter()
            .map(|one| (one.addresses.len(), one.ready, one.serving, one.terminating))
            .collect();
        assert_eq!(said, [(1, true, true, false), (1, false, true, true), (0, false, false, false)]);
        let ports: Vec<_> = slice.ports.iter().map(|port| (&*port.name, port.number)).collect();
        assert_eq!(ports, [("http", Some(8080)), ("", None)]);
        let empty: EndpointSlice = serde_json::from_str(r#"{"endpoints": null, "ports": null}"#).unwrap();
        assert_eq!(empty, EndpointSlice::default());
        let text =
            r#"{"ports": [{"port": 0}, {"port": 65536}, {"port": 80, "protocol": "GRE"}, {"port": 80}]}"#;
        let odd: EndpointSlice = serde_json::from_str(text).unwrap();
        assert_eq!(odd.ports.iter().map(|port| port.number).collect::<Vec<_>>(), [Some(80)]);
    }
}
