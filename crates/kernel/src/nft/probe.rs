//! What this kernel's nf_tables can do, without changing anything.

use netns::Inside;
use ruleset::{
    ALL_BITS, Action, Base, Chain, ChainKind, Families, Family, Hook, Match, Protocol, Rule, Ruleset, Table,
    TableKind,
};

use super::error::Error;
use super::{Batch, open};

/// What the nf_tables of this kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Support {
    /// Tables for both families with redirecting nat chains: what sidecars need.
    pub redirect: bool,
    /// Handing packets to a transparent socket, and marks of connections.
    pub tproxy: bool,
}

/// Asks the kernel by a transaction that ends before its commit, which the kernel checks message by message and then
/// forgets. Its chains are never attached to the packet path, so it may be asked on the node itself.
///
/// It costs a wait of some milliseconds. The setup of [`super::Nftables`] says the same for nothing by
/// [`Error::is_unsupported`]; this is for those who must know before.
///
/// # Errors
/// Something else than a missing part of the kernel.
pub fn probe(_: &Inside) -> Result<Support, Error> {
    let mut socket = match open() {
        Err(e) if e.is_unsupported() => return Ok(Support { redirect: false, tproxy: false }),
        other => other?,
    };
    // Names of its own, so that a table of ours that is there does not matter.
    let tables = vec![redirect(), tproxy()];
    let ruleset = Ruleset { owner: "istio-probe".into(), known_chains: &[], ipv6: true, tables };
    let mut batch = Batch::dormant(&ruleset);
    batch.add_tables(&[]);
    let mut support = Support { redirect: true, tproxy: true };
    for failure in batch.rehearse(&mut socket)? {
        match (failure.missing(), failure.object.table()) {
            (None, _) => return Err(failure.into()),
            (Some(_), Some(TableKind::Nat)) => support.redirect = false,
            (Some(_), Some(TableKind::Mangle)) => support.tproxy = false,
            (Some(_), _) => support = Support { redirect: false, tproxy: false },
        }
    }
    Ok(support)
}

fn chain(kind: ChainKind, hook: Hook, rules: Vec<Rule>, table: TableKind) -> Chain {
    let priority = table.priority(hook);
    Chain { name: hook.name().into(), base: Some(Base { kind, hook, priority }), rules, leading: 0 }
}

fn redirect() -> Table {
    let kind = TableKind::Nat;
    let tcp = || vec![Match::Protocol(Protocol::Tcp)];
    let rules = vec![Rule::new(tcp(), Action::Redirect { port: 1 }, "")];
    Table { kind, sets: Vec::new(), chains: vec![chain(ChainKind::Nat, Hook::Output, rules, kind)] }
}

fn tproxy() -> Table {
    let kind = TableKind::Mangle;
    let rules = [Family::V4, Family::V6]
        .map(|family| Rule {
            families: Families::Only(family),
            matches: vec![
                Match::Protocol(Protocol::Tcp),
                Match::CtMark { mark: 1, mask: ALL_BITS, not: false },
            ],
            action: Action::Tproxy { port: 1, mark: 1 },
            counted: true,
            why: "".into(),
        })
        .to_vec();
    let route = chain(ChainKind::Route, Hook::Output, Vec::new(), kind);
    Table {
        kind,
        sets: Vec::new(),
        chains: vec![chain(ChainKind::Filter, Hook::Prerouting, rules, kind), route],
    }
}
