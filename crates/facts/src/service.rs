//! What is kept of a Service: the addresses and ports that clients see.

use std::net::IpAddr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::labels::LabelSet;
use crate::networkpolicy::{PolicyProtocol, port_number};

/// A Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its own addresses, external ones and those of load balancers; without any it is headless.
    pub addresses: Box<[IpAddr]>,
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// What its labels say that it is to the cluster. They are worth as much as its namespace.
    pub role: Option<SystemRole>,
    /// Whether it is another name of something outside (`type: ExternalName`).
    pub is_external_name: bool,
}

/// What a Service is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemRole {
    /// It answers the cluster's names: `k8s-app: kube-dns`, which all that install one write.
    Dns,
    /// The mesh's control plane: `app: istiod`, in all of its revisions.
    Mesh,
}

/// A port of a Service, as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, by which endpoints say their number; empty where there is one port.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: PolicyProtocol,
    /// Its number.
    pub number: u16,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    spec: Spec,
    status: Status,
    metadata: Labelled,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Labelled {
    labels: Option<LabelSet>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Option<Vec<WirePort>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Ingress {
    ip: Option<String>,
}

#[derive(Deserialize)]
struct WirePort {
    name: Option<Box<str>>,
    protocol: Option<String>,
    port: i64,
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { metadata, spec, status } = Wire::deserialize(deserializer)?;
        let label = |key: &str, value: &str| {
            metadata.labels.as_ref().is_some_and(|labels| labels.get(key) == Some(value))
        };
        let role = match (label("k8s-app", "kube-dns"), label("app", "istiod")) {
            (true, _) => Some(SystemRole::Dns),
            (_, true) => Some(SystemRole::Mesh),
            _ => None,
        };
        let is_external_name = spec.r#type.as_deref() == Some("ExternalName");
        let own = spec.cluster_ips.filter(|ips| !ips.is_empty());
        let own = own.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
        let ingress = status.load_balancer.and_then(|balancer| balancer.ingress).unwrap_or_default();
        let balanced = ingress.into_iter().filter_map(|ingress| ingress.ip);
        let all = own.into_iter().chain(spec.external_ips.unwrap_or_default()).chain(balanced);
        // A headless one has "None" for an address.
        let mut addresses: Vec<IpAddr> = all.filter_map(|address| address.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let port = |WirePort { name, protocol, port }| {
            let protocol = PolicyProtocol::parse(protocol.as_deref())?;
            Ok(ServicePort { name: name.unwrap_or_default(), protocol, number: port_number(port)? })
        };
        let ports = spec.ports.into_iter().flatten().map(port).collect::<Result<_, _>>();
        Ok(Self {
            addresses: addresses.into(),
            ports: ports.map_err(|error: crate::networkpolicy::PortError| D::Error::custom(error))?,
            role,
            is_external_name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_see_all_of_its_addresses() {
        let text = r#"{"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"], "externalIPs": ["192.0.2.1"],
                "selector": {"app": "web"}, "type": "LoadBalancer",
                "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
                    {"name": "dns", "protocol": "UDP", "port": 53}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"hostname": "lb.example"}]}}}"#;
        let service: Service = serde_json::from_str(text).unwrap();
        let addresses: Vec<String> = service.addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(addresses, ["10.96.0.10", "192.0.2.1", "198.51.100.1", "fd00::10"]);
        let port = |name: &str, protocol, number| ServicePort { name: name.into(), protocol, number };
        let ports = [port("http", PolicyProtocol::Tcp, 80), port("dns", PolicyProtocol::Udp, 53)];
        assert_eq!(*service.ports, ports);
    }

    #[test]
    fn a_headless_one_has_no_address() {
        for text in [
            r#"{"spec": {"clusterIP": "None", "ports": [{"port": 80}]}}"#,
            r#"{"spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": null, "port": 80}]}}"#,
        ] {
            let service: Service = serde_json::from_str(text).unwrap();
            assert!(service.addresses.is_empty() && service.ports.len() == 1, "{service:?}");
        }
        assert_eq!(serde_json::from_str::<Service>(r#"{"spec": {}}"#).unwrap(), Service::default());
    }

    #[test]
    fn what_it_is_to_the_cluster_is_in_its_labels() {
        let of = |metadata: &str, spec: &str| -> Service {
            serde_json::from_str(&format!(r#"{{"metadata": {metadata}, "spec": {spec}}}"#)).unwrap()
        };
        for (labels, role) in [
            (r#"{"labels": {"k8s-app": "kube-dns"}}"#, Some(SystemRole::Dns)),
            (r#"{"labels": {"app": "istiod", "istio.io/rev": "x"}}"#, Some(SystemRole::Mesh)),
            (r#"{"labels": {"app": "web"}}"#, None),
            (r#"{"labels": null}"#, None),
        ] {
            assert_eq!(of(labels, "{}").role, role, "{labels}");
        }
        assert!(of("{}", r#"{"type": "ExternalName", "externalName": "a.example"}"#).is_external_name);
        assert!(!of("{}", r#"{"type": "ClusterIP"}"#).is_external_name);
    }

    #[test]
    fn what_no_service_can_have_is_an_error() {
        for ports in [r#"{"port": 0}"#, r#"{"port": 70000}"#, r#"{"port": 1, "protocol": "tcp"}"#, "{}"] {
            let text = format!(r#"{{"spec": {{"ports": [{ports}]}}}}"#);
            assert!(serde_json::from_str::<Service>(&text).is_err(), "{ports}");
        }
    }
}
