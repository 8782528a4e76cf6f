//! Terms as rules and sets.

use std::borrow::Cow;
use std::collections::BTreeSet;

use std::sync::Arc;

use facts::networkpolicy::{Entries, PolicyProtocol, Port};
use ipnet::IpNet;
use ruleset::{Action, Family, Key, KeyType, Match, Protocol, Rule, Set, Side};

use super::{KeptSet, blocks, chain_name};
use crate::index::{PeerSet, PolicyClass, PolicyIndex};
use crate::terms::{PeerTerm, PodTerm, PolicyTerms, RuleAction, RuleTerms, Section, TrafficDirection};

/// What rules look into so far.
pub(super) struct Compiler<'i> {
    index: &'i PolicyIndex,
    /// Sets that follow pods.
    kept: BTreeSet<Arc<PeerSet>>,
    blocks: Vec<Set>,
}

/// A condition of a rule on one side, for a family or for both.
type Condition = (Option<Family>, Vec<Match>);

/// Some of a rule's peers.
enum PeerPart<'t> {
    Any,
    Pods(&'t PodTerm),
    /// All of its blocks of a family, by the name of their set.
    Blocks(String, Family),
}

// === impl Compiler ===

impl<'i> Compiler<'i> {
    pub(super) fn new(index: &'i PolicyIndex) -> Self {
        Self { index, kept: BTreeSet::new(), blocks: Vec::new() }
    }

    /// The chains of a class, a section each, in order.
    pub(super) fn class(&mut self, class: &PolicyClass) -> Vec<(Cow<'static, str>, Vec<Rule>)> {
        let index = self.index;
        let mut chains = Vec::new();
        for section in class.policies.chunk_by(|one, other| one.section == other.section) {
            let name = chain_name(class, section[0].section);
            let policies = section.iter().filter_map(|name| index.terms(name));
            let mut rules: Vec<Rule> =
                policies.flat_map(|terms| self.policy(terms, class.direction)).collect();
            if section[0].section == Section::NetworkPolicy {
                let why = format!("no {} rule allows it", class.direction);
                rules.push(Rule::new(Vec::new(), Action::Drop, why));
            }
            chains.push((name, rules));
        }
        chains
    }

    /// The sets that rules look into, and which of them follow pods.
    pub(super) fn finish(self) -> (Vec<Set>, Vec<KeptSet>) {
        let mut kept: Vec<KeptSet> = Vec::new();
        for set in self.kept {
            for family in [Family::V4, Family::V6] {
                kept.push((set.kernel_name(family), family, set.clone()));
            }
        }
        let sets = kept.iter().map(|(name, family, set)| Set::kept(name.clone(), key_type(set, *family)));
        (sets.chain(self.blocks).collect(), kept)
    }

    fn policy(&mut self, terms: &PolicyTerms, direction: TrafficDirection) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (number, rule) in terms.direction(direction).rules.iter().enumerate() {
            let why = format!("np:{}#{number}", terms.name);
            let action = match rule.action {
                RuleAction::Accept => Action::Accept,
                RuleAction::Deny => Action::Drop,
                RuleAction::Next => Action::Return,
            };
            rules.extend(
                self.rule(rule, direction).into_iter().map(|m| Rule::new(m, action.clone(), why.clone())),
            );
        }
        rules
    }

    /// The conditions of a rule: any of them holds.
    fn rule(&mut self, rule: &RuleTerms, direction: TrafficDirection) -> Vec<Vec<Match>> {
        let ports: Vec<Option<&Port>> = match &rule.ports {
            Entries::Any => vec![None],
            Entries::Of(ports) => ports.iter().map(Some).collect(),
        };
        let mut found = Vec::new();
        for peer in self.peers(&rule.peers) {
            for port in &ports {
                let (ports, says_peer) = self.port(*port, &peer, direction);
                let peers = if says_peer { anything() } else { self.peer(&peer, direction) };
                for (one, other) in ports.iter().flat_map(|port| peers.iter().map(move |peer| (port, peer))) {
                    if one.0.is_none() || other.0.is_none() || one.0 == other.0 {
                        found.push([&*one.1, &*other.1].concat());
                    }
                }
            }
        }
        found
    }

    /// The peers of a rule; all of its blocks are one, because an exception is of its own block only.
    fn peers<'t>(&mut self, peers: &'t Entries<PeerTerm>) -> Vec<PeerPart<'t>> {
        let Entries::Of(peers) = peers else { return vec![PeerPart::Any] };
        let mut found = Vec::new();
        let mut prefixes: [BTreeSet<IpNet>; 2] = Default::default();
        for peer in peers {
            match peer {
                PeerTerm::Pods(term) => found.push(PeerPart::Pods(term)),
                PeerTerm::Block(block) => {
                    let family = usize::from(matches!(block.net, IpNet::V6(_)));
                    prefixes[family].extend(blocks::prefixes(block));
                }
            }
        }
        for (family, all) in
            [Family::V4, Family::V6].into_iter().zip(prefixes).filter(|(_, all)| !all.is_empty())
        {
            let (keys, name) = (KeyType::Prefix(family), format!("istio-np-b{}", self.blocks.len()));
            self.blocks.push(Set::fixed(name.clone(), keys, all.into_iter().map(Key::from)));
            found.push(PeerPart::Blocks(name, family));
        }
        found
    }

    fn peer(&mut self, peer: &PeerPart<'_>, direction: TrafficDirection) -> Vec<Condition> {
        let side = side(direction);
        match peer {
            PeerPart::Any => anything(),
            PeerPart::Pods(term) => self.kept(&PeerSet::Pods((*term).clone()), side),
            PeerPart::Blocks(name, family) => {
                vec![(Some(*family), vec![is_in(side, name.clone(), KeyType::Prefix(*family))])]
            }
        }
    }

    /// The conditions of a port, and whether they say already who the peer is.
    fn port(
        &mut self,
        port: Option<&Port>,
        peer: &PeerPart<'_>,
        direction: TrafficDirection,
    ) -> (Vec<Condition>, bool) {
        match (port, direction, peer) {
            (None, ..) => (anything(), false),
            (Some(Port::All(of)), ..) => {
                (vec![(None, vec![Match::Protocol(protocol(*of)), Match::WholeHeader])], false)
            }
            (Some(Port::Range(of, (first, last))), ..) => {
                (vec![(None, range(protocol(*of), *first, *last))], false)
            }
            (Some(Port::Named(of, name)), TrafficDirection::Ingress, _) => {
                (self.kept(&PeerSet::OwnPorts(name.clone(), *of), Side::Destination), false)
            }
            (Some(Port::Named(of, name)), TrafficDirection::Egress, PeerPart::Pods(term)) => {
                let set = PeerSet::Ports(Some((*term).clone()), name.clone(), *of);
                (self.kept(&set, Side::Destination), true)
            }
            (Some(Port::Named(of, name)), TrafficDirection::Egress, _) => {
                (self.kept(&PeerSet::Ports(None, name.clone(), *of), Side::Destination), false)
            }
        }
    }

    /// A packet is in a set; never, if the index does not have it.
    fn kept(&mut self, set: &PeerSet, side: Side) -> Vec<Condition> {
        let Some(set) = self.index.set(set).cloned() else { return Vec::new() };
        self.kept.insert(set.clone());
        let families = [Family::V4, Family::V6].into_iter();
        families
            .map(|family| (Some(family), vec![is_in(side, set.kernel_name(family), key_type(&set, family))]))
            .collect()
    }
}

/// No condition.
fn anything() -> Vec<Condition> {
    vec![(None, Vec::new())]
}

/// The side of a packet that is the peer's.
fn side(direction: TrafficDirection) -> Side {
    match direction {
        TrafficDirection::Egress => Side::Destination,
        TrafficDirection::Ingress => Side::Source,
    }
}

fn is_in(side: Side, name: String, keys: KeyType) -> Match {
    match side {
        Side::Source => Match::SourceIn { set: name.into(), keys, not: false },
        Side::Destination => Match::DestinationIn { set: name.into(), keys, not: false },
    }
}

fn key_type(set: &PeerSet, family: Family) -> KeyType {
    match set {
        PeerSet::Pods(_) => KeyType::Address(family),
        PeerSet::Ports(..) | PeerSet::OwnPorts(..) => KeyType::Endpoint(family),
    }
}

fn range(protocol: Protocol, first: u16, last: u16) -> Vec<Match> {
    // Port 0 is of no packet, so that all ports are those from 1.
    let ports = if first == last { ruleset::Ports::One(first) } else { ruleset::Ports::Range(first, last) };
    vec![Match::Protocol(protocol), Match::DestinationPort { ports, not: false }]
}

/// The protocol of packets.
pub(super) fn protocol(of: PolicyProtocol) -> Protocol {
    match of {
        PolicyProtocol::Tcp => Protocol::Tcp,
        PolicyProtocol::Udp => Protocol::Udp,
        PolicyProtocol::Sctp => Protocol::Sctp,
    }
}
