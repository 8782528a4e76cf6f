//! Members of named sets that come and go while the rules stay as they are, in both backends, in a pod's namespace and in the node's.
//!
//! nf_tables makes the sets with the rules, and changes many of them in one transaction. ipset has no transactions: what is new is added before
//! what is old is removed, so that nothing is ever out that belongs in. A socket stays in the namespace where it was opened.

mod probes;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netns::{Inside, InsideHost};
use ruleset::{Backend, Element, Key, Ruleset, Set, SetDelta};

use crate::Difference;
use crate::ipset::IpSets;
use crate::netlink;
use crate::nft::members::NftSets;

pub use probes::{ProbeSets, Removed, SetMember};

/// The longest comment in bytes (`NFTNL_UDATA_COMMENT_MAXLEN` of libnftnl less its end; ipset has 255).
const MAX_COMMENT: usize = 127;

/// A set that could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel did not do it.
    #[error("{operation}{hint}")]
    Kernel {
        /// What was done to what.
        operation: String,
        /// What may be the reason, in parentheses; may be empty.
        hint: &'static str,
        /// The kernel's answer.
        source: netlink::Error,
    },
    /// A comment would not hold it, and without it nobody could tell whose the address is.
    #[error(
        "note an address for the pod with uid {uid:?}: a uid has from 1 to {} bytes and no zero byte",
        MAX_COMMENT
    )]
    Uid {
        /// Cut.
        uid: String,
    },
    /// The plan has no such set.
    #[error("change set {set:?}: the plan has no such set")]
    Unknown {
        /// Its name.
        set: String,
    },
    /// A key, a verdict or a comment that the set cannot hold.
    #[error("change set {set}: {problem}")]
    Unfit {
        /// Its name.
        set: String,
        /// What is wrong.
        problem: &'static str,
    },
}

/// What a change did, by how many elements. What was as wanted before is no failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ElementCounts {
    /// New ones.
    pub added: usize,
    /// Those that were there with another verdict or comment.
    pub replaced: usize,
    /// Those that are gone.
    pub removed: usize,
    /// Those that were there already, or not there to be removed.
    pub as_before: usize,
}

/// A set and where it is.
pub(crate) struct SetPlace {
    /// The nf_tables table.
    pub(crate) table: String,
    pub(crate) set: Set,
}

/// The sets of a ruleset in one namespace.
pub struct Sets {
    places: Vec<SetPlace>,
    kernel: Held,
}

/// Who holds them.
enum Held {
    Nft(NftSets),
    Ip(IpSets),
}

/// Whether one of the sets of these names exists as an ipset: an agent with the iptables backend has made it here since the node started.
///
/// # Errors
/// The kernel could not be asked.
pub fn exists_in_ipset(inside: &InsideHost<'_>, names: &[&str]) -> Result<bool, Error> {
    let mut sets = IpSets::new(inside.inside())?;
    for name in names {
        if sets.exists(name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes all ipsets whose names an owner gives, which begin as those of its chains, whoever has made them. Rules that refer to them have to be gone.
/// Whether there were any.
///
/// # Errors
/// One is there still.
pub fn destroy_of(inside: &Inside, owner: &Ruleset) -> Result<bool, Error> {
    destroy_owned(&mut IpSets::new(inside)?, owner)
}

/// As [`destroy_of`], over a socket that is open.
pub(crate) fn destroy_owned(sets: &mut IpSets, owner: &Ruleset) -> Result<bool, Error> {
    let owned: Vec<String> = sets.names()?.into_iter().filter(|name| is_owned(owner, name)).collect();
    owned.iter().try_for_each(|name| sets.destroy(name))?;
    Ok(!owned.is_empty())
}

/// Whether a set's name is one that an owner gives.
pub(crate) fn is_owned(owner: &Ruleset, name: &str) -> bool {
    owner.known_chains.iter().any(|known| known.beginning && name.starts_with(&*known.name))
}

// === impl ElementCounts ===

impl ElementCounts {
    /// How many elements are other than before.
    #[must_use]
    pub fn count(&self) -> usize {
        self.added + self.replaced + self.removed
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            added: self.added + other.added,
            replaced: self.replaced + other.replaced,
            removed: self.removed + other.removed,
            as_before: self.as_before + other.as_before,
        }
    }
}

// === impl Sets ===

impl Sets {
    /// Opens the sets of a ruleset; nothing is made or changed.
    ///
    /// # Errors
    /// The kernel does not speak the protocol.
    pub fn open(inside: &Inside, backend: Backend, ruleset: &Ruleset) -> Result<Self, Error> {
        let places = ruleset.tables.iter().flat_map(|table| {
            let name = ruleset.nft_table(table.kind);
            table.sets.iter().map(move |set| SetPlace { table: name.clone(), set: set.clone() })
        });
        Self::of(inside, backend, places.collect())
    }

    /// As [`Self::open`], in the node's own namespace.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_host(inside: &InsideHost<'_>, backend: Backend, ruleset: &Ruleset) -> Result<Self, Error> {
        Self::open(inside.inside(), backend, ruleset)
    }

    fn of(inside: &Inside, backend: Backend, places: Vec<SetPlace>) -> Result<Self, Error> {
        let kernel = match backend {
            Backend::Nftables => Held::Nft(NftSets::new(inside)?),
            Backend::Iptables => Held::Ip(IpSets::new(inside)?),
        };
        Ok(Self { places, kernel })
    }

    /// Makes the sets that rules of iptables refer to, those with fixed content with it; whatever kept ones hold stays. Those of nf_tables
    /// are made with the rules, and nothing is done.
    ///
    /// # Errors
    /// The kernel does not; or a set is a verdict map, which iptables lacks.
    pub fn prepare(&mut self) -> Result<(), Error> {
        let Held::Ip(sets) = &mut self.kernel else { return Ok(()) };
        self.places.iter().try_for_each(|place| sets.prepare(&place.set))
    }

    /// Changes the members of kept sets; nf_tables does all of it or nothing.
    ///
    /// # Errors
    /// The kernel did not, or a set cannot hold it. In ipset a part may be done; the same change may be made again.
    pub fn change(&mut self, changes: &[(&str, &SetDelta)]) -> Result<ElementCounts, Error> {
        let places: Result<Vec<(&SetPlace, &SetDelta)>, Error> =
            changes.iter().map(|(name, delta)| Ok((fitting(&self.places, name, delta)?, *delta))).collect();
        match &mut self.kernel {
            Held::Nft(sets) => sets.change(&places?),
            Held::Ip(sets) => sets.change(&places?),
        }
    }

    /// What the kernel has in a set.
    ///
    /// # Errors
    /// It could not be asked, or the set is not there.
    pub fn list(&mut self, set: &str) -> Result<Vec<Element>, Error> {
        let place = place(&self.places, set)?;
        match &mut self.kernel {
            Held::Nft(sets) => sets.list(place),
            Held::Ip(sets) => sets.list(&place.set),
        }
    }

    /// How ipsets differ from the plan: type, and the content of fixed ones. What nf_tables has is compared with the rules.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn observe(&mut self) -> Result<Vec<Difference>, Error> {
        let Held::Ip(sets) = &mut self.kernel else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for place in &self.places {
            if let Some(how) = sets.difference(&place.set)? {
                found.push(Difference::DifferentIpset { set: place.set.name.to_string(), how });
            }
        }
        Ok(found)
    }

    /// Removes ipsets; none are fine. The rules have to be gone before: a set that one refers to is left, but empty. Sets of nf_tables go with
    /// their table.
    ///
    /// # Errors
    /// A set is there still.
    pub fn destroy(&mut self) -> Result<(), Error> {
        let Held::Ip(sets) = &mut self.kernel else { return Ok(()) };
        self.places.iter().try_for_each(|place| sets.destroy(&place.set.name))
    }

    /// The element of a key; nothing where it is not there.
    fn get(&mut self, set: &str, key: &Key) -> Result<Option<Element>, Error> {
        let place = place(&self.places, set)?;
        match &mut self.kernel {
            Held::Nft(sets) => sets.get(place, key),
            Held::Ip(sets) => sets.get(&place.set, key),
        }
    }
}

fn place<'a>(places: &'a [SetPlace], name: &str) -> Result<&'a SetPlace, Error> {
    let found = places.iter().find(|place| place.set.name == name);
    found.ok_or_else(|| Error::Unknown { set: name.to_owned() })
}

/// The set of a change, if it can hold what is added.
fn fitting<'a>(places: &'a [SetPlace], name: &str, delta: &SetDelta) -> Result<&'a SetPlace, Error> {
    let found = place(places, name)?;
    let set = &found.set;
    let longest = |element: &Element| element.comment.len() > MAX_COMMENT || element.comment.contains('\0');
    let problem = if !set.is_kept() {
        Some("its content is part of the plan")
    } else if delta.added().any(|e| !set.keys.takes(&e.key))
        || delta.removed().any(|key| !set.keys.takes(&key))
    {
        Some("a key of another type or family than the set's")
    } else if delta.added().any(|e| e.verdict.is_some() != set.is_map()) {
        Some("a verdict in a plain set, or none in a verdict map")
    } else if delta.added().any(|e| matches!(e.key, Key::Endpoint(to) if !to.protocol.has_ports())) {
        Some("a port of a protocol that has none")
    } else if delta.added().any(|e| longest(&e)) {
        Some("a comment with more than 127 bytes or a zero byte")
    } else {
        None
    };
    match problem {
        None => Ok(found),
        Some(problem) => Err(Error::Unfit { set: name.to_owned(), problem }),
    }
}

/// The bytes of an address in network order.
pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The address of bytes in network order.
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|four| Ipv4Addr::from(four).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|all| Ipv6Addr::from(all).into()),
        _ => None,
    }
}
