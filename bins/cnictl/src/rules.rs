//! Rules in a backend's own words.

use ruleset::{Action, Backend, Chain, Rule, Ruleset, TableKind, iptables, nft};
use serde::Serialize;

/// A rule, where it stands, what it says and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RuleReport {
    /// Table, as the backend names it.
    pub(crate) table: String,
    /// Chain, as the backend names it.
    pub(crate) chain: String,
    /// Position among the planned rules of the chain, from 1.
    pub(crate) position: usize,
    /// Matches and action.
    pub(crate) text: String,
    /// The reason.
    pub(crate) why: String,
}

/// Describes a rule of the ruleset.
pub(crate) fn describe(
    ruleset: &Ruleset,
    backend: Backend,
    table: TableKind,
    chain: &Chain,
    index: usize,
    rule: &Rule,
) -> RuleReport {
    let (table, chain) = match backend {
        Backend::Nftables => (ruleset.nft_table(table), chain.name.to_string()),
        Backend::Iptables => (table.name().to_owned(), iptables::chain_name(chain)),
    };
    RuleReport { table, chain, position: index + 1, text: text(backend, rule), why: rule.why.to_string() }
}

fn text(backend: Backend, rule: &Rule) -> String {
    match backend {
        // The reason stands beside it already.
        Backend::Nftables => nft::render_rule(&Rule { why: "".into(), ..rule.clone() }),
        Backend::Iptables => iptables::render_rule(rule),
    }
}

/// The chain that a rule jumps to.
pub(crate) fn target(rule: &Rule) -> Option<&str> {
    if let Action::Jump(chain) = &rule.action { Some(chain) } else { None }
}
