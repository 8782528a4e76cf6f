//! Which sets rules look into.

use std::borrow::Cow;

use facts::networkpolicy::{Entries, PolicyProtocol, Port};

use super::sets::PeerSet;
use crate::terms::{PeerTerm, PodTerm, PolicyTerms, RuleTerms, TrafficDirection};

/// How many names of peers' ports the rules of a policy may have yet in one direction, each counted for each peer: that many sets there are.
#[derive(Debug)]
pub(crate) struct NamedRoom(usize);

// === impl NamedRoom ===

impl NamedRoom {
    /// The most. Each of these sets is a rule for each family, and more rules a class does not have.
    pub(crate) const MOST: usize = 16_384;

    pub(crate) fn new() -> Self {
        Self(Self::MOST)
    }

    /// Whether there is room for the next rule of the policy. Without it no set of the rule is there.
    pub(crate) fn takes(&mut self, rule: &RuleTerms, direction: TrafficDirection) -> bool {
        let (Entries::Of(ports), TrafficDirection::Egress) = (&rule.ports, direction) else { return true };
        let names = ports.iter().filter(|port| matches!(port, Port::Named(..))).count();
        let peers = if let Entries::Of(peers) = &rule.peers { peers.len() } else { 1 };
        let left = self.0.checked_sub(names.saturating_mul(peers));
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// The sets that the rules of a policy look into in one direction, as often as they do.
pub(super) fn of(terms: &PolicyTerms, direction: TrafficDirection) -> Vec<PeerSet> {
    let (mut found, mut room) = (Vec::new(), NamedRoom::new());
    for rule in terms.direction(direction).rules.iter().filter(|rule| room.takes(rule, direction)) {
        of_rule(rule, direction, &mut found);
    }
    found
}

fn of_rule(rule: &RuleTerms, direction: TrafficDirection, found: &mut Vec<PeerSet>) {
    let ports: &[Port] = match &rule.ports {
        Entries::Any => &[],
        // All of them are refused, so that it matches nothing whoever the peer is.
        Entries::Of(ports) if ports.is_empty() => return,
        Entries::Of(ports) => ports,
    };
    let named =
        |port| if let &Port::Named(protocol, ref name) = port { Some((&**name, protocol)) } else { None };
    let names: Vec<(&str, PolicyProtocol)> = ports.iter().filter_map(named).collect();
    let is_by_number = names.len() < ports.len() || rule.ports == Entries::Any;
    let peers: Vec<Option<Cow<'_, PodTerm>>> = match &rule.peers {
        Entries::Any => vec![None],
        Entries::Of(peers) => peers.iter().map(term).collect(),
    };
    let own = if let Entries::Of(own) = &rule.own { &**own } else { &[] };
    found.extend(own.iter().filter_map(term).map(|term| PeerSet::Pods(term.into_owned())));
    // What a name means is the destination's affair: of the peer, or of the policy's own pod.
    if direction == TrafficDirection::Ingress && !peers.is_empty() {
        found.extend(names.iter().map(|(name, protocol)| PeerSet::OwnPorts((*name).into(), *protocol)));
    }
    for term in peers {
        if direction == TrafficDirection::Egress {
            let set = |(name, protocol): &(&str, _)| {
                PeerSet::Ports(term.as_deref().cloned(), (*name).into(), *protocol)
            };
            found.extend(names.iter().map(set));
        }
        // To the tunnel of ambient mode a pod may come that has some port of TCP, also one that only has a name.
        let named_tcp = names.iter().any(|(_, protocol)| *protocol == PolicyProtocol::Tcp);
        let goes_by_peer = is_by_number || named_tcp || direction == TrafficDirection::Ingress;
        found.extend(term.filter(|_| goes_by_peer).map(|term| PeerSet::Pods(term.into_owned())));
    }
}

fn term(peer: &PeerTerm) -> Option<Cow<'_, PodTerm>> {
    match peer {
        PeerTerm::Pods(term) => Some(Cow::Borrowed(term)),
        // What is no pod is told by who is one.
        PeerTerm::Outside(_) => Some(Cow::Owned(PodTerm::everything())),
        PeerTerm::Block(_) => None,
    }
}
