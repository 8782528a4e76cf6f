//! One rule of a policy, and what is odd about it.

use std::net::IpAddr;

use facts::networkpolicy::{Block, Entries, PolicyProtocol, Port};

use super::{FindingKind, PolicyFinding};
use crate::flow::TUNNEL_PORT;
use crate::terms::{PeerTerm, PolicyTerms, RuleTerms, TrafficDirection};
use crate::world::{ServiceWorld as _, World as _};
use crate::{PlainPod, PlainWorld, PolicyPod as _};

/// Most addresses that a text names.
const MAX_NAMED: usize = 3;

/// A rule, and where it is.
struct RulePlace<'a> {
    world: &'a PlainWorld,
    policy: &'a PolicyTerms,
    direction: TrafficDirection,
    number: usize,
    rule: &'a RuleTerms,
}

/// Looks at the rules of a policy in one direction. `subjects` are the live pods that it selects.
pub(super) fn lint(
    world: &PlainWorld,
    policy: &PolicyTerms,
    direction: TrafficDirection,
    subjects: &[&PlainPod],
    found: &mut Vec<PolicyFinding>,
) {
    for (number, rule) in policy.direction(direction).rules.iter().enumerate() {
        let place = RulePlace { world, policy, direction, number, rule };
        place.ports(subjects, found);
        place.peers(found);
    }
}

/// Whether a rule lets a port of a destination through, whatever pod that is.
pub(super) fn allows(world: &PlainWorld, rule: &RuleTerms, protocol: PolicyProtocol, number: u16) -> bool {
    let is_named = |name: &str| {
        let mut pods = world.live_pods();
        pods.any(|pod| (&pod).ports(name, protocol).any(|one| one == number))
    };
    let Entries::Of(ports) = &rule.ports else { return true };
    ports.iter().any(|port| match port {
        Port::All(of) => *of == protocol,
        Port::Range(of, (first, last)) => *of == protocol && (*first..=*last).contains(&number),
        Port::Named(of, name) => *of == protocol && is_named(name),
    })
}

/// Whether a rule of ingress opens a port of TCP to an address of the pod's node, or to everybody.
pub(super) fn opens_to_node(rule: &RuleTerms, pod: &PlainPod, node: &[IpAddr], number: u16) -> bool {
    let peers = match &rule.peers {
        Entries::Any => true,
        Entries::Of(peers) => peers.iter().any(|peer| match peer {
            PeerTerm::Block(block) => node.iter().any(|address| block.contains(*address)),
            PeerTerm::Outside(inside) => {
                node.iter().any(|address| !inside.iter().any(|net| net.contains(address)))
            }
            PeerTerm::Pods(_) => false,
        }),
    };
    let ports = match &rule.ports {
        Entries::Any => true,
        Entries::Of(ports) => ports.iter().any(|port| match port {
            Port::All(of) => *of == PolicyProtocol::Tcp,
            Port::Range(of, (first, last)) => {
                *of == PolicyProtocol::Tcp && (*first..=*last).contains(&number)
            }
            Port::Named(of, name) => {
                *of == PolicyProtocol::Tcp && pod.ports(name, *of).any(|one| one == number)
            }
        }),
    };
    peers && ports
}

// === impl RulePlace ===

impl RulePlace<'_> {
    fn find(&self, field: &str, kind: FindingKind, text: String, found: &mut Vec<PolicyFinding>) {
        let place = format!("{}[{}] {field}", self.direction, self.number);
        found.push(PolicyFinding { policy: self.policy.name.clone(), place, kind, text });
    }

    fn ports(&self, subjects: &[&PlainPod], found: &mut Vec<PolicyFinding>) {
        let Entries::Of(ports) = &self.rule.ports else { return };
        for (number, port) in ports.iter().enumerate() {
            let field = format!("ports[{number}]");
            match port {
                Port::Named(protocol, name) => {
                    let destinations = match self.direction {
                        TrafficDirection::Ingress => subjects.to_vec(),
                        TrafficDirection::Egress => self.peer_pods(),
                    };
                    let has = |pod: &&PlainPod| pod.ports(name, *protocol).next().is_some();
                    if !destinations.is_empty() && !destinations.iter().any(has) {
                        let text = format!(
                            "no container of the {} pods that could be meant has a port {name:?} of {}: it opens nothing",
                            destinations.len(),
                            protocol.name()
                        );
                        self.find(&field, FindingKind::UnresolvedName, text, found);
                    }
                }
                Port::Range(PolicyProtocol::Tcp, (TUNNEL_PORT, TUNNEL_PORT)) => {
                    let text = format!(
                        "port {TUNNEL_PORT} is the tunnel of ambient mode: it opens every port in it; name the real ports, and the tunnel is let through by itself"
                    );
                    self.find(&field, FindingKind::TunnelOpened, text, found);
                }
                Port::All(_) | Port::Range(..) => {}
            }
        }
    }

    /// The live pods on the other end that the rule can mean.
    fn peer_pods(&self) -> Vec<&PlainPod> {
        let is_meant = |pod: &&PlainPod| match &self.rule.peers {
            Entries::Any => true,
            Entries::Of(peers) => peers.iter().any(|peer| match peer {
                PeerTerm::Pods(term) => self.world.selects(term, pod),
                PeerTerm::Block(block) => pod.facts.addresses.iter().any(|one| block.contains(*one)),
                PeerTerm::Outside(_) => false,
            }),
        };
        self.world.live_pods().filter(is_meant).collect()
    }

    fn peers(&self, found: &mut Vec<PolicyFinding>) {
        let Entries::Of(peers) = &self.rule.peers else { return };
        for (number, peer) in peers.iter().enumerate() {
            let field = format!("{}[{number}]", self.direction.peers_field());
            match peer {
                PeerTerm::Pods(term) => {
                    if !self.world.live_pods().any(|pod| self.world.selects(term, &pod)) {
                        let text = format!("it means no live pod: there are no {term}");
                        self.find(&field, FindingKind::PeerMeansNothing, text, found);
                    }
                }
                PeerTerm::Block(block) => self.block(&field, block, found),
                PeerTerm::Outside(_) => {}
            }
        }
    }

    fn block(&self, field: &str, block: &Block, found: &mut Vec<PolicyFinding>) {
        let pods = self.world.live_pods().flat_map(|pod| {
            let covered = pod.facts.addresses.iter().filter(|address| block.contains(**address));
            covered.map(move |address| format!("pod {pod} ({address})"))
        });
        let services = self.world.service_addresses().filter(|one| block.contains(one.address));
        let mut services: Vec<String> =
            services.map(|one| format!("Service {}/{} ({})", one.namespace, one.name, one.address)).collect();
        services.dedup();
        let pods: Vec<String> = pods.collect();
        let count = pods.len() + services.len();
        if count == 0 {
            return;
        }
        let named: Vec<String> = pods.into_iter().chain(services).take(MAX_NAMED).collect();
        let more = if count > MAX_NAMED { format!(" and {} more", count - MAX_NAMED) } else { String::new() };
        let text = format!(
            "{} has addresses of the cluster: {}{more}; pods are meant by selectors, and a Service is not by its address",
            block.net,
            named.join(", ")
        );
        self.find(field, FindingKind::BlockCoversPods, text, found);
    }
}
