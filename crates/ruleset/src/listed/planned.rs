//! A plan's rules in the form that listed rules have, and which of those that are listed are the plan's.

use std::borrow::Cow;

use super::{ListedChain, ListedRule, ListedTable, Lister, chain_of, empty, parse_line};
use crate::iptables::{chain_name, leading, render_rule, rules};
use crate::rule::{Family, Ruleset};

/// The layers' rules of a family, as iptables has them: in a chain of all, first those that must precede the rules of others.
pub fn planned(layers: &[Ruleset], family: Family) -> Vec<ListedTable> {
    let mut tables: Vec<ListedTable> = Vec::new();
    for part in [true, false] {
        for table in layers.iter().flat_map(|layer| &layer.tables) {
            let empty = ListedTable { ours: true, ..empty(table.kind, family, Lister::IptablesNft) };
            let at = tables.iter().position(|known| known.name == empty.name).unwrap_or_else(|| {
                tables.push(empty);
                tables.len() - 1
            });
            for chain in &table.chains {
                let leading = leading(chain, family);
                let rules = rules(chain, family).enumerate().filter(|(n, _)| (*n < leading) == part);
                let of = chain_of(&mut tables[at], table.kind, &chain_name(chain));
                of.rules.extend(rules.map(|(_, rule)| ListedRule {
                    why: Some(rule.why.clone()),
                    ..parse_line(&render_rule(rule, family), family)
                }));
            }
        }
    }
    tables
}

/// Tells which rules in tables of iptables are the plan's: those that are alike in a chain that everybody has, and all in a chain of the
/// plan's own. A table that has one is marked.
pub fn attribute(tables: &mut [ListedTable], planned: &[ListedTable]) {
    for table in tables.iter_mut().filter(|table| table.lister.is_iptables()) {
        // The legacy variant's name has a word more.
        let is_same = |own: &&ListedTable| table.name.split(" (").next() == Some(&own.name);
        let Some(own) = planned.iter().find(is_same) else { continue };
        let mut found = false;
        for chain in &mut table.chains {
            let Some(of_plan) = own.chain(&chain.name) else { continue };
            found |= attribute_chain(chain, of_plan);
        }
        table.ours |= found;
    }
}

fn attribute_chain(chain: &mut ListedChain, planned: &ListedChain) -> bool {
    for rule in &mut chain.rules {
        let own = planned.rules.iter().find(|own| own.conditions == rule.conditions && own.acts == rule.acts);
        // Whatever is in a chain of ours that is not planned is compared elsewhere.
        let unknown = planned.base.is_none().then_some(Cow::Borrowed(""));
        rule.why = own.and_then(|own| own.why.clone()).or(unknown);
    }
    chain.rules.iter().any(|rule| rule.why.is_some())
}
