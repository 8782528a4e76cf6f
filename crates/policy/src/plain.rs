//! A cluster of plain objects: small ones, such as manifests and cases.

mod objects;
mod probes;
mod tenants;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use facts::networkpolicy::{PolicyProtocol, Refused};
use facts::peer::NamedPort;
use facts::service::ServicePort;
use facts::{
    EndpointSlice, LabelSet, Namespace, NetworkPolicy, NetworkTenant, Peer, Selector, Service, TenantGrant,
};
use ruleset::Family;

use crate::services::endpoints;
use crate::terms::{PodTerm, PolicyName, PolicyTerms, Section};
use crate::world::{PolicyPod, PolicyWorld, ServiceAddress, ServiceWorld, World};

pub use objects::PlainKind;

/// Objects by their names. Each question looks at all that could answer it.
#[derive(Debug, Clone, Default)]
pub struct PlainWorld {
    namespaces: BTreeMap<Box<str>, Namespace>,
    nodes: BTreeMap<Box<str>, Vec<IpAddr>>,
    pods: BTreeMap<Name, PlainPod>,
    policies: BTreeMap<PolicyName, PolicyTerms>,
    services: BTreeMap<Name, Service>,
    slices: BTreeMap<Name, EndpointSlice>,
    /// The names of pods by their addresses.
    by_address: BTreeMap<IpAddr, Vec<Name>>,
    /// Addresses of pods without a name, by the terms that mean them.
    meant: BTreeMap<PodTerm, BTreeSet<IpAddr>>,
    /// What an API server would refuse of policies.
    refused: BTreeMap<PolicyName, Refused>,
    /// Ports of TCP on which kubelet asks how a pod is.
    probes: BTreeMap<Name, BTreeSet<u16>>,
    tenants: BTreeMap<Box<str>, NetworkTenant>,
    grants: BTreeMap<Name, TenantGrant>,
    /// Namespaces that tenants name and of which no object is known.
    unseen: BTreeSet<Box<str>>,
    /// Whether the sections of tenants were made of objects.
    is_settled: bool,
}

/// A pod of a [`PlainWorld`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainPod {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Whether it is in ambient mode.
    pub is_enrolled: bool,
    /// What policies see of it.
    pub facts: Peer,
}

/// Namespace and name.
type Name = (Box<str>, Box<str>);

// === impl PlainWorld ===

impl PlainWorld {
    /// Adds or replaces a namespace.
    pub fn put_namespace(&mut self, name: &str, namespace: Namespace) {
        self.unseen.remove(name);
        self.namespaces.insert(name.into(), namespace);
    }

    /// Takes a namespace away; what is in it stays.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Adds or replaces a node with all of its own addresses.
    pub fn put_node(&mut self, name: &str, addresses: Vec<IpAddr>) {
        self.nodes.insert(name.into(), addresses);
    }

    /// Takes a node away.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// Adds or replaces a pod.
    pub fn put_pod(&mut self, pod: PlainPod) {
        self.remove_pod(&pod.namespace, &pod.name);
        let name = key(&pod.namespace, &pod.name);
        for address in &pod.facts.addresses {
            let names = self.by_address.entry(*address).or_default();
            names.push(name.clone());
            names.sort_unstable();
        }
        self.pods.insert(name, pod);
    }

    /// Adds addresses of pods without a name and a namespace that a term means.
    pub fn put_meant(&mut self, term: &PodTerm, addresses: impl Iterator<Item = IpAddr>) {
        self.meant.entry(term.clone()).or_default().extend(addresses);
    }

    /// Takes a pod away.
    pub fn remove_pod(&mut self, namespace: &str, name: &str) {
        let name = key(namespace, name);
        let gone = self.pods.remove(&name);
        for address in gone.iter().flat_map(|pod| &pod.facts.addresses) {
            if let Some(names) = self.by_address.get_mut(address) {
                names.retain(|one| *one != name);
            }
        }
    }

    /// All live pods, in the order of their names.
    pub fn live_pods(&self) -> impl Iterator<Item = &PlainPod> {
        self.pods.values().filter(|pod| pod.facts.is_live())
    }

    /// Adds or replaces a policy.
    pub fn put_policy(&mut self, policy: PolicyTerms) {
        self.policies.insert(policy.name.clone(), policy);
    }

    /// Adds or replaces a NetworkPolicy.
    pub fn put_networkpolicy(&mut self, policy: &NetworkPolicy) {
        let terms = PolicyTerms::from(policy);
        self.refused.remove(&terms.name);
        if !policy.refused.is_empty() {
            self.refused.insert(terms.name.clone(), policy.refused.clone());
        }
        self.put_policy(terms);
    }

    /// Takes a NetworkPolicy away.
    pub fn remove_networkpolicy(&mut self, namespace: &str, name: &str) {
        let (namespace, name) = key(namespace, name);
        self.policies.remove(&PolicyName { section: Section::NetworkPolicy, namespace, name });
    }

    /// Adds or replaces a Service.
    pub fn put_service(&mut self, namespace: &str, name: &str, service: Service) {
        self.services.insert(key(namespace, name), service);
    }

    /// Takes a Service away.
    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        self.services.remove(&key(namespace, name));
    }

    /// Adds or replaces a part of a Service's endpoints.
    pub fn put_slice(&mut self, namespace: &str, name: &str, slice: EndpointSlice) {
        self.slices.insert(key(namespace, name), slice);
    }

    /// Takes a part of a Service's endpoints away.
    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        self.slices.remove(&key(namespace, name));
    }

    /// A policy.
    pub fn policy(&self, name: &PolicyName) -> Option<&PolicyTerms> {
        self.policies.get(name)
    }

    /// Ports of TCP on which kubelet asks how a pod is; known of manifests only.
    pub fn probes(&self, pod: &PlainPod) -> impl Iterator<Item = u16> {
        self.probes.get(&key(&pod.namespace, &pod.name)).into_iter().flatten().copied()
    }

    /// What an API server would refuse of a policy.
    pub fn refused(&self, name: &PolicyName) -> Option<&Refused> {
        self.refused.get(name)
    }

    /// Whether more than policies is other in another cluster, of what verdicts between pods go by.
    pub(crate) fn differs_beside_policies(&self, other: &Self) -> bool {
        self.namespaces != other.namespaces || self.nodes != other.nodes || self.pods != other.pods
    }

    /// A pod, whether or not it is live.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PlainPod> {
        self.pods.get(&key(namespace, name))
    }

    /// The names of the nodes that pods run on; empty for pods without one.
    pub fn pod_nodes(&self) -> BTreeSet<&str> {
        self.pods.values().map(|pod| &*pod.facts.node).collect()
    }

    /// The live pods of a node.
    pub fn live_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a PlainPod> {
        self.pods.values().filter(move |pod| *pod.facts.node == *node && pod.facts.is_live())
    }

    /// The addresses of a Service.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(&key(namespace, name))
    }

    /// All Services with namespace and name.
    pub fn services(&self) -> impl Iterator<Item = (&str, &str, &Service)> {
        self.services.iter().map(|((namespace, name), service)| (&**namespace, &**name, service))
    }

    /// All nodes with their own addresses.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &[IpAddr])> {
        self.nodes.iter().map(|(name, addresses)| (&**name, &**addresses))
    }

    /// A node's own addresses.
    pub fn node(&self, name: &str) -> Option<&[IpAddr]> {
        self.nodes.get(name).map(Vec::as_slice)
    }

    /// Where a service proxy may lead a connection of a family to a port of a Service, in order: to the ready endpoints, and where none of that
    /// family is ready to those that still answer while they are ending. Nothing if there is no such Service or port.
    pub fn endpoints(
        &self,
        namespace: &str,
        name: &str,
        protocol: PolicyProtocol,
        number: u16,
        family: Family,
    ) -> Option<Vec<(IpAddr, u16)>> {
        let service = self.services.get(&key(namespace, name))?;
        let is_it = |port: &&ServicePort| (port.protocol, port.number) == (protocol, number);
        let port = service.ports.iter().find(is_it)?;
        Some(endpoints(&self.slices_of(namespace, name), port, family))
    }

    /// The parts of a Service's endpoints.
    pub(crate) fn slices_of<'w>(
        &'w self,
        namespace: &'w str,
        name: &'w str,
    ) -> impl Iterator<Item = &'w EndpointSlice> + Clone {
        let of_it =
            self.slices.iter().filter(move |((of, _), slice)| **of == *namespace && *slice.service == *name);
        of_it.map(|(_, slice)| slice)
    }
}

fn key(namespace: &str, name: &str) -> Name {
    (namespace.into(), name.into())
}

impl World for PlainWorld {
    type Pod<'a> = &'a PlainPod;

    fn pod_at(&self, address: IpAddr) -> Option<&PlainPod> {
        let claims = self.by_address.get(&address).into_iter().flatten();
        let live = claims.filter_map(|name| self.pods.get(name)).filter(|pod| pod.facts.is_live());
        live.max_by_key(|pod| pod.facts.right())
    }

    fn is_own_node(&self, pod: &&PlainPod, address: IpAddr) -> bool {
        self.node(&pod.facts.node).is_some_and(|addresses| addresses.contains(&address))
    }

    fn namespace_labels(&self, namespace: &str) -> Option<&LabelSet> {
        self.namespaces.get(namespace).map(|namespace| &namespace.labels)
    }

    fn pods_in<'a>(&'a self, namespace: &str, labels: &Selector) -> impl Iterator<Item = &'a PlainPod> {
        let all = self.pods.values().filter(move |pod| *pod.namespace == *namespace && pod.facts.is_live());
        all.filter(move |pod| labels.selects(|key| pod.facts.labels.get(key)))
    }

    fn namespaces(&self) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self.pods.keys().map(|(namespace, _)| &**namespace).collect();
        names.dedup();
        names.into_iter()
    }

    fn selects(&self, term: &PodTerm, pod: &&PlainPod) -> bool {
        if pod.is_nameless() {
            let meant = self.meant.get(term);
            return meant.is_some_and(|meant| pod.facts.addresses.iter().any(|one| meant.contains(one)));
        }
        let labels = self.namespace_labels(&pod.namespace);
        let namespace_label = labels.map(|labels| |key: &str| labels.get(key));
        term.selects(&pod.namespace, namespace_label, |key| pod.facts.labels.get(key))
    }
}

impl PlainPod {
    /// Whether only its address is known, and which terms mean it.
    pub fn is_nameless(&self) -> bool {
        self.namespace.is_empty()
    }
}

/// `namespace/name`.
impl fmt::Display for PlainPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_nameless() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl PolicyWorld for PlainWorld {
    fn policies(&self) -> impl Iterator<Item = &PolicyTerms> {
        self.policies.values()
    }
}

impl ServiceWorld for PlainWorld {
    fn service_addresses(&self) -> impl Iterator<Item = ServiceAddress<'_>> {
        let ports = self.services.iter().flat_map(|((namespace, name), service)| {
            let all = service
                .addresses
                .iter()
                .flat_map(|address| service.ports.iter().map(move |port| (address, port)));
            all.map(move |(address, port)| (&**namespace, &**name, *address, port))
        });
        ports.map(|(namespace, name, address, port)| {
            let (protocol, number) = (port.protocol, port.number);
            let family = Family::of_address(address);
            let endpoints = self.endpoints(namespace, name, protocol, number, family).unwrap_or_default();
            ServiceAddress { namespace, name, address, protocol, port: number, endpoints }
        })
    }
}

impl PolicyPod for &PlainPod {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.facts.labels.get(key)
    }

    fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.facts.labels.iter()
    }

    fn addresses(&self) -> &[IpAddr] {
        &self.facts.addresses
    }

    fn ports(&self, name: &str, protocol: PolicyProtocol) -> impl Iterator<Item = u16> {
        let named = move |port: &&NamedPort| *port.name == *name && port.protocol == protocol;
        self.facts.ports.iter().filter(named).map(|port| port.number)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn endpoints_that_are_ending_stand_in_for_those_of_their_family() {
        let slice = |address: &str, ready: bool| -> EndpointSlice {
            let conditions = json!({"ready": ready, "serving": true, "terminating": !ready});
            let object = json!({"metadata": {"labels": {"kubernetes.io/service-name": "s"}},
                "endpoints": [{"addresses": [address], "conditions": conditions}], "ports": [{"port": 8080}]});
            serde_json::from_value::<EndpointSlice>(object).unwrap()
        };
        let service: Value = json!({"spec": {"ports": [{"port": 80}]}});
        let mut world = PlainWorld::default();
        world.put_service("x", "s", serde_json::from_value(service).unwrap());
        world.put_slice("x", "s-v4", slice("10.0.0.1", true));
        world.put_slice("x", "s-v6", slice("fd00::1", false));
        let found =
            |world: &PlainWorld, family| world.endpoints("x", "s", PolicyProtocol::Tcp, 80, family).unwrap();
        let [v4, v6] =
            ["10.0.0.1", "fd00::1"].map(|address| vec![(address.parse::<IpAddr>().unwrap(), 8080)]);
        assert_eq!((found(&world, Family::V4), found(&world, Family::V6)), (v4.clone(), v6));
        world.put_slice("x", "s-v4-more", slice("10.0.0.2", false));
        assert_eq!(found(&world, Family::V4), v4, "one is ready");
    }
}
