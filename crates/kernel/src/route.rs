//! The policy routing that TPROXY needs, over rtnetlink; and the namespace's addresses.
//!
//! Each step is one message that the kernel takes or refuses as a whole. "Already there" is its own answer (`EEXIST` to an
//! exclusive creation), so nothing is looked up before and two who do the same at once cannot make duplicates.

pub(crate) mod branch;
mod message;
#[cfg(test)]
pub(crate) mod tests;

use std::net::{IpAddr, Ipv6Addr};

use netns::Inside;
use ruleset::{Family, Routing};
use rustix::io::Errno;

use crate::netlink::{self, NetlinkSocket};
pub(crate) use message::ListedAddress;
use message::{ListedRoute, MarkRule};

/// How many addresses, rules or routes of a namespace are read: a node may have one of each for every Service, and whoever adds a million must
/// not hold a look up.
const MOST: usize = 64 << 10;

/// A routing operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel has no IPv6, or it is switched off in this namespace.
    #[error(
        "cannot {operation}: IPv6 is not available in this namespace (look at ipv6.disable= of the kernel command line \
         and at the sysctl net.ipv6.conf.lo.disable_ipv6)"
    )]
    NoIpv6 {
        /// What was done to what.
        operation: String,
        /// The kernel's answer.
        source: netlink::Error,
    },
    /// The table that is meant to deliver every destination locally has another default route. It is not ours to replace.
    #[error(
        "cannot {operation}: the table has another default route; look at `ip {flag} route show table {table}` and remove \
         what does not belong there"
    )]
    OtherRoute {
        /// What was done to what.
        operation: String,
        /// `-4` or `-6`.
        flag: &'static str,
        /// The routing table.
        table: u32,
    },
    /// Anything else.
    #[error("cannot {operation}{hint}")]
    Failed {
        /// What was done to what.
        operation: String,
        /// What may be the reason, in parentheses; may be empty.
        hint: &'static str,
        /// The kernel's answer.
        source: netlink::Error,
    },
}

/// Brings `lo` up, as container runtimes do before they call plugins. Nothing is changed where it is up.
///
/// # Errors
/// The kernel refused.
pub fn raise_loopback(_: &Inside) -> Result<(), Error> {
    let failed = |source: netlink::Error| Error::Failed {
        operation: "bring lo up".to_owned(),
        hint: hint(&source),
        source,
    };
    NetlinkSocket::open(None).map_err(failed)?.order(&message::raise_loopback()).map_err(failed)
}

/// Puts a part of the routing in place. `true` when it was not before.
///
/// # Errors
/// It is not in place.
pub fn ensure(_: &Inside, step: &Routing) -> Result<bool, Error> {
    let mut socket = open(step)?;
    let request = match *step {
        Routing::LoopbackAddress(address) => message::add_address(address),
        Routing::Rule { family, mark, mask, table, priority } => {
            message::add_rule(family, &MarkRule { mark, mask, table, priority })
        }
        Routing::LocalRoute { family, .. } if is_switched_off(&mut socket, family) => return Ok(false),
        Routing::LocalRoute { family, table } => message::add_route(family, table),
    };
    match socket.order(&request) {
        Ok(()) => Ok(true),
        Err(e) if e.errno() == Some(Errno::EXIST) => {
            // For addresses and rules the kernel compares everything, for routes only the destination.
            if let Routing::LocalRoute { family, table } = *step
                && is_missing(&mut socket, step)?
            {
                let flag = if family == Family::V4 { "-4" } else { "-6" };
                return Err(Error::OtherRoute { operation: describe(step), flag, table });
            }
            Ok(false)
        }
        Err(e) => Err(failed(step, e)),
    }
}

/// Whether a part of the routing is not in place.
///
/// # Errors
/// The kernel could not be asked. Without IPv6 an IPv6 step is missing, which is no error.
pub fn missing(_: &Inside, step: &Routing) -> Result<bool, Error> {
    is_missing(&mut open(step)?, step)
}

/// As [`missing`], of many steps over a socket of the namespace. What several steps need is asked for once.
pub(crate) fn missing_over<'a>(
    socket: &mut NetlinkSocket,
    steps: &'a [Routing],
) -> Result<Vec<&'a Routing>, Error> {
    let (mut found, mut missing) = (Found::default(), Vec::new());
    for step in steps {
        match found.has(socket, step).map_err(|e| failed(step, e)) {
            Ok(true) => {}
            Ok(false) | Err(Error::NoIpv6 { .. }) => missing.push(step),
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

/// The same over a new socket of the calling thread's namespace.
pub(crate) fn missing_of<'a>(_: &Inside, steps: &'a [Routing]) -> Result<Vec<&'a Routing>, Error> {
    let Some(first) = steps.first() else { return Ok(Vec::new()) };
    missing_over(&mut open(first)?, steps)
}

/// Takes a routing step back. `true` when something was removed. A rule for the mark and the table is removed at whatever
/// priority it is and however often it is there: other implementations add one at each run.
///
/// # Errors
/// It, or a part of it, is still there.
pub fn remove(_: &Inside, step: &Routing) -> Result<bool, Error> {
    delete(step, |_| true)
}

/// Takes back what [`ensure`] has just added, and nothing that was there before.
///
/// # Errors
/// It is still there.
pub fn take_back(_: &Inside, step: &Routing) -> Result<bool, Error> {
    let own = if let Routing::Rule { priority, .. } = step { Some(*priority) } else { None };
    delete(step, |priority| own == Some(priority))
}

/// `which` says by their priority which of the rules for the step's mark and table are meant.
fn delete(step: &Routing, which: impl Fn(u32) -> bool) -> Result<bool, Error> {
    let mut socket = open(step)?;
    let requests = match *step {
        Routing::LoopbackAddress(address) => vec![message::delete_address(address)],
        Routing::Rule { family, mark, mask, table, .. } => rules(&mut socket)
            .map_err(|e| failed(step, e))?
            .iter()
            .filter(|(of, rule)| {
                (*of, rule.mark, rule.mask, rule.table) == (family, mark, mask, table) && which(rule.priority)
            })
            .map(|(_, rule)| message::delete_rule(family, rule))
            .collect(),
        // What is in the way of ours is not ours to delete.
        Routing::LocalRoute { .. } if is_missing(&mut socket, step)? => return Ok(false),
        Routing::LocalRoute { family, table } => vec![message::delete_route(family, table)],
    };
    let mut removed = false;
    for request in requests {
        match socket.order(&request) {
            Ok(()) => removed = true,
            Err(e) if matches!(e.errno(), Some(Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL)) => {}
            Err(e) if is_no_ipv6(step, &e) => {}
            Err(source) => {
                let operation = format!("undo: {}", describe(step));
                return Err(Error::Failed { operation, hint: hint(&source), source });
            }
        }
    }
    Ok(removed)
}

/// All addresses of all interfaces in the kernel's order: IPv4 before IPv6, in a family by the interface's index; of a link
/// between two ends, the own one. Those of lo are among them.
///
/// # Errors
/// The kernel could not be asked.
pub fn addresses(inside: &Inside) -> Result<Vec<IpAddr>, Error> {
    Ok(every_address(inside)?.into_iter().map(|address| address.ip).collect())
}

/// The same without those of `lo`: addresses by which others reach the namespace.
///
/// # Errors
/// As there.
pub fn link_addresses(_: &Inside) -> Result<Vec<IpAddr>, Error> {
    link_addresses_over(&mut NetlinkSocket::open(None).map_err(no_addresses)?)
}

/// The same over a socket of the namespace.
pub(crate) fn link_addresses_over(socket: &mut NetlinkSocket) -> Result<Vec<IpAddr>, Error> {
    let mut found = every_address_over(socket)?;
    found.retain(|address| address.interface != message::LOOPBACK);
    Ok(found.into_iter().map(|address| address.ip).collect())
}

pub(crate) fn every_address(_: &Inside) -> Result<Vec<ListedAddress>, Error> {
    every_address_over(&mut NetlinkSocket::open(None).map_err(no_addresses)?)
}

pub(crate) fn every_address_over(socket: &mut NetlinkSocket) -> Result<Vec<ListedAddress>, Error> {
    let mut found = Vec::new();
    socket
        .dump_most(&message::list_addresses(message::AF_UNSPEC), (MOST, "addresses"), |part| match part {
            None => found.clear(),
            Some(part) => found.extend(message::address(part)),
        })
        .map_err(no_addresses)?;
    Ok(found)
}

fn no_addresses(source: netlink::Error) -> Error {
    unlisted("list the addresses of the namespace", source)
}

fn is_missing(socket: &mut NetlinkSocket, step: &Routing) -> Result<bool, Error> {
    Ok(!missing_over(socket, std::slice::from_ref(step))?.is_empty())
}

/// What the kernel has, of both families, asked for once.
#[derive(Default)]
struct Found {
    rules: Option<Vec<(Family, MarkRule)>>,
    routes: Option<Vec<(Family, ListedRoute)>>,
}

impl Found {
    fn has(&mut self, socket: &mut NetlinkSocket, step: &Routing) -> Result<bool, netlink::Error> {
        match *step {
            Routing::LoopbackAddress(address) => has_loopback_address(socket, address),
            Routing::Rule { family, mark, mask, table, priority } => {
                if self.rules.is_none() {
                    self.rules = Some(rules(socket)?);
                }
                let planned = (family, MarkRule { mark, mask, table, priority });
                Ok(self.rules.iter().flatten().any(|found| *found == planned))
            }
            Routing::LocalRoute { family, table } => {
                if self.routes.is_none() {
                    self.routes = Some(routes(socket)?);
                }
                let planned = (family, ListedRoute { table, local: true });
                let there = self.routes.iter().flatten().any(|found| *found == planned);
                Ok(there || is_switched_off(socket, family))
            }
        }
    }
}

fn has_loopback_address(socket: &mut NetlinkSocket, address: Ipv6Addr) -> Result<bool, netlink::Error> {
    let mut there = false;
    let most = (MOST, "addresses");
    socket.dump_most(&message::list_addresses(message::AF_INET6), most, |part| match part {
        None => there = false,
        Some(part) => {
            there |= message::address(part).is_some_and(|a| {
                a.ip == IpAddr::V6(address) && a.interface == message::LOOPBACK && a.prefix_len == 128
            });
        }
    })?;
    Ok(there)
}

fn rules(socket: &mut NetlinkSocket) -> Result<Vec<(Family, MarkRule)>, netlink::Error> {
    let mut found = Vec::new();
    socket.dump_most(&message::list_rules(), (MOST, "routing rules"), |part| match part {
        None => found.clear(),
        Some(part) => found.extend(message::family(part).zip(message::rule(part))),
    })?;
    Ok(found)
}

/// The default routes of all tables.
fn routes(socket: &mut NetlinkSocket) -> Result<Vec<(Family, ListedRoute)>, netlink::Error> {
    let mut found = Vec::new();
    socket.dump_most(&message::list_routes(), (MOST, "routes"), |part| match part {
        None => found.clear(),
        Some(part) => found.extend(message::family(part).zip(message::default_route(part))),
    })?;
    Ok(found)
}

/// Whether the loopback interface has the family switched off; the kernel takes no route by it then. Where that cannot be read it is tried.
fn is_switched_off(socket: &mut NetlinkSocket, family: Family) -> bool {
    let mut off = false;
    if family == Family::V6 {
        let _ = socket.get(&message::get_loopback(), |link| off = message::has_ipv6_off(link));
    }
    off
}

fn open(step: &Routing) -> Result<NetlinkSocket, Error> {
    NetlinkSocket::open(None).map_err(|e| failed(step, e))
}

fn failed(step: &Routing, source: netlink::Error) -> Error {
    let operation = describe(step);
    if is_no_ipv6(step, &source) {
        Error::NoIpv6 { operation, source }
    } else {
        Error::Failed { operation, hint: hint(&source), source }
    }
}

/// Whether the kernel refused because of the family: nobody registered for it, or the interface has it switched off.
fn is_no_ipv6(step: &Routing, error: &netlink::Error) -> bool {
    let v6 = match step {
        Routing::LoopbackAddress(_) => true,
        Routing::Rule { family, .. } | Routing::LocalRoute { family, .. } => *family == Family::V6,
    };
    let refused = matches!(error, netlink::Error::Refused { .. });
    v6 && refused && matches!(error.errno(), Some(Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::ACCESS))
}

/// A list that could not be had.
pub(crate) fn unlisted(operation: &str, source: netlink::Error) -> Error {
    Error::Failed { operation: operation.to_owned(), hint: hint(&source), source }
}

fn hint(error: &netlink::Error) -> &'static str {
    match error.errno() {
        Some(Errno::PERM) => " (this needs CAP_NET_ADMIN: run as root)",
        Some(Errno::AFNOSUPPORT | Errno::OPNOTSUPP) => {
            " (this kernel has no policy routing: CONFIG_IP_MULTIPLE_TABLES)"
        }
        Some(Errno::NETDOWN) => " (the loopback interface is down: the runtime should have set it up)",
        _ => "",
    }
}

fn describe(step: &Routing) -> String {
    let version = |family: &Family| if *family == Family::V4 { "IPv4" } else { "IPv6" };
    match step {
        Routing::LoopbackAddress(address) => format!("give lo the address {address}/128"),
        Routing::Rule { family, mark, mask, table, priority } => format!(
            "route {} packets with mark {mark:#x}/{mask:#x} by table {table} (rule priority {priority})",
            version(family)
        ),
        Routing::LocalRoute { family, table } => {
            format!("make every {} destination local in routing table {table}", version(family))
        }
    }
}
