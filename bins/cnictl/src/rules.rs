//! Rules in a backend's own words.

use ruleset::eval::RulePlace;
use ruleset::{Backend, Family, Rule, iptables, nft};
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

/// Describes a rule.
pub(crate) fn describe(backend: Backend, place: &RulePlace<'_>) -> RuleReport {
    let RulePlace { owner, table, chain, index, rule } = *place;
    let (table, chain) = match backend {
        Backend::Nftables => (table.nft_table(owner), chain.name.to_string()),
        Backend::Iptables => (table.name().to_owned(), iptables::chain_name(chain)),
    };
    RuleReport { table, chain, position: index + 1, text: text(backend, rule), why: rule.why.to_string() }
}

fn text(backend: Backend, rule: &Rule) -> String {
    match backend {
        // The reason stands beside it already.
        Backend::Nftables => nft::render_rule(&Rule { why: "".into(), ..rule.clone() }),
        Backend::Iptables => {
            let family = if rule.families.contains(Family::V4) { Family::V4 } else { Family::V6 };
            iptables::render_rule(rule, family)
        }
    }
}
