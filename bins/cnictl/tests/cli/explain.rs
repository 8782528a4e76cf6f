use serde_json::Value;

use crate::{Files, row};

#[test]
fn outbound_goes_to_the_proxy_and_the_table_says_why() {
    let files = Files::new();
    files.write("node.conflist", r#"{"name": "n", "plugins": [{"type": "istio-cni"}]}"#);
    let text = files.run("explain @web.yaml --to 10.0.0.5:443 --conf @node.conflist").ok();
    assert_eq!(
        text,
        "\
POD       shop/web, captured through its sidecar (REDIRECT, nftables, IPv4)
FLOW      out, tcp 10.244.0.10:40000 -> 10.0.0.5:443 by eth0, sent by uid 1000 gid 1000
VERDICT   redirected to 15001 (proxy, outbound)
RULE      meta l4proto tcp counter redirect to :15001
CHAIN     istio-proxy-nat istio-redirect, rule 1
WHY       outbound, to the proxy
          every other destination is captured (istio-output rule 12)
          what the pod sends (output rule 1)
ASSUMED   the kernel has nf_tables (--backend)
ASSUMED   the application sends it, as user and group 1000 (--uid, --gid)
ASSUMED   it comes from 10.244.0.10 (--from)
"
    );
}

/// Flow, verdict, part of the deciding rule's reason.
const FLOWS: &[(&str, &str, &str)] = &[
    ("--to 10.0.0.5:3306", "passes: leaves the pod directly", "outbound port 3306 is excluded"),
    ("--to 10.0.0.5:443 --uid 1337", "passes: leaves the pod directly", "sent by the proxy (uid 1337)"),
    (
        "--to 10.0.0.5:443 --uid 7 --gid 1337",
        "passes: leaves the pod directly",
        "sent by the proxy (gid 1337)",
    ),
    ("--to 127.0.0.1:80", "passes: stays in the pod, directly", "the pod's containers among themselves"),
    (
        "--to 10.9.0.2:80 --pod-ip 10.9.0.2 --uid 1337",
        "redirected to 15006 (proxy, inbound)",
        "inbound, to the proxy",
    ),
    (
        "--to 10.9.0.2:80 --pod-ip 10.9.0.2",
        "passes: stays in the pod, directly",
        "the pod's containers among themselves",
    ),
    ("--to 10.96.0.10:53 --protocol udp", "redirected to 15053 (proxy's DNS)", "DNS over UDP"),
    ("--in --to :8080", "redirected to 15006 (proxy, inbound)", "inbound, to the proxy"),
    ("--in --to :15021", "passes: comes to the pod directly", "inbound port 15021 is excluded"),
    ("--to [2001:db8::1]:443", "redirected to 15001 (proxy, outbound)", "outbound, to the proxy"),
    (
        "--to 10.0.0.5:443 --state established",
        "follows what was decided for the first packet of its connection",
        "",
    ),
];

#[test]
fn flows_have_their_verdict_and_reason_in_both_backends() {
    let files = Files::new();
    for backend in ["nftables", "iptables"] {
        for (flow, verdict, why) in FLOWS {
            let text = files.run(&format!("explain @web.yaml {flow} --backend {backend}")).ok();
            assert_eq!(row(&text, "VERDICT"), *verdict, "{flow}: {text}");
            if !why.is_empty() {
                assert!(row(&text, "WHY").contains(why), "{flow}: {text}");
            }
        }
    }
    let text = files.run("explain @web.yaml --to 10.0.0.5:80 --backend iptables").ok();
    assert_eq!(row(&text, "RULE"), "-p tcp -j REDIRECT --to-ports 15001");
    assert_eq!(row(&text, "CHAIN"), "nat ISTIO_REDIRECT, rule 1");
}

#[test]
fn udp_that_no_rule_ends_is_said_to_have_none() {
    let files = Files::new();
    let text = files.run("explain @web.yaml --to 10.0.0.5:9999 --protocol udp").ok();
    assert_eq!(row(&text, "VERDICT"), "passes: leaves the pod directly");
    assert_eq!(row(&text, "RULE"), "none: no rule ends its way");
}

#[test]
fn ipv6_of_a_pod_with_an_ipv4_address_first_is_not_captured_by_iptables() {
    let files = Files::new();
    let line = "explain @web.yaml --to [2001:db8::1]:443 --pod-ip 10.9.0.2,fd00::2 --backend iptables";
    let text = files.run(line).ok();
    assert_eq!(row(&text, "VERDICT"), "passes: leaves the pod directly", "{text}");
    let line = "explain @web.yaml --to [2001:db8::1]:443 --pod-ip fd00::2,10.9.0.2 --backend iptables";
    assert!(row(&files.run(line).ok(), "VERDICT").starts_with("redirected to 15001"));
}

#[test]
fn tproxy_hands_over_and_the_second_half_of_a_loopback_way_is_looked_at() {
    let files = Files::new();
    let mode = "annotations:\n    sidecar.istio.io/interceptionMode: TPROXY";
    files.write("tproxy.yaml", &crate::WEB.replace("annotations:", mode));
    let text = files.run("explain @tproxy.yaml --in --to :8080").ok();
    assert_eq!(row(&text, "VERDICT"), "handed to 15006 (proxy, inbound) by TPROXY, addresses unchanged");
    let line = "explain @tproxy.yaml --to 10.9.0.2:8080 --pod-ip 10.9.0.2 -o json";
    let json: Value = serde_json::from_str(&files.run(line).ok()).unwrap();
    let hooks: Vec<&str> =
        json["trace"].as_array().unwrap().iter().map(|entry| entry["hook"].as_str().unwrap()).collect();
    assert!(hooks.contains(&"output") && hooks.contains(&"prerouting"), "{json}");
}

#[test]
fn a_proxy_that_does_not_listen_gets_nothing_and_neither_does_the_application() {
    let files = Files::new();
    let mode = "annotations:\n    sidecar.istio.io/interceptionMode: TPROXY";
    files.write("tproxy.yaml", &crate::WEB.replace("annotations:", mode));
    for backend in ["nftables", "iptables"] {
        let run =
            |file, way| files.run(&format!("explain @{file} {way} --proxy-down --backend {backend}")).ok();
        let text = run("tproxy.yaml", "--in --to :8080");
        assert_eq!(row(&text, "VERDICT"), "dropped", "{text}");
        if backend == "nftables" {
            assert_eq!(row(&text, "WHY"), "inbound, but the proxy does not listen", "{text}");
        }
        let text = run("tproxy.yaml", "--in --to :15021");
        assert_eq!(row(&text, "VERDICT"), "passes: comes to the pod directly");
        let text = run("web.yaml", "--in --to :8080");
        assert_eq!(
            row(&text, "VERDICT"),
            "redirected to 15006 (proxy, inbound), which does not listen: the connection is refused"
        );
    }
}

#[test]
fn trace_lists_every_rule_and_data_has_stable_names() {
    let files = Files::new();
    let text = files.run("explain @web.yaml --to 10.96.0.10:53 --protocol udp --trace").ok();
    for part in
        ["HOOK", "istio-proxy-raw", "the application's query", "DNS over UDP, to the proxy's resolver"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let json: Value =
        serde_json::from_str(&files.run("explain @web.yaml --to 10.0.0.5:443 -o json").ok()).unwrap();
    assert_eq!(json["verdict"]["action"], "redirect");
    assert_eq!(json["verdict"]["port"], 15001);
    assert_eq!(json["rule"]["chain"], "istio-redirect");
    assert_eq!(json["path"][0]["chain"], "output");
    assert_eq!(json["flow"]["to"], "10.0.0.5:443");
    assert!(files.run("explain @web.yaml --to 10.0.0.5:443 -o yaml").ok().contains("action: redirect"));
}

#[test]
fn a_pod_that_is_left_alone_is_explained_by_the_decision() {
    let files = Files::new();
    let text = files.run("explain @both.yaml --pod plain --to 10.0.0.5:443").ok();
    assert_eq!(row(&text, "POD"), "shop/plain, not captured: no-proxy");
    assert_eq!(row(&text, "VERDICT"), "passes: the pod is not captured, its traffic is left alone");
    assert!(row(&text, "WHY").starts_with("it has no container istio-proxy: containers: app"), "{text}");
}

#[test]
fn a_pod_whose_rules_do_not_see_all_of_its_traffic_is_not_called_captured() {
    let files = Files::new();
    let spec = |line: &str| crate::WEB.replace("spec:", &format!("spec:\n  {line}"));
    files.write("group.yaml", &spec("securityContext: {runAsGroup: 1337}"));
    files.write("kata.yaml", &spec("runtimeClassName: kata-fc"));
    for (file, warning) in
        [("group", "group 1337, which the rules take for the proxy"), ("kata", "Kata Containers")]
    {
        let text = files.run(&format!("explain @{file}.yaml --to 10.0.0.5:443")).ok();
        assert!(row(&text, "POD").contains("NOT ALL captured through its sidecar"), "{text}");
        assert!(row(&text, "WARNING").contains(warning), "{text}");
        let json = files.run(&format!("explain @{file}.yaml --to 10.0.0.5:443 -o json")).ok();
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["captured"], false, "{json}");
    }
    files.write(
        "conf.conflist",
        r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge"},
        {"type": "istio-cni", "kernel_network_runtime_classes": ["kata-fc"]}]}"#,
    );
    let text = files.run("explain @kata.yaml --to 10.0.0.5:443 --conf @conf.conflist").ok();
    assert!(row(&text, "POD").contains(" captured through") && !text.contains("WARNING"), "{text}");
}
