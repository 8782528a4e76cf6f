//! What tenants need to know of Services and nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use facts::networkpolicy::{Entries, PolicyProtocol, Port};
use facts::service::ServicePort;
use facts::{EndpointSlice, Service};
use ipnet::IpNet;
use ruleset::Family;

use crate::PlainWorld;
use crate::services::endpoints;

/// Where the cluster's DNS is.
pub const DNS_NAMESPACE: &str = "kube-system";

/// Namespace and name of the Service of the API server.
pub const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// Where the cache of names listens on each node that has one (Kubernetes' NodeLocal DNSCache).
pub const DNS_CACHE: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));

/// Namespace and name of a Service.
pub type ServiceKey = (Box<str>, Box<str>);

/// What is around tenants on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantSurroundings {
    /// Services with what is behind them.
    pub services: BTreeMap<ServiceKey, ServiceEnds>,
    /// Those that answer the cluster's names.
    pub dns: Vec<ServiceKey>,
    /// Caches of names on the node.
    pub dns_caches: Vec<IpAddr>,
    /// Those of the mesh's control plane.
    pub mesh: Vec<ServiceKey>,
    /// All addresses of the own node.
    pub own_node: Vec<IpAddr>,
    /// What is no pod and not outside of the cluster: addresses of nodes and of Services.
    pub inside: BTreeSet<IpNet>,
}

/// The addresses of a Service, and where they lead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEnds {
    /// Its own addresses, external ones among them.
    pub addresses: Box<[IpAddr]>,
    /// Its ports.
    pub ports: Box<[ServicePortEnds]>,
}

/// A port of a Service, and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePortEnds {
    /// The protocol.
    pub protocol: PolicyProtocol,
    /// Its number, as clients see it.
    pub number: u16,
    /// Addresses and ports behind it.
    pub endpoints: Box<[(IpAddr, u16)]>,
}

/// Addresses by the port on which they are reached.
pub(super) type ReachedPorts = BTreeMap<(PolicyProtocol, u16), BTreeSet<IpAddr>>;

// === impl TenantSurroundings ===

impl TenantSurroundings {
    /// Of a cluster of plain objects, as a node of it sees them. The Services of names and of the mesh are to be added.
    pub fn of(world: &PlainWorld, node: &str) -> Self {
        let services: BTreeMap<ServiceKey, ServiceEnds> = world
            .services()
            .map(|(namespace, name, service)| {
                let ends = ServiceEnds::of(service, &world.slices_of(namespace, name));
                ((namespace.into(), name.into()), ends)
            })
            .collect();
        let nodes = world.nodes().flat_map(|(_, addresses)| addresses);
        let inside = nodes.chain(services.values().flat_map(|service| &service.addresses));
        Self {
            inside: inside.copied().map(IpNet::from).collect(),
            own_node: world.node(node).unwrap_or_default().to_vec(),
            services,
            ..Self::default()
        }
    }

    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&ServiceEnds> {
        self.services.get(&(namespace.into(), name.into()))
    }
}

impl ServiceEnds {
    /// Of a Service with all of its slices.
    pub fn of<'s>(service: &Service, slices: &(impl Iterator<Item = &'s EndpointSlice> + Clone)) -> Self {
        let ends = |port: &ServicePort| {
            let families = [Family::V4, Family::V6].into_iter();
            let endpoints = families.flat_map(|family| endpoints(slices, port, family)).collect();
            ServicePortEnds { protocol: port.protocol, number: port.number, endpoints }
        };
        let ports = service.ports.iter().map(ends).collect();
        Self { addresses: service.addresses.clone(), ports }
    }

    /// Where it is reached, on those of its own ports that are meant: its addresses, and what is behind it, because some packets are seen before a service
    /// proxy has chosen where they go, and some after.
    pub(super) fn reached(&self, ports: &Entries<Port>) -> ReachedPorts {
        let mut found = self.endpoints(ports);
        for port in self.ports.iter().filter(|port| means(ports, port)) {
            found.entry((port.protocol, port.number)).or_default().extend(&self.addresses);
        }
        found.retain(|_, addresses| !addresses.is_empty());
        found
    }

    /// What is behind those of its own ports that are meant.
    pub(super) fn endpoints(&self, ports: &Entries<Port>) -> ReachedPorts {
        let mut found = ReachedPorts::new();
        for port in self.ports.iter().filter(|port| means(ports, port)) {
            for (address, number) in &port.endpoints {
                found.entry((port.protocol, *number)).or_default().insert(*address);
            }
        }
        found
    }
}

fn means(ports: &Entries<Port>, of: &ServicePortEnds) -> bool {
    let is_it = |port: &Port| match port {
        Port::All(protocol) => *protocol == of.protocol,
        Port::Range(protocol, (first, last)) => {
            *protocol == of.protocol && (*first..=*last).contains(&of.number)
        }
        // Tenants name no ports.
        Port::Named(..) => false,
    };
    match ports {
        Entries::Any => true,
        Entries::Of(ports) => ports.iter().any(is_it),
    }
}
