mod answer;
pub(crate) mod node;
mod plain;

use std::net::SocketAddr;

use facts::networkpolicy::PolicyProtocol;
use proptest::prelude::*;
use ruleset::Contents;
use ruleset::eval::{Packet, Verdict, evaluate};

use super::*;
use crate::compiled::{CompiledPods, contents, name_of};
use crate::index::{LocalFacts, LocalName};
use crate::tests::sample::{ADDRESSES, NODES, SampleWorld};
use crate::{FlowRoute, PlainWorld, PolicyFlow, PolicyWorld as _, Traffic, World as _, verdict};

/// An index of the node `n1`.
fn indexed(world: &PlainWorld) -> PolicyIndex {
    crate::compiled::indexed(world, "n1")
}

fn packet(flow: &PolicyFlow, direction: TrafficDirection) -> Packet {
    let mut packet = crate::compiled::packet(flow);
    match direction {
        TrafficDirection::Egress => packet.out_interface = "eth0".into(),
        TrafficDirection::Ingress => packet.in_interface = "eth0".into(),
    }
    packet
}

/// Each connection between the addresses of the samples, with a few protocols and ports.
fn flows() -> Vec<PolicyFlow> {
    let tcp = [53, 80, 8080, 65535].map(|port| Traffic::Port(PolicyProtocol::Tcp, port));
    let others =
        [Traffic::Port(PolicyProtocol::Udp, 53), Traffic::Port(PolicyProtocol::Sctp, 80), Traffic::Portless];
    let addresses: Vec<IpAddr> = ADDRESSES.iter().map(|one| one.parse().unwrap()).collect();
    let pairs = addresses.iter().flat_map(|one| addresses.iter().map(move |other| (*one, *other)));
    let pairs = pairs.filter(|(one, other)| one.is_ipv4() == other.is_ipv4());
    // By a Service, or what a pod sends to itself would not leave it.
    let route = FlowRoute::Service;
    let of_pair = |(source, destination)| {
        tcp.into_iter().chain(others).map(move |traffic| PolicyFlow { source, destination, traffic, route })
    };
    pairs.flat_map(of_pair).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    /// What the rules do to the first packet is the verdict, in both backends; what goes by another network of the pod passes.
    #[test]
    fn rules_do_what_the_verdict_says(world in SampleWorld::any()) {
        let (world, flows) = (world.plain(), flows());
        let index = indexed(&world);
        let node: Vec<IpAddr> = NODES[0].1.iter().map(|one| one.parse().unwrap()).collect();
        for pod in world.live_on("n1") {
            let (classes, at) = (index.classes_of(&name_of(pod)).unwrap(), &pod.facts.addresses);
            let at: Vec<IpAddr> = at.iter().copied().filter(|one| world.pod_at(*one) == Some(pod)).collect();
            for backend in [Backend::Nftables, Backend::Iptables] {
                let rules = compile_pod(&index, classes, &PodPoint { node: &node, ..PodPoint::default() }, backend);
                let name = ruleset::InterfaceName::new("eth0").unwrap();
                let rules = rules.of_interface(&ClusterInterface { name, addresses: pod.facts.addresses.clone() });
                prop_assert_eq!((ruleset::check(&rules.rules), &*rules.left_out), (Ok(()), &[][..]));
                let (layers, contents) = (std::slice::from_ref(&rules.rules), contents(&index, &rules));
                for flow in &flows {
                    let expected = verdict(&world, flow);
                    for (address, direction, hook, judgement) in [
                        (flow.source, TrafficDirection::Egress, Hook::Postrouting, &expected.egress),
                        (flow.destination, TrafficDirection::Ingress, Hook::Prerouting, &expected.ingress),
                    ] {
                        // A pod with the node's address cannot be told from the node there.
                        let is_taken = node.contains(&flow.source) && world.pod_at(flow.source).is_some();
                        if !at.contains(&address) || (is_taken && direction == TrafficDirection::Ingress) {
                            continue;
                        }
                        let mut packet = packet(flow, direction);
                        let found = evaluate(layers, backend, &packet, hook, false, &contents);
                        prop_assert_eq!(found.verdict == Verdict::Pass, judgement.is_allowed(),
                            "{:?} {} {:?} {}: {:?}", backend, direction, flow, judgement, found.decided_by);
                        for interface in [&mut packet.in_interface, &mut packet.out_interface] {
                            if !interface.is_empty() {
                                *interface = "net1".into();
                            }
                        }
                        let found = evaluate(layers, backend, &packet, hook, false, &contents);
                        prop_assert_eq!(found.verdict == Verdict::Pass, judgement.is_allowed(),
                            "its address, by another interface: {:?} {:?}", backend, found.decided_by);
                        let (own, elsewhere) = match direction {
                            TrafficDirection::Egress => (&mut packet.source, "10.200.0.1"),
                            TrafficDirection::Ingress => (&mut packet.destination, "10.200.0.1"),
                        };
                        let elsewhere = if own.is_ipv4() { elsewhere } else { "fd99::1" };
                        *own = elsewhere.parse::<IpAddr>().unwrap();
                        let found = evaluate(layers, backend, &packet, hook, false, &contents);
                        let is_one = pod.facts.addresses.iter().filter(|one| one.is_ipv4() == flow.source.is_ipv4()).count() < 2;
                        prop_assert!(found.verdict == Verdict::Pass || !is_one, "{:?} {:?}", backend, found.decided_by);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// In ambient mode, too, whether a connection comes through the tunnel or not.
    #[test]
    fn rules_of_enrolled_pods_do_what_the_verdict_says(world in SampleWorld::any()) {
        let world = world.plain();
        for backend in [Backend::Nftables, Backend::Iptables] {
            let pods = CompiledPods::new(&world, backend, |_| true);
            for flow in flows() {
                let is_tcp = matches!(flow.traffic, Traffic::Port(PolicyProtocol::Tcp, _));
                let route = if is_tcp { FlowRoute::Tunnel } else { FlowRoute::Direct };
                for flow in [PolicyFlow { route: FlowRoute::Direct, ..flow }, PolicyFlow { route, ..flow }] {
                    let expected = verdict(&world, &flow);
                    let node = world.pod_at(flow.destination).is_some_and(|pod| world.is_own_node(&pod, flow.source));
                    let is_taken = node && world.pod_at(flow.source).is_some();
                    let (egress, ingress) = (pods.egress(&flow, None), pods.ingress(&flow));
                    prop_assert_eq!(egress.is_allowed, expected.egress.is_allowed(), "{:?} {:?} {:?}", backend, flow, egress);
                    if !is_taken {
                        prop_assert_eq!(ingress.is_allowed, expected.ingress.is_allowed(), "{:?} {:?} {:?}", backend, flow, ingress);
                    }
                }
            }
        }
    }
}
