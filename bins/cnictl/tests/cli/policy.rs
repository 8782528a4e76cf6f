use serde_json::{Value, json};

use crate::Files;

/// Two pods of a namespace, and a policy by which only 10.0.0.2 reaches the first, on port 80.
fn cases() -> Value {
    let pod = |name: &str, ip: &str| {
        json!({"metadata": {"namespace": "x", "name": name, "labels": {"pod": name}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]}, "status": {"phase": "Running", "podIP": ip}})
    };
    json!({"clusters": {"c": {"namespaces": [{"metadata": {"name": "x"}}], "pods": [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")],
            "nodes": [{"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}]}},
        "cases": [{"name": "one", "cluster": "c", "policies": [{"metadata": {"namespace": "x", "name": "p"},
                "spec": {"podSelector": {"matchLabels": {"pod": "a"}},
                    "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]}}],
            "tables": [{"port": 80, "protocol": "TCP", "pods": ["x/a", "x/b"], "rows": ["#.", ".#"]}],
            "flows": [{"src": "192.0.2.1", "dst": "x/a", "protocol": "TCP", "port": 22, "allowed": true},
                {"src": "203.0.113.1", "dst": "x/a", "protocol": "TCP", "port": 80, "allowed": false,
                    "ingress": {"verdict": "deny", "reason": "no-rule-matched", "selecting": ["x/p"], "by": []}}],
            "steps": [{"change": [{"op": "delete", "kind": "Pod", "object": {"metadata": {"namespace": "x", "name": "b"}}}],
                "flows": [{"src": "10.0.0.2", "dst": "x/a", "protocol": "TCP", "port": 80, "allowed": false}]}]}]})
}

#[test]
fn a_file_whose_verdicts_are_right_has_no_difference() {
    let files = Files::new();
    files.write("cases.json", &cases().to_string());
    let text = files.run("policy eval --cases @cases.json").ok();
    assert_eq!(text, "cases: 1, cells: 4, flows: 3; each verdict is as the file says\n");
}

#[test]
fn each_difference_is_printed_with_its_reason() {
    let files = Files::new();
    let mut wrong = cases();
    wrong["cases"][0]["tables"][0]["rows"] = json!(["#X", ".#"]);
    wrong["cases"][0]["steps"][0]["flows"][0]["allowed"] = json!(true);
    files.write("cases.json", &wrong.to_string());
    let run = files.run("policy eval --cases @cases.json");
    let run = run.fails(1, &["2 verdicts differ from the file (cases: 1, cells: 4, flows: 3)"]);
    assert_eq!(
        run.stdout,
        "one: x/a -> x/b TCP 80: the file says denied; found allowed (egress allowed: no policy selects the pod; \
         ingress allowed: no policy selects the pod)\n\
         one, step 1: 10.0.0.2 -> x/a TCP 80: the file says allowed; found egress allowed: not a pod that policies are about; \
         ingress denied: no rule matches of x/p\n"
    );
}

/// Rules differ from the file where it is wrong, and where they see a Service and not the endpoint that is chosen.
#[test]
fn compiled_rules_are_compared_too() {
    let files = Files::new();
    files.write("cases.json", &cases().to_string());
    for backend in ["nftables", "iptables"] {
        let text = files.run(&format!("policy eval --cases @cases.json --compiled {backend}")).ok();
        assert_eq!(
            text,
            format!(
                "cases: 1, cells: 4, flows: 3; each verdict is as the file says\n\
                 rules for {backend} in pods, connections: 5; each does as the file says\n"
            )
        );
    }
    for backend in ["nftables", "iptables"] {
        let run = format!("policy eval --cases @cases.json --compiled {backend} --point node");
        let text = files.run(&run).ok();
        let end = format!("rules for {backend} in nodes, connections: 5; each does as the file says\n");
        assert!(text.ends_with(&end), "{text}");
    }
    let mut other = cases();
    let case = &mut other["cases"][0];
    case["flows"][0]["allowed"] = json!(false);
    case["policies"][0]["spec"]["egress"] = json!([{"to": [{"ipBlock": {"cidr": "10.0.0.2/32"}}]}]);
    case["setup"] = json!([
        {"op": "put", "kind": "Service", "object": {"metadata": {"namespace": "x", "name": "s"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}},
        {"op": "put", "kind": "EndpointSlice", "object": {
            "metadata": {"namespace": "x", "name": "s", "labels": {"kubernetes.io/service-name": "s"}}, "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.0.0.2"]}, {"addresses": ["203.0.113.7"]}]}}]);
    let flow = json!({"src": "x/a", "dst": "svc:x/s", "protocol": "TCP", "port": 80, "allowed": "mixed",
        "endpoints": {"10.0.0.2:80": true, "203.0.113.7:80": false}});
    case["flows"].as_array_mut().unwrap().push(flow);
    files.write("cases.json", &other.to_string());
    let run =
        files.run("policy eval --cases @cases.json --compiled nftables").fails(1, &["2 verdicts differ"]);
    let lines: Vec<&str> = run.stdout.lines().collect();
    for (line, parts) in lines.iter().zip([
        ["one: 192.0.2.1 -> x/a TCP 22: the file says denied", "found egress allowed"],
        [
            "known: rules for nftables: one: x/a -> svc:x/s TCP 80 (to 10.0.0.2): the file says allowed",
            "some endpoints",
        ],
        ["rules for nftables: one: 192.0.2.1 -> x/a TCP 22 (to 10.0.0.1)", "the pod's own node reaches it"],
    ]) {
        assert!(line.starts_with(parts[0]) && line.contains(parts[1]), "{line}");
    }
    assert_eq!(lines.len(), 3, "{}", run.stdout);
    files.run("policy eval --cases @cases.json --compiled nft").fails(2, &["nftables", "iptables"]);
}

#[test]
fn a_file_that_cannot_be_used_says_where_and_why() {
    let files = Files::new();
    files.run("policy eval --cases @nosuch").fails(1, &["nosuch: No such file"]);
    files.run("policy eval").fails(2, &["--cases"]);
    for (place, value, parts) in [
        ("/cases/0/cluster", json!("other"), "case one: the file has no cluster \"other\""),
        ("/cases/0/flows/0/src", json!("x/none"), "case one: \"x/none\" is no end"),
        ("/cases/0/flows/0/protocol", json!("tcp"), "case one: protocol is \"tcp\""),
        ("/cases/0/tables/0/rows", json!(["#."]), "case one: a table has 2 pods"),
        ("/cases/0/policies/0/spec/ingress", json!(7), "case one: a NetworkPolicy cannot be read"),
        ("/cases/0/steps/0/change/0/kind", json!("Job"), "case one: objects of kind \"Job\" are unknown"),
        ("/cases/0/steps/0/change/0/op", json!("patch"), "case one: a change is \"patch\""),
        ("/cases", json!(7), "it is not a file of cases"),
    ] {
        let mut broken = cases();
        *broken.pointer_mut(place).unwrap() = value;
        files.write("cases.json", &broken.to_string());
        files.run("policy eval --cases @cases.json").fails(1, &["cases.json", parts]);
    }
}
