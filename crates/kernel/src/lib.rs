//! The kernel's side of a plan: loads it, removes it, says what is there.
//!
//! Everything here needs an [`netns::Inside`], the proof that the calling thread is in the namespace that is meant; or [`KeptSockets`], which were
//! opened there.

mod apply;
pub mod branch_eni;
pub mod conntrack;
mod difference;
#[cfg(test)]
mod fuzz;
mod ipset;
pub mod iptables;
mod keyed;
pub mod kubelet;
mod netlink;
pub mod nflog;
pub mod nft;
pub mod observed;
mod order;
pub mod pair;
mod parted;
mod record;
pub mod route;
pub mod sets;
mod shadow;
pub mod sockets;
pub mod sysctl;
pub mod watch;

pub use apply::{Applied, Choice, Incomplete, Kernel, LeaveError};
pub use netlink::Error as NetlinkError;
use netns::Inside;
pub use order::{Neighbours, give_way};
pub use parted::{PartedError, PartedRules};
pub use record::Record;
use ruleset::listed;
use ruleset::{Backend, Ruleset};
pub use shadow::{Listing, Shadows};
pub use watch::{Check, KeptSockets};

/// What a backend does with the layers of a plan, each of another owner. Every method is complete by itself: it may be called at any
/// time, in any state of the namespace.
pub trait RuleStore: Sync {
    /// Makes the owners' rules in this namespace equal to `layers`, all or nothing. A layer that is as planned is not touched, but where it
    /// has to be attached anew to stay before a later one at the same place.
    ///
    /// # Errors
    /// The rules could not be loaded; those from before are in force.
    fn setup(&self, inside: &Inside, layers: &[Ruleset]) -> Result<Change, Error>;

    /// As [`Self::setup`], and puts the owners' rules before all of others that they share a place with: in nf_tables before base chains at the
    /// same hook with the same priority, in iptables before the rules of others in the same chain.
    ///
    /// # Errors
    /// The rules could not be loaded; those from before are in force.
    fn put_first(&self, inside: &Inside, layers: &[Ruleset]) -> Result<Change, Error>;

    /// Removes every rule of the owners that this backend holds. Nothing there is success.
    ///
    /// # Errors
    /// Something of ours could not be removed.
    fn cleanup(&self, inside: &Inside, layers: &[Ruleset]) -> Result<Change, Error>;

    /// Whether this backend holds anything of the owners, complete or not. Cheap: no external program on the usual way.
    ///
    /// # Errors
    /// The kernel could not be asked.
    fn exists(&self, inside: &Inside, layers: &[Ruleset]) -> Result<bool, Error>;

    /// Compares what the kernel holds with `layers`; empty means equal.
    ///
    /// # Errors
    /// The kernel could not be asked.
    fn observe(&self, inside: &Inside, layers: &[Ruleset]) -> Result<Vec<Difference>, Error>;

    /// As [`Self::exists`], over sockets that are kept in a namespace; `None` where that takes somebody inside.
    ///
    /// # Errors
    /// The kernel could not be asked.
    fn exists_over(&self, kept: &mut KeptSockets, layers: &[Ruleset]) -> Result<Option<bool>, Error>;

    /// As [`Self::observe`], over sockets that are kept in a namespace; `None` where that takes somebody inside.
    ///
    /// # Errors
    /// The kernel could not be asked.
    fn observe_over(
        &self,
        kept: &mut KeptSockets,
        layers: &[Ruleset],
    ) -> Result<Option<Vec<Difference>>, Error>;

    /// What [`Self::setup`] loads, as bytes that later versions of this program can compare with the kernel, whatever they would load.
    fn recorded(&self, layers: &[Ruleset]) -> Vec<u8>;

    /// As [`Self::observe`], for such bytes. `owners` have the names and the known chains of those layers, in their order. `None`: bytes of
    /// another version, or broken ones.
    ///
    /// # Errors
    /// The kernel could not be asked.
    fn observe_recorded(
        &self,
        inside: &Inside,
        owners: &[Ruleset],
        record: &[u8],
    ) -> Result<Option<Vec<Difference>>, Error>;

    /// The rules of such bytes in the form that rules of others have; `None` as above.
    fn tables(&self, owners: &[Ruleset], record: &[u8]) -> Option<Vec<listed::ListedTable>>;

    /// The tables that this backend's own interface shows, within bounds: those of nf_tables that are not the owners', or those of
    /// iptables with everything in them.
    ///
    /// # Errors
    /// The kernel could not be asked.
    fn others(&self, inside: &Inside, owners: &[Ruleset]) -> Result<Listing, Error>;
}

/// What a call changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing: it was already so.
    None,
    /// There was nothing of ours before (or, after a cleanup, there is nothing now).
    Fresh,
    /// Something of ours was replaced.
    Replaced,
}

/// One way in which the kernel's rules differ from the planned ones. The texts are rules in the backend's own notation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the place and the text of what the variant names")]
pub enum Difference {
    /// A table of ours is not there.
    MissingTable { table: String },
    /// A table of the owner is there that is not planned.
    UnexpectedTable { table: String },
    /// A chain of ours is not there, or is attached otherwise.
    MissingChain { table: String, chain: String },
    /// A chain in our table, or with our prefix, that is not planned.
    UnexpectedChain { table: String, chain: String },
    /// A set of ours is not there, is not planned, or holds other elements; `how` says which.
    DifferentSet { table: String, set: String, how: &'static str },
    /// An ipset of ours is not there, or holds other elements; `how` says which.
    DifferentIpset { set: String, how: &'static str },
    /// A planned rule is not there at its place.
    MissingRule { table: String, chain: String, rule: String, why: String },
    /// A rule that is not planned, in a chain of ours or jumping to one.
    UnexpectedRule { table: String, chain: String, rule: String },
    /// There is so much more in a table of ours than is planned that not all of it was read. Other differences come with it.
    Crowded { table: String },
    /// A part of the plan's routing is not there.
    MissingRouting { step: String },
    /// Rules of ours are in the other backend, too.
    OtherBackend { backend: Backend },
    /// A rule of others stands before ours, which have to be the first of the chain.
    Preceded { table: String, chain: String, by: String },
    /// A rule of others stands behind ours, which have to be the last of the chain.
    Followed { table: String, chain: String, by: String },
    /// A rule of others by which packets escape that the plan captures; `why` says which.
    Shadowed { table: String, chain: String, rule: String, why: String },
}

/// Why the kernel was not asked or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// nf_tables.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// iptables.
    #[error(transparent)]
    Iptables(#[from] iptables::Error),
    /// Routing.
    #[error(transparent)]
    Route(#[from] route::Error),
    /// The sockets that are kept in a namespace.
    #[error(transparent)]
    Watch(#[from] watch::Error),
    /// The choice was free, and neither backend works here.
    #[error("neither backend works here: nf_tables: {}; iptables: {}", fault::chain(.nftables), fault::chain(.iptables))]
    Neither {
        /// What this kernel lacks.
        nftables: nft::Error,
        /// Why iptables did not load the rules.
        iptables: Box<Self>,
    },
}

impl Error {
    /// Whether this kernel or this machine lacks the backend, so that the other one is worth a try.
    #[must_use]
    pub fn is_backend_missing(&self) -> bool {
        match self {
            Self::Nft(error) => error.is_unsupported(),
            Self::Iptables(error) => error.is_missing(),
            Self::Route(_) | Self::Watch(_) | Self::Neither { .. } => false,
        }
    }

    /// Whether neither backend works here.
    #[must_use]
    pub fn is_neither(&self) -> bool {
        matches!(self, Self::Neither { .. })
    }

    /// The port of the netlink socket whose program keeps a table of ours for itself, if that is why.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        match self {
            Self::Nft(error) => error.holder(),
            _ => None,
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MissingTable { table } => write!(f, "table {table} is missing"),
            Self::UnexpectedTable { table } => write!(f, "table {table} is not planned"),
            Self::MissingChain { table, chain } => write!(f, "chain {chain} of table {table} is missing"),
            Self::UnexpectedChain { table, chain } => {
                write!(f, "chain {chain} of table {table} is not planned")
            }
            Self::DifferentSet { table, set, how } => write!(f, "set {set} of table {table} {how}"),
            Self::DifferentIpset { set, how } => write!(f, "ipset {set} {how}"),
            Self::MissingRule { table, chain, rule, why } => {
                write!(f, "chain {chain} of table {table} lacks the rule \"{rule}\" ({why})")
            }
            Self::UnexpectedRule { table, chain, rule } => {
                write!(f, "chain {chain} of table {table} has the rule \"{rule}\", which is not planned")
            }
            Self::Crowded { table } => {
                write!(f, "table {table} has much more in it than is planned; not all of it is read")
            }
            Self::MissingRouting { step } => write!(f, "routing is missing: {step}"),
            Self::OtherBackend { backend } => write!(f, "rules of ours are also in {backend}"),
            Self::Preceded { table, chain, by } => {
                write!(f, "chain {chain} of table {table} has the rule \"{by}\" of others before ours")
            }
            Self::Followed { table, chain, by } => {
                write!(f, "chain {chain} of table {table} has the rule \"{by}\" of others behind ours")
            }
            Self::Shadowed { table, chain, rule, why } => {
                write!(f, "chain {chain} of table {table} shadows our rules by \"{rule}\": {why}")
            }
        }
    }
}
