//! Messages of rtnetlink. Numbers are those of `linux/rtnetlink.h`, `linux/if_addr.h` and `linux/fib_rules.h`, in the machine's
//! order; addresses are in network order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ruleset::Family;

use crate::netlink::flags;
use crate::netlink::wire::{Attributes, Message, MessageWriter};

pub(super) const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;

/// `LOOPBACK_IFINDEX`: the kernel makes lo the first interface of every namespace and relies on it.
pub(super) const LOOPBACK: u32 = 1;

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

/// Length of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
/// Length of `struct fib_rule_hdr` and of `struct rtmsg`.
const ROUTE_HEADER: usize = 12;

/// Length of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// `IFLA_AF_SPEC` and `IFLA_EXT_MASK` of `linux/if_link.h`, `RTEXT_FILTER_SKIP_STATS` of `linux/rtnetlink.h`.
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
const SKIP_STATS: u32 = 1 << 3;
/// `IFLA_INET6_CONF`: numbers in the machine's order; `DEVCONF_DISABLE_IPV6` of `linux/ipv6.h` is the place of one.
const IFLA_INET6_CONF: u16 = 2;
const DISABLE_IPV6: usize = 26;

/// `IFF_UP` of `linux/if.h`.
const UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;
/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;
/// `FIB_RULE_INVERT`.
const INVERTED: u32 = 2;

const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
/// `RTPROT_BOOT`: what `ip route add` uses too.
const BOOT: u8 = 3;
/// `RT_SCOPE_HOST`.
const HOST_SCOPE: u8 = 254;
/// `RTN_LOCAL`.
const LOCAL: u8 = 2;

const CREATE: u16 = flags::REQUEST | flags::ACK | flags::CREATE | flags::EXCL;
const DELETE: u16 = flags::REQUEST | flags::ACK;
const CHANGE: u16 = flags::REQUEST | flags::ACK;
const LIST: u16 = flags::REQUEST | flags::DUMP;

/// An address as listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListedAddress {
    pub(crate) ip: IpAddr,
    pub(crate) prefix_len: u8,
    pub(crate) interface: u32,
}

/// A rule that looks at nothing but the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MarkRule {
    pub(super) mark: u32,
    pub(super) mask: u32,
    pub(super) table: u32,
    pub(super) priority: u32,
}

/// A default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListedRoute {
    pub(super) table: u32,
    /// It delivers locally by lo.
    pub(super) local: bool,
}

pub(super) fn add_address(address: Ipv6Addr) -> Vec<u8> {
    loopback_address(NEW_ADDRESS, CREATE, address)
}

pub(super) fn delete_address(address: Ipv6Addr) -> Vec<u8> {
    loopback_address(DELETE_ADDRESS, DELETE, address)
}

/// Brings lo up (`struct ifinfomsg`: family, type, index, flags and which of them change; `IFF_UP`).
pub(super) fn raise_loopback() -> Vec<u8> {
    let [a, b, c, d] = LOOPBACK.to_ne_bytes();
    let [e, f, g, h] = UP.to_ne_bytes();
    message(NEW_LINK, CHANGE, &[AF_UNSPEC, 0, 0, 0, a, b, c, d, e, f, g, h, e, f, g, h], |_| {})
}

/// Asks for lo with the settings of its families.
pub(super) fn get_loopback() -> Vec<u8> {
    let [a, b, c, d] = LOOPBACK.to_ne_bytes();
    let header = [AF_UNSPEC, 0, 0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0];
    message(GET_LINK, flags::REQUEST | flags::ACK, &header, |w| {
        w.attribute(IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
    })
}

/// Whether a link has `net.ipv6.conf.*.disable_ipv6` set.
pub(super) fn has_ipv6_off(link: &Message<'_>) -> bool {
    let families = link.attributes(LINK_HEADER).find(IFLA_AF_SPEC);
    let settings = families
        .and_then(|families| families.nested().find(AF_INET6.into()))
        .and_then(|ipv6| ipv6.nested().find(IFLA_INET6_CONF));
    settings.is_some_and(|settings| {
        settings.data.chunks_exact(4).nth(DISABLE_IPV6).is_some_and(|number| number != [0; 4])
    })
}

fn loopback_address(kind: u16, flags: u16, address: Ipv6Addr) -> Vec<u8> {
    let [a, b, c, d] = LOOPBACK.to_ne_bytes();
    // Family, prefix length, flags, scope, index.
    message(kind, flags, &[AF_INET6, 128, 0, 0, a, b, c, d], |w| {
        w.attribute(IFA_LOCAL, &address.octets());
        w.attribute(IFA_ADDRESS, &address.octets());
    })
}

pub(super) fn list_addresses(family: u8) -> Vec<u8> {
    message(GET_ADDRESS, LIST, &[family, 0, 0, 0, 0, 0, 0, 0], |_| {})
}

pub(super) fn add_rule(family: Family, rule: &MarkRule) -> Vec<u8> {
    mark_rule(NEW_RULE, CREATE, family, rule)
}

pub(super) fn delete_rule(family: Family, rule: &MarkRule) -> Vec<u8> {
    mark_rule(DELETE_RULE, DELETE, family, rule)
}

fn mark_rule(kind: u16, flags: u16, family: Family, rule: &MarkRule) -> Vec<u8> {
    // Family, lengths of the destination and the source, type of service, table (the attribute counts), reserved, action, flags.
    let header = [number(family), 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    message(kind, flags, &header, |w| {
        w.attribute(FRA_PRIORITY, &rule.priority.to_ne_bytes());
        w.attribute(FRA_FWMARK, &rule.mark.to_ne_bytes());
        w.attribute(FRA_FWMASK, &rule.mask.to_ne_bytes());
        w.attribute(FRA_TABLE, &rule.table.to_ne_bytes());
    })
}

/// Those of all families.
pub(super) fn list_rules() -> Vec<u8> {
    message(GET_RULE, LIST, &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], |_| {})
}

pub(super) fn add_route(family: Family, table: u32) -> Vec<u8> {
    local_route(NEW_ROUTE, CREATE, family, table)
}

pub(super) fn delete_route(family: Family, table: u32) -> Vec<u8> {
    local_route(DELETE_ROUTE, DELETE, family, table)
}

fn local_route(kind: u16, flags: u16, family: Family, table: u32) -> Vec<u8> {
    // Family, lengths of the destination and the source, type of service, table (the attribute counts), protocol, scope, type,
    // flags.
    let header = [number(family), 0, 0, 0, 0, BOOT, HOST_SCOPE, LOCAL, 0, 0, 0, 0];
    message(kind, flags, &header, |w| {
        w.attribute(RTA_TABLE, &table.to_ne_bytes());
        w.attribute(RTA_OIF, &LOOPBACK.to_ne_bytes());
    })
}

/// Those of all families.
pub(super) fn list_routes() -> Vec<u8> {
    message(GET_ROUTE, LIST, &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], |_| {})
}

/// `None`: another family's address.
pub(super) fn address(part: &Message<'_>) -> Option<ListedAddress> {
    let &[family, prefix_len, _, _, a, b, c, d] = part.payload.first_chunk::<ADDRESS_HEADER>()?;
    let attributes = part.attributes(ADDRESS_HEADER);
    // Between two ends of a link the plain attribute is the other end's.
    let data = attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS))?.data;
    let ip = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?)),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?)),
        _ => return None,
    };
    Some(ListedAddress { ip, prefix_len, interface: u32::from_ne_bytes([a, b, c, d]) })
}

/// The family of a rule or route; absent for those of multicast and others.
pub(super) fn family(part: &Message<'_>) -> Option<Family> {
    match *part.payload.first()? {
        AF_INET => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

/// `None`: it looks at something else than the mark, or does something else than naming a table.
pub(super) fn rule(part: &Message<'_>) -> Option<MarkRule> {
    let &[_, dst_len, src_len, tos, table, _, _, action, a, b, c, d] =
        part.payload.first_chunk::<ROUTE_HEADER>()?;
    let inverted = u32::from_ne_bytes([a, b, c, d]) & INVERTED != 0;
    if (dst_len, src_len, tos, action, inverted) != (0, 0, 0, TO_TABLE, false) {
        return None;
    }
    // The kernel leaves a priority of 0 out.
    let mut found = MarkRule { mark: 0, mask: 0, table: u32::from(table), priority: 0 };
    for attribute in part.attributes(ROUTE_HEADER) {
        match attribute.kind {
            FRA_PRIORITY => found.priority = attribute.ne32()?,
            FRA_FWMARK => found.mark = attribute.ne32()?,
            FRA_FWMASK => found.mask = attribute.ne32()?,
            FRA_TABLE => found.table = attribute.ne32()?,
            FRA_PROTOCOL | FRA_PAD => {}
            // What every rule has that suppresses nothing.
            FRA_SUPPRESS_PREFIXLEN if attribute.ne32() == Some(u32::MAX) => {}
            _ => return None,
        }
    }
    (found.mask != 0).then_some(found)
}

/// `None`: not a default route.
pub(super) fn default_route(part: &Message<'_>) -> Option<ListedRoute> {
    let &[_, dst_len, src_len, tos, table, _, _, kind, ..] = part.payload.first_chunk::<ROUTE_HEADER>()?;
    if (dst_len, src_len, tos) != (0, 0, 0) {
        return None;
    }
    let attributes: Attributes<'_> = part.attributes(ROUTE_HEADER);
    let table = attributes.find(RTA_TABLE).and_then(|a| a.ne32()).unwrap_or(u32::from(table));
    let by_loopback = attributes.find(RTA_OIF).and_then(|a| a.ne32()) == Some(LOOPBACK);
    Some(ListedRoute { table, local: kind == LOCAL && by_loopback })
}

fn message(kind: u16, flags: u16, header: &[u8], body: impl FnOnce(&mut MessageWriter)) -> Vec<u8> {
    let mut w = MessageWriter::with_capacity(96);
    w.message(kind, flags, 1, header, body);
    w.bytes().to_vec()
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}
