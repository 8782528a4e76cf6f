//! Bad input: each message names what, where and what to do.

use crate::Files;

#[test]
fn wrong_manifests_are_named() {
    let files = Files::new();
    files.write("deployment.yaml", "kind: Deployment\nmetadata: {name: d}\n");
    files.write("broken.yaml", "kind: Pod\nmetadata:\n  name: [x\n");
    files.write("port.yaml", &crate::WEB.replace("3306", "33o6"));
    files.run("render @nosuch.yaml").fails(1, &["error: read manifest", "nosuch.yaml: No such file"]);
    files.run("render @deployment.yaml").fails(1, &["no object of kind Pod", "kubectl get pod"]);
    files.run("render @broken.yaml").fails(1, &["broken.yaml: broken at line"]);
    files.run("render @port.yaml").fails(1, &["excludeOutboundPorts", "33o6", "shop/web"]);
    files
        .run("render @both.yaml")
        .fails(1, &["several pods: shop/web, shop/plain; choose one with --pod-name"]);
    files
        .run("render @both.yaml --pod-name shop/nosuch")
        .fails(1, &["has no pod shop/nosuch; it has shop/web"]);
}

#[test]
fn broken_flows_are_usage_errors_with_an_example() {
    let files = Files::new();
    for (flow, parts) in [
        ("--to 10.0.0.5", vec!["the port is missing", "10.0.0.5:443"]),
        ("--to example.com:443", vec!["names are not resolved"]),
        ("--to 10.0.0.5:99999", vec!["\"99999\" is not a port"]),
        ("--to :80", vec!["needs an address"]),
        ("--to 10.0.0.5:80 --from [fd00::1]:7", vec!["different families"]),
        ("--to 10.0.0.5:80 --protocol sctp", vec!["invalid value 'sctp'", "tcp, udp"]),
        ("--to 10.0.0.5:80 --in --uid 0", vec!["cannot be used with"]),
        ("--to 10.0.0.5:80 --in --out", vec!["cannot be used with"]),
        ("", vec!["--to <IP:PORT>"]),
    ] {
        let run = files.run(&format!("explain @web.yaml {flow}")).fails(2, &parts);
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn addresses_that_no_pod_has_are_refused() {
    let files = Files::new();
    files
        .run("explain @web.yaml --to 10.0.0.5:80 --pod-ip 127.0.0.1")
        .fails(1, &["--pod-ip", "no valid local IP address"]);
}

#[test]
fn wrong_conflists_are_named_and_nothing_runs() {
    let files = Files::new();
    let netns = testkit::TestNetns::new().unwrap();
    for (name, text, parts) in [
        ("truncated", "{\"name\": \"n\"", vec!["not valid JSON", "correct the file"]),
        ("nameless", "{\"plugins\": [{\"type\": \"x\"}]}", vec!["key name is missing"]),
        (
            "future",
            "{\"name\": \"n\", \"cniVersion\": \"9.0.0\", \"type\": \"x\"}",
            vec!["cniVersion 9.0.0 is not supported"],
        ),
        ("typeless", "{\"name\": \"n\", \"plugins\": [{}]}", vec!["plugins[0] has no type"]),
        (
            "pluginless",
            "{\"name\": \"n\", \"type\": \"nosuch\"}",
            vec!["plugin type=\"nosuch\" not found in /nosuch:/usr/lib/cni", "--cni-path"],
        ),
    ] {
        let conf = files.write(&format!("{name}.conflist"), text);
        let line = format!(
            "add --conf @{name}.conflist --pod @web.yaml --netns {} --cni-path /nosuch:/usr/lib/cni",
            netns.path().display()
        );
        let mut parts = parts.clone();
        let conf = conf.display().to_string();
        if name != "pluginless" {
            parts.push(&conf);
        }
        files.run(&line).fails(1, &parts);
    }
    files
        .run("add --conf @nosuch.conflist --pod @web.yaml --netns x")
        .fails(1, &["read network configuration", "nosuch.conflist: No such file"]);
    files.write("other.conflist", r#"{"name": "n", "plugins": [{"type": "bridge"}]}"#);
    files
        .run("render @web.yaml --conf @other.conflist")
        .fails(1, &["other.conflist has no plugin of type istio-cni"]);
}

#[test]
fn a_namespace_that_is_none_or_the_hosts_is_refused_before_anything_runs() {
    let files = Files::new();
    let fake = crate::fake::Fake::new(&files, "");
    files.run(&fake.line("add", "--netns /run/netns/nosuch")).fails(1, &["--netns", "/run/netns/nosuch"]);
    files.run(&fake.line("add", "--netns nosuch-name")).fails(1, &["/run/netns/nosuch-name"]);
    files.run(&fake.line("add", "--netns @web.yaml")).fails(1, &["web.yaml"]);
    files.run(&fake.line("add", "--netns /proc/self/ns/net")).fails(1, &["the host's"]);
    assert!(fake.calls().is_empty());
}

#[test]
fn verbs_that_the_version_lacks_are_refused() {
    let files = Files::new();
    files.write("old.conflist", r#"{"name": "n", "cniVersion": "0.3.1", "plugins": [{"type": "loopback"}]}"#);
    let with = |verb: &str| format!("{verb} --conf @old.conflist --cni-path /usr/lib/cni");
    files.run(&format!("{} --pod @web.yaml", with("check"))).fails(1, &["0.3.1 of network n has no CHECK"]);
    files.run(&with("status")).fails(1, &["has no STATUS; 1.1.0 has"]);
    files.run(&format!("{} --none-valid", with("gc"))).fails(1, &["has no GC"]);
    files.run(&with("gc")).fails(2, &["--valid"]);
}
