use facts::peer::{NamedPort, Peer, Phase};
use facts::{LabelSet, Selector};

use super::*;
use crate::terms::{DirectionTerms, NamespaceTerm, PodTerm};
use crate::{PlainPod, PlainWorld};

const TCP: PolicyProtocol = PolicyProtocol::Tcp;

/// Two pods of namespace `x` on node `n`: `a` at 10.0.0.1 and `b` at 10.0.0.2, with port `http` at 8080.
fn world() -> PlainWorld {
    let mut world = PlainWorld::default();
    world.put_node("n", vec![address("192.0.2.1")]);
    for (name, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        world.put_pod(PlainPod {
            namespace: "x".into(),
            name: name.into(),
            is_enrolled: false,
            facts: Peer {
                node: "n".into(),
                labels: LabelSet::from_iter([("pod", name)]),
                addresses: [address(ip)].into(),
                ports: [NamedPort { name: "http".into(), protocol: TCP, number: 8080 }].into(),
                phase: Phase::Running,
                ..Peer::default()
            },
        });
    }
    world
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// From `a` to `b`.
fn flow(port: u16) -> PolicyFlow {
    PolicyFlow {
        source: address("10.0.0.1"),
        destination: address("10.0.0.2"),
        traffic: Traffic::Port(TCP, port),
        route: FlowRoute::Direct,
    }
}

/// A policy about ingress of all pods of `x`, with a rule for any peer on each of the ports.
fn policy(section: Section, rules: &[(u16, RuleAction)]) -> PolicyTerms {
    let rule = |&(port, action): &(u16, RuleAction)| RuleTerms {
        name: "".into(),
        own: Entries::Any,
        peers: Entries::Any,
        ports: Entries::Of([Port::Range(TCP, (port, port))].into()),
        action,
    };
    PolicyTerms {
        name: PolicyName { section, namespace: "x".into(), name: "p".into() },
        subjects: PodTerm { namespaces: NamespaceTerm::Named("x".into()), labels: Selector::default() },
        ingress: DirectionTerms {
            applies: true,
            is_tried_out: false,
            rules: rules.iter().map(rule).collect(),
        },
        egress: DirectionTerms::default(),
    }
}

#[test]
fn sections_are_judged_in_their_order_and_what_none_decides_is_allowed() {
    use RuleAction::{Accept, Deny, Next};
    let mut world = world();
    world.put_policy(policy(Section::Baseline, &[(5, Deny), (6, Accept), (1, Deny), (3, Deny)]));
    world.put_policy(policy(Section::Tenant, &[(2, Deny), (3, Next), (3, Deny), (4, Deny)]));
    world.put_policy(policy(Section::Admin, &[(1, Accept), (2, Next), (1, Deny), (4, Accept)]));
    let verdict_on = |world: &PlainWorld, port| verdict(world, &flow(port)).ingress;
    for (port, allowed) in [(1, true), (2, false), (3, false), (4, true), (5, false), (6, true), (7, true)] {
        assert_eq!(verdict_on(&world, port).is_allowed(), allowed, "{port}");
    }
    assert_eq!(verdict_on(&world, 7).ground, Ground::Undecided);
    // An isolated pod never comes to the last section.
    world.put_policy(policy(Section::NetworkPolicy, &[(5, Accept)]));
    for (port, allowed) in [(1, true), (2, false), (3, false), (4, true), (5, true), (6, false), (7, false)] {
        assert_eq!(verdict_on(&world, port).is_allowed(), allowed, "{port}");
    }
    assert_eq!(
        verdict_on(&world, 2).to_string(),
        "denied: by tenant x/p ingress[0] ports[0]",
        "the second section decides"
    );
    assert_eq!(
        verdict_on(&world, 6).to_string(),
        "denied: no rule matches of admin policy x/p, tenant x/p, x/p, baseline policy x/p"
    );
    assert_eq!(
        verdict(&world, &flow(5)).to_string(),
        "egress allowed: no policy selects the pod; ingress allowed: by x/p ingress[0] ports[0]"
    );
}

#[test]
fn the_own_node_and_the_pod_itself_are_not_asked_about() {
    let mut world = world();
    world.put_policy(policy(Section::NetworkPolicy, &[]));
    let from =
        |source: &str| verdict(&world, &PolicyFlow { source: address(source), ..flow(1) }).ingress.ground;
    assert_eq!(from("192.0.2.1"), Ground::OwnNode);
    assert_eq!(from("192.0.2.2"), Ground::NoRuleMatched);
    let itself = PolicyFlow { source: address("10.0.0.2"), ..flow(1) };
    assert_eq!(verdict(&world, &itself).ingress.ground, Ground::Loopback);
    let by_service = PolicyFlow { route: FlowRoute::Service, ..itself };
    assert_eq!(verdict(&world, &by_service).ingress.ground, Ground::NoRuleMatched);
    // An address of the node that a pod has is the pod's.
    world.put_node("n", vec![address("10.0.0.1")]);
    assert_eq!(verdict(&world, &flow(1)).ingress.ground, Ground::NoRuleMatched);
}

#[test]
fn the_nearest_rule_fails_by_its_port_before_it_fails_by_its_peer() {
    let (mut world, everyone) = (world(), policy(Section::NetworkPolicy, &[(1, RuleAction::Accept)]));
    world.put_policy(everyone.clone());
    let miss = |rules: &PolicyTerms, port| {
        let ends = (address("10.0.0.1"), address("10.0.0.2"), Traffic::Port(TCP, port));
        nearest_miss(&world, TrafficDirection::Ingress, [rules].into_iter(), ends)
            .map(|miss| (miss.rule, miss.missed))
    };
    assert_eq!(miss(&everyone, 2), Some((0, MissedPart::Port)));
    assert_eq!(miss(&everyone, 1), None, "it is allowed");
    let mut others = policy(Section::NetworkPolicy, &[(1, RuleAction::Accept), (2, RuleAction::Accept)]);
    let nobody = PodTerm { namespaces: NamespaceTerm::Named("y".into()), labels: Selector::default() };
    others.ingress.rules.iter_mut().for_each(|rule| {
        rule.peers = Entries::Of([PeerTerm::Pods(nobody.clone())].into());
    });
    assert_eq!(miss(&others, 2), Some((1, MissedPart::Peer)));
    assert_eq!(miss(&others, 3), Some((0, MissedPart::Both)));
    assert_eq!(miss(&policy(Section::NetworkPolicy, &[]), 3), None, "there is no rule");
    let told = RuleMiss {
        policy: others.name,
        direction: TrafficDirection::Ingress,
        rule: 1,
        missed: MissedPart::Peer,
    };
    assert_eq!(told.to_string(), "x/p ingress[1], by its peer");
}
