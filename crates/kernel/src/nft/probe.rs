//! What this kernel's nf_tables can do, without changing anything.

use netns::Inside;
use ruleset::{
    ALL_BITS, Action, Base, Chain, ChainKind, Counting, Families, Family, Hook, Match, Protocol, Rule,
    Ruleset, Table, TableKind,
};

use super::error::Error;
use super::{Batch, open};
use crate::netlink::NetlinkSocket;

/// What the nf_tables of this kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Support {
    /// nf_tables at all: what the nft variant of iptables works by.
    pub tables: bool,
    /// Tables for both families with redirecting nat chains: what sidecars need.
    pub redirect: bool,
    /// Marks of connections, and routes by marks: what ambient mode needs, too.
    pub marks: bool,
    /// Handing packets to a transparent socket, which goes with marks.
    pub tproxy: bool,
}

impl Support {
    /// Of a kernel without nf_tables.
    const NOTHING: Self = Self { tables: false, redirect: false, marks: false, tproxy: false };
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
    match open() {
        Err(e) if e.is_unsupported() => Ok(Support::NOTHING),
        socket => ask(&mut socket?),
    }
}

/// Makes a table without anything in it: a change for others to hear of, in a namespace that nobody has.
pub(crate) fn touch(_: &Inside) -> Result<(), Error> {
    let table = Table { kind: TableKind::Filter, sets: Vec::new(), chains: Vec::new() };
    let layers = [Ruleset { tables: vec![table], ..questions() }];
    let mut batch = Batch::dormant(&layers);
    batch.add_tables(&layers[0], &[]);
    Ok(batch.run(&mut open()?)?)
}

/// Asks over a socket of the namespace.
pub(super) fn ask(socket: &mut NetlinkSocket) -> Result<Support, Error> {
    let layers = [questions()];
    let mut batch = Batch::dormant(&layers);
    batch.add_tables(&layers[0], &[]);
    let mut support = Support { tables: true, redirect: true, marks: true, tproxy: true };
    for failure in batch.rehearse(socket)? {
        match (failure.missing(), failure.object.table()) {
            (None, _) => return Err(failure.into()),
            (Some(_), Some(TableKind::Nat)) => support.redirect = false,
            (Some(_), Some(TableKind::Mangle)) => support.marks = false,
            (Some(_), Some(TableKind::Raw)) => support.tproxy = false,
            // A kernel that does not know the transaction has something to say about each of its messages, too.
            (Some(_), Some(TableKind::Filter) | None) => return Ok(Support::NOTHING),
        }
    }
    Ok(Support { tproxy: support.tproxy && support.marks, ..support })
}

/// One of everything that rules of ours need.
pub(super) fn questions() -> Ruleset {
    // Names of its own, so that a table of ours that is there does not matter.
    let tables = vec![redirect(), marks(), tproxy()];
    Ruleset { owner: "istio-probe".into(), known_chains: Vec::new().into(), ipv6: true, tables }
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

fn marks() -> Table {
    let kind = TableKind::Mangle;
    let matches = vec![Match::CtMark { mark: 1, mask: ALL_BITS, not: false }];
    // A chain without rules is not sent.
    let rules = vec![Rule::new(matches, Action::SetMark(1), "")];
    Table { kind, sets: Vec::new(), chains: vec![chain(ChainKind::Route, Hook::Output, rules, kind)] }
}

fn tproxy() -> Table {
    let kind = TableKind::Raw;
    let rules = [Family::V4, Family::V6]
        .map(|family| Rule {
            families: Families::Only(family),
            matches: vec![Match::Protocol(Protocol::Tcp)],
            action: Action::Tproxy { port: 1, mark: 1 },
            counting: Counting::Rule,
            why: "".into(),
        })
        .to_vec();
    Table { kind, sets: Vec::new(), chains: vec![chain(ChainKind::Filter, Hook::Prerouting, rules, kind)] }
}
