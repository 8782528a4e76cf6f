//! The node's sets of pod addresses: an element for each address of a pod in the mesh, with the pod's uid as its comment. The rules that look
//! the addresses up are loaded by [`crate::Kernel::apply_host`], which in nf_tables makes the sets too and keeps what they hold.

use std::net::IpAddr;

use netns::InsideHost;
use ruleset::{Backend, Element, Family, Key, KeyType, Set, SetDelta};

use super::{Error, MAX_COMMENT, SetPlace, Sets};

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
pub struct SetMember {
    /// The address.
    pub ip: IpAddr,
    /// Its comment; empty if it has none, or none of ours.
    pub uid: String,
}

/// The sets of one backend, IPv4 and, where it is on, IPv6. Addresses of a family that is off are passed over.
pub struct ProbeSets {
    sets: Sets,
    v4: String,
    v6: Option<String>,
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
        let place = |name: &str, family| {
            let set = Set::kept(name.to_owned(), KeyType::Address(family));
            SetPlace { table: table.to_owned(), set: Set { commented: true, ..set } }
        };
        let places = std::iter::once(place(v4, Family::V4)).chain(v6.map(|v6| place(v6, Family::V6)));
        let sets = Sets::of(inside.inside(), backend, places.collect())?;
        Ok(Self { sets, v4: v4.to_owned(), v6: v6.map(str::to_owned) })
    }

    /// Makes the sets that rules of iptables refer to. Those of nf_tables are made with the rules.
    ///
    /// # Errors
    /// The kernel does not.
    pub fn ensure(&mut self) -> Result<(), Error> {
        self.sets.prepare()
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
        let mut delta = SetDelta::default();
        delta.add(element(ip, uid));
        Ok(self.sets.change(&[(&set, &delta)])?.count() > 0)
    }

    /// Removes an address if it is this pod's still.
    ///
    /// # Errors
    /// It may be there still.
    pub fn remove(&mut self, ip: IpAddr, uid: &str) -> Result<Removed, Error> {
        let ip = ip.to_canonical();
        let Some(set) = self.of(ip) else { return Ok(Removed::NotThere) };
        match self.sets.get(&set, &ip.into())? {
            None => return Ok(Removed::NotThere),
            Some(element) if element.comment != uid => return Ok(Removed::OwnedBy(element.comment)),
            Some(_) => {}
        }
        let mut delta = SetDelta::default();
        delta.remove(ip);
        self.sets.change(&[(&set, &delta)]).map(|_| Removed::Gone)
    }

    /// What the kernel has.
    ///
    /// # Errors
    /// It could not be asked.
    pub fn list(&mut self) -> Result<Vec<SetMember>, Error> {
        let mut all = Vec::new();
        for set in self.names() {
            let member = |Element { key, comment, .. }| match key {
                Key::Address(ip) => Some(SetMember { ip, uid: comment }),
                Key::Prefix(_) | Key::Endpoint(_) | Key::Arrival(_) => None,
            };
            all.extend(self.sets.list(&set)?.into_iter().filter_map(member));
        }
        Ok(all)
    }

    /// Makes the sets hold exactly these addresses; gives how many were added, changed hands or were removed.
    ///
    /// # Errors
    /// They may hold others.
    pub fn reconcile(&mut self, wanted: &[(IpAddr, String)]) -> Result<usize, Error> {
        let mut deltas = Vec::new();
        for set in self.names() {
            let fits = |(ip, uid): &&(IpAddr, String)| {
                self.of(ip.to_canonical()).as_ref() == Some(&set) && check(uid).is_ok()
            };
            let new: Vec<Element> =
                wanted.iter().filter(fits).map(|(ip, uid)| element(ip.to_canonical(), uid)).collect();
            let delta = SetDelta::between(&self.sets.list(&set)?, &new);
            deltas.push((set, delta));
        }
        let changes: Vec<(&str, &SetDelta)> = deltas
            .iter()
            .filter(|(_, delta)| !delta.is_empty())
            .map(|(set, delta)| (&**set, delta))
            .collect();
        Ok(self.sets.change(&changes)?.count())
    }

    /// Removes the sets. With iptables the rules have to be gone before; a set that one refers to is left, but empty, so that the rule
    /// finds no address of a pod's any more.
    ///
    /// # Errors
    /// A set is there still.
    pub fn destroy(&mut self) -> Result<(), Error> {
        self.sets.destroy()
    }

    fn names(&self) -> Vec<String> {
        std::iter::once(&self.v4).chain(&self.v6).cloned().collect()
    }

    fn of(&self, ip: IpAddr) -> Option<String> {
        if ip.is_ipv4() { Some(self.v4.clone()) } else { self.v6.clone() }
    }
}

fn element(ip: IpAddr, uid: &str) -> Element {
    Element { comment: uid.to_owned(), ..Key::from(ip).into() }
}

fn check(uid: &str) -> Result<(), Error> {
    if uid.is_empty() || uid.len() > MAX_COMMENT || uid.contains('\0') {
        return Err(Error::Uid { uid: uid.chars().take(64).collect() });
    }
    Ok(())
}
