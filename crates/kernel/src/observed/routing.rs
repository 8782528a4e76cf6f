//! Policy routing, and the routes of the tables that it leads to.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use conflicts::{ObservedRoute, RoutingRule, RuleLookup};
use ruleset::{Family, Plan, Routing};
use rustix::io::Errno;

use crate::netlink::wire::{Message, MessageWriter};
use crate::netlink::{NetlinkSocket, flags};
use crate::route::{Error, unlisted};
use crate::sets::address;

/// `RTM_GETRULE`, `RTM_GETROUTE`; length of `struct fib_rule_hdr` and of `struct rtmsg`.
const GET_RULE: u16 = 34;
const GET_ROUTE: u16 = 26;
const HEADER: usize = 12;
/// `FRA_*` of linux/fib_rules.h.
const DESTINATION: u16 = 1;
const SOURCE: u16 = 2;
const IN_INTERFACE: u16 = 3;
const PRIORITY: u16 = 6;
const MARK: u16 = 10;
const SUPPRESS_GROUP: u16 = 13;
const SUPPRESS_PREFIX: u16 = 14;
const TABLE: u16 = 15;
const MASK: u16 = 16;
const OUT_INTERFACE: u16 = 17;
const PAD: u16 = 18;
const PROTOCOL: u16 = 21;
/// `FIB_RULE_INVERT`; `FR_ACT_*`.
const INVERTED: u32 = 2;
const TO_TABLE: u8 = 1;
const GONE: std::ops::RangeInclusive<u8> = 6..=8;
/// `RTA_DST`, `RTA_OIF`, `RTA_TABLE`; `RTN_LOCAL`, and `RTN_BLACKHOLE` to `RTN_PROHIBIT`.
const ROUTE_TO: u16 = 1;
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_TABLE: u16 = 15;
const LOCAL: u8 = 2;
const ROUTE_GONE: std::ops::RangeInclusive<u8> = 6..=8;
/// `RT_TABLE_LOCAL`: every address has several routes in it.
const TABLE_LOCAL: u32 = 255;
/// Rules and routes of a family that are read.
const MOST: usize = 4 << 10;

/// What there is.
pub(super) struct ObservedRouting {
    pub(super) rules: Vec<RoutingRule>,
    pub(super) routes: Vec<ObservedRoute>,
    /// Whether that is everything.
    pub(super) whole: bool,
}

pub(super) fn read(
    socket: &mut NetlinkSocket,
    names: &HashMap<u32, String>,
    plan: &Plan,
) -> Result<ObservedRouting, Error> {
    let mut observed = ObservedRouting { rules: Vec::new(), routes: Vec::new(), whole: true };
    for (family, number) in [(Family::V4, 2), (Family::V6, 10)] {
        observed.whole &= dump(socket, number, GET_RULE, |part| observed.rules.extend(rule(part, family)))?;
        observed.whole &=
            dump(socket, number, GET_ROUTE, |part| observed.routes.extend(route(part, family, names)))?;
    }
    let of_plan = |table: u32| {
        plan.routing.iter().any(|step| matches!(step, Routing::Rule { table: own, .. } if *own == table))
    };
    // Addresses are listed by themselves.
    observed.routes.retain(|route| route.table != TABLE_LOCAL || of_plan(route.table));
    Ok(observed)
}

/// Whether that was everything. Without the family there is nothing.
fn dump(
    socket: &mut NetlinkSocket,
    family: u8,
    kind: u16,
    mut take: impl FnMut(&Message<'_>),
) -> Result<bool, Error> {
    let mut request = MessageWriter::with_capacity(64);
    let header = [family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    request.message(kind, flags::REQUEST | flags::DUMP, 1, &header, |_| {});
    let mut seen = 0;
    let dumped = socket.dump_some(request.bytes(), MOST * 128, |part| {
        seen += 1;
        if seen <= MOST {
            take(part);
        }
    });
    match dumped {
        Ok(whole) => Ok(whole && seen <= MOST),
        Err(error) if matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::AFNOSUPPORT)) => Ok(true),
        Err(error) => Err(unlisted("list the routing of the namespace", error)),
    }
}

fn rule(part: &Message<'_>, family: Family) -> Option<RoutingRule> {
    let &[_, to_len, from_len, tos, table, _, _, action, a, b, c, d] =
        part.payload.first_chunk::<HEADER>()?;
    let attributes = part.attributes(HEADER);
    let number = |kind| attributes.find(kind).and_then(|a| a.ne32());
    let prefix = |kind, len| (len > 0).then(|| Some((address(attributes.find(kind)?.data)?, len))).flatten();
    let name = |kind| attributes.find(kind).map(|a| a.text().into_owned());
    let known = |kind: u16| {
        matches!(
            kind,
            DESTINATION
                | SOURCE
                | IN_INTERFACE
                | PRIORITY
                | MARK
                | TABLE
                | MASK
                | OUT_INTERFACE
                | PAD
                | PROTOCOL
        )
    };
    // What every rule has that suppresses nothing.
    let quiet = |kind, value: Option<u32>| {
        matches!(kind, SUPPRESS_GROUP | SUPPRESS_PREFIX) && value == Some(u32::MAX)
    };
    let asks_more = tos != 0 || attributes.into_iter().any(|a| !known(a.kind) && !quiet(a.kind, a.ne32()));
    let table = number(TABLE).unwrap_or(u32::from(table));
    let mark = number(MARK).unwrap_or(0);
    let mask = number(MASK).unwrap_or(if mark == 0 { 0 } else { u32::MAX });
    let mut rule = RoutingRule {
        family,
        preference: number(PRIORITY).unwrap_or(0),
        mark: (mask != 0).then_some((mark, mask)),
        from: prefix(SOURCE, from_len),
        to: prefix(DESTINATION, to_len),
        in_interface: name(IN_INTERFACE),
        out_interface: name(OUT_INTERFACE),
        not: u32::from_ne_bytes([a, b, c, d]) & INVERTED != 0,
        asks_more,
        lookup: match action {
            TO_TABLE => RuleLookup::Table(table),
            action if GONE.contains(&action) => RuleLookup::Gone,
            _ => RuleLookup::Other,
        },
        text: String::new(),
    };
    rule.text = text(&rule, action);
    Some(rule)
}

/// About as `ip rule` shows it.
fn text(rule: &RoutingRule, action: u8) -> String {
    let mut text = format!("{}:{} from ", rule.preference, if rule.not { " not" } else { "" });
    // Writing to a String cannot fail.
    let _ = match rule.from {
        Some((address, len)) => write!(text, "{address}/{len}"),
        None => write!(text, "all"),
    };
    let _ = rule.to.iter().try_for_each(|(address, len)| write!(text, " to {address}/{len}"));
    let _ = rule.mark.iter().try_for_each(|(mark, mask)| match *mask {
        u32::MAX => write!(text, " fwmark {mark:#x}"),
        mask => write!(text, " fwmark {mark:#x}/{mask:#x}"),
    });
    let _ = rule.in_interface.iter().try_for_each(|name| write!(text, " iif {name}"));
    let _ = rule.out_interface.iter().try_for_each(|name| write!(text, " oif {name}"));
    let _ = match rule.lookup {
        RuleLookup::Table(TABLE_LOCAL) => write!(text, " lookup local"),
        RuleLookup::Table(254) => write!(text, " lookup main"),
        RuleLookup::Table(253) => write!(text, " lookup default"),
        RuleLookup::Table(table) => write!(text, " lookup {table}"),
        RuleLookup::Gone => {
            write!(text, " {}", ["blackhole", "unreachable", "prohibit"][usize::from(action - GONE.start())])
        }
        RuleLookup::Other => write!(text, " action {action}"),
    };
    text
}

fn route(part: &Message<'_>, family: Family, names: &HashMap<u32, String>) -> Option<ObservedRoute> {
    let &[_, len, _, _, table, _, _, kind, ..] = part.payload.first_chunk::<HEADER>()?;
    let attributes = part.attributes(HEADER);
    let table = attributes.find(ROUTE_TABLE).and_then(|a| a.ne32()).unwrap_or(u32::from(table));
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let to = attributes.find(ROUTE_TO).and_then(|a| address(a.data)).unwrap_or(any);
    let interface = attributes.find(ROUTE_INTERFACE).and_then(|a| a.ne32());
    let interface = interface.and_then(|index| names.get(&index).cloned()).unwrap_or_default();
    let (local, gone) = (kind == LOCAL, ROUTE_GONE.contains(&kind));
    Some(ObservedRoute { family, table, to: (to, len), local, gone, interface })
}
