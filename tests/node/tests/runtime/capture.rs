//! Pods of a running chain: whose traffic reaches the proxy and whose does not.

use node::PodSpec;
use serde_json::json;

use crate::fixture::{
    APP_PORT, GATEWAY, GATEWAY6, Mesh, NODE_PORT, PLUGIN, ask_from_container, ask_from_node, echo_pod,
    sidecar_pod,
};

/// Asks in all directions and returns (from the app, from the proxy, to the app).
fn directions(mesh: &Mesh, spec: &PodSpec) -> (String, Option<String>, String) {
    let pod = mesh.must_run(spec);
    let status = mesh.node.status(&pod).expect("a status");
    let from_app = ask_from_container(&mesh.node, &pod, "app", GATEWAY, NODE_PORT);
    let from_proxy = pod
        .containers
        .contains_key("istio-proxy")
        .then(|| ask_from_container(&mesh.node, &pod, "istio-proxy", GATEWAY, NODE_PORT));
    (from_app, from_proxy, ask_from_node(&mesh.node, &status.ip, APP_PORT))
}

fn words(from_app: &str, from_proxy: Option<&str>, to_app: &str) -> (String, Option<String>, String) {
    (from_app.to_owned(), from_proxy.map(str::to_owned), to_app.to_owned())
}

/// One table of pods for both backends.
fn check_captures(mesh: &Mesh) {
    let captured = words("outbound", Some("node"), "inbound");
    let bypassed = words("node", Some("node"), "app");
    let cases = [
        ("a sidecar", sidecar_pod("default", "sidecar"), captured),
        ("no proxy", echo_pod("default", "plain"), words("node", None, "app")),
        ("excluded namespace", sidecar_pod("kube-system", "excluded"), bypassed.clone()),
        (
            "injection refused",
            sidecar_pod("default", "refused").annotate("sidecar.istio.io/inject", "false"),
            bypassed,
        ),
        (
            "excluded ports",
            sidecar_pod("default", "ports")
                .annotate("traffic.sidecar.istio.io/excludeOutboundPorts", &NODE_PORT.to_string())
                .annotate("traffic.sidecar.istio.io/excludeInboundPorts", &APP_PORT.to_string()),
            words("node", Some("node"), "app"),
        ),
    ];
    for (what, spec, expected) in cases {
        assert_eq!(directions(mesh, &spec), expected, "{what}: (from app, from proxy, to app)");
    }
}

#[test]
fn nf_tables_takes_a_sidecar_pods_traffic_and_no_others() {
    let mesh = Mesh::start(true);
    check_captures(&mesh);

    let sidecar = mesh.must_run(&sidecar_pod("default", "listed"));
    assert!(mesh.tables(&sidecar).contains("istio-proxy-nat"), "{}", mesh.tables(&sidecar));
    let plain = mesh.must_run(&echo_pod("default", "unlisted"));
    assert_eq!(mesh.tables(&plain), "");
    let of_the_node = mesh.node.exec(&["nft", "list", "ruleset"]).expect("nft runs").stdout;
    assert!(!of_the_node.to_lowercase().contains("istio"), "the node's own rules: {of_the_node}");
}

#[test]
fn iptables_takes_a_sidecar_pods_traffic_and_no_others() {
    let mesh = Mesh::start(false);
    check_captures(&mesh);

    let sidecar = mesh.must_run(&sidecar_pod("default", "listed"));
    let saved =
        |program: &str| mesh.node.exec_in_pod(&sidecar, &[program, "-t", "nat"]).expect("it runs").stdout;
    let both = saved("iptables-nft-save") + &saved("iptables-legacy-save");
    assert!(both.contains("ISTIO_OUTPUT") && both.contains("15001"), "the pod's nat rules: {both}");
    assert!(!mesh.tables(&sidecar).contains("istio-proxy-nat"), "one backend only");
    let of_the_node = mesh.node.exec(&["iptables-save"]).expect("iptables-save runs").stdout;
    assert!(!of_the_node.contains("ISTIO"), "the node's own rules: {of_the_node}");
}

#[test]
fn the_result_of_the_chain_is_the_bridges() {
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let mesh = Mesh::start_with(|chain| chain.version = version);
        mesh.must_run(&sidecar_pod("default", "result"));
        let answer = |plugin| {
            let add = mesh.node.calls_of(plugin, "ADD").expect("records").pop().expect("an ADD");
            let mut result: serde_json::Value = serde_json::from_str(&add.stdout).expect("a result");
            // The newer versions leave an empty `dns` out; Debian's bridge does not.
            if result["dns"] == json!({}) {
                result.as_object_mut().expect("an object").remove("dns");
            }
            result
        };
        let (ours, bridges) = (answer(PLUGIN), answer("bridge"));
        assert_eq!(ours, bridges, "{version}");
        assert_eq!(ours["cniVersion"], json!(version));
    }
}

/// Runs a sidecar pod that has an IPv6 address and asks over IPv6 in both directions.
fn check_ipv6(ranges: serde_json::Value, routes: serde_json::Value, native_nftables: bool) {
    let mesh = Mesh::start_with(|chain| {
        chain.bridge["ipam"]["ranges"] = ranges;
        chain.bridge["ipam"]["routes"] = routes;
        chain.plugin["native_nftables"] = json!(native_nftables);
    });
    let pod = mesh.must_run(&sidecar_pod("default", "six").env("ISTIO_DUAL_STACK", "true"));
    let ips = mesh.node.status(&pod).expect("a status").cni_result["Interfaces"]["eth0"]["IPConfigs"].clone();
    let of_family = |six: bool| {
        let ips = ips.as_array().expect("addresses").iter().filter_map(|c| c["IP"].as_str());
        ips.filter(|ip| ip.contains(':') == six).map(str::to_owned).collect::<Vec<_>>()
    };
    let asked = |container, gateway| ask_from_container(&mesh.node, &pod, container, gateway, NODE_PORT);
    for (six, gateway) in [(false, GATEWAY), (true, GATEWAY6)] {
        for ip in of_family(six) {
            assert_eq!(asked("app", gateway), "outbound", "from the app to {gateway}");
            assert_eq!(asked("istio-proxy", gateway), "node", "from the proxy to {gateway}");
            assert_eq!(ask_from_node(&mesh.node, &ip, APP_PORT), "inbound", "to {ip}");
        }
    }
    assert_eq!(of_family(true).len(), 1, "{ips}");
}

#[test]
fn a_dual_stack_pod_is_captured_in_both_families() {
    for native_nftables in [true, false] {
        check_ipv6(
            json!([[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]]),
            json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]),
            native_nftables,
        );
    }
}

#[test]
fn a_pod_with_ipv6_alone_is_captured() {
    check_ipv6(json!([[{"subnet": "fd00:88::/64"}]]), json!([{"dst": "::/0"}]), true);
}
