//! nf_tables over netlink: no other program, no library, one `send` for all layers.
//!
//! `Ruleset` → [`lower`] (instructions) → [`batch`] (messages) → kernel → [`list`] (instructions again) → [`observe`]
//! (compared with those of the plan).
//!
//! Closing the socket waits for the kernel (7 to 15 ms) when something was deleted and is still being freed; adding alone never
//! does. Therefore a fresh namespace gets an add-only batch, and existing tables are only replaced when they differ.
//!
//! A table with sets that somebody else fills ([`ruleset::Content::Kept`]) is not deleted for that: its rules and chains
//! are, and made anew, in the same transaction. Only a set that is of another type than planned goes, with its elements.

mod batch;
pub(crate) mod behind;
mod content;
mod counts;
mod error;
mod expected;
mod expr;
mod held;
mod list;
mod lower;
pub(crate) mod members;
mod missing;
mod observe;
pub(crate) mod others;
mod parted;
mod probe;
mod read;
mod set;
#[cfg(test)]
pub(crate) mod tests;
pub mod trace;
mod uapi;

use netns::Inside;
use ruleset::{Hook, Ruleset, listed};

pub use counts::{
    DropCount, LogCount, LogCounts, NamedCount, NamedCounts, RuleHandles, drop_counts, rule_handles,
};
pub use error::Error;
pub(crate) use error::is_absent;
pub use held::{HeldTable, held};
pub use missing::{KernelPart, MissingPart, Release, rejects_arriving};
pub use parted::{PartedTable, Thoroughness};
pub(crate) use probe::touch;
pub use probe::{Support, probe};
pub(crate) use uapi::generation;

use crate::netlink::{self, NetlinkSocket};
use crate::watch::KeptSockets;
use crate::{Change, Difference, Listing, RuleStore};
use batch::{Batch, KeptTable, TableOf, owners};
use expected::ExpectedTable;
use list::NetlinkTable;
use observe::FoundTables;
use uapi::family;

/// How often a setup or cleanup is tried when the owner's tables come and go meanwhile. The namespace's lock keeps our own
/// programs from doing that to each other; only a program that ignores it can.
const TRIES: u32 = 3;

/// Whether the kernel has nf_tables.
pub(crate) fn answers(socket: &mut NetlinkSocket) -> Result<bool, netlink::Error> {
    match list::tables(socket, family::INET) {
        Ok(_) | Err(netlink::Error::TooMany { .. }) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Rules in nf_tables tables of the inet family, one table per owner and [`ruleset::TableKind`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Nftables;

impl RuleStore for Nftables {
    fn setup(&self, _: &Inside, layers: &[Ruleset]) -> Result<Change, crate::Error> {
        Ok(setup(&mut open()?, layers, changed)?)
    }

    fn put_first(&self, _: &Inside, layers: &[Ruleset]) -> Result<Change, crate::Error> {
        Ok(setup(&mut open()?, layers, |_, layers, _| Ok(layers.iter().collect()))?)
    }

    fn cleanup(&self, inside: &Inside, layers: &[Ruleset]) -> Result<Change, crate::Error> {
        Ok(cleanup(inside, layers)?)
    }

    fn exists(&self, _: &Inside, layers: &[Ruleset]) -> Result<bool, crate::Error> {
        let Some(mut socket) = open_if_supported()? else { return Ok(false) };
        Ok(exists(&mut socket, layers)?)
    }

    fn exists_over(&self, kept: &mut KeptSockets, layers: &[Ruleset]) -> Result<Option<bool>, crate::Error> {
        Ok(Some(exists(kept.netfilter(), layers)?))
    }

    fn observe(&self, _: &Inside, layers: &[Ruleset]) -> Result<Vec<Difference>, crate::Error> {
        Ok(observe_over(&mut open()?, layers)?)
    }

    fn observe_over(
        &self,
        kept: &mut KeptSockets,
        layers: &[Ruleset],
    ) -> Result<Option<Vec<Difference>>, crate::Error> {
        if kept.answers_as_before(layers)? {
            return Ok(Some(Vec::new()));
        }
        Ok(Some(observe_over(kept.netfilter(), layers)?))
    }

    fn recorded(&self, layers: &[Ruleset]) -> Vec<u8> {
        encode(layers)
    }

    fn observe_recorded(
        &self,
        _: &Inside,
        owners: &[Ruleset],
        record: &[u8],
    ) -> Result<Option<Vec<Difference>>, crate::Error> {
        let Some(expected) = expected::recorded(record) else { return Ok(None) };
        let mut socket = open()?;
        let listed = list_tables(&mut socket, family::INET)?;
        let (mut found, mut all) = (FoundTables::new(&listed, owners), Vec::new());
        for owner in owners {
            let of_owner = |table: &&ExpectedTable<'_>| is_owners(&owner.owner, &table.name);
            let expected: Vec<&ExpectedTable<'_>> = expected.iter().filter(of_owner).collect();
            let differences = observe::differences(&mut socket, owner, &expected, &mut found);
            all.extend(differences.map_err(|e| question(&format!("list the rules of {}", owner.owner), e))?);
        }
        Ok(Some(all))
    }

    fn tables(&self, _: &[Ruleset], record: &[u8]) -> Option<Vec<listed::ListedTable>> {
        expected::recorded(record).map(expected::listed)
    }

    fn others(&self, _: &Inside, owners: &[Ruleset]) -> Result<Listing, crate::Error> {
        match others::list(owners).map_err(|e| question("list the nf_tables rules of others", e)) {
            Err(e) if e.is_unsupported() => Ok(Listing::default()),
            result => Ok(result?),
        }
    }
}

/// The bytes of the transaction that loads layers into a namespace that has none of their tables.
pub fn encode(layers: &[Ruleset]) -> Vec<u8> {
    let mut batch = Batch::new(layers);
    add_in_order(&mut batch, layers.iter(), &[]);
    batch.finish()
}

/// Of chains with one hook and priority the kernel runs the one first that was attached last (`nf_hook_entries_grow` in
/// netfilter/core.c), so the first layer is added last.
fn add_in_order<'a>(
    batch: &mut Batch<'a>,
    layers: impl DoubleEndedIterator<Item = &'a Ruleset>,
    kept: &'a [KeptTable<'a>],
) {
    layers.rev().for_each(|layer| batch.add_tables(layer, kept));
}

/// Sends such bytes and waits for the answer: what the kernel takes for a ruleset, without anything of ours around it.
///
/// # Errors
/// The kernel refused.
pub fn send(_: &Inside, transaction: &[u8]) -> Result<(), Error> {
    let refused = |e| Error::of_question("send a transaction".to_owned(), e);
    for answer in open()?.exchange(transaction).map_err(refused)? {
        answer.result.map_err(refused)?;
    }
    Ok(())
}

fn exists(socket: &mut NetlinkSocket, layers: &[Ruleset]) -> Result<bool, Error> {
    let listed = list_tables(socket, family::INET)?;
    Ok(layers.iter().any(|layer| !observe::owned(layer, &listed).is_empty()))
}

fn observe_over(socket: &mut NetlinkSocket, layers: &[Ruleset]) -> Result<Vec<Difference>, Error> {
    let listed = list_tables(socket, family::INET)?;
    let (mut found, mut all) = (FoundTables::new(&listed, layers), Vec::new());
    for layer in layers {
        all.extend(differences(socket, layer, &mut found)?);
    }
    Ok(all)
}

/// All that the kernel answers to a comparison with the layers, and to a look for rules of iptables, as one number; absent where it is too much, or there
/// is no nf_tables.
pub(crate) fn content_hash(socket: &mut NetlinkSocket, layers: &[Ruleset]) -> Result<Option<u64>, Error> {
    match content::hash(socket, layers).map_err(|e| question("list the rules of nf_tables", e)) {
        Err(e) if e.is_unsupported() => Ok(None),
        other => other,
    }
}

/// Does it over a socket of the namespace. `which` says which layers are made anew.
fn setup(
    socket: &mut NetlinkSocket,
    layers: &[Ruleset],
    which: impl for<'a> Fn(&mut NetlinkSocket, &'a [Ruleset], &[NetlinkTable]) -> Result<Vec<&'a Ruleset>, Error>,
) -> Result<Change, Error> {
    for _ in 0..TRIES {
        let listed = list_tables(socket, family::INET)?;
        let changed = which(socket, layers, &listed)?;
        if changed.is_empty() {
            return Ok(Change::None);
        }
        let mut kept = Vec::new();
        for layer in &changed {
            let of_layer = observe::kept(socket, layer, &listed);
            let failed = |e| question(&format!("list the chains and sets of {}", layer.owner), e);
            kept.extend(of_layer.map_err(failed)?);
        }
        let is_kept = |of: &TableOf<'_>| kept.iter().find(|kept| kept.table == *of);
        let mut batch = Batch::new(layers);
        let old = changed.iter().flat_map(|layer| observe::owned(layer, &listed));
        old.filter(|of| is_kept(of).is_none()).for_each(|of| batch.delete_table(of));
        add_in_order(&mut batch, changed.iter().copied(), &kept);
        let mut owned = layers.iter().flat_map(|layer| observe::owned(layer, &listed));
        // A table that has only sets yet is none of rules.
        let held = owned.any(|of| is_kept(&of).is_none_or(KeptTable::has_chains));
        match batch.run(socket) {
            Ok(()) if held => return Ok(Change::Replaced),
            Ok(()) => return Ok(Change::Fresh),
            Err(failure) if failure.is_race() => {}
            Err(failure) => return Err(failure.among(&ours(layers, &listed))),
        }
    }
    Err(Error::Contended { owner: owners(layers), tries: TRIES })
}

/// The layers whose tables are not as planned, and those that have to be attached anew to stay before them.
fn changed<'a>(
    socket: &mut NetlinkSocket,
    layers: &'a [Ruleset],
    listed: &[NetlinkTable],
) -> Result<Vec<&'a Ruleset>, Error> {
    let (mut found, mut changed) = (FoundTables::new(listed, layers), Vec::new());
    for layer in layers {
        changed.push(match observe::owned(layer, listed).is_empty() {
            true => !layer.tables.is_empty(),
            false => !differences(socket, layer, &mut found)?.is_empty(),
        });
    }
    for number in (0..layers.len()).rev() {
        let later = layers.iter().zip(&changed).skip(number + 1).filter(|(_, changed)| **changed);
        changed[number] |= { later }.any(|(later, _)| attached_alike(&layers[number], later));
    }
    Ok(layers.iter().zip(changed).filter_map(|(layer, changed)| changed.then_some(layer)).collect())
}

/// Whether both have a base chain at the same hook with the same priority.
fn attached_alike(one: &Ruleset, other: &Ruleset) -> bool {
    fn places(layer: &Ruleset) -> impl Iterator<Item = (Hook, i32)> {
        let chains = layer.tables.iter().flat_map(ruleset::nft::chains);
        chains.filter_map(|chain| chain.base.map(|base| (base.hook, base.priority)))
    }
    places(one).any(|place| places(other).any(|other| other == place))
}

fn cleanup(_: &Inside, layers: &[Ruleset]) -> Result<Change, Error> {
    let Some(mut socket) = open_if_supported()? else { return Ok(Change::None) };
    cleanup_over(&mut socket, layers)
}

fn cleanup_over(socket: &mut NetlinkSocket, layers: &[Ruleset]) -> Result<Change, Error> {
    for _ in 0..TRIES {
        let listed = list_tables(socket, family::INET)?;
        let owned: Vec<_> = layers.iter().flat_map(|layer| observe::owned(layer, &listed)).collect();
        if owned.is_empty() {
            return Ok(Change::None);
        }
        let mut batch = Batch::new(layers);
        owned.iter().for_each(|of| batch.delete_table(*of));
        match batch.run(socket) {
            Ok(()) => return Ok(Change::Fresh),
            Err(failure) if failure.is_race() => {}
            Err(failure) => return Err(failure.among(&ours(layers, &listed))),
        }
    }
    Err(Error::Contended { owner: owners(layers), tries: TRIES })
}

fn ours(layers: &[Ruleset], listed: &[NetlinkTable]) -> Vec<NetlinkTable> {
    let is_ours = |table: &&NetlinkTable| {
        layers.iter().any(|layer| observe::owned(layer, listed).iter().any(|of| table.name == of.name()))
    };
    listed.iter().filter(is_ours).cloned().collect()
}

/// Whether a table has such a name as those of the owner have.
fn is_owners(owner: &str, table: &str) -> bool {
    table.strip_prefix(owner).is_some_and(|rest| rest.starts_with('-'))
}

/// A kernel without nf_tables holds nothing of ours.
fn open_if_supported() -> Result<Option<NetlinkSocket>, Error> {
    match open() {
        Err(e) if e.is_unsupported() => Ok(None),
        other => other.map(Some),
    }
}

fn open() -> Result<NetlinkSocket, Error> {
    NetlinkSocket::netfilter().map_err(|e| Error::of_question("speak to nf_tables".to_owned(), e))
}

/// A kernel without nf_tables has no tables.
fn list_tables(socket: &mut NetlinkSocket, family: u8) -> Result<Vec<NetlinkTable>, Error> {
    match list::tables(socket, family).map_err(|e| question("list the nf_tables tables", e)) {
        Err(e) if e.is_unsupported() => Ok(Vec::new()),
        other => other,
    }
}

fn differences(
    socket: &mut NetlinkSocket,
    layer: &Ruleset,
    found: &mut FoundTables<'_>,
) -> Result<Vec<Difference>, Error> {
    let expected = expected::planned(layer);
    observe::differences(socket, layer, &expected.iter().collect::<Vec<_>>(), found)
        .map_err(|e| question(&format!("list the rules of {}", layer.owner), e))
}

fn question(operation: &str, source: netlink::Error) -> Error {
    Error::of_question(operation.to_owned(), source)
}
