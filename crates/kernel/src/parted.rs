//! One owner's table in the node's namespace, in either backend, changed by parts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use netns::Host;
use ruleset::{Backend, KeptMembers, Ruleset, TableDelta, TableKind};

use crate::iptables::{Iptables, PartedIptables, PartsError};
use crate::nft::{PartedTable, Thoroughness};
use crate::watch::Noticed;
use crate::{Change, nft};

/// The table. What is wanted of it is known as a whole, too, so that what the kernel has can be compared with that at any time.
pub enum PartedRules {
    /// In nf_tables.
    Nft(Box<PartedTable>),
    /// In iptables, with ipsets.
    Iptables(Box<PartedIptables>),
}

/// What could not be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum PartedError {
    /// The node's namespace cannot be entered.
    #[error(transparent)]
    Enter(#[from] netns::Error),
    /// In nf_tables.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// In iptables.
    #[error(transparent)]
    Iptables(#[from] PartsError),
}

impl PartedError {
    /// Whether this kernel lacks the backend, so that nothing of ours is there.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Enter(_) => false,
            Self::Nft(error) => error.is_unsupported(),
            Self::Iptables(error) => error.is_unsupported(),
        }
    }
}

// === impl PartedRules ===

impl PartedRules {
    /// Opens what is needed for the table that an owner has of a kind; `owner` has no tables. Nothing is made or changed; transactions of nf_tables are heard
    /// from now on.
    ///
    /// # Errors
    /// The kernel lacks the backend, or no descriptor is left.
    pub fn open(
        host: Host,
        backend: Backend,
        iptables: Iptables,
        owner: Ruleset,
        kind: TableKind,
    ) -> Result<Self, PartedError> {
        Ok(match backend {
            Backend::Nftables => {
                Self::Nft(Box::new(host.enter(|inside| PartedTable::open(inside, owner.owner, kind))??))
            }
            Backend::Iptables => {
                Self::Iptables(Box::new(PartedIptables::open(host, iptables.on_the_node(), owner, kind)?))
            }
        })
    }

    /// To wait for: readable when somebody has committed something. Nothing tells of iptables-legacy.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Nft(table) => Some(table.descriptor()),
            Self::Iptables(table) => table.descriptor(),
        }
    }

    /// What was committed since the last call. Never waits.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn heard(&mut self) -> Result<Noticed, PartedError> {
        Ok(match self {
            Self::Nft(table) => table.heard()?,
            Self::Iptables(table) => table.heard()?,
        })
    }

    /// Whether it is known without a comparison that the rules are as they should be: others commit to the same tables of iptables all the time.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn is_undisturbed(&self) -> Result<bool, PartedError> {
        Ok(match self {
            Self::Nft(_) => false,
            Self::Iptables(table) => table.is_as_seen()?,
        })
    }

    /// Makes what the kernel has equal to the only table of `wanted` with these members, whatever is there. What is equal already is not touched.
    ///
    /// # Errors
    /// The kernel or a program refused; or it could not be asked. With iptables a part may be done.
    pub fn ensure(
        &mut self,
        wanted: &Ruleset,
        contents: &dyn KeptMembers,
        thoroughness: Thoroughness,
    ) -> Result<Change, PartedError> {
        Ok(match self {
            Self::Nft(table) => table.ensure(wanted, contents, thoroughness)?,
            Self::Iptables(table) => table.ensure(wanted, contents, thoroughness)?,
        })
    }

    /// Makes of the only table of `wanted` what the kernel lacks: chains and sets that are not there or were emptied, and whatever is said of these
    /// addresses. All else stays as it is, since what is wanted may be older than that. What is not there at all is made. With iptables everything becomes
    /// as it is wanted where there is an address.
    ///
    /// # Errors
    /// As of [`Self::ensure`].
    pub fn supplement(
        &mut self,
        wanted: &Ruleset,
        contents: &dyn KeptMembers,
        addresses: &BTreeSet<IpAddr>,
        thoroughness: Thoroughness,
    ) -> Result<Change, PartedError> {
        Ok(match self {
            Self::Nft(table) => table.supplement(wanted, contents, (addresses, thoroughness))?,
            Self::Iptables(table) => {
                if addresses.is_empty() && table.has_sets()? {
                    table.supplement(wanted, contents, thoroughness)?
                } else {
                    table.ensure(wanted, contents, Thoroughness::Everything)?
                }
            }
        })
    }

    /// Changes a part: in nf_tables in one transaction, in iptables in order.
    ///
    /// # Errors
    /// What the kernel has may be other than is thought.
    pub fn change(&mut self, delta: &TableDelta) -> Result<(), PartedError> {
        match self {
            Self::Nft(table) => table.change(delta)?,
            Self::Iptables(table) => table.change(delta)?,
        }
        Ok(())
    }

    /// Removes everything of the owner's. Nothing there is success.
    ///
    /// # Errors
    /// Something is there still.
    pub fn remove(&mut self) -> Result<Change, PartedError> {
        Ok(match self {
            Self::Nft(table) => table.remove()?,
            Self::Iptables(table) => table.remove()?,
        })
    }

    /// What was not as it should be, but did not make a call fail, since the last time that this was asked.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        match self {
            Self::Nft(_) => Vec::new(),
            Self::Iptables(table) => table.take_warnings(),
        }
    }
}
