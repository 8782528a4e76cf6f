//! What the policies of a pod come to for addresses of Services.
//!
//! Policies speak of the pods behind a Service. In the pod's own namespace a packet still goes to the Service, and which of its endpoints gets it is
//! the service proxy's choice: so the Service is allowed if each of them is.

use std::collections::{BTreeMap, BTreeSet};

use facts::networkpolicy::PolicyProtocol;

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
