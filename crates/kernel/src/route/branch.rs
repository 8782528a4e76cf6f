//! Messages of rtnetlink for [`crate::branch_eni`]: rules by interface and by destination, routes to single addresses.

use std::collections::HashMap;
use std::net::IpAddr;

use ruleset::Family;

use super::{Error, hint, unlisted};
use crate::netlink::wire::{Message, MessageWriter};
use crate::netlink::{self, NetlinkSocket, flags};
use crate::sets::{address, octets};

const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;
const GET_ROUTE: u16 = 26;
const GET_LINK: u16 = 18;

const FRA_DST: u16 = 1;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const IFLA_IFNAME: u16 = 3;
/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;
/// `FIB_RULE_INVERT`: everything but what the rule describes.
const INVERTED: u32 = 2;
/// Length of `struct fib_rule_hdr` and of `struct rtmsg`; of `struct ifinfomsg`.
const HEADER: usize = 12;
const LINK_HEADER: usize = 16;

/// A rule that looks at the interface by which packets arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InterfaceRule {
    pub(crate) table: u32,
    pub(crate) interface: String,
    pub(crate) priority: u32,
}

/// A route to one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddressRoute {
    pub(crate) table: u32,
    pub(crate) to: IpAddr,
    pub(crate) interface: String,
}

/// What there is of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) rules: Vec<InterfaceRule>,
    pub(crate) routes: Vec<AddressRoute>,
}

/// A rule to add or to remove.
pub(crate) enum RuleRequest<'a> {
    /// Packets to the address.
    To { ip: IpAddr, table: u32, priority: u32 },
    /// Packets that arrive by the interface.
    From { v4: bool, interface: &'a str, table: u32, priority: u32 },
}

pub(crate) fn open() -> Result<NetlinkSocket, Error> {
    NetlinkSocket::open(None).map_err(|source| unlisted("speak to rtnetlink", source))
}

/// Rules by interface and host routes.
pub(crate) fn list(socket: &mut NetlinkSocket, family: Family) -> Result<Listed, Error> {
    let number = if family == Family::V4 { 2 } else { 10 };
    let mut rules = Vec::new();
    dump(socket, GET_RULE, &[number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], |part| match part {
        None => rules.clear(),
        Some(part) => rules.extend(rule(part)),
    })?;
    if rules.is_empty() {
        return Ok(Listed { rules, routes: Vec::new() });
    }
    let mut names = HashMap::new();
    dump(socket, GET_LINK, &[0; LINK_HEADER], |part| match part {
        None => names.clear(),
        Some(part) => names.extend(link(part)),
    })?;
    let mut routes = Vec::new();
    dump(socket, GET_ROUTE, &[number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], |part| match part {
        None => routes.clear(),
        Some(part) => routes.extend(route(part, &names)),
    })?;
    Ok(Listed { rules, routes })
}

pub(crate) fn order(
    socket: &mut NetlinkSocket,
    request: &RuleRequest<'_>,
    add: bool,
) -> Result<(), netlink::Error> {
    let mut w = MessageWriter::with_capacity(96);
    let (kind, flags) = if add {
        (NEW_RULE, flags::REQUEST | flags::ACK | flags::CREATE | flags::EXCL)
    } else {
        (DELETE_RULE, flags::REQUEST | flags::ACK)
    };
    // Family, lengths of the destination and the source, type of service, table (the attribute counts), reserved, action, flags.
    let header =
        |v4: bool, prefix: u8| [if v4 { 2 } else { 10 }, prefix, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    match *request {
        RuleRequest::To { ip, table, priority } => {
            let prefix = if ip.is_ipv4() { 32 } else { 128 };
            w.message(kind, flags, 1, &header(ip.is_ipv4(), prefix), |w| {
                w.attribute(FRA_DST, &octets(ip));
                w.attribute(FRA_PRIORITY, &priority.to_ne_bytes());
                w.attribute(FRA_TABLE, &table.to_ne_bytes());
            });
        }
        RuleRequest::From { v4, interface, table, priority } => {
            w.message(kind, flags, 1, &header(v4, 0), |w| {
                w.text(FRA_IIFNAME, interface);
                w.attribute(FRA_PRIORITY, &priority.to_ne_bytes());
                w.attribute(FRA_TABLE, &table.to_ne_bytes());
            });
        }
    }
    socket.order(w.bytes())
}

pub(crate) fn failed(request: &RuleRequest<'_>, add: bool, source: netlink::Error) -> Error {
    let what = match request {
        RuleRequest::To { ip, table, priority } => {
            format!("to {ip} lookup {table} (rule priority {priority})")
        }
        RuleRequest::From { interface, table, priority, .. } => {
            format!("iif {interface} lookup {table} (rule priority {priority})")
        }
    };
    let operation = format!("{} the routing rule {what}", if add { "add" } else { "remove" });
    Error::Failed { operation, hint: hint(&source), source }
}

fn dump(
    socket: &mut NetlinkSocket,
    kind: u16,
    header: &[u8],
    take: impl FnMut(Option<&Message<'_>>),
) -> Result<(), Error> {
    let mut w = MessageWriter::with_capacity(64);
    w.message(kind, flags::REQUEST | flags::DUMP, 1, header, |_| {});
    socket.dump(w.bytes(), take).map_err(|source| unlisted("list the routing of the node", source))
}

fn rule(part: &Message<'_>) -> Option<InterfaceRule> {
    let &[_, _, _, _, table, _, _, action, a, b, c, d] = part.payload.first_chunk::<HEADER>()?;
    let inverted = u32::from_ne_bytes([a, b, c, d]) & INVERTED != 0;
    let attributes = part.attributes(HEADER);
    let interface = attributes.find(FRA_IIFNAME)?.text().into_owned();
    let table = attributes.find(FRA_TABLE).and_then(|a| a.ne32()).unwrap_or(u32::from(table));
    let priority = attributes.find(FRA_PRIORITY).and_then(|a| a.ne32()).unwrap_or_default();
    (action == TO_TABLE && !inverted).then_some(InterfaceRule { table, interface, priority })
}

fn link(part: &Message<'_>) -> Option<(u32, String)> {
    let header = part.payload.first_chunk::<LINK_HEADER>()?;
    let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    Some((index, part.attributes(LINK_HEADER).find(IFLA_IFNAME)?.text().into_owned()))
}

fn route(part: &Message<'_>, names: &HashMap<u32, String>) -> Option<AddressRoute> {
    let &[family, prefix, _, _, table, ..] = part.payload.first_chunk::<HEADER>()?;
    let attributes = part.attributes(HEADER);
    let to = address(attributes.find(RTA_DST)?.data)?;
    let table = attributes.find(RTA_TABLE).and_then(|a| a.ne32()).unwrap_or(u32::from(table));
    let interface = names.get(&attributes.find(RTA_OIF)?.ne32()?)?.clone();
    let whole = (family, prefix) == (2, 32) || (family, prefix) == (10, 128);
    whole.then_some(AddressRoute { table, to, interface })
}
