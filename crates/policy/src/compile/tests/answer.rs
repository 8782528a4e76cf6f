//! Denials that are answered.

use ruleset::eval::Evaluation;
use ruleset::{RejectWith, check_for};

use super::super::answer::ANSWER_MARK;
use super::node::{BACKENDS, indexed_by_owner, is_denied_here, on_node, settings};
use super::*;
use crate::terms::{PolicyTerms, RuleAction};

/// Whether a packet is answered: in iptables by the filter table, when it has the mark. As its protocol is answered.
fn is_answered(found: &Evaluation<'_>, backend: Backend, protocol: Protocol) -> bool {
    match (backend, found.verdict) {
        (Backend::Iptables, verdict) => {
            assert_eq!(verdict, Verdict::Pass);
            found.mark == ANSWER_MARK
        }
        (Backend::Nftables, Verdict::Reject(with)) => {
            let of_tcp = protocol == Protocol::Tcp;
            assert_eq!(with, if of_tcp { RejectWith::TcpReset } else { RejectWith::AdminProhibited });
            true
        }
        (Backend::Nftables, verdict) => {
            assert_eq!(verdict, Verdict::Pass);
            false
        }
    }
}

fn answering(backend: Backend) -> EnforcementSettings {
    EnforcementSettings { answer: DenialAnswer::Always, ..settings(backend) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// What a node denies is answered where it is forwarded, and nothing else; where it leaves it is dropped as without answers.
    #[test]
    fn what_a_node_denies_is_answered(world in SampleWorld::any()) {
        let (world, flows) = (world.plain(), flows());
        let index = indexed_by_owner(&world);
        let nodes = BACKENDS.map(|backend| compile_node(&index, answering(backend)));
        for (node, backend) in nodes.iter().zip(BACKENDS) {
            prop_assert_eq!(check_for(&node.rules, backend), Ok(()));
        }
        for flow in &flows {
            let expected = verdict(&world, flow);
            let denied = is_denied_here(&world, flow, &expected);
            let (packet, hook) = on_node(&world, flow);
            for (node, backend) in nodes.iter().zip(BACKENDS) {
                let layers = std::slice::from_ref(&node.rules);
                let at = |hook| evaluate(layers, backend, &packet, hook, false, &node.contents);
                let decided = at(hook);
                if hook == Hook::Input && backend == Backend::Nftables {
                    prop_assert_eq!(is_answered(&decided, backend, packet.protocol), denied, "{:?}", flow);
                    continue;
                }
                prop_assert_eq!(decided.verdict == Verdict::Drop, denied, "{} {:?}", backend, flow);
                if hook == Hook::Postrouting && !packet.in_interface.is_empty() {
                    let answered = is_answered(&at(Hook::Forward), backend, packet.protocol);
                    prop_assert_eq!(answered, denied, "{} {:?} {}", backend, flow, expected);
                }
            }
        }
    }

    /// What is denied in a pod's own namespace is answered where it arrives, and where its processes send it.
    #[test]
    fn what_a_pod_is_denied_is_answered(world in SampleWorld::any()) {
        let (world, flows) = (world.plain(), flows());
        let index = indexed(&world);
        for pod in world.live_on("n1") {
            let (classes, at) = (index.classes_of(&name_of(pod)).unwrap(), &pod.facts.addresses);
            let at: Vec<IpAddr> = at.iter().copied().filter(|one| world.pod_at(*one) == Some(pod)).collect();
            let answer = DenialAnswer::Always;
            let point = PodPoint { answer, answers_arriving: true, ..PodPoint::default() };
            let rules = compile_pod(&index, classes, &point, Backend::Nftables);
            prop_assert_eq!(check_for(&rules.rules, Backend::Nftables), Ok(()));
            let (layers, contents) = (std::slice::from_ref(&rules.rules), contents(&index, &rules));
            for flow in flows.iter().filter(|flow| !NODES[0].1.iter().any(|one| one.parse() == Ok(flow.source))) {
                let expected = verdict(&world, flow);
                for (address, direction, hook, judgement) in [
                    (flow.source, TrafficDirection::Egress, Hook::Output, &expected.egress),
                    (flow.destination, TrafficDirection::Ingress, Hook::Prerouting, &expected.ingress),
                ] {
                    if at.contains(&address) {
                        let packet = packet(flow, direction);
                        let found = evaluate(layers, Backend::Nftables, &packet, hook, false, &contents);
                        let answered = is_answered(&found, Backend::Nftables, packet.protocol);
                        prop_assert_eq!(answered, !judgement.is_allowed(), "{} {:?} {:?}", direction, flow, judgement);
                    }
                }
            }
        }
    }
}

/// A cluster with a pod that a tenant keeps from port 80 and a NetworkPolicy from all but port 81.
fn denied_by_two(action: RuleAction) -> PlainWorld {
    let mut world = super::plain::world_of(&[(
        "n",
        serde_json::json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}, {"port": 81}]}]}),
    )]);
    let mut terms: PolicyTerms = world.policies().next().unwrap().clone();
    terms.name.section = Section::Tenant;
    let mut rules = terms.ingress.rules.to_vec();
    let facts::networkpolicy::Entries::Of(ports) = &rules[0].ports else { panic!() };
    rules[0].ports = facts::networkpolicy::Entries::Of([ports[0].clone()].into());
    rules[0].action = action;
    terms.ingress.rules = rules.into();
    world.put_policy(terms);
    world
}

/// A tenant says for itself whether what it denies is answered, and NetworkPolicies do as the node is set.
#[test]
fn each_denial_is_answered_as_its_policy_says() {
    use DenialAnswer::{Always, Never, OfTenants};
    for (action, answer, expected) in [
        (RuleAction::Reject, Always, [true, false, true]),
        (RuleAction::Deny, Always, [false, false, true]),
        (RuleAction::Reject, OfTenants, [true, false, false]),
        (RuleAction::Deny, OfTenants, [false, false, false]),
        (RuleAction::Reject, Never, [false, false, false]),
    ] {
        let world = denied_by_two(action);
        for backend in BACKENDS {
            let index = indexed(&world);
            let node = compile_node(&index, EnforcementSettings { answer, ..settings(backend) });
            let layers = std::slice::from_ref(&node.rules);
            let to = *world.live_on("n1").next().unwrap().facts.addresses.first().unwrap();
            let at = |port, hook| {
                let ends = ["203.0.113.9:40000".parse().unwrap(), SocketAddr::new(to, port)];
                let packet = Packet::new(Protocol::Tcp, ends[0], ends[1]);
                let packet = Packet { in_interface: "eth0".into(), ..packet };
                evaluate(layers, backend, &packet, hook, false, &node.contents)
            };
            let answered =
                [80, 81, 82].map(|port| is_answered(&at(port, Hook::Forward), backend, Protocol::Tcp));
            assert_eq!(answered, expected, "{backend} {action:?} {answer:?}");
            let dropped = [80, 81, 82].map(|port| at(port, Hook::Postrouting).verdict == Verdict::Drop);
            assert_eq!(dropped, [true, false, true], "{backend} {action:?} {answer:?}");
            let table = &node.rules.tables[0];
            let names =
                table.chains.iter().map(|chain| &chain.name).chain(table.sets.iter().map(|set| &set.name));
            let of_answers = names.filter(|name| name.contains("-nr-") || name.contains("answer")).count();
            assert_eq!(of_answers > 0, answer != Never, "{backend} {answer:?}");
        }
    }
}

/// In iptables the filter table answers what has the mark.
#[test]
fn iptables_answers_in_its_filter_table() {
    let rules = super::super::iptables_answers();
    assert_eq!(ruleset::check(&rules), Ok(()));
    for (protocol, mark, expected) in [
        (Protocol::Tcp, ANSWER_MARK, Verdict::Reject(RejectWith::TcpReset)),
        (Protocol::Udp, ANSWER_MARK, Verdict::Reject(RejectWith::AdminProhibited)),
        (Protocol::Tcp, 0, Verdict::Pass),
        (Protocol::Tcp, ANSWER_MARK | 0x8000_0000, Verdict::Pass),
    ] {
        let ends = ["10.0.0.1:40000", "10.0.0.2:80"].map(|end| end.parse().unwrap());
        let packet = Packet { mark, ..Packet::new(protocol, ends[0], ends[1]) };
        let layers = std::slice::from_ref(&rules);
        let found = evaluate(layers, Backend::Iptables, &packet, Hook::Forward, false, &Contents::default());
        assert_eq!(found.verdict, expected, "{protocol:?} {mark:x}");
    }
}
