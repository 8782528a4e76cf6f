//! Where rules begin or end to mean ports.

use std::collections::BTreeSet;

use facts::networkpolicy::{Entries, PolicyProtocol, Port};

use super::TrafficRange;
use super::alike::AlikePods;
use crate::PlainWorld;
use crate::terms::{PolicyTerms, TrafficDirection};

const PROTOCOLS: [PolicyProtocol; 3] = [PolicyProtocol::Tcp, PolicyProtocol::Udp, PolicyProtocol::Sctp];

/// Ranges in each of which every port has the same verdict, for connections between pods of two kinds.
pub(super) fn of(
    source: &AlikePods<'_>,
    destination: &AlikePods<'_>,
    before: &PlainWorld,
) -> Vec<TrafficRange> {
    let mut begins = [(); 3].map(|()| BTreeSet::from([1_u32]));
    let mut add = |protocol: PolicyProtocol, first: u16, last: u16| {
        if let Some(place) = PROTOCOLS.iter().position(|one| *one == protocol) {
            begins[place].extend([u32::from(first), u32::from(last) + 1]);
        }
    };
    let ends = [(source, TrafficDirection::Egress), (destination, TrafficDirection::Ingress)];
    for (policy, direction) in
        ends.iter().flat_map(|(pods, of)| pods.classes.iter().flatten().map(move |policy| (*policy, *of)))
    {
        for port in ports(policy, direction) {
            if let Port::Range(protocol, (first, last)) = port {
                add(*protocol, *first, *last);
            }
        }
    }
    // What a name means is said by the destination, before and after.
    let old = destination.first().and_then(|pod| before.pod(&pod.namespace, &pod.name));
    let old = old.into_iter().flat_map(|pod| &pod.facts.ports);
    destination.numbers().chain(old).for_each(|port| add(port.protocol, port.number, port.number));
    let mut found = Vec::new();
    for (protocol, begins) in PROTOCOLS.into_iter().zip(begins) {
        let begins: Vec<u32> = begins.into_iter().filter(|one| (1..=65_535).contains(one)).collect();
        for (number, first) in begins.iter().enumerate() {
            let last = begins.get(number + 1).map_or(65_535, |next| next - 1);
            let [first, last] = [*first, last].map(|port| u16::try_from(port).unwrap_or(u16::MAX));
            found.push(TrafficRange::Ports(protocol, first, last));
        }
    }
    found.push(TrafficRange::Portless);
    found
}

fn ports(policy: &PolicyTerms, direction: TrafficDirection) -> impl Iterator<Item = &Port> {
    policy.direction(direction).rules.iter().flat_map(|rule| match &rule.ports {
        Entries::Any => &[],
        Entries::Of(ports) => &**ports,
    })
}
