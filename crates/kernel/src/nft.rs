//! nf_tables over netlink: no other program, no library, one `send` for a whole ruleset.
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
mod error;
mod expected;
mod expr;
mod list;
mod lower;
pub(crate) mod members;
mod missing;
mod observe;
pub(crate) mod others;
mod probe;
mod read;
mod set;
#[cfg(test)]
mod tests;
mod uapi;

use netns::Inside;
use ruleset::{Ruleset, listed};

pub use error::Error;
pub use missing::{Missing, Part, Release};
pub use probe::{Support, probe};

use crate::netlink::{self, Socket};
use crate::{Change, Difference, Listing, RuleStore};
use batch::Batch;
use list::ListedTable;
use uapi::family;

/// How often a setup or cleanup is tried when the owner's tables come and go meanwhile. The namespace's lock keeps our own
/// programs from doing that to each other; only a program that ignores it can.
const TRIES: u32 = 3;

/// Rules in nf_tables tables of the inet family, one table per [`ruleset::TableKind`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Nftables;

impl RuleStore for Nftables {
    fn setup(&self, _: &Inside, ruleset: &Ruleset) -> Result<Change, crate::Error> {
        Ok(setup(&mut open()?, ruleset)?)
    }

    fn cleanup(&self, inside: &Inside, ruleset: &Ruleset) -> Result<Change, crate::Error> {
        Ok(cleanup(inside, ruleset)?)
    }

    fn exists(&self, _: &Inside, ruleset: &Ruleset) -> Result<bool, crate::Error> {
        let Some(mut socket) = open_if_supported()? else { return Ok(false) };
        Ok(!observe::owned(ruleset, &list_tables(&mut socket, family::INET)?).is_empty())
    }

    fn observe(&self, _: &Inside, ruleset: &Ruleset) -> Result<Vec<Difference>, crate::Error> {
        let mut socket = open()?;
        let listed = list_tables(&mut socket, family::INET)?;
        Ok(differences(&mut socket, ruleset, &listed)?)
    }

    fn recorded(&self, ruleset: &Ruleset) -> Vec<u8> {
        encode(ruleset)
    }

    fn observe_recorded(
        &self,
        _: &Inside,
        owner: &Ruleset,
        record: &[u8],
    ) -> Result<Option<Vec<Difference>>, crate::Error> {
        let Some(expected) = expected::recorded(record) else { return Ok(None) };
        let mut socket = open()?;
        let listed = list_tables(&mut socket, family::INET)?;
        let differences = observe::differences(&mut socket, owner, &expected, &listed);
        Ok(Some(differences.map_err(|e| question(&format!("list the rules of {}", owner.owner), e))?))
    }

    fn tables(&self, _: &Ruleset, record: &[u8]) -> Option<Vec<listed::Table>> {
        expected::recorded(record).map(expected::listed)
    }

    fn others(&self, _: &Inside, owner: &Ruleset) -> Result<Listing, crate::Error> {
        match others::list(owner).map_err(|e| question("list the nf_tables rules of others", e)) {
            Err(e) if e.is_unsupported() => Ok(Listing::default()),
            result => Ok(result?),
        }
    }
}

/// The bytes of the transaction that loads a ruleset into a namespace that has none of its tables.
pub fn encode(ruleset: &Ruleset) -> Vec<u8> {
    let mut batch = Batch::new(ruleset);
    batch.add_tables(&[]);
    batch.finish()
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

/// Does it over a socket of the namespace.
fn setup(socket: &mut Socket, ruleset: &Ruleset) -> Result<Change, Error> {
    for _ in 0..TRIES {
        let listed = list_tables(socket, family::INET)?;
        let owned = observe::owned(ruleset, &listed);
        if !owned.is_empty() && differences(socket, ruleset, &listed)?.is_empty() {
            return Ok(Change::None);
        }
        let kept = observe::kept(socket, ruleset, &listed)
            .map_err(|e| question(&format!("list the chains and sets of {}", ruleset.owner), e))?;
        let mut batch = Batch::new(ruleset);
        let replaced = owned.iter().filter(|owned| kept.iter().all(|kept| kept.kind != **owned));
        replaced.for_each(|kind| batch.delete_table(*kind));
        batch.add_tables(&kept);
        // A table that has only sets yet is none of rules.
        let held = owned.len() > kept.len() || kept.iter().any(|kept| !kept.chains.is_empty());
        match batch.run(socket) {
            Ok(()) if held => return Ok(Change::Replaced),
            Ok(()) if ruleset.tables.is_empty() => return Ok(Change::None),
            Ok(()) => return Ok(Change::Fresh),
            Err(failure) if failure.is_race() => {}
            Err(failure) => return Err(failure.among(&ours(ruleset, &listed))),
        }
    }
    Err(Error::Contended { owner: ruleset.owner.to_string(), tries: TRIES })
}

fn cleanup(_: &Inside, ruleset: &Ruleset) -> Result<Change, Error> {
    let Some(mut socket) = open_if_supported()? else { return Ok(Change::None) };
    for _ in 0..TRIES {
        let listed = list_tables(&mut socket, family::INET)?;
        let owned = observe::owned(ruleset, &listed);
        if owned.is_empty() {
            return Ok(Change::None);
        }
        let mut batch = Batch::new(ruleset);
        owned.iter().for_each(|kind| batch.delete_table(*kind));
        match batch.run(&mut socket) {
            Ok(()) => return Ok(Change::Fresh),
            Err(failure) if failure.is_race() => {}
            Err(failure) => return Err(failure.among(&ours(ruleset, &listed))),
        }
    }
    Err(Error::Contended { owner: ruleset.owner.to_string(), tries: TRIES })
}

fn ours(ruleset: &Ruleset, listed: &[ListedTable]) -> Vec<ListedTable> {
    let kinds = observe::owned(ruleset, listed);
    let is_ours = |table: &&ListedTable| kinds.iter().any(|kind| table.name == ruleset.nft_table(*kind));
    listed.iter().filter(is_ours).cloned().collect()
}

/// A kernel without nf_tables holds nothing of ours.
fn open_if_supported() -> Result<Option<Socket>, Error> {
    match open() {
        Err(e) if e.is_unsupported() => Ok(None),
        other => other.map(Some),
    }
}

fn open() -> Result<Socket, Error> {
    Socket::netfilter().map_err(|e| Error::of_question("speak to nf_tables".to_owned(), e))
}

/// A kernel without nf_tables has no tables.
fn list_tables(socket: &mut Socket, family: u8) -> Result<Vec<ListedTable>, Error> {
    match list::tables(socket, family).map_err(|e| question("list the nf_tables tables", e)) {
        Err(e) if e.is_unsupported() => Ok(Vec::new()),
        other => other,
    }
}

fn differences(
    socket: &mut Socket,
    ruleset: &Ruleset,
    listed: &[ListedTable],
) -> Result<Vec<Difference>, Error> {
    observe::differences(socket, ruleset, &expected::planned(ruleset), listed)
        .map_err(|e| question(&format!("list the rules of {}", ruleset.owner), e))
}

fn question(operation: &str, source: netlink::Error) -> Error {
    Error::of_question(operation.to_owned(), source)
}
