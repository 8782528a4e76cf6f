//! Terms as rules and sets.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use facts::networkpolicy::{PolicyProtocol, Port};
use ruleset::nft::COMMENT_MAX;
use ruleset::{Action, Chain, Family, KeyType, Match, Protocol, Rule, Set, Side};

use super::left::{LeftOut, LeftOutReason};
use super::log::{LOG_GROUP, LOG_LIMIT, LOG_PREFIX};
use super::parts::{PeerParts, PortParts};
use super::{KeptSet, MAX_CLASS_PREFIXES, MAX_CLASS_RULES, blocks, chain_name, rule_chain_name};
use crate::index::{NamedRoom, PeerSet, PolicyClass, PolicyIndex, protocol};
use crate::terms::{PodTerm, PolicyName, PolicyTerms, RuleAction, RuleTerms, Section, TrafficDirection};

/// What rules look into so far.
pub(super) struct Compiler<'i> {
    index: &'i PolicyIndex,
    /// Sets that follow pods.
    kept: BTreeSet<Arc<PeerSet>>,
    /// By their names.
    blocks: BTreeMap<String, Set>,
    /// Whether what is denied is logged.
    logs: bool,
    /// Whether what is allowed returns to where the class was asked, and does not end there.
    returns: bool,
    left_out: Vec<LeftOut>,
}

/// The rules of a class so far.
struct ClassRules<'c> {
    class: &'c PolicyClass,
    /// Chains of rules that have several peers and ports.
    apart: Vec<Chain>,
    /// How many rules a packet may meet beside those that there are.
    rules: usize,
    prefixes: usize,
}

/// A rule of a policy that is about to be written.
pub(super) struct CompiledRule {
    direction: TrafficDirection,
    action: Action,
    why: String,
    /// What is not written of it.
    left_out: BTreeSet<LeftOutReason>,
}

/// A condition of a rule on one side, for a family or for both.
pub(super) type RuleCondition = (Option<Family>, Vec<Match>);

// === impl Compiler ===

impl<'i> Compiler<'i> {
    pub(super) fn new(index: &'i PolicyIndex) -> Self {
        Self {
            index,
            kept: BTreeSet::new(),
            blocks: BTreeMap::new(),
            logs: false,
            returns: false,
            left_out: Vec::new(),
        }
    }

    /// So that what is allowed returns. Sections other than that of NetworkPolicies cannot do so, see [`super::can_return`].
    pub(super) fn returning(self) -> Self {
        Self { returns: true, ..self }
    }

    /// What a rule does with what it allows.
    pub(super) fn pass(&self) -> Action {
        if self.returns { Action::Return } else { Action::Accept }
    }

    /// With a log of what no rule allows.
    pub(super) fn logging(self) -> Self {
        Self { logs: true, ..self }
    }

    /// The chains of a class, a section each, in order; and chains that these jump to.
    pub(super) fn class(&mut self, class: &PolicyClass) -> (Vec<Chain>, Vec<Chain>) {
        let index = self.index;
        let (rules, prefixes) = (MAX_CLASS_RULES, MAX_CLASS_PREFIXES);
        let mut known = ClassRules { class, apart: Vec::new(), rules, prefixes };
        let mut chains = Vec::new();
        for section in class.policies.chunk_by(|one, other| one.section == other.section) {
            let name = chain_name(class, section[0].section);
            let mut rules = Vec::new();
            for terms in section.iter().filter_map(|name| index.terms(name)) {
                self.policy(terms, &mut known, &mut rules);
            }
            if section[0].section == Section::NetworkPolicy {
                rules.extend(denials(class, self.logs));
            }
            chains.push(regular(name, rules));
        }
        (chains, known.apart)
    }

    /// The sets that rules look into, which of them follow pods, and what is not in the rules.
    pub(super) fn finish(self) -> (Vec<Set>, Vec<KeptSet>, Vec<LeftOut>) {
        let mut kept: Vec<KeptSet> = Vec::new();
        for set in self.kept {
            for family in [Family::V4, Family::V6] {
                kept.push((set.kernel_name(family), family, set.clone()));
            }
        }
        let sets = kept.iter().map(|(name, family, set)| Set::kept(name.clone(), key_type(set, *family)));
        (sets.chain(self.blocks.into_values()).collect(), kept, self.left_out)
    }

    fn policy(&mut self, terms: &PolicyTerms, known: &mut ClassRules<'_>, rules: &mut Vec<Rule>) {
        let (direction, mut room) = (known.class.direction, NamedRoom::new());
        for (number, rule) in terms.direction(direction).rules.iter().enumerate() {
            let mut place = self.place(&terms.name, number, direction, rule.action);
            let apart = known.apart.len();
            let written = if room.takes(rule, direction) {
                self.rule(rule, &mut place, known)
            } else {
                place.left_out.insert(LeftOutReason::Rules);
                Vec::new()
            };
            if place.left_out.is_empty() || rule.action == RuleAction::Accept {
                rules.extend(written);
            } else {
                // With less of a denial more would be allowed, and so with less of what another section decides.
                known.apart.truncate(apart);
                rules.push(Rule::new(Vec::new(), Action::Drop, place.why));
            }
            let policy = &terms.name;
            self.left_out.extend(place.left_out.into_iter().map(|reason| LeftOut {
                policy: policy.clone(),
                direction,
                rule: number,
                reason,
            }));
        }
    }

    fn rule(&mut self, rule: &RuleTerms, place: &mut CompiledRule, known: &mut ClassRules<'_>) -> Vec<Rule> {
        let ports = PortParts::of(&rule.ports);
        if ports.len() == 0 {
            return Vec::new();
        }
        let peers = PeerParts::of(&rule.peers, &mut known.prefixes);
        if peers.has_less {
            place.left_out.insert(LeftOutReason::Prefixes);
        }
        if peers.len() == 0 {
            return Vec::new();
        }
        // What a packet returns from leads to the next section only in the section's own chain.
        let names = if place.direction == TrafficDirection::Ingress { ports.names.len() } else { 0 };
        let is_apart = place.action != Action::Return && ports.numbers.len() + names > 1 && peers.len() > 1;
        let met = met(&ports, &peers, is_apart, place.direction);
        let Some(left) = known.rules.checked_sub(met) else {
            place.left_out.insert(LeftOutReason::Rules);
            return Vec::new();
        };
        known.rules = left;
        let mut on_ports: Vec<RuleCondition> = ports.numbers.iter().map(numbered).collect();
        let blocks = self.blocks(&peers, place);
        let mut found = Vec::new();
        match place.direction {
            TrafficDirection::Ingress => on_ports.extend(self.own_names(&ports, place)),
            TrafficDirection::Egress => found.extend(self.peers_names(&ports, &peers, &blocks, place)),
        }
        if !on_ports.is_empty() {
            let mut on_peers = self.pods(&peers.pods, place);
            on_peers.extend(blocks);
            if is_apart {
                found.extend(known.apart(&on_ports, on_peers, place));
            } else {
                found.extend(place.all(&on_ports, &on_peers));
            }
        }
        found
    }

    /// What the policy's own pods call these ports.
    fn own_names(&mut self, ports: &PortParts<'_>, place: &mut CompiledRule) -> Vec<RuleCondition> {
        let set = |(name, of): &(&str, PolicyProtocol)| PeerSet::OwnPorts((*name).into(), *of);
        ports.names.iter().flat_map(|named| self.kept(&set(named), Side::Destination, place)).collect()
    }

    /// What peers call these ports; the sets say already who a peer is that is a pod.
    fn peers_names(
        &mut self,
        ports: &PortParts<'_>,
        peers: &PeerParts<'_>,
        blocks: &[RuleCondition],
        place: &mut CompiledRule,
    ) -> Vec<Rule> {
        let mut found = Vec::new();
        for (name, of) in &ports.names {
            for term in &peers.pods {
                let set = PeerSet::Ports(Some((*term).clone()), (*name).into(), *of);
                let named = self.kept(&set, Side::Destination, place);
                found.extend(place.all(&named, &anything()));
            }
            if !blocks.is_empty() {
                let named = self.kept(&PeerSet::Ports(None, (*name).into(), *of), Side::Destination, place);
                found.extend(place.all(&named, blocks));
            }
        }
        found
    }

    /// The conditions of peers that are no pods.
    fn blocks(&mut self, peers: &PeerParts<'_>, place: &mut CompiledRule) -> Vec<RuleCondition> {
        if peers.any {
            return anything();
        }
        let mut found = Vec::new();
        let blocks = [Family::V4, Family::V6].into_iter().zip(&peers.blocks);
        for (family, prefixes) in blocks.filter(|(_, prefixes)| !prefixes.is_empty()) {
            let set = blocks::set(family, prefixes);
            let (name, keys) = (set.name.to_string(), set.keys);
            if *self.blocks.entry(name.clone()).or_insert_with(|| set.clone()) != set {
                place.left_out.insert(LeftOutReason::NameTaken);
                continue;
            }
            found.push((Some(family), vec![is_in(side(place.direction), name, keys)]));
        }
        found
    }

    /// Where a rule of a policy is written, by its number.
    pub(super) fn place(
        &self,
        policy: &PolicyName,
        number: usize,
        direction: TrafficDirection,
        action: RuleAction,
    ) -> CompiledRule {
        let action = match action {
            RuleAction::Accept => self.pass(),
            RuleAction::Deny => Action::Drop,
            RuleAction::Next => Action::Return,
        };
        CompiledRule { direction, action, why: why(policy, number), left_out: BTreeSet::new() }
    }

    /// The conditions of a rule's peers, whatever its ports; `room` is how many prefixes there may be.
    pub(super) fn peers(
        &mut self,
        rule: &RuleTerms,
        place: &mut CompiledRule,
        room: &mut usize,
    ) -> Vec<RuleCondition> {
        let peers = PeerParts::of(&rule.peers, room);
        let mut found = self.pods(&peers.pods, place);
        found.extend(self.blocks(&peers, place));
        found
    }

    /// A known policy.
    pub(super) fn terms(&self, name: &PolicyName) -> Option<&'i PolicyTerms> {
        self.index.terms(name).map(|terms| &**terms)
    }

    /// What is at the end of a section that isolates.
    pub(super) fn denials(&self, class: &PolicyClass) -> Vec<Rule> {
        denials(class, self.logs).collect()
    }

    fn pods(&mut self, pods: &BTreeSet<&PodTerm>, place: &mut CompiledRule) -> Vec<RuleCondition> {
        let side = side(place.direction);
        pods.iter().flat_map(|term| self.kept(&PeerSet::Pods((*term).clone()), side, place)).collect()
    }

    /// A packet is in a set; never, if the index does not have it.
    fn kept(&mut self, set: &PeerSet, side: Side, place: &mut CompiledRule) -> Vec<RuleCondition> {
        let Some(set) = self.index.set(set).cloned() else {
            place.left_out.insert(LeftOutReason::NameTaken);
            return Vec::new();
        };
        self.kept.insert(set.clone());
        let families = [Family::V4, Family::V6].into_iter();
        families
            .map(|family| (Some(family), vec![is_in(side, set.kernel_name(family), key_type(&set, family))]))
            .collect()
    }
}

// === impl ClassRules ===

impl ClassRules<'_> {
    /// Rules that jump by their ports to a chain that goes by peers. Ports by number are of one rule at most for each packet, so that none meets the
    /// peers as often as there are ports; the other way round it could.
    fn apart(
        &mut self,
        ports: &[RuleCondition],
        peers: Vec<RuleCondition>,
        place: &CompiledRule,
    ) -> Vec<Rule> {
        let name = rule_chain_name(self.class, self.apart.len());
        let rules = peers.into_iter().map(|(_, matches)| place.with(matches, place.action.clone()));
        self.apart.push(regular(name.clone(), rules.collect()));
        ports.iter().map(|(_, matches)| place.with(matches.clone(), Action::Jump(name.clone()))).collect()
    }
}

// === impl CompiledRule ===

impl CompiledRule {
    pub(super) fn with(&self, matches: Vec<Match>, action: Action) -> Rule {
        Rule::new(matches, action, self.why.clone())
    }

    /// A rule for each pair of conditions.
    fn all(&self, ports: &[RuleCondition], peers: &[RuleCondition]) -> Vec<Rule> {
        let pairs = ports.iter().flat_map(|port| peers.iter().map(move |peer| (port, peer)));
        let of_a_packet =
            pairs.filter(|(port, peer)| port.0.is_none() || peer.0.is_none() || port.0 == peer.0);
        of_a_packet
            .map(|(port, peer)| self.with([&*port.1, &*peer.1].concat(), self.action.clone()))
            .collect()
    }
}

/// How many rules a packet meets at most of those that a rule of a policy becomes; never less than there are.
fn met(ports: &PortParts<'_>, peers: &PeerParts<'_>, is_apart: bool, direction: TrafficDirection) -> usize {
    let (numbers, names) = (ports.numbers.len(), ports.names.len());
    // Sets are of a family each.
    let blocks = usize::from(peers.any) + peers.block_count();
    let on_peers = 2 * peers.pods.len() + blocks;
    let (on_ports, named_apart) = match direction {
        TrafficDirection::Ingress => (numbers + 2 * names, 0),
        TrafficDirection::Egress => (numbers, 2 * names * (peers.pods.len() + blocks)),
    };
    let by_port = if is_apart {
        let matching = numbers.min(1) + (on_ports - numbers) / 2;
        on_ports + matching * on_peers
    } else {
        on_ports * on_peers
    };
    named_apart + by_port
}

pub(super) fn regular(name: Cow<'static, str>, rules: Vec<Rule>) -> Chain {
    Chain { name, base: None, rules, leading: 0 }
}

/// The end of NetworkPolicies: what none of them allows.
fn denials(class: &PolicyClass, logs: bool) -> impl Iterator<Item = Rule> {
    let names = class.policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let why = format!("no {} rule allows it of {names}", class.direction);
    let log = logs.then(|| {
        let prefix = format!("{LOG_PREFIX}{:016x}", class.hash()).into();
        let log = Action::Log { group: LOG_GROUP, prefix, limit: Some(LOG_LIMIT) };
        Rule::new(Vec::new(), log, why.clone())
    });
    log.into_iter().chain([Rule::new(Vec::new(), Action::Drop, why)])
}

/// Policy and rule for the rule's comment. The middle of a name gives way where they are too long together.
fn why(policy: &PolicyName, number: usize) -> String {
    const CUT: &str = "...";
    let (name, end) = (policy.to_string(), format!("#{number}"));
    let room = COMMENT_MAX - "np:".len() - end.len();
    if name.len() <= room {
        return format!("np:{name}{end}");
    }
    let half = (room - CUT.len()) / 2;
    let (first, last) = (name.floor_char_boundary(half), name.ceil_char_boundary(name.len() - half));
    format!("np:{}{CUT}{}{end}", &name[..first], &name[last..])
}

fn numbered(port: &Option<Port>) -> RuleCondition {
    (
        None,
        match port {
            Some(Port::All(of)) => vec![Match::Protocol(protocol(*of)), Match::WholeHeader],
            Some(Port::Range(of, (first, last))) => range(protocol(*of), *first, *last),
            // A name is no number; see `PortParts`.
            Some(Port::Named(..)) | None => Vec::new(),
        },
    )
}

/// No condition.
fn anything() -> Vec<RuleCondition> {
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

pub(super) fn key_type(set: &PeerSet, family: Family) -> KeyType {
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
