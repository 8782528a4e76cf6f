//! What the messages of a transaction are about.

use ruleset::{Base, Chain, Rule, Ruleset, TableKind};

use super::owners;

/// A table of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::nft) struct TableOf<'a> {
    /// See [`Ruleset::owner`].
    pub(in crate::nft) owner: &'a str,
    pub(in crate::nft) kind: TableKind,
}

/// What a message does to what.
#[derive(Debug, Clone, Copy)]
pub(in crate::nft) enum BatchObject<'a> {
    /// The beginning: answers about the transaction as a whole carry its number.
    Whole,
    AddTable(TableOf<'a>),
    DeleteTable(TableOf<'a>),
    DeleteRules(TableOf<'a>),
    DeleteRulesOf(TableOf<'a>, &'a str),
    DeleteChain(TableOf<'a>, &'a str),
    DeleteSet(TableOf<'a>, &'a str),
    DeleteCounter(TableOf<'a>, &'a str),
    DeleteElements(TableOf<'a>, &'a str),
    AddSet(TableOf<'a>, &'a str),
    AddElements(TableOf<'a>, &'a str),
    AddCounter(TableOf<'a>, &'a str),
    AddChain(TableOf<'a>, &'a Chain),
    AddPorts(TableOf<'a>, &'a Chain, &'a Rule),
    AddRule(TableOf<'a>, &'a Chain, &'a Rule),
}

impl TableOf<'_> {
    /// As nf_tables has it.
    pub(in crate::nft) fn name(&self) -> String {
        self.kind.nft_table(self.owner)
    }
}

impl BatchObject<'_> {
    /// The table that it is about.
    pub(in crate::nft) fn table(&self) -> Option<TableKind> {
        match self {
            Self::Whole => None,
            Self::AddTable(table)
            | Self::DeleteTable(table)
            | Self::DeleteRules(table)
            | Self::DeleteRulesOf(table, _)
            | Self::DeleteChain(table, _)
            | Self::DeleteSet(table, _)
            | Self::DeleteCounter(table, _)
            | Self::DeleteElements(table, _)
            | Self::AddSet(table, _)
            | Self::AddElements(table, _)
            | Self::AddChain(table, _)
            | Self::AddPorts(table, ..)
            | Self::AddCounter(table, _)
            | Self::AddRule(table, ..) => Some(table.kind),
        }
    }

    /// The operation in words; `layers` are those of the transaction.
    pub(in crate::nft) fn describe(&self, layers: &[Ruleset]) -> String {
        let table = |table: &TableOf<'_>| format!("table inet {}", table.name());
        let text = ruleset::nft::render_rule;
        match self {
            Self::Whole => format!("change the nf_tables tables of {}", owners(layers)),
            Self::AddTable(kind) => format!("add {}", table(kind)),
            Self::DeleteTable(kind) => format!("delete {}", table(kind)),
            Self::DeleteRules(kind) => format!("delete the rules of {}", table(kind)),
            Self::DeleteRulesOf(kind, chain) => {
                format!("delete the rules of chain {chain} of {}", table(kind))
            }
            Self::DeleteChain(kind, chain) => format!("delete chain {chain} of {}", table(kind)),
            Self::DeleteCounter(kind, counter) => format!("delete counter {counter} of {}", table(kind)),
            Self::DeleteSet(kind, set) => format!("delete set {set} of {}", table(kind)),
            Self::DeleteElements(kind, set) => format!("delete elements of set {set} of {}", table(kind)),
            Self::AddSet(kind, set) => format!("add set {set} to {}", table(kind)),
            Self::AddCounter(kind, counter) => format!("add counter {counter} to {}", table(kind)),
            Self::AddElements(kind, set) => format!("add elements to set {set} of {}", table(kind)),
            Self::AddChain(kind, chain) => match chain.base {
                Some(Base { kind: chain_kind, .. }) => {
                    format!("add chain {} of type {} to {}", chain.name, chain_kind.name(), table(kind))
                }
                None => format!("add chain {} to {}", chain.name, table(kind)),
            },
            Self::AddPorts(kind, chain, rule) => {
                format!("add the ports of rule \"{}\" of chain {} of {}", text(rule), chain.name, table(kind))
            }
            Self::AddRule(kind, chain, rule) => {
                format!("add rule \"{}\" to chain {} of {}", text(rule), chain.name, table(kind))
            }
        }
    }
}
