//! Single events.

use serde_json::{Value, json};

use super::*;

fn terms(name: &str, spec: &Value) -> PolicyTerms {
    let object = json!({"metadata": {"namespace": "x", "name": name}, "spec": spec});
    (&serde_json::from_value::<facts::NetworkPolicy>(object).unwrap()).into()
}

#[test]
fn only_the_direction_that_says_something_else_changes() {
    let terms = |port| {
        let spec = json!({"podSelector": {},
            "ingress": [{"ports": [{"port": port}]}], "egress": [{"ports": [{"port": 53}]}]});
        terms("p", &spec)
    };
    let (world, mut index, policy) = (PlainWorld::default(), PolicyIndex::default(), terms(80));
    index.policy(&world, &policy.name, Some(policy.clone()));
    let facts = LocalFacts { labels: LabelSet::default(), addresses: [].into(), tunnel: TunnelJudge::Port };
    index.local_pod(&world, &LocalName { namespace: "x".into(), name: "p0".into() }, Some(facts));
    let effects = index.policy(&world, &policy.name, Some(terms(81)));
    let changed = |effect: &PolicyEffect| match effect {
        PolicyEffect::ClassChanges(class) => Some(class.direction),
        _ => None,
    };
    assert_eq!(effects.iter().map(changed).collect::<Vec<_>>(), [Some(TrafficDirection::Ingress)]);
}

#[test]
fn a_rule_whose_ports_are_all_refused_needs_no_sets() {
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 0}]}],
        "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 0}, {"port": "no--name"}]}]});
    let terms = terms("p", &spec);
    for direction in DIRECTIONS {
        assert_eq!(terms.direction(direction).rules[0].ports, Entries::Of([].into()));
        assert_eq!(wanted::of(&terms, direction), []);
    }
}

/// What a pod sends to itself by a Service is allowed by one policy, then by another one.
#[test]
fn a_pod_that_changes_is_not_cut_from_itself() {
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    let flow = PolicyFlow {
        source: address,
        destination: address,
        traffic: Traffic::Portless,
        route: FlowRoute::Service,
    };
    let mut followed = Followed { flows: vec![flow], ..Followed::default() };
    for (number, app) in ["a", "b"].into_iter().enumerate() {
        let pods = json!({"matchLabels": {"app": app}});
        let spec = json!({"podSelector": pods, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": pods}]}]});
        followed.put_policy(number, Some(terms(app, &spec)));
    }
    for app in ["a", "b"] {
        let pod = SamplePod::running(Labels::from([("app", app)]));
        followed.put_pod(pod.plain(0));
        assert_eq!(followed.allowed().len(), 2, "egress and ingress");
        assert_eq!((followed.sets.len(), followed.rules.len()), (1, 1));
    }
}
