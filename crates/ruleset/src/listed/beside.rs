//! What is listed of owners that are known besides a plan's: another part of ours loads and compares it.

use super::{ListedAct, ListedChain, ListedTable};
use crate::iptables::Names;
use crate::rule::{Ruleset, TableKind};

const KINDS: [TableKind; 4] = [TableKind::Raw, TableKind::Mangle, TableKind::Nat, TableKind::Filter];

/// Takes out what these owners have: tables of nf_tables and chains of iptables that bear their names and are such. A name is free to everybody: in a
/// pod's namespace only [`only_judges`] is proof enough.
pub fn take_out(tables: &mut Vec<ListedTable>, owners: &[Ruleset], is_such: fn(&ListedChain) -> bool) {
    for owner in owners {
        for kind in KINDS {
            let nft = format!("inet {}", kind.nft_table(&owner.owner));
            tables.retain(|table| table.ours || table.name != nft || !table.chains.iter().all(is_such));
            let names = Names::of(owner, kind);
            let is_of_kind = |table: &ListedTable| {
                table.lister.is_iptables() && table.name.split(' ').nth(1) == Some(kind.name())
            };
            let is_taken =
                |chain: &ListedChain| chain.base.is_none() && names.contain(&chain.name) && is_such(chain);
            tables
                .iter_mut()
                .filter(|table| is_of_kind(table))
                .for_each(|table| take_chains(table, &is_taken));
        }
    }
}

fn take_chains(table: &mut ListedTable, is_taken: &dyn Fn(&ListedChain) -> bool) {
    let (taken, left): (Vec<_>, Vec<_>) = std::mem::take(&mut table.chains).into_iter().partition(is_taken);
    table.chains = left;
    let leads_there = |act: &ListedAct| match act {
        ListedAct::Jump(to) | ListedAct::Goto(to) => taken.iter().any(|chain| chain.name == *to),
        _ => false,
    };
    for chain in &mut table.chains {
        chain.rules.retain(|rule| !rule.acts.iter().any(leads_there));
    }
}

/// Whether a chain's rules do no more than let packets pass or drop them, as those of policies do.
pub fn only_judges(chain: &ListedChain) -> bool {
    let mut acts = chain.rules.iter().flat_map(|rule| &rule.acts);
    acts.all(|act| {
        let leads_on = matches!(act, ListedAct::Return | ListedAct::Jump(_) | ListedAct::Goto(_));
        leads_on || matches!(act, ListedAct::Accept | ListedAct::Drop)
    })
}
