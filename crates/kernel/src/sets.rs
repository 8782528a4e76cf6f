//! The node's sets of pod addresses (AA-92): an element for each address of a pod in the mesh, with the pod's uid as its comment.
//!
//! Both backends are spoken to over netlink, by a socket that stays where it was opened: in the node's namespace. The rules that look the
//! addresses up are loaded by [`crate::Kernel::apply_host`], which in nf_tables makes the sets too and keeps what they hold.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use netns::InsideHost;
use ruleset::{Backend, Family};

use crate::ipset::IpSet;
use crate::netlink;
use crate::nft::members::NftSet;

/// The longest comment in bytes (`NFTNL_UDATA_COMMENT_MAXLEN` of libnftnl less its end; ipset has 255).
const MAX_UID: usize = 127;

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
        "note an address for the pod with uid {uid:?}: a uid has from 1 to {MAX_UID} bytes and no zero byte"
    )]
    Uid {
        /// Cut.
        uid: String,
    },
}

/// What became of an address that was to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Gone,
    /// It was not there.
    NotThere,
    /// It is another pod's by now and stays.
    OwnedBy(String),
}

/// An address in a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The address.
    pub ip: IpAddr,
    /// Its comment; empty if it has none, or none of ours.
    pub uid: String,
}

/// What a backend does with one of the sets.
pub(crate) trait Set: Send {
    /// Makes it if it is missing.
    fn ensure(&mut self) -> Result<(), Error>;
    /// The comment of an element; nothing where it is not there.
    fn get(&mut self, ip: IpAddr) -> Result<Option<String>, Error>;
    /// Removes, then adds: all or nothing where the backend can.
    fn change(&mut self, gone: &[IpAddr], new: &[Member]) -> Result<(), Error>;
    /// Adds an element or gives it another comment; whether that was needed.
    fn upsert(&mut self, member: Member) -> Result<bool, Error> {
        let before = self.get(member.ip)?;
        if before.as_ref() == Some(&member.uid) {
            return Ok(false);
        }
        // Adding what is there keeps its old comment in nf_tables (AA-94).
        let gone: &[IpAddr] = if before.is_some() { &[member.ip] } else { &[] };
        self.change(gone, &[member])?;
        Ok(true)
    }
    /// Everything.
    fn list(&mut self) -> Result<Vec<Member>, Error>;
    /// Removes the set; none is fine. One that something refers to is emptied at least.
    fn destroy(&mut self) -> Result<(), Error>;
}

/// The sets of one backend, IPv4 and, where it is on, IPv6. Addresses of a family that is off are passed over (AA-93).
pub struct ProbeSets {
    v4: Box<dyn Set>,
    v6: Option<Box<dyn Set>>,
}

/// Whether an agent with the iptables backend has made its sets here since the node started (AA-98).
///
/// # Errors
/// The kernel could not be asked.
pub fn exists_in_ipset(inside: &InsideHost<'_>, names: &[&str]) -> Result<bool, Error> {
    for name in names {
        if IpSet::new(inside, name, Family::V4)?.exists()? {
            return Ok(true);
        }
    }
    Ok(false)
}

// === impl ProbeSets ===

impl ProbeSets {
    /// Opens the sets of a backend; nothing is made or changed. `table` is the nf_tables table of family inet, `v4` and `v6` are the names
    /// of the sets; without `v6` that family is off.
    ///
    /// # Errors
    /// The kernel does not speak the protocol.
    pub fn open(
        inside: &InsideHost<'_>,
        backend: Backend,
        table: &str,
        v4: &str,
        v6: Option<&str>,
    ) -> Result<Self, Error> {
        let one = |name: &str, family| -> Result<Box<dyn Set>, Error> {
            Ok(match backend {
                Backend::Nftables => Box::new(NftSet::new(inside, table, name, family)?),
                Backend::Iptables => Box::new(IpSet::new(inside, name, family)?),
            })
        };
        Ok(Self { v4: one(v4, Family::V4)?, v6: v6.map(|name| one(name, Family::V6)).transpose()? })
    }

    /// Makes the sets that rules of iptables refer to. Those of nf_tables are made with the rules.
    ///
    /// # Errors
    /// The kernel does not.
    pub fn ensure(&mut self) -> Result<(), Error> {
        self.each().try_for_each(|set| set.ensure())
    }

    /// Notes that an address is a pod's, whosever it was before. `false` when it was noted so already; of a set of iptables that is said from
    /// what this process knows of it.
    ///
    /// # Errors
    /// It is not noted.
    pub fn upsert(&mut self, ip: IpAddr, uid: &str) -> Result<bool, Error> {
        check(uid)?;
        let ip = ip.to_canonical();
        let Some(set) = self.of(ip) else { return Ok(false) };
        set.upsert(Member { ip, uid: uid.to_owned() })
    }

    /// Removes an address if it is this pod's still.
    ///
    /// # Errors
    /// It may be there still.
    pub fn remove(&mut self, ip: IpAddr, uid: &str) -> Result<Removed, Error> {
        let ip = ip.to_canonical();
        let Some(set) = self.of(ip) else { return Ok(Removed::NotThere) };
        match set.get(ip)? {
            None => Ok(Removed::NotThere),
            Some(owner) if owner != uid => Ok(Removed::OwnedBy(owner)),
            Some(_) => set.change(&[ip], &[]).map(|()| Removed::Gone),
        }
    }

    /// What the kernel has.
    ///
    /// # Errors
    /// It could not be asked.
    pub fn list(&mut self) -> Result<Vec<Member>, Error> {
        let mut all = Vec::new();
        for set in self.each() {
            all.extend(set.list()?);
        }
        Ok(all)
    }

    /// Makes the sets hold exactly these addresses; gives how many were added, changed hands or were removed.
    ///
    /// # Errors
    /// They may hold others.
    pub fn reconcile(&mut self, wanted: &[(IpAddr, String)]) -> Result<usize, Error> {
        let mut changes = 0;
        let of_family = |v4: bool| {
            let pairs = wanted.iter().map(|(ip, uid)| (ip.to_canonical(), uid.as_str()));
            pairs.filter(move |(ip, _)| ip.is_ipv4() == v4).collect::<HashMap<IpAddr, &str>>()
        };
        for (set, v4) in [(Some(&mut self.v4), true), (self.v6.as_mut(), false)] {
            let Some(set) = set else { continue };
            let mut missing = of_family(v4);
            missing.retain(|_, uid| check(uid).is_ok());
            let mut gone = HashSet::new();
            for Member { ip, uid } in set.list()? {
                if missing.get(&ip) == Some(&uid.as_str()) {
                    missing.remove(&ip);
                } else {
                    gone.insert(ip);
                }
            }
            let new: Vec<Member> =
                missing.into_iter().map(|(ip, uid)| Member { ip, uid: uid.to_owned() }).collect();
            let replaced = new.iter().filter(|member| gone.contains(&member.ip)).count();
            if !gone.is_empty() || !new.is_empty() {
                set.change(&gone.iter().copied().collect::<Vec<_>>(), &new)?;
                changes += gone.len() + new.len() - replaced;
            }
        }
        Ok(changes)
    }

    /// Removes the sets. With iptables the rules have to be gone before; a set that one refers to is left, but empty, so that the rule
    /// finds no address of a pod's any more (AA-101).
    ///
    /// # Errors
    /// A set is there still.
    pub fn destroy(&mut self) -> Result<(), Error> {
        self.each().try_for_each(|set| set.destroy())
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Box<dyn Set>> {
        std::iter::once(&mut self.v4).chain(&mut self.v6)
    }

    fn of(&mut self, ip: IpAddr) -> Option<&mut Box<dyn Set>> {
        if ip.is_ipv4() { Some(&mut self.v4) } else { self.v6.as_mut() }
    }
}

fn check(uid: &str) -> Result<(), Error> {
    if uid.is_empty() || uid.len() > MAX_UID || uid.contains('\0') {
        return Err(Error::Uid { uid: uid.chars().take(64).collect() });
    }
    Ok(())
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
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
