//! A table that is changed by parts: chains and sets come and go while everything else stays as it is.
//!
//! What is wanted of it is known as a whole, too, so that what the kernel has can be compared with that at any time, and only what differs is written.

mod compare;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netns::InsideHost;
use ruleset::{KeptMembers, Ruleset, Table, TableDelta, TableKind};

use super::batch::{Batch, TableOf};
use super::{Error, cleanup_over, counts, list_tables, question};
use crate::Change;
use crate::netlink::{Error as NetlinkError, NetlinkSocket};
use crate::watch::{Noticed, open_netfilter, read_commits};
pub use compare::Thoroughness;
use compare::{Gaps, TableComparison, compare, lacking};

use super::uapi::family;

/// How often what differs is found anew, because somebody changes the table meanwhile, before all of it is written.
const TRIES: usize = 3;

/// A table of the node's namespace, over sockets that stay there.
pub struct PartedTable {
    /// An owner without tables.
    of: Ruleset,
    kind: TableKind,
    socket: NetlinkSocket,
    hears: NetlinkSocket,
    /// Sets that had members when it was looked what is missing.
    filled: BTreeSet<String>,
}

// === impl PartedTable ===

impl PartedTable {
    /// Opens the sockets for the table that an owner has of a kind. Nothing is made or changed; transactions are heard from now on.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or no descriptor is left.
    pub fn open(
        inside: &InsideHost<'_>,
        owner: impl Into<Cow<'static, str>>,
        kind: TableKind,
    ) -> Result<Self, Error> {
        let hears = open_netfilter(inside.inside())
            .map_err(|e| Error::of_question("hear transactions of nf_tables".to_owned(), e))?;
        let of =
            Ruleset { owner: owner.into(), known_chains: Vec::new().into(), ipv6: true, tables: Vec::new() };
        Ok(Self { of, kind, socket: super::open()?.staying(), hears, filled: BTreeSet::new() })
    }

    /// To wait for: readable when somebody has committed something.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.hears.as_fd()
    }

    /// What was committed since the last call. Never waits.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn heard(&mut self) -> Result<Noticed, Error> {
        let heard = self.hears.hear();
        self.hears.rest();
        heard
            .map(|events| read_commits(&events))
            .map_err(|e| Error::of_question("read events of nf_tables".to_owned(), e))
    }

    /// Makes what the kernel has equal to the only table of `wanted` with these members, whatever is there. What is equal already is not
    /// touched. New sets and members come first, then rules and where maps lead, in one transaction, and last members and sets go.
    ///
    /// # Errors
    /// The kernel refused; or it could not be asked.
    pub fn ensure(
        &mut self,
        wanted: &Ruleset,
        contents: &dyn KeptMembers,
        thoroughness: Thoroughness,
    ) -> Result<Change, Error> {
        let [table] = &wanted.tables[..] else { return self.remove() };
        let mut found = |socket: &mut NetlinkSocket| compare(socket, wanted, table, contents, thoroughness);
        if let Ok(change) = self.write(wanted, contents, &mut found)? {
            return Ok(change);
        }
        self.load(wanted, table, contents, true)?;
        Ok(Change::Replaced)
    }

    /// Makes of the only table of `wanted` what the kernel lacks: chains and sets that are not there or were emptied, and whatever is said of these
    /// addresses. All else stays as it is, since what is wanted may be older than that. A table that is not there is made. That a set was emptied is known
    /// where it had members in an earlier call, or the kernel cannot have newer ones.
    ///
    /// # Errors
    /// As of [`Self::ensure`].
    pub fn supplement(
        &mut self,
        wanted: &Ruleset,
        contents: &dyn KeptMembers,
        (addresses, thoroughness): (&BTreeSet<IpAddr>, Thoroughness),
    ) -> Result<Change, Error> {
        let [table] = &wanted.tables[..] else { return Ok(Change::None) };
        let mut filled = std::mem::take(&mut self.filled);
        let mut found = |socket: &mut NetlinkSocket| {
            let mut gaps = Gaps { thoroughness, addresses, filled: &mut filled };
            lacking(socket, wanted, table, contents, &mut gaps)
        };
        let written = self.write(wanted, contents, &mut found);
        self.filled = filled;
        match written? {
            Ok(change) => Ok(change),
            Err(Some(refused)) => Err(refused),
            Err(None) => {
                self.load(wanted, table, contents, true)?;
                Ok(Change::Replaced)
            }
        }
    }

    /// Finds what differs and writes it. Gives why nothing was found, or not written, that is to say the last refusal.
    fn write(
        &mut self,
        wanted: &Ruleset,
        contents: &dyn KeptMembers,
        find: &mut dyn FnMut(&mut NetlinkSocket) -> Result<TableComparison, NetlinkError>,
    ) -> Result<Result<Change, Option<Error>>, Error> {
        let mut refused = None;
        for _ in 0..TRIES {
            let found = find(&mut self.socket)
                .map_err(|e| question(&format!("compare the table of {}", wanted.owner), e))?;
            let deltas = match found {
                TableComparison::Missing => {
                    for table in &wanted.tables {
                        self.load(wanted, table, contents, false)?;
                    }
                    return Ok(Ok(Change::Fresh));
                }
                TableComparison::Anew => return Ok(Err(None)),
                TableComparison::Parts(deltas) => deltas,
            };
            if deltas.is_empty() {
                return Ok(Ok(if refused.is_some() { Change::Replaced } else { Change::None }));
            }
            match deltas.iter().try_for_each(|delta| self.change(delta)) {
                Ok(()) => return Ok(Ok(Change::Replaced)),
                Err(error) => refused = Some(error),
            }
        }
        Ok(Err(refused))
    }

    /// Changes a part, in one transaction.
    ///
    /// # Errors
    /// The kernel did none of it; what it has may be other than is thought.
    pub fn change(&mut self, delta: &TableDelta) -> Result<(), Error> {
        let place = TableOf { owner: &self.of.owner, kind: self.kind };
        let mut batch = Batch::new(std::slice::from_ref(&self.of));
        batch.change_table(place, delta);
        batch.run(&mut self.socket).map_err(Error::from)
    }

    /// The packets that each of the first rules of a chain has counted, in order; at most so many rules.
    ///
    /// # Errors
    /// The kernel could not be asked, or has no such chain.
    pub fn counted(&mut self, chain: &str, most: usize) -> Result<Vec<u64>, Error> {
        let table = self.of.nft_table(self.kind);
        let counted = counts::packets(&mut self.socket, &table, chain, most);
        counted.map_err(|e| question(&format!("read what chain {chain} of {table} counted"), e))
    }

    /// Removes the owner's tables in one transaction.
    ///
    /// # Errors
    /// Something is there still.
    pub fn remove(&mut self) -> Result<Change, Error> {
        cleanup_over(&mut self.socket, std::slice::from_ref(&self.of))
    }

    /// Makes all of it in one transaction.
    fn load(
        &mut self,
        wanted: &Ruleset,
        table: &Table,
        contents: &dyn KeptMembers,
        is_there: bool,
    ) -> Result<(), Error> {
        let place = TableOf { owner: &wanted.owner, kind: table.kind };
        let mut batch = Batch::new(std::slice::from_ref(wanted));
        if is_there {
            batch.delete_table(place);
        }
        batch.add_tables(wanted, &[]);
        batch.fill(place, table, contents);
        let Err(refused) = batch.run(&mut self.socket) else { return Ok(()) };
        let listed = list_tables(&mut self.socket, family::INET)?;
        Err(refused.among(&super::ours(std::slice::from_ref(wanted), &listed)))
    }
}
