//! Denials that are answered: a connection of TCP is reset, and of all else the sender is told that it is prohibited.
//!
//! What decides are chains that drop what they deny, at hooks that no packet passes by. The kernel answers only at other hooks, which packets come to
//! before. There stands a second set of chains of the same policies: they answer what they deny. What they let pass, and what they do not answer,
//! is decided by the first ones still, so that nothing depends on the second.

use std::borrow::Cow;

use ruleset::{
    ALL_BITS, Action, Backend, Base, Chain, ChainKind, Hook, KnownChain, Match, Protocol, RejectWith, Rule,
    Ruleset, Table, TableKind,
};

use super::rules::regular;
use crate::index::{PolicyClass, PolicyIndex};
use crate::terms::RuleAction;

/// The chain that answers.
pub(super) const ANSWER_CHAIN: &str = "istio-nr-answer";
/// What names of chains begin with that answer.
pub(super) const ANSWERING: &str = "istio-nr-";
/// In iptables only the filter table answers, and the rules of policies are in the mangle table: they set this mark. A packet that loses it on the way is
/// dropped.
pub(super) const ANSWER_MARK: u32 = 0x6963_6e72;

/// Which denied packets are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DenialAnswer {
    /// None.
    #[default]
    Never,
    /// Those that a tenant denies, if it says so.
    OfTenants,
    /// These, and those that NetworkPolicies deny.
    Always,
}

/// Which chains of a class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ChainRole {
    /// They drop what they deny.
    #[default]
    Decide,
    /// They answer what they deny, before the others.
    Answer,
}

// === impl ChainRole ===

impl ChainRole {
    pub(super) const ALL: [Self; 2] = [Self::Decide, Self::Answer];

    /// What names of its chains begin with.
    pub(super) fn beginning(self) -> &'static str {
        match self {
            Self::Decide => "istio-np-",
            Self::Answer => ANSWERING,
        }
    }
}

// === impl DenialAnswer ===

impl DenialAnswer {
    /// Whether something that a class denies is answered.
    pub(super) fn is_of(self, class: &PolicyClass, index: &PolicyIndex) -> bool {
        let rejects = || {
            let terms = class.policies.iter().filter_map(|name| index.terms(name));
            terms
                .flat_map(|terms| terms.direction(class.direction).rules.iter())
                .any(|rule| rule.action == RuleAction::Reject)
        };
        match self {
            Self::Never => false,
            Self::OfTenants => rejects(),
            Self::Always => index.isolates(class) || rejects(),
        }
    }
}

/// The chain that answers, in the table of a backend's rules.
pub(super) fn answer_chain(backend: Backend) -> Chain {
    let rules = match backend {
        Backend::Nftables => answers(&[]),
        Backend::Iptables => {
            let mark = Rule::new(Vec::new(), Action::SetMark(ANSWER_MARK), "to be answered");
            vec![mark, Rule::new(Vec::new(), Action::Accept, "the filter table answers").uncounted()]
        }
    };
    regular(ANSWER_CHAIN.into(), rules)
}

/// What answers in iptables, beside the rules of policies: one commit has one table.
pub fn iptables_answers() -> Ruleset {
    let name: Cow<'static, str> = format!("{ANSWERING}forward").into();
    let jump = Rule::new(Vec::new(), Action::Jump(name.clone()), "what policies deny is answered");
    let (hook, priority) = (Hook::Forward, TableKind::Filter.priority(Hook::Forward));
    let base = Some(Base { kind: ChainKind::Filter, hook, priority });
    let is_marked = Match::Mark { mark: ANSWER_MARK, mask: ALL_BITS, not: false };
    let chains = vec![
        Chain { name: hook.name().into(), base, rules: vec![jump], leading: 1 },
        regular(name, answers(&[is_marked])),
    ];
    let tables = vec![Table { kind: TableKind::Filter, sets: Vec::new(), chains }];
    Ruleset { tables, ..no_iptables_answers() }
}

/// The owner of [`iptables_answers`], without rules.
pub fn no_iptables_answers() -> Ruleset {
    const KNOWN: &[KnownChain] = &[KnownChain::beginning(TableKind::Filter, ANSWERING)];
    Ruleset {
        owner: "istio-policy-answers".into(),
        known_chains: KNOWN.into(),
        ipv6: true,
        tables: Vec::new(),
    }
}

fn answers(matches: &[Match]) -> Vec<Rule> {
    let tcp = [matches, &[Match::Protocol(Protocol::Tcp)]].concat();
    vec![
        Rule::new(tcp, Action::Reject(RejectWith::TcpReset), "a connection that policies deny is reset"),
        Rule::new(matches.to_vec(), Action::Reject(RejectWith::AdminProhibited), "policies deny it"),
    ]
}
