//! Pods of ambient mode: the decision, the rules in both backends, the node's side, and the kernel compared with all of it.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;
use testkit::TestNetns;
use testkit::rules::{Comments, Family, Variant};

use crate::{Files, Run, row};

const POD: &str = "
kind: Pod
metadata: {name: cart, namespace: shop, uid: 5d1f-77}
spec: {containers: [{name: app}]}
status: {podIPs: [{ip: 10.9.0.7}, {ip: 'fd00::7'}]}
";

const NAMESPACE: &str = "
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
";

/// The node's configuration: the chart's, with the selectors that look at labels of namespaces.
const CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"},
  {"type": "istio-cni", "ambient_enabled": true, "pod_namespace": "istio-system", "exclude_namespaces": ["kube-system"],
   "enablement_selectors": [
    {"podSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}},
    {"podSelector": {"matchExpressions": [{"key": "istio.io/dataplane-mode", "operator": "NotIn", "values": ["none"]}]},
     "namespaceSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}}]}]}"#;

fn files() -> Files {
    let files = Files::new();
    files.write("cart.yaml", &format!("{NAMESPACE}---{POD}"));
    files.write("alone.yaml", POD);
    files.write("net.conflist", CONFLIST);
    files
}

fn with_input(files: &Files, line: &str, input: &str) -> Run {
    let mut command = files.command(line);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    Run::of(&child.wait_with_output().unwrap())
}

#[test]
fn a_pod_of_ambient_mode_is_explained_by_its_rules() {
    let files = files();
    for (flow, verdict, why) in [
        ("--to 10.0.0.5:443", "redirected to 15001 (ztunnel, outbound)", "outbound"),
        ("--to 10.0.0.5:443 --mark 0x539", "passes: leaves the pod directly", ""),
        ("--to [fd00::5]:443", "redirected to 15001 (ztunnel, outbound)", "outbound"),
        ("--to 10.96.0.10:53 --protocol udp", "redirected to 15053 (ztunnel's DNS)", "questions for names"),
        ("--in --to :8080", "redirected to 15006 (ztunnel, inbound in plain text)", ""),
        ("--in --to :15008", "passes: comes to the pod directly", ""),
        ("--in --to :8080 --from 169.254.7.127", "passes: comes to the pod directly", "probe"),
        ("--from-node --to :8080", "passes: comes to the pod directly", "probe"),
    ] {
        for backend in ["nftables", "iptables"] {
            let line = format!("explain @cart.yaml {flow} --conf @net.conflist --backend {backend}");
            let text = files.run(&line).ok();
            let families = format!("captured through the node's ztunnel (AMBIENT, {backend}, IPv4 and IPv6)");
            assert!(row(&text, "POD").ends_with(&families), "{text}");
            assert_eq!(row(&text, "VERDICT"), verdict, "{flow}: {text}");
            assert!(why.is_empty() || row(&text, "WHY").contains(why), "{flow}: {text}");
            assert!(row(&text, "ASSUMED").contains("no agent with ambient mode answers"), "{text}");
        }
    }
    let text = files.run("explain @cart.yaml --from-node --to :8080 --conf @net.conflist").ok();
    assert!(row(&text, "NODE").starts_with("leaves the node from 169.254.7.127: "), "{text}");
    let json = files.run("explain @cart.yaml --from-node --to :8080 --conf @net.conflist -o json").ok();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["capture"]["mode"], "AMBIENT");
    assert_eq!(json["node"]["source"], "169.254.7.127");
    assert_eq!(json["node"]["rule"]["table"], "istio-ambient-nat");
    // An address that is not in the node's sets keeps the node's source, and the probe goes to ztunnel.
    let line = "explain @cart.yaml --from-node --to 10.9.9.9:8080 --conf @net.conflist";
    let text = files.run(line).ok();
    assert!(row(&text, "NODE").contains("no rule of ours changes it"), "{text}");
    assert!(row(&text, "VERDICT").starts_with("redirected to 15006"), "{text}");
}

#[test]
fn what_is_not_said_is_assumed_and_named() {
    let files = files();
    let all = |line: &str| {
        let text = files.run(line).ok();
        let assumed = text.lines().filter_map(|line| line.strip_prefix("ASSUMED"));
        (
            row(&text, "POD").to_owned(),
            assumed.map(|text| text.trim().to_owned()).collect::<Vec<_>>().join("\n"),
        )
    };
    // The namespace is not known: taken as without labels.
    let (pod, assumed) = all("explain @alone.yaml --to 10.0.0.5:443 --conf @net.conflist");
    assert_eq!(pod, "shop/cart, not captured: no-proxy");
    assert!(assumed.contains("the labels of namespace shop are empty (--namespace-labels"), "{assumed}");
    let (pod, assumed) = all(
        "explain @alone.yaml --to 10.0.0.5:443 --conf @net.conflist --namespace-labels istio.io/dataplane-mode=ambient",
    );
    assert!(pod.contains("the node's ztunnel") && !assumed.contains("labels"), "{pod} {assumed}");
    // Labels that are said win over the manifest's.
    let (pod, _) = all("explain @cart.yaml --to 10.0.0.5:443 --conf @net.conflist --namespace-labels=");
    assert_eq!(pod, "shop/cart, not captured: no-proxy");
    // No configuration: the chart's.
    let (pod, assumed) = all("explain @cart.yaml --to 10.0.0.5:443");
    assert!(pod.contains("the node's ztunnel"), "{pod}");
    assert!(assumed.contains("no-net.d has no configuration with the plugin (--conf)"), "{assumed}");
    // The node's own: the file that a runtime takes is named.
    std::fs::create_dir(files.path("net.d")).unwrap();
    files.write("net.d/10-net.conflist", &CONFLIST.replace("kube-system", "shop"));
    let (pod, assumed) = all("explain @cart.yaml --to 10.0.0.5:443 --net-dir @net.d");
    assert_eq!(pod, "shop/cart, not captured: excluded-namespace");
    assert!(
        assumed.contains("the configuration of this node, ") && assumed.contains("10-net.conflist"),
        "{assumed}"
    );
    let disabled = CONFLIST.replace("\"istio-cni\",", "\"istio-cni\", \"capture\": \"disabled\",");
    files.write("net.d/10-net.conflist", &disabled);
    assert_eq!(
        all("explain @cart.yaml --to 10.0.0.5:443 --net-dir @net.d").0,
        "shop/cart, not captured: capture-disabled"
    );
    for bad in ["a", "=x"] {
        files
            .run(&format!("explain @cart.yaml --to 10.0.0.5:443 --namespace-labels {bad}"))
            .fails(1, &["--namespace-labels", "KEY=VALUE"]);
    }
}

#[test]
fn standard_input_is_a_manifest() {
    let files = files();
    let input = format!("{NAMESPACE}---{POD}");
    let text = with_input(&files, "explain - --to 10.0.0.5:443 --conf @net.conflist", &input).ok();
    assert_eq!(text, files.run("explain @cart.yaml --to 10.0.0.5:443 --conf @net.conflist").ok());
    let json = serde_json::json!({"kind": "List", "items": [
        {"kind": "Namespace", "metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}},
        {"kind": "Pod", "metadata": {"name": "cart", "namespace": "shop"}, "spec": {"containers": [{"name": "app"}]}},
    ]});
    let text = with_input(&files, "render - --conf @net.conflist", &json.to_string()).ok();
    assert!(text.starts_with("# pod shop/cart: captured through the node's ztunnel"), "{text}");
    assert!(text.contains("# assumed: the pod has no address yet"), "{text}");
    with_input(&files, "render - --conf @net.conflist", "kind: Pod\nmetadata: [")
        .fails(1, &["standard input: broken"]);
}

#[test]
fn the_rules_of_pod_and_node_load_and_are_what_check_wants() {
    let files = files();
    for (backend, variant) in [("nftables", None), ("iptables", Some(Variant::Nft))] {
        let netns = TestNetns::new().unwrap();
        let line = |place: &str| {
            format!("render @cart.yaml --conf @net.conflist --backend {backend} --place {place}")
        };
        load(&netns, &files.run(&line("pod")).ok(), variant, &files, &line("pod"));
        let check = format!(
            "check --pod @cart.yaml --netns {} --net-dir @net.d --backend {backend} -o json",
            netns.path().display()
        );
        std::fs::create_dir_all(files.path("net.d")).unwrap();
        files.write("net.d/10-net.conflist", CONFLIST);
        // In a namespace that stands for the node's: its rules and sets are missing, then there.
        let host = TestNetns::new().unwrap();
        let run = |line: &str| {
            let mut command = files.command(line);
            Run::of(&host.output(&mut command).unwrap())
        };
        let before = run(&check);
        let json: Value = serde_json::from_str(&before.stdout).unwrap();
        assert_eq!(json["pod_differences"], serde_json::json!([]), "{before:?}");
        assert_eq!(json["probe_addresses"][0]["ok"], false, "{before:?}");
        before.fails(
            1,
            &["pod shop/cart is not as decided", "10.9.0.7 is not in the node's set istio-inpod-probes-v4"],
        );
        load(&host, &files.run(&line("node")).ok(), variant, &files, &line("node"));
        let after = run(&check);
        assert_eq!((after.exit, after.stderr.as_str()), (0, ""), "{}", after.stdout);
        let table = run(&check.replace(" -o json", "")).ok();
        assert!(
            row(&table, "NETNS").starts_with("as decided") && row(&table, "NODE") == "as decided",
            "{table}"
        );
        assert_eq!(row(&table, "PROBES"), "10.9.0.7 is in the node's set istio-inpod-probes-v4", "{table}");
        // Another pod has the address by now.
        files.write("other.yaml", &format!("{NAMESPACE}---{}", POD.replace("5d1f-77", "another")));
        run(&check.replace("@cart", "@other")).fails(1, &["for another pod, uid \"5d1f-77\""]);
        // The pod is labelled out, and its rules are still there.
        let out = run(&format!("{check} --namespace-labels="));
        out.fails(1, &["has rules of ambient mode, and should have none"]);
    }
}

/// Does what the comments of a rendered text say, then loads it.
fn load(netns: &TestNetns, text: &str, variant: Option<Variant>, files: &Files, line: &str) {
    for command in text.lines().filter_map(|line| line.strip_prefix("# first: ")) {
        netns.run(std::process::Command::new("sh").args(["-c", command])).unwrap();
    }
    match variant {
        None => {
            netns.nft(text).unwrap();
            let once = netns.nft_json(Comments::Keep).unwrap();
            netns.nft(text).unwrap();
            assert_eq!(netns.nft_json(Comments::Keep).unwrap(), once, "it loads again and again");
        }
        Some(variant) => {
            for (name, family) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
                let text = files.run(&format!("{line} --family {name}")).ok();
                netns.iptables_restore(variant, family, &text).unwrap();
            }
        }
    }
}

#[test]
fn what_the_agent_refuses_is_not_called_captured() {
    let files = files();
    let kata = POD.replace("spec: {", "spec: {runtimeClassName: kata-fc, ");
    files.write("kata.yaml", &format!("{NAMESPACE}---{kata}"));
    let text = files.run("explain @kata.yaml --to 10.0.0.5:443 --conf @net.conflist").ok();
    assert!(row(&text, "POD").contains("NOT ALL captured through the node's ztunnel"), "{text}");
    assert!(row(&text, "WARNING").contains("Kata Containers"), "{text}");
    let ingress =
        POD.replace("uid: 5d1f-77", "annotations: {ambient.istio.io/bypass-inbound-capture: maybe}");
    files.write("bad.yaml", &format!("{NAMESPACE}---{ingress}"));
    let text = files.run("explain @bad.yaml --to 10.0.0.5:443 --conf @net.conflist").ok();
    assert!(row(&text, "WARNING").contains("\"maybe\" is not a boolean"), "{text}");
    files
        .run("render @web.yaml --place node --conf @net.conflist")
        .fails(1, &["sidecar", "node's own namespace"]);
}
