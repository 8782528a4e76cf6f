//! Input of the runtime that cannot be used.

use std::path::Path;

use serde_json::json;
use testkit::{Node, PodObject, TestNetns, assert_says};

use crate::{everything, node_and_pod};

/// A change of a good call, with the code and the words of the answer.
type Case = (&'static str, fn(testkit::plugin::Call) -> testkit::plugin::Call, u64, &'static [&'static str]);

fn conf(call: testkit::plugin::Call, change: impl FnOnce(&mut serde_json::Value)) -> testkit::plugin::Call {
    let mut conf = serde_json::from_slice(&call.stdin).unwrap();
    change(&mut conf);
    call.stdin(conf.to_string())
}

#[test]
fn protocol_errors_name_what_is_wrong_and_change_nothing() {
    let cases: &[Case] = &[
        ("no JSON", |call| call.stdin("{nonsense"), 6, &["error unmarshall network config"]),
        ("nothing", |call| call.stdin(""), 6, &["error unmarshall network config"]),
        (
            "truncated",
            |call| {
                let half = call.stdin.len() / 2;
                let stdin = call.stdin[..half].to_vec();
                call.stdin(stdin)
            },
            6,
            &["error unmarshall network config"],
        ),
        ("no name", |call| conf(call, |c| c["name"] = json!("")), 7, &["missing network name"]),
        ("bad name", |call| conf(call, |c| c["name"] = json!("a/b")), 7, &["invalid characters", "a/b"]),
        (
            "unknown version",
            |call| conf(call, |c| c["cniVersion"] = json!("1.2.0")),
            1,
            &["incompatible CNI versions", "config is \"1.2.0\"", "\"1.1.0\""],
        ),
        (
            "no version at all",
            |call| conf(call, |c| c["cniVersion"] = json!("one")),
            1,
            &["incompatible CNI versions", "config is \"one\""],
        ),
        (
            "missing variables",
            |call| call.without("CNI_NETNS").without("CNI_IFNAME"),
            4,
            &["required env variables [CNI_NETNS,CNI_IFNAME] missing"],
        ),
        (
            "bad container id",
            |call| call.env("CNI_CONTAINERID", "../x"),
            4,
            &["invalid characters in containerID"],
        ),
        ("bad interface", |call| call.env("CNI_IFNAME", "eth0:1"), 4, &["interface name contains"]),
        (
            "long interface",
            |call| call.env("CNI_IFNAME", "abcdefghijklmnop"),
            4,
            &["interface name is too long"],
        ),
        ("unknown verb", |call| call.env("CNI_COMMAND", "FLY"), 4, &["unknown CNI_COMMAND: FLY"]),
        (
            "prevResult of another version",
            |call| conf(call, |c| c["prevResult"]["cniVersion"] = json!("0.2.0")),
            999,
            &["prevResult", "0.2.0"],
        ),
        (
            "prevResult that is none",
            |call| {
                conf(call, |c| {
                    c["prevResult"] = json!({"cniVersion": "1.0.0", "ips": [{"address": "nowhere"}]});
                })
            },
            999,
            &["prevResult", "nowhere"],
        ),
        (
            "wrong type",
            |call| conf(call, |c| c["exclude_namespaces"] = json!("kube-system")),
            999,
            &["failed to parse network configuration", "exclude_namespaces"],
        ),
        (
            "wrong time",
            |call| conf(call, |c| c["facts_timeout"] = json!("soon")),
            999,
            &["failed to parse network configuration", "facts_timeout", "soon"],
        ),
        ("bad arguments", |call| call.env("CNI_ARGS", "A=b=c"), 999, &["ARGS: invalid pair", "A=b=c"]),
        ("unknown argument", |call| call.env("CNI_ARGS", "A=b"), 999, &["ARGS: unknown args", "A=b"]),
        (
            "group that nobody knows",
            |call| call.env("ISTIO_OUTBOUND_OWNER_GROUPS", "no-such-group"),
            999,
            &["ISTIO_OUTBOUND_OWNER_GROUPS", "no-such-group"],
        ),
        (
            "loopback range that is none",
            |call| call.env("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "10.0.0.0/8"),
            999,
            &["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "10.0.0.0/8"],
        ),
    ];
    let (node, pod) = node_and_pod(&[]);
    let before = everything(&pod);
    for (name, change, code, says) in cases {
        let answer = change(node.call("ADD", "web", pod.path())).run().unwrap();
        let (found, text) = answer.error().unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(found, *code, "{name}: {text}");
        assert_says(&text, says);
        assert_eq!(before, everything(&pod), "{name}: something changed");
    }
}

#[test]
fn namespaces_that_are_none() {
    let node = Node::bare().unwrap();
    node.write_manifest(PodObject::named("web").sidecar()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let cases: [(&str, &Path, &[&str]); 5] = [
        ("missing", &TestNetns::removed_path(), &["failed to open netns", "does not exist"]),
        ("regular file", file.path(), &["failed to open netns", "namespace"]),
        ("directory", Path::new("/tmp"), &["failed to open netns", "namespace"]),
        ("mount namespace", Path::new("/proc/self/ns/mnt"), &["failed to open netns", "mount"]),
        ("relative", Path::new("netns"), &["failed to open netns", "netns"]),
    ];
    for (name, path, says) in cases {
        let answer = node.call("ADD", "web", path).run().unwrap();
        let (code, text) = answer.error().unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(code, 999, "{name}: {text}");
        assert_says(&text, says);
        assert_says(&text, &["default/web", &path.to_string_lossy()]);
    }
}

#[test]
fn the_nodes_own_namespace_is_refused() {
    // The node is a namespace of the test's: were it not refused, the rules would be there and not in the machine's.
    let (node, fake_node) = node_and_pod(&[]);
    let before = everything(&fake_node);
    let on_node = |call: &testkit::plugin::Call| {
        // The shell is the runtime: it is on the node, and so is the plugin that it starts.
        let netns = format!("--net={}", fake_node.path().display());
        let mut command = call.command_with(&["nsenter", &netns, "sh", "-c", "\"$@\"; exit $?", "runtime"]);
        command.env("PATH", "/usr/sbin:/usr/bin");
        call.run_as(command).unwrap().error().unwrap()
    };
    let call = node.call("ADD", "web", Path::new("/proc/self/ns/net"));
    let (code, text) = on_node(&call);
    assert_eq!(code, 8, "{text}");
    assert_says(&text, &["plugin's netns and netns from CNI_NETNS should not be the same"]);
    for call in [call, node.call("ADD", "web", fake_node.path())] {
        let (code, text) = on_node(&call.env("CNI_NETNS_OVERRIDE", "TRUE"));
        assert_eq!(code, 999, "{text}");
        assert_says(&text, &["the node's own", "nothing was changed"]);
    }
    assert_eq!(before, everything(&fake_node));
}

#[test]
fn a_plugin_inside_the_pod_works_when_told_so() {
    let (node, pod) = node_and_pod(&[]);
    let call = node.call("ADD", "web", pod.path());
    // Started inside the pod's namespace, as some runtimes do.
    let inside = |call: &testkit::plugin::Call| {
        let mut command = call.command_with(&["nsenter", &format!("--net={}", pod.path().display())]);
        command.env("PATH", "/usr/sbin:/usr/bin");
        call.run_as(command).unwrap()
    };
    assert_eq!(inside(&call).error().unwrap().0, 8);
    assert!(pod.nft_json(testkit::rules::Comments::Keep).unwrap().is_empty());
    let answer = inside(&call.env("CNI_NETNS_OVERRIDE", "1"));
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&pod.nft_text().unwrap(), &["istio-proxy-nat"]);
}

#[test]
fn the_about_text_and_versions() {
    let node = Node::bare().unwrap();
    let call = node.call("ADD", "web", Path::new("/x"));
    let about = call.clone().without("CNI_COMMAND").run().unwrap();
    assert_eq!((about.exit, about.stdout.as_str()), (Some(0), ""));
    assert_says(&about.stderr, &["CNI plugin istio-cni ", "CNI protocol versions supported: 0.1.0, "]);
    let version = call.env("CNI_COMMAND", "VERSION").stdin("").run().unwrap();
    assert_eq!(version.exit, Some(0));
    assert_says(&version.stdout, &["\"cniVersion\":\"1.1.0\"", "\"0.3.1\""]);
}

#[test]
fn results_come_back_in_the_asked_version() {
    let (mut node, pod) = node_and_pod(&[]);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        node.conf["cniVersion"] = json!(version);
        node.conf["prevResult"]["cniVersion"] = json!(version);
        node.conf["prevResult"]["ips"][0]["version"] = json!("4");
        let result = node.add("web", pod.path()).unwrap().json().unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["address"], "10.77.0.2/24", "{result}");
        assert_eq!(result["interfaces"][0]["name"], "eth0", "{result}");
    }
    for version in ["0.1.0", "0.2.0"] {
        node.conf["cniVersion"] = json!(version);
        node.conf["prevResult"] = json!({"cniVersion": version, "ip4": {"ip": "10.77.0.2/24"}});
        let result = node.add("web", pod.path()).unwrap().json().unwrap();
        assert_eq!(result["ip4"]["ip"], "10.77.0.2/24", "{result}");
    }
}
