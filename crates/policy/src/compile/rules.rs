//! Terms as rules and sets.

mod ends;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use facts::networkpolicy::Entries;
use ruleset::{Action, Chain, Family, KeyType, Match, Rule, Set};

use super::answer::{ANSWER_CHAIN, ChainRole, DenialAnswer};
use super::conditions::{RuleCondition, anything, both, numbered, side, why};
use super::left::{LeftOut, LeftOutReason};
use super::log::{ANSWERED_PREFIX, AUDIT_PREFIX, LOG_PREFIX, log};
use super::parts::{PeerParts, PortParts};
use super::{KeptSet, MAX_CLASS_PREFIXES, MAX_CLASS_RULES, chain_name, rule_chain_name};
use crate::index::{NamedRoom, PeerSet, PolicyClass, PolicyIndex};
use crate::terms::{PolicyName, PolicyTerms, RuleAction, RuleTerms, Section, TrafficDirection};

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
    role: ChainRole,
    answer: DenialAnswer,
    left_out: Vec<LeftOut>,
}

/// The rules of a class so far.
struct ClassRules<'c> {
    class: &'c PolicyClass,
    role: ChainRole,
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
    /// What tells of the packets that it denies.
    log: Option<Action>,
    why: String,
    /// What is not written of it.
    left_out: BTreeSet<LeftOutReason>,
}

// === impl Compiler ===

impl<'i> Compiler<'i> {
    pub(super) fn new(index: &'i PolicyIndex) -> Self {
        Self {
            index,
            kept: BTreeSet::new(),
            blocks: BTreeMap::new(),
            logs: false,
            returns: false,
            role: ChainRole::Decide,
            answer: DenialAnswer::Never,
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

    /// For the chains that answer.
    pub(super) fn answering(self, answer: DenialAnswer) -> Self {
        Self { role: ChainRole::Answer, answer, ..self }
    }

    /// Whose chains these are.
    pub(super) fn role(&self) -> ChainRole {
        self.role
    }

    /// What is done with what is denied, and what tells of it.
    pub(super) fn denial(&self, is_answered: bool) -> (Action, Option<&'static str>) {
        match self.role {
            ChainRole::Decide => (Action::Drop, Some(LOG_PREFIX)),
            ChainRole::Answer if is_answered => (Action::Jump(ANSWER_CHAIN.into()), Some(ANSWERED_PREFIX)),
            // It is dropped further on.
            ChainRole::Answer => (Action::Accept, None),
        }
    }

    /// The chains of a class, a section each, in order; and chains that these jump to.
    pub(super) fn class(&mut self, class: &PolicyClass) -> (Vec<Chain>, Vec<Chain>) {
        let index = self.index;
        let (rules, prefixes) = (MAX_CLASS_RULES, MAX_CLASS_PREFIXES);
        let mut known = ClassRules { class, role: self.role, apart: Vec::new(), rules, prefixes };
        let mut chains = Vec::new();
        for section in class.policies.chunk_by(|one, other| one.section == other.section) {
            let name = chain_name(class, section[0].section, self.role);
            let mut rules = Vec::new();
            for terms in section.iter().filter_map(|name| index.terms(name)) {
                self.policy(terms, &mut known, &mut rules);
            }
            if section[0].section == Section::NetworkPolicy {
                rules.extend(self.denials(class));
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
        let rules_of_policy = &terms.direction(direction).rules;
        // A policy that is only tried out denies nothing, whatever is left out of it.
        let denies = !rules_of_policy.iter().any(|rule| rule.action == RuleAction::Audit);
        for (number, rule) in rules_of_policy.iter().enumerate() {
            let mut place = self.place(known.class, &terms.name, number, rule);
            let apart = known.apart.len();
            let written = if room.takes(rule, direction) {
                self.rule(rule, &mut place, known)
            } else {
                place.left_out.insert(LeftOutReason::Rules);
                Vec::new()
            };
            if place.left_out.is_empty() || rule.action == RuleAction::Accept || !denies {
                rules.extend(written);
            } else {
                // With less of a denial more would be allowed, and so with less of what another section decides.
                known.apart.truncate(apart);
                rules.push(Rule::new(Vec::new(), self.denial(false).0, place.why));
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
        let several = ports.numbers.len() + names > 1 && peers.len() > 1;
        let is_apart = place.action != Action::Return && rule.own == Entries::Any && several;
        let own = self.own(&rule.own, place, &mut known.prefixes);
        let logs = 1 + usize::from(place.log.is_some());
        let met = own.len().saturating_mul(logs * met(&ports, &peers, is_apart, place.direction));
        let Some(left) = known.rules.checked_sub(met) else {
            place.left_out.insert(LeftOutReason::Rules);
            return Vec::new();
        };
        known.rules = left;
        let mut on_ports: Vec<RuleCondition> = ports.numbers.iter().map(numbered).collect();
        let blocks = self.blocks(&peers, side(place.direction), place);
        let mut found = Vec::new();
        match place.direction {
            TrafficDirection::Ingress => on_ports.extend(self.own_names(&ports, place)),
            TrafficDirection::Egress => {
                found.extend(self.peers_names(&ports, &peers, &both(&own, &blocks), place));
            }
        }
        if !on_ports.is_empty() {
            let mut on_peers = self.pods(&peers.pods, side(place.direction), place);
            on_peers.extend(blocks);
            let on_ports = both(&own, &on_ports);
            if is_apart {
                found.extend(known.apart(&on_ports, &on_peers, place));
            } else {
                found.extend(place.all(&on_ports, &on_peers));
            }
        }
        found
    }

    /// Where a rule of a policy is written, by its number.
    pub(super) fn place(
        &self,
        class: &PolicyClass,
        policy: &PolicyName,
        number: usize,
        rule: &RuleTerms,
    ) -> CompiledRule {
        let (action, told) = match rule.action {
            RuleAction::Accept => (self.pass(), None),
            RuleAction::Deny => self.denial(false),
            RuleAction::Reject => self.denial(true),
            RuleAction::Audit => (Action::Return, self.audit()),
            RuleAction::Next => (Action::Return, None),
        };
        CompiledRule {
            direction: class.direction,
            action,
            log: told.filter(|_| self.logs).map(|prefix| log(prefix, class)),
            why: why(policy, number, rule),
            left_out: BTreeSet::new(),
        }
    }

    /// A known policy.
    pub(super) fn terms(&self, name: &PolicyName) -> Option<&'i PolicyTerms> {
        self.index.terms(name).map(|terms| &**terms)
    }

    /// What tells of what would be denied: once, by the chains that decide.
    fn audit(&self) -> Option<&'static str> {
        (self.role == ChainRole::Decide).then_some(AUDIT_PREFIX)
    }

    /// What is at the end of a section of NetworkPolicies: what none of them allows.
    pub(super) fn denials(&self, class: &PolicyClass) -> Vec<Rule> {
        let (action, told) = match self.index.isolates(class) {
            true => self.denial(self.answer == DenialAnswer::Always),
            false => (Action::Return, self.audit()),
        };
        let names = class.policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let why = format!("no {} rule allows it of {names}", class.direction);
        let log = told.filter(|_| self.logs).map(|prefix| log(prefix, class));
        let log = log.map(|log| Rule::new(Vec::new(), log, why.clone()));
        log.into_iter().chain([Rule::new(Vec::new(), action, why)]).collect()
    }
}

// === impl ClassRules ===

impl ClassRules<'_> {
    /// Rules that jump by their ports to a chain that goes by peers. Ports by number are of one rule at most for each packet, so that none meets the
    /// peers as often as there are ports; the other way round it could.
    fn apart(&mut self, ports: &[RuleCondition], peers: &[RuleCondition], place: &CompiledRule) -> Vec<Rule> {
        let name = rule_chain_name(self.class, self.apart.len(), self.role);
        self.apart.push(regular(name.clone(), place.all(&anything(), peers)));
        ports.iter().map(|(_, matches)| place.with(matches.clone(), Action::Jump(name.clone()))).collect()
    }
}

// === impl CompiledRule ===

impl CompiledRule {
    pub(super) fn with(&self, matches: Vec<Match>, action: Action) -> Rule {
        Rule::new(matches, action, self.why.clone())
    }

    /// A rule for each pair of conditions; before it one that tells of the packet, where that is wanted.
    fn all(&self, ports: &[RuleCondition], peers: &[RuleCondition]) -> Vec<Rule> {
        let told = |matches: Vec<Match>| {
            let log = self.log.clone().map(|log| self.with(matches.clone(), log));
            log.into_iter().chain([self.with(matches, self.action.clone())])
        };
        both(ports, peers).into_iter().flat_map(|(_, matches)| told(matches)).collect()
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

pub(super) fn key_type(set: &PeerSet, family: Family) -> KeyType {
    match set {
        PeerSet::Pods(_) => KeyType::Address(family),
        PeerSet::Ports(..) | PeerSet::OwnPorts(..) => KeyType::Endpoint(family),
    }
}
