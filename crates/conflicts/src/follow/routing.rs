//! Where policy routing leads a packet.

use std::net::IpAddr;

use ruleset::Family;

use crate::{ObservedNetns, ObservedRoute, RoutingRule, RuleLookup};

/// The tables that the kernel has in every namespace (`RT_TABLE_*` in linux/rtnetlink.h).
const MAIN: u32 = 254;
const LOCAL: u32 = 255;

/// Where a packet goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Routed {
    /// It is for this namespace.
    Local,
    /// By this interface; the name is empty where it is not known.
    Out(String),
    /// Nowhere.
    Gone(String),
    /// Because of this it cannot be told.
    Unknown(String),
}

/// What routing asks of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) mark: u32,
    /// `lo` for what is sent here.
    pub(crate) in_interface: &'a str,
}

/// Asks the rules of policy routing in their order.
pub(crate) fn route(observed: &ObservedNetns, asked: &Asked<'_>) -> Routed {
    let family = Family::of_address(asked.destination);
    if !observed.rules.iter().any(|rule| rule.family == family) {
        return [LOCAL, MAIN]
            .into_iter()
            .find_map(|table| look_up(observed, table, asked))
            .unwrap_or_else(nowhere);
    }
    decide(observed, asked).map_or_else(nowhere, |(_, routed)| routed)
}

/// The rule of policy routing that decides.
pub(crate) fn deciding_rule<'a>(observed: &'a ObservedNetns, asked: &Asked<'_>) -> Option<&'a RoutingRule> {
    decide(observed, asked).map(|(rule, _)| rule)
}

fn decide<'a>(observed: &'a ObservedNetns, asked: &Asked<'_>) -> Option<(&'a RoutingRule, Routed)> {
    let family = Family::of_address(asked.destination);
    let mut rules: Vec<&RoutingRule> = observed.rules.iter().filter(|rule| rule.family == family).collect();
    rules.sort_by_key(|rule| rule.preference);
    rules.into_iter().filter(|rule| rule.holds(asked)).find_map(|rule| {
        let found = match rule.lookup {
            _ if rule.asks_more => Some(Routed::Unknown(rule.text.clone())),
            RuleLookup::Table(table) => look_up(observed, table, asked),
            RuleLookup::Gone => Some(Routed::Gone(rule.text.clone())),
            RuleLookup::Other => Some(Routed::Unknown(rule.text.clone())),
        };
        found.map(|found| (rule, found))
    })
}

fn nowhere() -> Routed {
    Routed::Gone("no route".to_owned())
}

fn look_up(observed: &ObservedNetns, table: u32, asked: &Asked<'_>) -> Option<Routed> {
    let to = asked.destination;
    if table == LOCAL && (to.is_loopback() || observed.addresses.iter().any(|own| own.address == to)) {
        return Some(Routed::Local);
    }
    let family = Family::of_address(to);
    let routes = || observed.routes.iter().filter(|route| route.table == table && route.family == family);
    let longest = routes().filter(|route| contains(route.to, to)).max_by_key(|route| route.to.1);
    match longest {
        Some(ObservedRoute { local: true, .. }) => Some(Routed::Local),
        Some(ObservedRoute { gone: true, .. }) => {
            Some(Routed::Gone("the route of this destination".to_owned()))
        }
        Some(route) => Some(Routed::Out(route.interface.clone())),
        // The main table's routes may not have been read.
        None if table == MAIN && routes().next().is_none() => Some(Routed::Out(String::new())),
        None => None,
    }
}

fn contains((prefix, length): (IpAddr, u8), address: IpAddr) -> bool {
    let same = |one: u128, other: u128, bits: u32| {
        let free = bits.saturating_sub(length.into());
        one.checked_shr(free).unwrap_or(0) == other.checked_shr(free).unwrap_or(0)
    };
    match (prefix, address) {
        (IpAddr::V4(prefix), IpAddr::V4(address)) => {
            same(u32::from(prefix).into(), u32::from(address).into(), 32)
        }
        (IpAddr::V6(prefix), IpAddr::V6(address)) => same(prefix.into(), address.into(), 128),
        _ => false,
    }
}

impl RoutingRule {
    fn holds(&self, asked: &Asked<'_>) -> bool {
        let holds = self.mark.is_none_or(|(mark, mask)| asked.mark & mask == mark & mask)
            && self.from.is_none_or(|from| contains(from, asked.source))
            && self.to.is_none_or(|to| contains(to, asked.destination))
            && self.in_interface.as_deref().is_none_or(|name| name == asked.in_interface)
            // Only sockets that are bound to an interface ask for it.
            && self.out_interface.is_none();
        holds != self.not
    }
}
