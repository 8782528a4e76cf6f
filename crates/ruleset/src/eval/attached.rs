//! What the kernel has at a hook, in the order in which packets meet it.

use std::ops::Range;

use crate::plan::Backend;
use crate::rule::{Action, Base, Chain, Family, Hook, Match, Rule, Ruleset, Table, TableKind};

/// One chain of the kernel's. In nf_tables that is a base chain of one layer. A built-in chain of iptables has rules of all layers.
pub(super) struct Attached<'a> {
    pub(super) kind: TableKind,
    priority: i32,
    /// Its rules in order.
    pub(super) parts: Vec<LayerPart<'a>>,
}

/// Rules that follow one another in a layer's chain.
#[derive(Clone)]
pub(super) struct LayerPart<'a> {
    pub(super) owner: &'a str,
    pub(super) table: &'a Table,
    pub(super) chain: &'a Chain,
    pub(super) rules: Range<usize>,
}

/// The chains at a hook in order of priority. Of nf_tables chains with one priority that of the earlier layer comes first: for the kernel
/// that is the one which was attached last (`nf_hook_entries_grow` in netfilter/core.c), and so it is loaded. In a built-in chain of
/// iptables the rules come first that must precede those of others ([`Chain::leading`]), then all others, both in the order of the layers.
pub(super) fn attached(
    layers: &[Ruleset],
    backend: Backend,
    family: Family,
    hook: Hook,
) -> Vec<Attached<'_>> {
    let mut all: Vec<Attached<'_>> = Vec::new();
    for (part, priority) in base_chains(layers, backend, family, hook) {
        let kind = part.table.kind;
        match all.iter_mut().find(|attached| backend == Backend::Iptables && attached.kind == kind) {
            Some(shared) => shared.parts.push(part),
            None => all.push(Attached { kind, priority, parts: vec![part] }),
        }
    }
    for attached in all.iter_mut().filter(|attached| attached.parts.len() > 1) {
        let split = |part: &LayerPart<'_>| part.chain.leading.min(part.rules.end);
        let first = attached.parts.iter().map(|part| LayerPart { rules: 0..split(part), ..part.clone() });
        let rest = attached
            .parts
            .iter()
            .map(|part| LayerPart { rules: split(part)..part.rules.end, ..part.clone() });
        attached.parts = first.chain(rest).collect();
    }
    // Stable: the order of the layers stays where priorities are equal.
    all.sort_by_key(|attached| attached.priority);
    all
}

fn base_chains(
    layers: &[Ruleset],
    backend: Backend,
    family: Family,
    hook: Hook,
) -> impl Iterator<Item = (LayerPart<'_>, i32)> {
    let tables = tables(layers, backend, family);
    let chains =
        tables.flat_map(|(owner, table)| table.chains.iter().map(move |chain| (owner, table, chain)));
    chains.filter_map(move |(owner, table, chain)| match chain.base {
        Some(Base { hook: at, priority, .. }) if at == hook => {
            Some((LayerPart { owner, table, chain, rules: 0..chain.rules.len() }, priority))
        }
        _ => None,
    })
}

/// The tables that packets of the family meet. Without IPv6 ip6tables is not run at all; an inet table of nf_tables sees both families
/// whatever was planned.
fn tables(layers: &[Ruleset], backend: Backend, family: Family) -> impl Iterator<Item = (&str, &Table)> {
    let sees = move |layer: &&Ruleset| backend == Backend::Nftables || layer.families().contains(&family);
    layers.iter().filter(sees).flat_map(|layer| layer.tables.iter().map(|table| (&*layer.owner, table)))
}

/// Whether what was redirected before goes on being translated under these rules, of which a packet of such a connection meets none in a nat
/// table. The kernel translates while the namespace has a nat base chain and something that needs connection tracking
/// (`nf_nat_register_fn` and `nf_ct_netns_get`); rules of others may do both, and do not count here.
#[must_use]
pub fn translations_last(layers: &[Ruleset], backend: Backend, family: Family) -> bool {
    let chains = || {
        let tables = tables(layers, backend, family);
        tables.flat_map(|(_, table)| table.chains.iter().map(move |chain| (table.kind, chain)))
    };
    let translates = chains().any(|(kind, chain)| kind == TableKind::Nat && chain.base.is_some());
    let mut rules =
        chains().flat_map(|(_, chain)| &chain.rules).filter(|rule| rule.families.contains(family));
    translates && rules.any(needs_tracking)
}

fn needs_tracking(rule: &Rule) -> bool {
    rule.matches.iter().any(Match::asks_connection)
        || match rule.action {
            Action::SetCtMark { .. }
            | Action::SaveMark
            | Action::RestoreMark
            | Action::SetZone(_)
            | Action::Redirect { .. }
            | Action::Snat { .. } => true,
            Action::Accept
            | Action::Drop
            | Action::Reject(_)
            | Action::Log { .. }
            | Action::Return
            | Action::Jump(_)
            | Action::VerdictMap { .. }
            | Action::Tproxy { .. }
            | Action::SetMark(_) => false,
        }
}
