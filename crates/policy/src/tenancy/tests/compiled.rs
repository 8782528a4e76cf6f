//! What the rules of tenants do is the verdict: in pods' own namespaces, in both backends, and in the node's.

use facts::networkpolicy::PolicyProtocol;
use proptest::prelude::*;
use ruleset::Backend;

use super::STEP;
use super::sample::{SERVICES, TenancyFlow, TenancySample};
use crate::compiled::{CompiledNodes, CompiledPods};
use crate::{FlowRoute, PolicyFlow, Traffic, verdict};

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_of_tenants_do_what_the_verdict_says(sample in TenancySample::any(), from in 0..STEP) {
        let world = sample.world();
        // By an address of a Service it is what is behind it that is judged.
        let is_service = |flow: &TenancyFlow| SERVICES.iter().any(|service| service.2 == flow.destination.to_string());
        let flows: Vec<TenancyFlow> = TenancyFlow::all().iter().filter(|flow| !is_service(flow)).skip(from).step_by(STEP).copied().collect();
        for backend in [Backend::Nftables, Backend::Iptables] {
            let pods = CompiledPods::new(&world, backend, |_| false);
            for flow in flows.iter().map(TenancyFlow::flow) {
                let expected = verdict(&world, &flow);
                let (egress, ingress) = (pods.egress(&flow, None), pods.ingress(&flow));
                prop_assert_eq!(egress.is_allowed, expected.egress.is_allowed(), "{:?} {:?} {}: {}", backend, flow, expected, egress.decided_by);
                prop_assert_eq!(ingress.is_allowed, expected.ingress.is_allowed(), "{:?} {:?} {}: {}", backend, flow, expected, ingress.decided_by);
            }
        }
        for backend in [Backend::Nftables, Backend::Iptables] {
            let nodes = CompiledNodes::new(&world, backend);
            for (_, node) in nodes.nodes() {
                prop_assert_eq!((ruleset::check(&node.rules), &*node.left_out), (Ok(()), &[][..]));
            }
            for flow in flows.iter().map(TenancyFlow::flow) {
                let (expected, found) = (verdict(&world, &flow), nodes.judge(&flow));
                prop_assert_eq!(found.is_allowed, expected.is_allowed(), "{:?} {:?} {}: {}", backend, flow, expected, found.decided_by);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// In ambient mode, too, by the tunnel and beside it: what has some port of the pod comes to the tunnel, and inside the real port is asked for.
    #[test]
    fn rules_of_tenants_of_enrolled_pods_do_what_the_verdict_says(sample in TenancySample::any(), from in 0..STEP) {
        let world = sample.world();
        let is_service = |flow: &TenancyFlow| SERVICES.iter().any(|service| service.2 == flow.destination.to_string());
        let flows = TenancyFlow::all().iter().filter(|flow| !is_service(flow)).skip(from).step_by(STEP);
        let flows: Vec<PolicyFlow> = flows.map(TenancyFlow::flow).collect();
        for backend in [Backend::Nftables, Backend::Iptables] {
            let pods = CompiledPods::new(&world, backend, |_| true);
            for flow in &flows {
                let is_tcp = matches!(flow.traffic, Traffic::Port(PolicyProtocol::Tcp, _));
                let route = if is_tcp { FlowRoute::Tunnel } else { FlowRoute::Direct };
                for flow in [*flow, PolicyFlow { route, ..*flow }] {
                    let expected = verdict(&world, &flow);
                    let (egress, ingress) = (pods.egress(&flow, None), pods.ingress(&flow));
                    prop_assert_eq!(egress.is_allowed, expected.egress.is_allowed(), "{:?} {:?} {}: {}", backend, flow, expected, egress.decided_by);
                    prop_assert_eq!(ingress.is_allowed, expected.ingress.is_allowed(), "{:?} {:?} {}: {}", backend, flow, expected, ingress.decided_by);
                }
            }
        }
    }
}
