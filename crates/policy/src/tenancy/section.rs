//! A tenant as a policy.

use std::collections::BTreeSet;
use std::net::IpAddr;

use facts::networkpolicy::{Entries, PolicyProtocol, Port};
use facts::tenant::{DenyMode, GrantTarget, TenantDefault, TenantEnforcement, TenantRule};
use facts::{NetworkTenant, Selector, TenantGrant};
use ipnet::IpNet;

use super::peers;
use super::surroundings::{ReachedPorts, TenantSurroundings};
use crate::terms::{
    DirectionTerms, NamespaceTerm, PeerTerm, PodTerm, PolicyName, PolicyTerms, RuleAction, RuleTerms,
    Section, TrafficDirection,
};
use crate::world::{PolicyPod, World};

/// What goes to all neighbours of a link, and to no other network: multicast of the link (RFC 5771, RFC 4291) and the broadcast by which an
/// address is asked for.
const LINK_LOCAL: [&str; 3] = ["224.0.0.0/24", "255.255.255.255/32", "ff02::/16"];

/// The rules of a direction so far.
struct Rules<'t> {
    tenant: &'t NetworkTenant,
    direction: TrafficDirection,
    found: Vec<RuleTerms>,
}

/// A tenant, with the grants of the namespaces that it has, as a policy; nothing where it judges nothing.
///
/// The first rule that matches denies, or hands on to the next section; none accepts. The last rule denies everything, so that something always matches.
/// `world` says which pods grants mean by name. Replies, what stays in a pod and what comes from a pod's own node are decided before all sections.
pub fn tenant_section<W: World>(
    tenant: &NetworkTenant,
    grants: &[&TenantGrant],
    around: &TenantSurroundings,
    world: &W,
) -> Option<PolicyTerms> {
    if tenant.enforcement == TenantEnforcement::Off {
        return None;
    }
    let name = &tenant.name;
    let direction = |direction| {
        let mut rules = Rules { tenant, direction, found: Vec::new() };
        rules.before_tenants(around);
        rules.between_tenants(grants, around, world);
        rules.outside(around);
        let is_tried_out = tenant.enforcement == TenantEnforcement::Audit;
        DirectionTerms { applies: true, is_tried_out, rules: rules.found.into() }
    };
    Some(PolicyTerms {
        name: tenant_name(name),
        subjects: peers::of_tenants([&**name].into_iter()),
        ingress: direction(TrafficDirection::Ingress),
        egress: direction(TrafficDirection::Egress),
    })
}

/// How a tenant is called as a policy.
pub fn tenant_name(tenant: &str) -> PolicyName {
    PolicyName { section: Section::Tenant, namespace: "".into(), name: tenant.into() }
}

// === impl Rules ===

impl Rules<'_> {
    fn push(&mut self, name: String, action: RuleAction, peers: Entries<PeerTerm>, ports: Entries<Port>) {
        self.found.push(RuleTerms { name: name.into(), own: Entries::Any, peers, ports, action });
    }

    fn pass(&mut self, name: &str, peers: impl Iterator<Item = PeerTerm>) {
        self.push(name.to_owned(), RuleAction::Next, Entries::Of(peers.collect()), Entries::Any);
    }

    fn deny(&mut self, name: &str, peers: Entries<PeerTerm>, ports: Entries<Port>) {
        let action = match (self.tenant.enforcement, self.tenant.deny_mode) {
            (TenantEnforcement::Audit, _) => RuleAction::Audit,
            (_, DenyMode::Reject) => RuleAction::Reject,
            (_, DenyMode::Drop) => RuleAction::Deny,
        };
        self.push(name.to_owned(), action, peers, ports);
    }

    /// Hands on what goes to such ports of these addresses.
    fn pass_reached(&mut self, name: &str, reached: &ReachedPorts) {
        for ((protocol, number), addresses) in reached {
            let peers = Entries::Of(addresses.iter().map(|one| peers::address(*one)).collect());
            self.push(name.to_owned(), RuleAction::Next, peers, port(*protocol, *number));
        }
    }

    /// What is denied whatever allows it, and what the system needs.
    fn before_tenants(&mut self, around: &TenantSurroundings) {
        match &self.tenant.denied {
            Entries::Any => self.deny("deniedIPRanges", Entries::Any, Entries::Any),
            Entries::Of(ranges) if ranges.is_empty() => {}
            Entries::Of(ranges) => {
                let ranges = ranges.iter().map(|net| peers::range(*net)).collect();
                self.deny("deniedIPRanges", Entries::Of(ranges), Entries::Any);
            }
        }
        self.link_local();
        if self.direction == TrafficDirection::Ingress {
            return;
        }
        if self.tenant.allows_dns {
            for (namespace, name) in &around.dns {
                let service = around.service(namespace, name);
                service.iter().for_each(|ends| self.pass_reached("system.dns", &ends.reached(&Entries::Any)));
            }
            let caches: BTreeSet<IpAddr> = around.dns_caches.iter().copied().collect();
            if !caches.is_empty() {
                let protocols = [PolicyProtocol::Tcp, PolicyProtocol::Udp];
                let reached = protocols.map(|protocol| ((protocol, 53), caches.clone()));
                self.pass_reached("system.dns", &reached.into());
            }
        }
        if let Some(service) = peers::api_server(around).filter(|_| self.tenant.allows_api_server) {
            self.pass_reached("system.apiServer", &service.reached(&Entries::Any));
        }
        for (namespace, name) in &around.mesh {
            let service = around.service(namespace, name);
            service.iter().for_each(|ends| self.pass_reached("system.mesh", &ends.reached(&Entries::Any)));
        }
    }

    /// At either end the address of the link is the packet's destination.
    fn link_local(&mut self) {
        let nets = LINK_LOCAL.iter().filter_map(|text| text.parse::<IpNet>().ok());
        let nets = Entries::Of(nets.map(peers::range).collect());
        let (own, peers) = match self.direction {
            TrafficDirection::Egress => (Entries::Any, nets),
            TrafficDirection::Ingress => (nets, Entries::Any),
        };
        let (name, action, ports) = ("system.linkLocal".into(), RuleAction::Next, Entries::Any);
        self.found.push(RuleTerms { name, own, peers, ports, action });
    }

    fn between_tenants<W: World>(&mut self, grants: &[&TenantGrant], around: &TenantSurroundings, world: &W) {
        let tenant = self.tenant;
        let written = match self.direction {
            TrafficDirection::Egress => &tenant.egress,
            TrafficDirection::Ingress => &tenant.ingress,
        };
        let (denying, allowing): (Vec<&TenantRule>, Vec<&TenantRule>) =
            written.iter().partition(|rule| rule.denies);
        for rule in denying {
            self.deny(&rule.name, peers::of_rule(&rule.peers, around), rule.ports.clone());
        }
        let own = PeerTerm::Pods(peers::of_tenants([&*tenant.name].into_iter()));
        self.pass("sameTenant", [own].into_iter());
        for rule in allowing {
            let peers = peers::of_rule(&rule.peers, around);
            self.push(rule.name.to_string(), RuleAction::Next, peers, rule.ports.clone());
        }
        let by_default = match self.direction {
            TrafficDirection::Ingress => {
                grants.iter().for_each(|grant| self.grant(grant, around, world));
                tenant.unassigned == TenantDefault::Allow
            }
            TrafficDirection::Egress => {
                for service in &tenant.services {
                    let name = format!("service {}/{}", service.namespace, service.name);
                    let ends = around.service(&service.namespace, &service.name);
                    ends.iter().for_each(|ends| self.pass_reached(&name, &ends.reached(&service.ports)));
                }
                tenant.unassigned != TenantDefault::Deny
            }
        };
        if by_default {
            self.pass("defaults.unassigned", [PeerTerm::Pods(peers::unassigned())].into_iter());
        }
    }

    /// The consent of a namespace's owner.
    fn grant<W: World>(&mut self, grant: &TenantGrant, around: &TenantSurroundings, world: &W) {
        let TenantGrant { namespace, name, from, to, ports, .. } = grant;
        if from.is_empty() {
            return;
        }
        let peers = Entries::Of([PeerTerm::Pods(peers::of_tenants(from.iter().map(|one| &**one)))].into());
        let mut push = |own: Vec<PeerTerm>, ports: Entries<Port>| {
            let (name, peers) = (format!("grant {namespace}/{name}").into(), peers.clone());
            let own = Entries::Of(own.into());
            self.found.push(RuleTerms { name, own, peers, ports, action: RuleAction::Next });
        };
        for target in to {
            match target {
                GrantTarget::Pods(labels) => {
                    let namespaces = NamespaceTerm::Named(namespace.clone());
                    push(vec![PeerTerm::Pods(PodTerm { namespaces, labels: labels.clone() })], ports.clone());
                }
                GrantTarget::Pod(pod) => {
                    let is_it = |one: &W::Pod<'_>| one.name() == &**pod;
                    let found = world.pods_in(namespace, &Selector::default()).find(is_it);
                    let addresses = found.iter().flat_map(|pod| pod.addresses());
                    push(addresses.map(|one| peers::address(*one)).collect(), ports.clone());
                }
                GrantTarget::Service(service) => {
                    let is_meant = |(key, _): &(&super::ServiceKey, _)| {
                        key.0 == *namespace && service.as_ref().is_none_or(|name| key.1 == *name)
                    };
                    for (_, ends) in around.services.iter().filter(is_meant) {
                        for ((protocol, number), addresses) in ends.endpoints(ports) {
                            // Whoever writes a Service can write any address behind it, and consents for pods of its own namespace only.
                            let is_own = |one: &IpAddr| {
                                world.pod_at(*one).is_some_and(|pod| pod.namespace() == &**namespace)
                            };
                            let own = addresses.into_iter().filter(is_own).map(peers::address).collect();
                            push(own, port(protocol, number));
                        }
                    }
                }
            }
        }
    }

    /// What is no pod. Pods that nothing has allowed so far are denied first, because ranges may have them.
    fn outside(&mut self, around: &TenantSurroundings) {
        let (ranges, external) = (&self.tenant.allowed, self.tenant.external);
        if !ranges.is_empty() {
            let pods = PeerTerm::Pods(PodTerm::everything());
            self.deny("otherPods", Entries::Of([pods].into()), Entries::Any);
            self.pass("allowedIPRanges", ranges.iter().map(|net| peers::range(*net)));
        }
        if external == TenantDefault::Allow {
            self.pass("defaults.external", [peers::outside(around)].into_iter());
        }
        self.deny("defaults.other", Entries::Any, Entries::Any);
    }
}

fn port(protocol: PolicyProtocol, number: u16) -> Entries<Port> {
    Entries::Of([Port::Range(protocol, (number, number))].into())
}
