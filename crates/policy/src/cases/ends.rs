//! The ends of a case's connections, and what they carry.

use std::net::IpAddr;

use facts::networkpolicy::PolicyProtocol;
use ruleset::Family;

use super::{CaseError, WrittenTraffic};
use crate::compiled::ServicePoint;
use crate::{FlowRoute, PlainWorld, Traffic};

/// Whether a connection is over IPv6.
pub(super) type IsV6 = bool;

/// Where a connection of a case goes to.
pub(super) enum Destination {
    /// To an address.
    Address(IpAddr),
    /// By a Service, of which the address in the family comes first if it has one, to one of these.
    Endpoints(Option<ServicePoint>, Vec<(IpAddr, u16)>),
}

/// The numbers of protocols that are written by their names.
const WITH_PORTS: [&str; 3] = ["6", "17", "132"];

impl WrittenTraffic {
    pub(super) fn traffic(&self) -> Result<Traffic, CaseError> {
        let name = self.protocol.as_str();
        if let Ok(protocol) = PolicyProtocol::parse(Some(name)) {
            return Ok(Traffic::Port(protocol, self.port));
        }
        // Of another one the name or the number is written.
        let is_number = name.parse::<u8>().is_ok() && !WITH_PORTS.contains(&name);
        let is_known = is_number || ["ICMP", "ICMPv6", "GRE"].contains(&name);
        is_known.then_some(Traffic::Portless).ok_or_else(|| unknown("protocol", name))
    }

    pub(super) fn route(&self) -> Result<FlowRoute, CaseError> {
        match self.path.as_deref() {
            None | Some("plain") => Ok(FlowRoute::Direct),
            Some("hbone") => Ok(FlowRoute::Tunnel),
            Some(other) => Err(unknown("path", other)),
        }
    }

    pub(super) fn is_v6(&self) -> Result<Option<IsV6>, CaseError> {
        match self.family.as_deref() {
            None => Ok(None),
            Some("IPv4") => Ok(Some(false)),
            Some("IPv6") => Ok(Some(true)),
            Some(other) => Err(unknown("family", other)),
        }
    }
}

fn unknown(field: &'static str, value: &str) -> CaseError {
    CaseError::Word { field, value: value.to_owned() }
}

/// The address of a pod in a family, if it has one.
pub(super) fn pod_address(world: &PlainWorld, text: &str, v6: IsV6) -> Result<Option<IpAddr>, CaseError> {
    let none = || CaseError::End(text.to_owned());
    let (namespace, name) = text.split_once('/').ok_or_else(none)?;
    let pod = world.pod(namespace, name).ok_or_else(none)?;
    Ok(of_family(&pod.facts.addresses, v6))
}

/// The address of an end that is a pod, a node or an address.
pub(super) fn address(world: &PlainWorld, text: &str, v6: IsV6) -> Result<IpAddr, CaseError> {
    let none = || CaseError::End(text.to_owned());
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    match text.strip_prefix("node:") {
        Some(node) => of_family(world.node(node).unwrap_or_default(), v6).ok_or_else(none),
        None => pod_address(world, text, v6)?.ok_or_else(none),
    }
}

/// Where a connection goes to.
pub(super) fn destination(
    world: &PlainWorld,
    text: &str,
    v6: IsV6,
    traffic: Traffic,
) -> Result<Destination, CaseError> {
    let Some(service) = text.strip_prefix("svc:") else {
        return Ok(Destination::Address(address(world, text, v6)?));
    };
    let none = || CaseError::End(text.to_owned());
    let (namespace, name) = service.split_once('/').ok_or_else(none)?;
    let Traffic::Port(protocol, port) = traffic else { return Err(none()) };
    let family = if v6 { Family::V6 } else { Family::V4 };
    let endpoints = world.endpoints(namespace, name, protocol, port, family).ok_or_else(none)?;
    let addresses = world.service(namespace, name).map(|service| &*service.addresses).unwrap_or_default();
    Ok(Destination::Endpoints(of_family(addresses, v6).map(|address| (address, port)), endpoints))
}

fn of_family(addresses: &[IpAddr], v6: IsV6) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv6() == v6)
}

/// Whether an end is written as an address, and of which family it is.
pub(super) fn family_of(text: &str) -> Option<IsV6> {
    text.parse::<IpAddr>().ok().map(|address| address.is_ipv6())
}
