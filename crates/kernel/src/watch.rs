//! What happens in a namespace, and whether it is still as planned, without being there.
//!
//! A socket stays in the namespace in which it was opened, so nobody has to enter it for the usual questions. Two netlink sockets for each
//! namespace answer them, and hear of every transaction of nf_tables and every change of the routing.
//!
//! What no socket tells are tables of iptables-legacy: the kernel has no events for them, and to ask for one by name makes it. Which there are is
//! read from a file of the namespace, inside; what is in those that there are, a third socket tells ([`legacy`]).

mod events;
mod lacks;
mod legacy;
mod probe;
#[cfg(test)]
pub(crate) mod tests;

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use netns::{Inside, Netns};
use ruleset::{Backend, Family, Plan, Ruleset};

use events::LastTransaction;
pub use events::{Noticed, RulesetCommit};
pub(crate) use events::{open_netfilter, read_commits};
use legacy::LegacyContent;
pub(crate) use legacy::{LegacySocket, LegacyTables};
pub use probe::{EventSupport, probe};

use crate::apply::{missing_routing, other};
use crate::netlink::{self, NetlinkSocket};
use crate::{Difference, Kernel, route};

/// A question to a namespace over sockets that are kept there, which failed. The sockets are not to be used again: their next answers may be those to
/// older questions.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Netlink.
    #[error("cannot {operation} of a namespace over a kept socket")]
    Netlink {
        /// What was done.
        operation: &'static str,
        /// The kernel's answer.
        source: netlink::Error,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Enter(#[from] netns::Error),
    /// Which tables of iptables-legacy there are could not be read.
    #[error(transparent)]
    Iptables(#[from] crate::iptables::Error),
    /// What is in a table of iptables-legacy could not be read.
    #[error("cannot read table {table} of iptables-legacy over a kept socket")]
    Legacy {
        /// Its name.
        table: String,
        /// From `socket(2)` or `getsockopt(2)`.
        source: std::io::Error,
    },
}

/// The sockets that are kept in one namespace, for any thread: two, and a third where there are tables of iptables-legacy. They keep the namespace
/// alive, and are not to be closed while a check waits: that takes milliseconds where something of nf_tables was deleted just before.
#[derive(Debug)]
pub struct KeptSockets {
    netns: Arc<Netns>,
    netfilter: NetlinkSocket,
    route: NetlinkSocket,
    legacy: Option<LegacySocket>,
    /// What there was when the last check began, and when that one began which found everything as planned.
    seen: Option<Fingerprint>,
    equal: Option<Fingerprint>,
    /// All that nf_tables answered when everything was as planned, as one number, and whether it answers the same in this check.
    answers: Option<u64>,
    same_answers: bool,
    /// What the last check compared with. That everything was as planned says nothing about another plan.
    plan: Option<Arc<Plan>>,
}

/// The rules of a namespace, in a form that only tells whether they have changed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fingerprint {
    last: LastTransaction,
    legacy: LegacyContent,
}

/// What [`Kernel::check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Everything is as planned.
    Equal,
    /// So much is not; never empty.
    Differs(Vec<Difference>),
    /// Only programs of iptables could tell, which have to be started inside: enter, call [`Kernel::observe`], and if that finds nothing,
    /// [`KeptSockets::equal`].
    Enter,
}

impl Fingerprint {
    /// Whether the tables of iptables-legacy are as they were then.
    pub(crate) fn has_legacy_of(&self, other: &Self) -> bool {
        self.legacy == other.legacy
    }

    /// Whether there are tables of iptables-legacy.
    pub(crate) fn has_legacy(&self) -> bool {
        !self.legacy.tables.is_empty()
    }
}

// === impl KeptSockets ===

impl KeptSockets {
    /// Opens the sockets of a namespace; events are heard from now on.
    ///
    /// # Errors
    /// The namespace cannot be entered, the kernel lacks a protocol, or no descriptor is left.
    pub fn open(netns: &Arc<Netns>) -> Result<Self, Error> {
        netns.enter(|inside| Self::open_inside(inside, netns))?
    }

    /// The same by somebody who is inside of it.
    ///
    /// # Errors
    /// As there.
    pub fn open_inside(inside: &Inside, netns: &Arc<Netns>) -> Result<Self, Error> {
        let failed = |source| Error::Netlink { operation: "hear events", source };
        let netfilter = events::open_netfilter(inside).map_err(failed)?;
        let route = events::open_route(inside).map_err(failed)?;
        Ok(Self {
            netns: netns.clone(),
            netfilter,
            route,
            legacy: None,
            seen: None,
            equal: None,
            answers: None,
            same_answers: false,
            plan: None,
        })
    }

    /// To wait for: readable when something was committed, or the routing changed.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.netfilter.as_fd(), self.route.as_fd()]
    }

    /// What has happened since the last call. Never waits; if there is much, the rest comes with the next call.
    ///
    /// A question reads what has come before its answer, so after one this is to be called whether or not a descriptor is readable.
    ///
    /// # Errors
    /// A socket cannot be read.
    pub fn take_events(&mut self) -> Result<Noticed, Error> {
        let failed = |source| Error::Netlink { operation: "read events", source };
        let committed = self.netfilter.hear().map_err(failed)?;
        let routing = self.route.hear().map_err(failed)?;
        self.rest();
        Ok(events::noticed(&committed, &routing))
    }

    /// The number of the last transaction of nf_tables; another one after each.
    ///
    /// # Errors
    /// The kernel does not tell, or has no nf_tables.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let generation = events::generation(&mut self.netfilter).map_err(no_generation);
        self.netfilter.rest();
        generation
    }

    /// Whether there was no transaction since everything was found as planned, and tables of iptables-legacy that there were then have the same
    /// rules. Large ones are not read: of these it says no. It tells nothing about the routing, whose changes are events, nor about tables of iptables-legacy that are new.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn unchanged(&mut self) -> Result<bool, Error> {
        let Some(equal) = self.equal.take() else { return Ok(false) };
        let same = self.last_transaction()? == equal.last
            && equal.legacy.is_small()
            && legacy::content(self.legacy.as_ref(), equal.legacy.tables.clone())? == equal.legacy;
        self.equal = Some(equal);
        Ok(same)
    }

    /// Says that everything was found as planned after the last [`Kernel::check`], by somebody inside.
    pub fn equal(&mut self) {
        if let Some(seen) = self.seen.take() {
            self.equal = Some(seen);
        }
    }

    /// The rules with which everything was last found as planned.
    #[must_use]
    pub fn as_planned(&self) -> Option<&Fingerprint> {
        self.equal.as_ref()
    }

    /// As [`route::link_addresses`], of the namespace in which the sockets are.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn link_addresses(&mut self) -> Result<Vec<IpAddr>, route::Error> {
        let addresses = route::link_addresses_over(&mut self.route);
        self.route.rest();
        addresses
    }

    pub(crate) fn netfilter(&mut self) -> &mut NetlinkSocket {
        &mut self.netfilter
    }

    /// Whether a family had tables of iptables-legacy when the check began.
    pub(crate) fn has_legacy(&self, family: Family) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.legacy.tables.has(family))
    }

    /// Whether everything was, when the check began, as it was when it was found as planned.
    pub(crate) fn is_as_before(&self) -> bool {
        self.seen.is_some() && self.seen == self.equal
    }

    /// The same for the tables of iptables-legacy alone.
    pub(crate) fn is_legacy_as_before(&self) -> bool {
        let legacy = |of: &Option<Fingerprint>| of.as_ref().map(|of| of.legacy.clone());
        self.seen.is_some() && legacy(&self.seen) == legacy(&self.equal)
    }

    /// Whether nf_tables answers what it answered when everything was as planned. All of it is read.
    pub(crate) fn answers_as_before(&mut self, layers: &[Ruleset]) -> Result<bool, crate::nft::Error> {
        if let Some(answers) = self.answers {
            self.same_answers = crate::nft::content_hash(&mut self.netfilter, layers)? == Some(answers);
        }
        Ok(self.same_answers)
    }

    /// Whether that was so in this check.
    pub(crate) fn is_nft_as_before(&self) -> bool {
        self.same_answers
    }

    /// Notes what nf_tables answers where everything has just been found as planned, unless it has changed meanwhile.
    fn note_answers(&mut self, plan: &Plan) -> Result<(), crate::Error> {
        if plan.backend != Backend::Nftables || self.same_answers {
            return Ok(());
        }
        self.answers = crate::nft::content_hash(&mut self.netfilter, &plan.layers)?;
        let last = self.last_transaction()?;
        if self.seen.as_ref().is_none_or(|seen| seen.last != last) {
            self.answers = None;
        }
        Ok(())
    }

    /// Notes the plan that is compared with, and forgets what was found of another one.
    fn compare_with(&mut self, plan: &Arc<Plan>) {
        if self.plan.as_ref() != Some(plan) {
            (self.equal, self.answers) = (None, None);
            self.plan = Some(plan.clone());
        }
    }

    /// Notes what there is before it is compared: whatever changes meanwhile will be found to have changed.
    fn look(&mut self, inside: Option<&Inside>) -> Result<(), Error> {
        (self.seen, self.same_answers) = (None, false);
        let last = self.last_transaction()?;
        let Self { netns, legacy, .. } = self;
        let tables = match inside {
            _ if !LegacyTables::may_exist() => LegacyTables::default(),
            Some(inside) => legacy_tables(inside, legacy)?,
            None => netns.enter(|inside| legacy_tables(inside, legacy))??,
        };
        let legacy = legacy::content(self.legacy.as_ref(), tables)?;
        self.seen = Some(Fingerprint { last, legacy });
        Ok(())
    }

    fn last_transaction(&mut self) -> Result<LastTransaction, Error> {
        let last = LastTransaction::ask(&mut self.netfilter).map_err(no_generation);
        self.netfilter.rest();
        last
    }

    /// Gives memory back that only questions need.
    fn rest(&mut self) {
        self.netfilter.rest();
        self.route.rest();
    }
}

/// The rules of nf_tables and of iptables-legacy in the namespace, as they are now.
///
/// # Errors
/// The kernel does not tell.
pub fn fingerprint(inside: &Inside) -> Result<Fingerprint, Error> {
    let last = NetlinkSocket::netfilter().and_then(|mut socket| LastTransaction::ask(&mut socket));
    let last = match last {
        Err(error) if crate::nft::is_absent(&error) => LastTransaction::Impossible,
        last => last.map_err(no_generation)?,
    };
    let mut socket = None;
    let tables = match LegacyTables::may_exist() {
        true => legacy_tables(inside, &mut socket)?,
        false => LegacyTables::default(),
    };
    Ok(Fingerprint { last, legacy: legacy::content(socket.as_ref(), tables)? })
}

fn no_generation(source: netlink::Error) -> Error {
    Error::Netlink { operation: "ask for the nf_tables generation", source }
}

/// Which tables of iptables-legacy there are, and a socket to ask for them where there are some.
fn legacy_tables(inside: &Inside, socket: &mut Option<LegacySocket>) -> Result<LegacyTables, Error> {
    let tables = LegacyTables::read(inside)?;
    if !tables.is_empty() && socket.is_none() {
        *socket = Some(LegacySocket::open(inside)?);
    }
    Ok(tables)
}

impl Kernel<'_> {
    /// As [`Self::observe`], over sockets that are kept in the namespace. Of the rules of iptables it only tells that they are as they were when they
    /// were last found as planned.
    ///
    /// # Errors
    /// The kernel could not be asked. The sockets are to be opened anew.
    pub fn check(&self, kept: &mut KeptSockets, plan: &Arc<Plan>) -> Result<Check, crate::Error> {
        self.check_by(None, kept, plan)
    }

    /// The same by somebody who is inside of it, so that nobody has to enter to look which tables of iptables-legacy there are.
    ///
    /// # Errors
    /// As there.
    pub fn check_inside(
        &self,
        inside: &Inside,
        kept: &mut KeptSockets,
        plan: &Arc<Plan>,
    ) -> Result<Check, crate::Error> {
        self.check_by(Some(inside), kept, plan)
    }

    fn check_by(
        &self,
        inside: Option<&Inside>,
        kept: &mut KeptSockets,
        plan: &Arc<Plan>,
    ) -> Result<Check, crate::Error> {
        kept.compare_with(plan);
        kept.look(inside)?;
        let check = self.compare(kept, plan);
        let check = check.and_then(|check| {
            if check == Check::Equal {
                kept.note_answers(plan)?;
                kept.equal();
            }
            Ok(check)
        });
        kept.rest();
        check
    }

    fn compare(&self, kept: &mut KeptSockets, plan: &Plan) -> Result<Check, crate::Error> {
        let mut differences = missing_routing(route::missing_over(&mut kept.route, &plan.routing)?);
        let Some(rules) = self.store(plan.backend).observe_over(kept, &plan.layers)? else {
            return Ok(Check::Enter);
        };
        differences.extend(rules);
        let other = other(plan.backend);
        match self.store(other).exists_over(kept, &plan.layers)? {
            Some(true) => differences.push(Difference::OtherBackend { backend: other }),
            Some(false) => {}
            None => return Ok(Check::Enter),
        }
        Ok(if differences.is_empty() { Check::Equal } else { Check::Differs(differences) })
    }
}
