//! A pod of ambient mode in its own network namespace.
//!
//! The network carries the tunnel, to one port, and ztunnel opens the connection to the application inside: over the loopback interface, with its mark,
//! from the client's address and to the real port. So a peer comes to the tunnel that may come to any port, and inside the policies are asked about the real one. A
//! rule that names the tunnel's port itself opens the tunnel with all that is in it, as it does for network plugins that cannot look into it.
//! What the pod itself asks for is judged before it is led to ztunnel.

use facts::networkpolicy::{Entries, PolicyProtocol, Port};
use ruleset::{Action, Backend, Base, Chain, ChainKind, Hook, Match, Ports, Protocol, Rule, TableKind};

use super::answer::ChainRole;
use super::rules::{Compiler, regular};
use super::{MAX_CLASS_PREFIXES, answers, chain_name};
use crate::flow::{TUNNEL_PORT, ZTUNNEL_MARK};
use crate::index::PolicyClass;
use crate::terms::{RuleAction, RuleTerms, Section, TrafficDirection};

/// Before the chains that change where a packet goes.
const OUTPUT_PRIORITY: i32 = -160;

/// The chains of a class for the tunnel.
pub(super) struct TunnelChains {
    /// For what goes to the tunnel's port, a section each, in order.
    pub(super) outer: Vec<Chain>,
    /// For what is inside: the rules that open all of it. They come before the section of NetworkPolicies.
    pub(super) opening: Vec<Rule>,
    pass: Action,
}

// === impl Compiler ===

impl Compiler<'_> {
    /// The chains of a class for the tunnel. What has no room in them is not in the chains of the class either, and told there.
    pub(super) fn tunnel(&mut self, class: &PolicyClass) -> TunnelChains {
        let mut room = MAX_CLASS_PREFIXES;
        let (mut outer, mut opening) = (Vec::new(), Vec::new());
        for section in class.policies.chunk_by(|one, other| one.section == other.section) {
            let isolates = section[0].section == Section::NetworkPolicy;
            let (mut rules, mut open_ended) = (Vec::new(), false);
            for name in section {
                let Some(terms) = self.terms(name) else { continue };
                for (number, rule) in terms.direction(class.direction).rules.iter().enumerate() {
                    let reach = Reach::of(rule);
                    // What is denied to some of the policy's pods is judged inside.
                    let denies = rule.own == Entries::Any;
                    let is_answered = rule.action == RuleAction::Reject;
                    let action = match (rule.action, reach) {
                        (RuleAction::Deny | RuleAction::Reject, _) if !denies => continue,
                        (_, Reach::Nothing) => continue,
                        (RuleAction::Accept, _) => self.pass(),
                        // Some ports are left, or may be left in the next section.
                        (RuleAction::Deny | RuleAction::Reject, Reach::Some) => continue,
                        (RuleAction::Deny | RuleAction::Reject, Reach::All) if open_ended => Action::Return,
                        (RuleAction::Deny | RuleAction::Reject, Reach::All) => self.denial(is_answered).0,
                        (RuleAction::Next | RuleAction::Audit, Reach::All) => Action::Return,
                        // Nothing is accepted in this section, so that no later rule is needed by whoever has some port here.
                        (RuleAction::Next | RuleAction::Audit, Reach::Some)
                            if section[0].section == Section::Tenant =>
                        {
                            Action::Return
                        }
                        (RuleAction::Next | RuleAction::Audit, Reach::Some) => {
                            open_ended = true;
                            continue;
                        }
                    };
                    let mut place = self.place(class, &terms.name, number, rule);
                    let peers = self.peers(rule, &mut place, &mut room);
                    if isolates && names_tunnel(rule) {
                        opening
                            .extend(peers.iter().map(|(_, peer)| place.with(peer.clone(), action.clone())));
                    }
                    rules.extend(peers.into_iter().map(|(_, peer)| place.with(peer, action.clone())));
                }
            }
            if isolates {
                rules.extend(self.denials(class));
            }
            outer.push(regular(
                format!("{}t", chain_name(class, section[0].section, self.role())).into(),
                rules,
            ));
        }
        TunnelChains { outer, opening, pass: self.pass() }
    }
}

/// How many ports of TCP a rule is about.
#[derive(Clone, Copy)]
enum Reach {
    Nothing,
    Some,
    All,
}

impl Reach {
    fn of(rule: &RuleTerms) -> Self {
        let Entries::Of(ports) = &rule.ports else { return Self::All };
        let reach = |port: &Port| match port {
            Port::All(PolicyProtocol::Tcp) | Port::Range(PolicyProtocol::Tcp, (1, u16::MAX)) => Self::All,
            Port::Range(PolicyProtocol::Tcp, _) | Port::Named(PolicyProtocol::Tcp, _) => Self::Some,
            Port::All(_) | Port::Range(..) | Port::Named(..) => Self::Nothing,
        };
        ports.iter().map(reach).fold(Self::Nothing, |one, other| match (one, other) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::Some, _) | (_, Self::Some) => Self::Some,
            (Self::Nothing, Self::Nothing) => Self::Nothing,
        })
    }
}

fn names_tunnel(rule: &RuleTerms) -> bool {
    let named = Port::Range(PolicyProtocol::Tcp, (TUNNEL_PORT, TUNNEL_PORT));
    rule.action == RuleAction::Accept && matches!(&rule.ports, Entries::Of(ports) if ports.contains(&named))
}

// === impl TunnelChains ===

impl TunnelChains {
    /// Leads what goes to the tunnel's port and is as `matches` says to its chains, and nothing of it further.
    pub(super) fn jumps(&self, matches: &[Match]) -> Vec<Rule> {
        let to_tunnel = || {
            let port = Match::DestinationPort { ports: Ports::One(TUNNEL_PORT), not: false };
            [matches, &[Match::Protocol(Protocol::Tcp), port]].concat()
        };
        let why = "some port of the pod in the tunnel";
        let jump = |chain: &Chain| Rule::new(to_tunnel(), Action::Jump(chain.name.clone()), why);
        let mut rules: Vec<Rule> = self.outer.iter().map(jump).collect();
        rules.push(Rule::new(to_tunnel(), self.pass.clone(), "no section denies the tunnel"));
        rules
    }
}

/// What goes through the tunnel, in the pod's own namespace.
pub(super) fn tunnelled(direction: TrafficDirection) -> Match {
    match direction {
        // The application's own packets do not go to ztunnel's port of another pod.
        TrafficDirection::Egress => ztunnels(false),
        TrafficDirection::Ingress => Match::InInterface { name: "lo".into(), not: true },
    }
}

/// The jumps to a class's sections, for packets that are as `matches` says. Rules that open the tunnel come before NetworkPolicies.
pub(super) fn section_jumps(
    (class, role): (&PolicyClass, ChainRole),
    sections: &[Chain],
    opening: Option<(&[Rule], &Match)>,
    matches: &[Match],
) -> Vec<Rule> {
    let mut rules = Vec::new();
    for section in sections {
        if let Some((opening, inside)) = opening
            && section.name == chain_name(class, Section::NetworkPolicy, role)
        {
            rules.extend(opening.iter().map(|rule| {
                let matches = [std::slice::from_ref(inside), &rule.matches].concat();
                Rule::new(matches, rule.action.clone(), rule.why.clone())
            }));
        }
        let why = format!("{} policies of the pod", class.direction);
        rules.push(Rule::new(matches.to_vec(), Action::Jump(section.name.clone()), why));
    }
    rules
}

/// Packets of ztunnel's sockets.
pub(super) fn ztunnels(not: bool) -> Match {
    let (mark, mask) = ZTUNNEL_MARK;
    Match::Mark { mark, mask, not }
}

/// What is not judged of what the application asks for, before it is led to ztunnel. What ztunnel takes none of is judged when it leaves.
pub(super) fn not_asked(pass: &Action) -> Vec<Rule> {
    let lo = Match::OutInterface { name: "lo".into(), not: false };
    let mut rules = vec![
        Rule::new(vec![lo], pass.clone(), "what stays in the pod is not judged"),
        Rule::new(vec![ztunnels(false)], pass.clone(), "what ztunnel sends is judged when it leaves"),
    ];
    rules.extend(answers(pass));
    rules
}

/// Where the application's packets are judged.
pub(super) fn output(backend: Backend) -> Base {
    let priority = match backend {
        Backend::Nftables => OUTPUT_PRIORITY,
        Backend::Iptables => TableKind::Mangle.priority(Hook::Output),
    };
    Base { kind: ChainKind::Filter, hook: Hook::Output, priority }
}
