//! Rules on a packet's way, in words.

use ruleset::Base;
use ruleset::listed::walk::ListedPlace;
use ruleset::listed::{Condition, ListedAct, ListedChain, ListedTable};

use super::LiveRule;
use super::branch::VerdictCause;
use crate::ConflictPlace;

impl VerdictCause<'_> {
    pub(crate) fn told(&self) -> LiveRule {
        let plain = |place: ConflictPlace, text: String| LiveRule {
            place,
            text,
            why: None,
            verdict: None,
            read: true,
        };
        match self {
            Self::Rule(place) => told_rule(place),
            Self::Policy(station) => {
                let text = format!("policy of chain {}: drop", station.chain.name);
                // A policy of iptables is everybody's.
                let ours = station.table.is_only_ours();
                LiveRule {
                    why: ours.then(String::new),
                    verdict: Some(ListedAct::Drop),
                    ..plain(ConflictPlace::of_chain(station.table, station.chain, station.base), text)
                }
            }
            Self::Order(station) => {
                let Base { hook, priority, .. } = station.base;
                let text = format!(
                    "whether chain {} runs before or after others of priority {priority} at {} is not shown",
                    station.chain.name,
                    hook.name()
                );
                LiveRule {
                    read: false,
                    ..plain(ConflictPlace::of_chain(station.table, station.chain, station.base), text)
                }
            }
            Self::Kernel(text) => plain(ConflictPlace::default(), text.to_string()),
        }
    }
}

fn told_rule(place: &ListedPlace<'_>) -> LiveRule {
    let rule = place.rule;
    let read = !rule.conditions.contains(&Condition::Unread) && !rule.acts.contains(&ListedAct::Unread);
    LiveRule {
        place: ConflictPlace::of_rule(place),
        text: rule.to_string(),
        why: rule.why.as_deref().map(str::to_owned),
        verdict: rule.acts.last().filter(|_| read).cloned(),
        read,
    }
}

impl ConflictPlace {
    /// The place of a chain.
    pub(crate) fn of_chain(table: &ListedTable, chain: &ListedChain, base: Base) -> Self {
        let (family, name) = table.name.split_once(' ').unwrap_or(("", &table.name));
        Self {
            family: family.to_owned(),
            table: name.to_owned(),
            chain: chain.name.clone(),
            handle: None,
            priority: Some(base.priority),
        }
    }

    /// The place of a rule.
    pub(crate) fn of_rule(place: &ListedPlace<'_>) -> Self {
        Self { handle: place.rule.handle, ..Self::of_chain(place.table, place.chain, place.base) }
    }
}
