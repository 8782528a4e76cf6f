use serde_json::{Value, json};

use super::*;

#[allow(clippy::needless_pass_by_value, reason = "the value is written at the call")]
fn policy(spec: Value) -> NetworkPolicy {
    serde_json::from_value(
        json!({"kind": "NetworkPolicy", "metadata": {"namespace": "x", "name": "p"}, "spec": spec}),
    )
    .unwrap()
}

/// Whether it isolates, for traffic to and from its pods, and how many rules it has for each.
fn says(policy: &NetworkPolicy) -> [(bool, usize); 2] {
    [&policy.ingress, &policy.egress].map(|side| (side.isolates, side.rules.len()))
}

fn refused(policy: &NetworkPolicy) -> Vec<String> {
    policy.refused.first.iter().map(RefusedEntry::to_string).collect()
}

#[test]
fn types_that_are_not_given_follow_from_the_rules() {
    for (spec, expected) in [
        (json!({}), [(true, 0), (false, 0)]),
        (json!({"policyTypes": []}), [(true, 0), (false, 0)]),
        (json!({"policyTypes": null, "egress": []}), [(true, 0), (false, 0)]),
        (json!({"egress": [{}]}), [(true, 0), (true, 1)]),
        (json!({"ingress": [{}]}), [(true, 1), (false, 0)]),
        (json!({"policyTypes": ["Egress"], "ingress": [{}]}), [(false, 0), (true, 0)]),
        (json!({"policyTypes": ["Ingress"], "egress": [{}]}), [(true, 0), (false, 0)]),
        (json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{}, {}]}), [(true, 2), (true, 0)]),
    ] {
        let policy = policy(spec.clone());
        assert_eq!((says(&policy), policy.refused.is_empty()), (expected, true), "{spec}");
    }
    let bare: NetworkPolicy = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
    assert_eq!((&*bare.namespace, says(&bare)), ("default", [(true, 0), (false, 0)]));
}

#[test]
fn lists_that_are_missing_empty_or_null_mean_anything() {
    for rule in [json!({}), json!({"from": [], "ports": []}), json!({"from": null, "ports": null})] {
        let policy = policy(json!({"ingress": [rule]}));
        assert_eq!(*policy.ingress.rules, [PolicyRule { peers: Entries::Any, ports: Entries::Any }]);
    }
}

#[test]
fn peers_are_pods_namespaces_and_blocks() {
    let policy = policy(json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [
        {"podSelector": {}},
        {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["red"]}]}},
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "db"}}},
        {"ipBlock": {"cidr": "10.0.0.1/8", "except": ["10.1.0.0/16"]}},
    ]}]}));
    assert!(policy.subjects.selects(|key| (key == "app").then_some("web")));
    let Entries::Of(peers) = &policy.ingress.rules[0].peers else { panic!("{policy:?}") };
    let [
        PolicyPeer::Pods(pods),
        PolicyPeer::PodsIn { namespaces, pods: all },
        PolicyPeer::PodsIn { pods: db, .. },
        PolicyPeer::Block(block),
    ] = &**peers
    else {
        panic!("{peers:?}")
    };
    assert!(pods.is_everything() && all.is_everything() && !db.is_everything());
    assert!(namespaces.selects(|_| None) && !namespaces.selects(|_| Some("red")));
    assert_eq!(block.net.to_string(), "10.0.0.0/8");
    let contains = |address: &str| block.contains(address.parse().unwrap());
    assert!(contains("10.2.0.1") && !contains("10.1.2.3") && !contains("11.0.0.1") && !contains("::1"));
}

#[test]
fn blocks_are_read_as_kubernetes_reads_them() {
    for (cidr, expected) in [
        ("10.0.0.0/8", Some("10.0.0.0/8")),
        ("10.1.2.3/8", Some("10.0.0.0/8")),
        ("010.000.000.000/08", Some("10.0.0.0/8")),
        ("0.0.0.0/0", Some("0.0.0.0/0")),
        ("::/0", Some("::/0")),
        ("fd00::1/64", Some("fd00::/64")),
        ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
        ("::ffff:10.0.0.1/128", Some("10.0.0.1/32")),
        ("::ffff:10.0.0.0/80", Some("::/80")),
        ("10.0.0.0", None),
        ("10.0.0.0/", None),
        ("10.0.0.0/33", None),
        ("10.0.0.0/+8", None),
        ("10.0.0.0/255.0.0.0", None),
        ("10.0.0/8", None),
        ("256.0.0.0/8", None),
        ("fd00::/129", None),
        ("fe80::1%eth0/64", None),
        ("", None),
    ] {
        let block = Block::parse(cidr, &[]).ok().map(|block| block.net.to_string());
        assert_eq!(block.as_deref(), expected, "{cidr}");
    }
    for except in ["10.0.0.0/8", "10.0.0.0/7", "11.0.0.0/16", "::/0"] {
        assert_eq!(Block::parse("10.0.0.0/8", &[except.into()]), Err(BlockError::Except), "{except}");
    }
    assert_eq!(Block::parse("10.0.0.0/8", &["x".into()]), Err(BlockError::Cidr));
}

#[test]
fn ports_have_numbers_ranges_and_names() {
    use PolicyProtocol::{Sctp, Tcp, Udp};
    use PortError::{End, Name, Number};
    for (port, expected) in [
        (json!({}), Ok(Port::All(Tcp))),
        (json!({"protocol": "SCTP"}), Ok(Port::All(Sctp))),
        (json!({"port": 80}), Ok(Port::Range(Tcp, (80, 80)))),
        (json!({"port": 80, "endPort": 81, "protocol": "UDP"}), Ok(Port::Range(Udp, (80, 81)))),
        (json!({"port": 65535, "endPort": 65535}), Ok(Port::Range(Tcp, (65535, 65535)))),
        (json!({"port": "http"}), Ok(Port::Named(Tcp, "http".into()))),
        (json!({"port": 0}), Err(Number)),
        (json!({"port": -1}), Err(Number)),
        (json!({"port": 65536}), Err(Number)),
        (json!({"port": 18446744073709551615u64}), Err(Number)),
        (json!({"port": 81, "endPort": 80}), Err(End)),
        (json!({"port": 80, "endPort": 65536}), Err(Number)),
        (json!({"port": "http", "endPort": 80}), Err(End)),
        (json!({"endPort": 80}), Err(End)),
        (json!({"port": "80"}), Err(Name)),
        (json!({"port": ""}), Err(Name)),
        (json!({"port": "longer-than-any-name"}), Err(Name)),
        (json!({"protocol": "tcp"}), Err(PortError::Protocol)),
    ] {
        let policy = policy(json!({"ingress": [{"ports": [port]}]}));
        let rule = &policy.ingress.rules[0];
        match expected {
            Ok(expected) => assert_eq!(rule.ports, Entries::Of([expected].into()), "{port}"),
            Err(error) => {
                assert_eq!(rule.ports, Entries::Of([].into()), "{port}");
                assert_eq!(policy.refused.first[0].reason, EntryRefusal::Port(error), "{port}");
            }
        }
    }
}

/// An entry that is refused matches nothing; the others count.
#[test]
fn refused_entries_are_named_and_match_nothing() {
    let policy = policy(json!({"policyTypes": ["Ingress", "Egress"],
        "ingress": [{}, {"from": [{}, {"podSelector": {}, "ipBlock": {"cidr": "0.0.0.0/0"}}, {"podSelector": {}}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}},
            {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}], "ports": [{"port": 0}]}]}));
    assert_eq!(says(&policy), [(true, 2), (true, 1)]);
    assert!(matches!(&policy.ingress.rules[1].peers, Entries::Of(peers) if peers.len() == 1));
    assert_eq!(
        policy.egress.rules[0],
        PolicyRule { peers: Entries::Of([].into()), ports: Entries::Of([].into()) }
    );
    assert_eq!(
        refused(&policy),
        [
            "spec.ingress[1].from[0]: it has no podSelector, namespaceSelector or ipBlock",
            "spec.ingress[1].from[1]: ipBlock stands together with a selector",
            "spec.egress[0].to[0]: an exception is not a smaller part of its block",
            "spec.egress[0].to[1]: In needs values",
            "spec.egress[0].ports[0]: a port is not a number from 1 to 65535",
        ]
    );
}

#[test]
fn a_policy_that_says_its_pods_or_types_wrongly_isolates_and_does_not_open() {
    let odd = policy(json!({"policyTypes": ["Ingress", "ingress"], "ingress": [{}], "egress": [{}]}));
    assert_eq!(says(&odd), [(true, 1), (true, 0)]);
    assert_eq!(odd.refused.count, 1);
    let odd = policy(json!({"podSelector": {"matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}, "ingress": [{}]}));
    assert_eq!(says(&odd), [(true, 0), (true, 0)]);
    assert!(odd.subjects.selects(|key| (key == "app").then_some("web")) && !odd.subjects.selects(|_| None));
    assert!(refused(&odd)[0].starts_with("spec.podSelector: an operator is not In"), "{:?}", refused(&odd));
}

#[test]
fn more_entries_than_any_policy_has_do_not_count() {
    let ports: Vec<Value> = (0..MAX_ENTRIES + 5).map(|_| json!({"port": 1})).collect();
    let policy = policy(json!({"ingress": [{"ports": ports}, {}], "policyTypes": ["Ingress"]}));
    let Entries::Of(ports) = &policy.ingress.rules[0].ports else { panic!() };
    assert_eq!((ports.len(), says(&policy)[0]), (MAX_ENTRIES - 1, (true, 1)));
    assert_eq!(policy.refused.count, 2);
    assert!(refused(&policy)[0].contains("after 50000 entries"), "{:?}", refused(&policy));
}

#[test]
fn many_refusals_are_counted_and_few_are_kept() {
    let peers: Vec<Value> = (0..1000).map(|_| json!({})).collect();
    let policy = policy(json!({"ingress": [{"from": peers}]}));
    assert_eq!((policy.refused.count, policy.refused.first.len()), (1000, 8));
}

/// What has another shape is not a policy, and no part of it is believed.
#[test]
fn another_shape_is_an_error() {
    for spec in [
        json!([]),
        json!({"ingress": {}}),
        json!({"ingress": [[]]}),
        json!({"ingress": [{"from": [7]}]}),
        json!({"ingress": [{"ports": [{"port": 1.5}]}]}),
        json!({"podSelector": {"matchLabels": {"a": 1}}}),
    ] {
        let object = json!({"metadata": {"name": "p"}, "spec": spec});
        assert!(serde_json::from_value::<NetworkPolicy>(object.clone()).is_err(), "{object}");
    }
}
