//! The reference files, compared as JSON.

use std::fs;

use install::InstallMode;
use serde_json::{Value, json};

use crate::support::{Node, Running};

fn golden(name: &str) -> String {
    let path = conformance::golden_dir().unwrap().join("conflist").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The deviation: a single network keeps its name and version in the list that it becomes.
fn with_own_name(golden: &str) -> Value {
    let mut golden = json(golden);
    golden["name"] = json!("dbnet");
    golden["cniVersion"] = json!("0.4.0");
    golden
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn chained() {
    for (input, written, wanted) in [
        ("bridge.conf", "bridge.conflist", with_own_name(&golden("bridge.conf.golden"))),
        ("list.conflist", "list.conflist", json(&golden("list.conflist.golden"))),
        (
            "list-with-istio.conflist",
            "list-with-istio.conflist",
            json(&golden("list-with-istio.conflist.golden")),
        ),
    ] {
        let node = Node::new();
        node.replace(input, &golden(input));
        // both are JSON that no runtime loads
        node.replace("00-array.conflist", &golden("invalid-arr.conflist"));
        node.replace("01-empty.conflist", &golden("invalid-map.conflist"));
        node.start().until_ready();
        assert_eq!(json(&node.read(written)), wanted, "{input}");
        assert_eq!(node.net(input).exists(), input == written, "{input}");
    }
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn owned() {
    for (input, wanted) in [
        ("bridge.conf", with_own_name(&golden("istio-owned-bridge.conflist.golden"))),
        ("list.conflist", json(&golden("istio-owned.conflist.golden"))),
    ] {
        let node = Node::new();
        node.replace(input, &golden(input));
        let mut options = node.options();
        options.mode = InstallMode::Owned { file_name: "02-istio-conf.conflist".into() };
        options.entry.ambient_enabled = true;
        Running::new(options).until_ready();
        assert_eq!(json(&node.read("02-istio-conf.conflist")), wanted, "{input}");
        assert_eq!(node.read(input), golden(input));
    }
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn standalone_to_the_byte() {
    for (name, written) in [(None, "YYY-istio-cni.conf"), (Some("istio-cni.conf"), "istio-cni.conf")] {
        let node = Node::new();
        let mut options = node.options();
        (options.mode, options.conf_name) = (InstallMode::Standalone, name.map(str::to_owned));
        Running::new(options).until_ready();
        assert_eq!(node.read(written), golden("istio-cni.conf"));
    }
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn taken_out_of_what_upstream_left() {
    let node = Node::new();
    node.replace("list.conflist", &golden("list-with-istio.conflist"));
    let report = install::uninstall(&node.options(), &[]);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(json(&node.read("list.conflist")), json(&golden("list-no-istio.conflist")));
}

#[test]
#[ignore = "needs the reference data: `make conformance`"]
fn a_plugin_with_a_similar_type_is_a_network_like_any_other() {
    let node = Node::new();
    node.replace("istio-cni-prefixed.conf", &golden("istio-cni-prefixed.conf"));
    node.start().until_ready();
    assert_eq!(
        node.document("istio-cni-prefixed.conflist").plugin_types(),
        ["prefix-istio-cni", "istio-cni"]
    );
}
