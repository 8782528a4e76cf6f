use serde_json::Value;
use testkit::TestNetns;
use testkit::rules::{Comments, Family, Variant};

use crate::Files;

#[test]
fn nft_text_has_reasons_and_loads_again_and_again() {
    let files = Files::new();
    let text = files.run("render @web.yaml --ipv6").ok();
    for line in [
        "# pod shop/web: captured through its sidecar (REDIRECT, nftables, IPv4 and IPv6)",
        "# first: ip -6 address replace ::6/128 dev lo",
        "# load with: nft -f -",
        "add rule inet istio-proxy-nat istio-output meta l4proto tcp tcp dport 3306 counter return comment \"outbound port 3306 is excluded\"",
    ] {
        assert!(text.lines().any(|have| have == line), "{line:?} is not in {text}");
    }
    let netns = TestNetns::new().unwrap();
    netns.nft(&text).unwrap();
    let once = netns.nft_json(Comments::Keep).unwrap();
    netns.nft(&text).unwrap();
    assert_eq!(netns.nft_json(Comments::Keep).unwrap(), once);
    assert!(once.len() > 20, "{once:?}");
}

#[test]
fn iptables_text_has_a_reason_before_each_rule_and_loads() {
    let files = Files::new();
    let netns = TestNetns::new().unwrap();
    for (name, family, program) in [("ipv4", Family::V4, "iptables"), ("ipv6", Family::V6, "ip6tables")] {
        let text = files.run(&format!("render @web.yaml --backend iptables --ipv6 --family {name}")).ok();
        assert!(text.contains(&format!("# load with: {program}-restore --noflush\n")), "{text}");
        assert_eq!(text.matches("# load with").count(), 1, "{text}");
        let lines: Vec<&str> = text.lines().collect();
        let rules = lines.windows(2).filter(|pair| pair[1].starts_with("-A ") || pair[1].starts_with("-I "));
        let reasons: Vec<&str> = rules.map(|pair| pair[0]).collect();
        assert!(reasons.len() > 20 && reasons.iter().all(|reason| reason.starts_with("# ")), "{text}");
        let at =
            lines.iter().position(|line| *line == "-A ISTIO_OUTPUT -p tcp --dport 3306 -j RETURN").unwrap();
        assert_eq!(lines[at - 1], "# outbound port 3306 is excluded");
        netns.iptables_restore(Variant::Nft, family, &text).unwrap();
        let saved = netns.iptables_save(Variant::Nft, family).unwrap();
        let planned = lines.iter().filter(|line| line.starts_with("-A ") || line.starts_with("-I ")).count();
        assert_eq!(saved.lines().filter(|line| line.starts_with("-A ")).count(), planned, "{saved}");
    }
}

#[test]
fn a_pod_that_is_left_alone_has_its_reason_and_exit_code_3() {
    let files = Files::new();
    files.write("node.conflist", r#"{"name": "n", "plugins": [{"type": "istio-cni"}]}"#);
    let run = files.run("render @plain.yaml --conf @node.conflist");
    assert_eq!((run.exit, run.stderr.as_str()), (3, ""));
    assert_eq!(
        run.stdout,
        "# pod shop/plain: not captured, no rules\n# no-proxy: it has no container istio-proxy: containers: app\n"
    );
    let run = files.run("render @web.yaml --exclude-namespace shop -o json");
    assert_eq!(run.exit, 3);
    let data: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(data["captured"], false);
    assert_eq!(data["reason"], "excluded-namespace");
}

#[test]
fn tproxy_has_its_routing_and_older_annotations_their_warning() {
    let files = Files::new();
    let manifest = crate::WEB.replace(
        "annotations:",
        "annotations:\n    sidecar.istio.io/interceptionMode: TPROXY\n    sidecar.istio.io/proxUID: '2000'",
    );
    files.write("tproxy.yaml", &manifest);
    let text = files.run("render @tproxy.yaml").ok();
    for part in [
        "# first: ip -4 rule add fwmark 1337 lookup 133 priority 32765\n",
        "# first: ip -4 route replace local default dev lo table 133\n",
        "# warning: annotation sidecar.istio.io/proxUID is of an older release",
        "tproxy ip to :15006",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn the_conflist_gives_backend_and_excluded_namespaces() {
    let files = Files::new();
    files.write(
        "net.conflist",
        r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"},
           {"type": "istio-cni", "native_nftables": false, "exclude_namespaces": ["kube-system"]}]}"#,
    );
    assert!(files.run("render @web.yaml --conf @net.conflist").ok().contains("*nat\n"));
    let text = files.run("render @web.yaml --conf @net.conflist --backend nftables").ok();
    assert!(text.contains("add table inet istio-proxy-nat"), "{text}");
    files.write("kube.yaml", &crate::WEB.replace("namespace: shop", "namespace: kube-system"));
    let run = files.run("render @kube.yaml --conf @net.conflist");
    assert_eq!(run.exit, 3);
    assert!(
        run.stdout.contains(
            "excluded-namespace: its namespace is excluded by the configuration: namespace kube-system"
        ),
        "{run:?}"
    );
}

#[test]
fn data_has_every_rule_with_its_place_and_reason() {
    let files = Files::new();
    let json: Value = serde_json::from_str(&files.run("render @web.yaml -o json").ok()).unwrap();
    let plan = &json["plan"];
    assert_eq!(plan["backend"], "nftables");
    assert_eq!(plan["mode"], "REDIRECT");
    let rules = plan["rules"].as_array().unwrap();
    let text = files.run("render @web.yaml").ok();
    assert_eq!(rules.len(), text.lines().filter(|line| line.starts_with("add rule")).count());
    for rule in rules {
        for key in ["families", "table", "chain", "text", "why"] {
            assert!(rule[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {rule}");
        }
    }
    let yaml = files.run("render @web.yaml -o yaml").ok();
    assert!(yaml.starts_with("pod:\n  namespace: shop\n  name: web\ncaptured: true\n"), "{yaml}");
}
