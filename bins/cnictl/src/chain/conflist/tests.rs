use std::path::Path;

use serde_json::json;

use super::*;

fn read(value: Value) -> Result<Conflist, String> {
    parse(value, Path::new("10-net.conflist"))
}

#[test]
fn a_list_is_read_with_its_flags_and_newest_version() {
    let conflist = read(json!({
        "cniVersion": "0.4.0", "cniVersions": ["1.0.0", "9.0.0"], "name": "net", "disableCheck": "true",
        "plugins": [{"type": "bridge"}, {"type": "istio-cni", "exclude_namespaces": ["kube-system"]}],
    }))
    .unwrap();
    assert_eq!((conflist.name.as_str(), conflist.version), ("net", SpecVersion::V1_0_0));
    assert!(conflist.disable_check && !conflist.disable_gc);
    let kinds: Vec<&str> = conflist.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
    assert_eq!(kinds, ["bridge", "istio-cni"]);
    assert_eq!(conflist.plugins[1].conf["exclude_namespaces"], json!(["kube-system"]));
}

#[test]
fn a_single_plugin_is_a_chain_of_one() {
    let conflist = read(json!({"name": "lo", "type": "loopback"})).unwrap();
    assert_eq!(conflist.version, SpecVersion::V0_1_0);
    assert_eq!(conflist.plugins.len(), 1);
}

#[test]
fn what_is_wrong_is_named() {
    let plugins = || json!([{"type": "x"}]);
    for (value, part) in [
        (json!([]), "not a JSON object"),
        (json!({"plugins": plugins()}), "name is missing"),
        (json!({"name": 7, "plugins": plugins()}), "name is not a text"),
        (json!({"name": "a/b", "plugins": plugins()}), "name \"a/b\" has characters"),
        (json!({"name": "n"}), "plugins is missing"),
        (json!({"name": "n", "plugins": {}}), "plugins is not a list"),
        (json!({"name": "n", "plugins": []}), "empty list"),
        (json!({"name": "n", "plugins": [{}]}), "plugins[0] has no type"),
        (json!({"name": "n", "plugins": [{"type": "a"}, {"type": "../b"}]}), "plugins[1]: type \"../b\""),
        (json!({"name": "n", "plugins": ["bridge"]}), "plugins[0] is not an object"),
        (
            json!({"name": "n", "cniVersion": "1.2.0", "plugins": plugins()}),
            "1.2.0 is not supported; use one of 0.1.0",
        ),
        (json!({"name": "n", "disableCheck": 1, "plugins": plugins()}), "disableCheck is not a boolean"),
    ] {
        let problem = read(value.clone()).unwrap_err();
        assert!(problem.contains(part), "{value}: {problem}");
    }
}
