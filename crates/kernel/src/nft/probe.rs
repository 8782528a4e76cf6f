//! What this kernel's nf_tables can do, without changing anything.

use netns::Inside;
use ruleset::{
    Action, Base, Chain, ChainKind, Families, Family, Hook, Match, Protocol, Rule, Ruleset, Table, TableKind,
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
/// forgets. It costs a wait of some milliseconds; [`super::Nftables`]' setup says the same for nothing by
/// [`Error::is_unsupported`], so this is for those who must know before.
///
/// # Errors
/// Something else than a missing part of the kernel.
pub fn probe(_: &Inside) -> Result<Support, Error> {
    Ok(Support { redirect: accepts(&redirect())?, tproxy: accepts(&tproxy())? })
}

fn accepts(ruleset: &Ruleset) -> Result<bool, Error> {
    let mut socket = match open() {
        Err(e) if e.is_unsupported() => return Ok(false),
        other => other?,
    };
    let mut batch = Batch::new(ruleset);
    batch.add_tables();
    let failures = batch.rehearse(&mut socket)?;
    if failures.iter().any(|failure| failure.missing().is_some()) {
        return Ok(false);
    }
    match failures.into_iter().next() {
        Some(failure) => Err(failure.into()),
        None => Ok(true),
    }
}

/// Own names, so that a table of ours that is there does not matter.
fn ruleset(table: Table) -> Ruleset {
    Ruleset { owner: "istio-probe".into(), ipv6: false, tables: vec![table] }
}

fn chain(kind: ChainKind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { name: hook.name().into(), base: Some(Base { kind, hook, priority }), rules, leading: 0 }
}

fn redirect() -> Ruleset {
    let kind = TableKind::Nat;
    let tcp = || vec![Match::Protocol(Protocol::Tcp)];
    let rules = vec![Rule::new(tcp(), Action::Redirect { port: 1 }, "")];
    ruleset(Table {
        kind,
        sets: Vec::new(),
        chains: vec![chain(ChainKind::Nat, Hook::Output, kind.priority(), rules)],
    })
}

fn tproxy() -> Ruleset {
    let kind = TableKind::Mangle;
    let rules = [Family::V4, Family::V6]
        .map(|family| Rule {
            families: Families::Only(family),
            matches: vec![Match::Protocol(Protocol::Tcp), Match::CtMark { mark: 1, not: false }],
            action: Action::Tproxy { port: 1, mark: 1 },
            why: "".into(),
        })
        .to_vec();
    let route = chain(ChainKind::Route, Hook::Output, kind.priority(), Vec::new());
    ruleset(Table {
        kind,
        sets: Vec::new(),
        chains: vec![chain(ChainKind::Filter, Hook::Prerouting, kind.priority(), rules), route],
    })
}
