use serde_json::json;
use serde_json::value::to_raw_value;

use super::*;
use crate::PlainKind;

fn world(objects: &[serde_json::Value]) -> PlainWorld {
    let mut world = PlainWorld::default();
    for object in objects {
        let kind = PlainKind::parse(object["kind"].as_str().unwrap()).unwrap();
        kind.put(&mut world, &to_raw_value(object).unwrap()).unwrap();
    }
    world
}

#[test]
fn each_kind_of_finding_is_found_where_it_is_and_nowhere_else() {
    let pod = |name: &str, address: &str, more: serde_json::Value| {
        let mut container = json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]});
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"kind": "Pod", "metadata": {"namespace": "x", "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "n", "containers": [container]}, "status": {"phase": "Running", "podIP": address}})
    };
    let probe = json!({"readinessProbe": {"httpGet": {"port": "web"}}});
    let policy = |name: &str, spec: serde_json::Value| json!({"kind": "NetworkPolicy", "metadata": {"namespace": "x", "name": name}, "spec": spec});
    let selects = |app: &str| json!({"matchLabels": {"app": app}});
    let objects = [
        json!({"kind": "Namespace", "metadata": {"name": "x"}}),
        json!({"kind": "Node", "metadata": {"name": "n"}, "status": {"addresses": [{"address": "192.0.2.1"}]}}),
        pod("a", "10.0.0.1", probe),
        pod("b", "10.0.0.2", json!({})),
        json!({"kind": "Service", "metadata": {"namespace": "x", "name": "s"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
        json!({"kind": "EndpointSlice", "metadata": {"namespace": "x", "name": "s", "labels": {"kubernetes.io/service-name": "s"}},
            "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["203.0.113.1"]}]}),
        policy(
            "in",
            json!({"podSelector": selects("a"), "ingress": [
            {"from": [{"podSelector": selects("none")}], "ports": [{"port": "sql"}, {"port": 15008}]},
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/24"}}, {}], "ports": [{"port": "web"}]}]}),
        ),
        policy(
            "out",
            json!({"podSelector": selects("b"), "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 80}]}]}),
        ),
        policy(
            "dns",
            json!({"podSelector": selects("a"), "policyTypes": ["Egress"],
            "egress": [{"ports": [{"protocol": "UDP", "port": 53}]}]}),
        ),
        policy("nobody", json!({"podSelector": selects("gone")})),
    ];
    let found: Vec<String> = lint(&world(&objects))
        .iter()
        .map(|one| format!("{} {} {}", one.policy, one.place, one.kind.name()).replace("  ", " "))
        .collect();
    let expected = [
        "x/in probe-by-node",
        "x/in ingress[0] from[0] peer-means-nothing",
        "x/in ingress[0] ports[0] unresolved-name",
        "x/in ingress[0] ports[1] tunnel-opened",
        "x/in ingress[1] from[0] block-covers-pods",
        "x/in spec.ingress[1].from[1] refused-entry",
        "x/nobody selects-nothing",
        "x/out mixed-service",
        "x/out egress-without-dns",
    ];
    assert_eq!(found, expected);
    let clean = lint(&world(&objects[..6]));
    assert_eq!(clean, [], "without policies there is nothing to find");
}
