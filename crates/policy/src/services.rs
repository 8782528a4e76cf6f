//! What the policies of a pod come to for addresses of Services.
//!
//! Policies speak of the pods behind a Service. In the pod's own namespace a packet still goes to the Service, and which of its endpoints gets it is
//! the service proxy's choice: so the Service is allowed if each of them is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use facts::EndpointSlice;
use facts::endpointslice::{Endpoint, EndpointPort};
use facts::networkpolicy::PolicyProtocol;
use facts::service::ServicePort;
use ruleset::Family;

use crate::flow::Traffic;
use crate::index::{PeerMember, PolicyClass, PolicyIndex};
use crate::terms::PolicyTerms;
use crate::verdict::may_reach;
use crate::world::{ServiceAddress, ServiceWorld};

/// The addresses of Services for the pods of a class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceVerdicts {
    /// These the pods may reach.
    pub allowed: BTreeSet<PeerMember>,
    /// These they may not, although rules of theirs match the addresses themselves, as an `ipBlock` around them does.
    pub denied: BTreeSet<PeerMember>,
    /// Of these some endpoints are allowed and some are not, so that the pods may not reach them.
    pub mixed: BTreeSet<MixedService>,
}

/// A port of a Service behind which some endpoints are allowed and some are not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MixedService {
    /// Namespace of the Service.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// The protocol.
    pub protocol: PolicyProtocol,
    /// Its own port.
    pub port: u16,
}

/// Where a service proxy may lead a connection of a family to a port of a Service, by all slices of the Service, in order: to the ready endpoints, and
/// where none of that family is ready to those that still answer while they are ending.
pub fn endpoints<'s>(
    slices: &(impl Iterator<Item = &'s EndpointSlice> + Clone),
    port: &ServicePort,
    family: Family,
) -> Vec<(IpAddr, u16)> {
    let that_count = |counts: fn(&Endpoint) -> bool| {
        let mut found = Vec::new();
        for slice in slices.clone() {
            let same = |one: &&EndpointPort| one.name == port.name && one.protocol == port.protocol;
            let Some(target) = slice.ports.iter().find(same) else { continue };
            let number = target.number.unwrap_or(port.number);
            let addresses = slice.endpoints.iter().filter(|one| counts(one)).flat_map(|one| &one.addresses);
            let addresses = addresses.filter(|address| Family::of_address(**address) == family);
            found.extend(addresses.map(|address| (*address, number)));
        }
        found.sort_unstable();
        found.dedup();
        found
    };
    let ready = that_count(|one| one.ready);
    if ready.is_empty() { that_count(|one| one.serving && one.terminating) } else { ready }
}

/// Judges each address of each Service for the pods of an egress class.
pub fn service_verdicts<W: ServiceWorld>(
    world: &W,
    index: &PolicyIndex,
    class: &PolicyClass,
) -> ServiceVerdicts {
    let known = class.policies.iter().filter_map(|name| index.terms(name));
    let terms: Vec<&PolicyTerms> = known.map(|terms| &**terms).collect();
    let may_reach =
        |address, protocol, port| may_reach(world, &terms, address, Traffic::Port(protocol, port));
    let mut found = ServiceVerdicts::default();
    // Two Services may claim an external address: both have to be allowed.
    let mut verdicts: BTreeMap<PeerMember, bool> = BTreeMap::new();
    for ServiceAddress { namespace, name, address, protocol, port, endpoints } in world.service_addresses() {
        let count = endpoints.iter().filter(|(one, number)| may_reach(*one, protocol, *number)).count();
        let is_allowed = count > 0 && count == endpoints.len();
        if count > 0 && !is_allowed {
            found.mixed.insert(MixedService {
                namespace: namespace.into(),
                name: name.into(),
                protocol,
                port,
            });
        }
        let member = PeerMember { address, port: Some((protocol, port)) };
        *verdicts.entry(member).or_insert(true) &= is_allowed;
    }
    for (member, is_allowed) in verdicts {
        let asked = |(protocol, port)| may_reach(member.address, protocol, port);
        if is_allowed {
            found.allowed.insert(member);
        } else if member.port.is_some_and(asked) {
            found.denied.insert(member);
        }
    }
    found
}
