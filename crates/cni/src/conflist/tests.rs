use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::PluginConf;

fn document(text: &str) -> Document {
    Document::parse(text.as_bytes()).unwrap()
}

/// The options of the reference files (spec of the installer, section 12).
fn entry() -> PluginEntry {
    PluginEntry {
        plugin_log_level: "debug".into(),
        cni_agent_run_dir: "/path/to/kubeconfig".into(),
        pod_namespace: "my-namespace".into(),
        ..PluginEntry::default()
    }
}

fn merged(text: &str) -> String {
    String::from_utf8(document(text).merge(&entry()).unwrap()).unwrap()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn candidates_are_valid_when_a_runtime_would_load_them() {
    let list = |text: &str| document(text).check(Form::List, 0).map_err(|error| error.to_string());
    let single = |text: &str| document(text).check(Form::Single, 0).map_err(|error| error.to_string());
    let plugins = r#""plugins":[{"type":"bridge"}]"#;
    for good in [
        "".to_owned(),
        r#""cniVersion":"1.0.0","#.to_owned(),
        r#""cniVersions":["0.4.0","1.0.0"],"#.to_owned(),
        r#""disableCheck":"true","disableGC":false,"loadOnlyInlinedPlugins":true,"unknown":[],"#.to_owned(),
    ] {
        assert_eq!(list(&format!(r#"{{"name":"n",{good}{plugins}}}"#)), Ok(()), "{good}");
    }
    for (bad, message) in [
        (r#"{"plugins":[{"type":"x"}]}"#, "key name is missing"),
        (r#"{"name":7,"plugins":[{"type":"x"}]}"#, "key name is not a text"),
        (r#"{"NAME":"n","plugins":[{"type":"x"}]}"#, "key name is missing"),
        (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"x"}]}"#, "key cniVersion is not a text"),
        (r#"{"name":"n","cniVersion":null,"plugins":[{"type":"x"}]}"#, "key cniVersion is not a text"),
        (
            r#"{"name":"n","cniVersions":"1.0.0","plugins":[{"type":"x"}]}"#,
            "key cniVersions is not a list of versions",
        ),
        (
            r#"{"name":"n","cniVersions":["new"],"plugins":[{"type":"x"}]}"#,
            "cniVersion \"new\": part \"new\" is not a number; use major.minor.patch such as 1.0.0",
        ),
        (r#"{"name":"n","disableGC":"yes","plugins":[{"type":"x"}]}"#, "key disableGC is not a boolean"),
        (r#"{"name":"n","plugins":{}}"#, "key plugins is not a list"),
        (r#"{"name":"n","plugins":[]}"#, "the list has no plugins"),
        (r#"{"name":"n"}"#, "the list has no plugins"),
        (
            r#"{"name":"n","plugins":[{"type":"x"},{"type":""}]}"#,
            "plugins[1] is not an object with a type, which is the name of a program",
        ),
        (
            r#"{"name":"n","plugins":[1]}"#,
            "plugins[0] is not an object with a type, which is the name of a program",
        ),
    ] {
        assert_eq!(list(bad), Err(message.to_owned()), "{bad}");
    }
    assert_eq!(single(r#"{"type":"bridge"}"#), Ok(()));
    assert_eq!(single(r#"{"type":""}"#), Err("key type is not the name of a program".into()));
    assert_eq!(single(r#"{"name":"n"}"#), Err("key type is not the name of a program".into()));
    assert_eq!(Document::parse(b"[]").unwrap_err().to_string(), "an array and not a JSON object");
    assert!(Document::parse(b"").unwrap_err().to_string().starts_with("not JSON: EOF"));
}

#[test]
fn a_folder_of_plugins_counts_unless_the_list_refuses_it_or_names_another_place() {
    let with_folder = document(r#"{"name":"net"}"#);
    assert_eq!(with_folder.folder(), Some("net"));
    assert!(with_folder.check(Form::List, 1).is_ok());
    assert_eq!(document(r#"{"name":"net","loadOnlyInlinedPlugins":"true"}"#).folder(), None);
    for name in ["", ".", "..", "../etc", "a/b"] {
        assert_eq!(document(&format!(r#"{{"name":"{name}"}}"#)).folder(), None, "{name}");
    }
}

#[test]
fn forms_follow_the_last_extension() {
    assert_eq!(Form::of("10-calico.conflist"), Some(Form::List));
    assert_eq!(Form::of("10-bridge.conf"), Some(Form::Single));
    assert_eq!(Form::of(".hidden.conflist"), Some(Form::List));
    for other in ["conflist", "x.json", "x.conf.bak", "x.conflist.tmp.istio-1", "x.CONF"] {
        assert_eq!(Form::of(other), None, "{other}");
    }
}

#[test]
fn our_entry_is_the_last_and_all_old_ones_go() {
    let text = r#"{"name":"n","plugins":[{"type":"istio-cni","a":1},{"type":"bridge"},{"TYPE":"istio-cni"},{"type":"x-istio-cni"}]}"#;
    let list = document(&merged(text));
    assert_eq!(list.plugin_types(), ["bridge", "x-istio-cni", "istio-cni"]);
    assert!(list.holds(&entry()));
    assert!(!document(text).holds(&entry()), "two entries are not right, whatever they hold");
}

#[test]
fn a_single_network_keeps_its_name_and_version_and_gets_upstreams_without() {
    let list = json(&merged(r#"{"cniVersion":"1.0.0","type":"bridge","name":"mine","disableCheck":true}"#));
    assert_eq!(list["cniVersion"], "1.0.0");
    assert_eq!(list["name"], "mine");
    assert_eq!(list["plugins"][0], json!({"type":"bridge","name":"mine","disableCheck":true}));
    let list = json(&merged(r#"{"type":"bridge"}"#));
    assert_eq!((&list["cniVersion"], &list["name"]), (&json!("0.3.1"), &json!("k8s-pod-network")));
}

#[test]
fn what_has_no_network_is_refused() {
    let refused = |text| document(text).merge(&entry()).unwrap_err().to_string();
    assert_eq!(refused(r#"{"name":"n"}"#), "neither a list of plugins (key plugins) nor a plugin (key type)");
    assert_eq!(refused(r#"{"name":"n","plugins":7}"#), "key plugins is not a list");
}

#[test]
fn foreign_text_survives_exactly() {
    let big = "123456789012345678901234567890.12345678901234567890e+7";
    let text = format!(
        r#"{{"z":{big},"name":"n","z":-0.0,"plugins":[{{"b":{big},"a":"\u00e9\"]}}\\","b":1,"e":{{ }},"l":[ ]}}],"cniVersion":"1.1.0"}}"#
    );
    let list = merged(&text);
    let plain = |text: &str| text.replace([' ', '\n'], "");
    let start = text.split("],\"cniVersion\"").next().unwrap();
    assert!(plain(&list).starts_with(&plain(start)), "{list}");
    assert_eq!(
        plain(std::str::from_utf8(&document(&list).without_entry().unwrap().unwrap()).unwrap()),
        plain(&text)
    );
}

#[test]
fn layout_is_two_spaces_and_a_newline_at_the_end() {
    let text = String::from_utf8(layout::pretty(r#"{"a":[1,{"b":"{x:,}"}],"c":{},"d":[ ],"e":{"f":null}}"#))
        .unwrap();
    let wanted = "{\n  \"a\": [\n    1,\n    {\n      \"b\": \"{x:,}\"\n    }\n  ],\n  \"c\": {},\n  \"d\": [],\n  \"e\": {\n    \
                  \"f\": null\n  }\n}\n";
    assert_eq!(text, wanted);
    assert_eq!(String::from_utf8(layout::pretty(wanted)).unwrap(), wanted);
}

#[test]
fn nothing_is_left_of_a_list_that_was_only_ours() {
    let only = document(r#"{"name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"istio-cni"}]}"#);
    assert_eq!(only.without_entry().unwrap(), None);
    assert_eq!(document(r#"{"type":"istio-cni"}"#).without_entry().unwrap(), None);
}

#[test]
fn the_same_network_is_told_apart_from_layout_and_from_our_entry() {
    let single = document(r#"{"cniVersion":"1.0.0","name":"n","type":"bridge","mtu":1500}"#);
    let list = document(&merged(r#"{"mtu":1500,"type":"bridge","name":"n","cniVersion":"1.0.0"}"#));
    assert!(list.is_same_network(&single));
    assert!(
        !document(&merged(r#"{"cniVersion":"1.0.0","name":"n","type":"bridge","mtu":1400}"#))
            .is_same_network(&single)
    );
    assert!(!document(r#"{"name":"n"}"#).is_same_network(&document(r#"{"name":"n"}"#)), "no networks");
}

#[test]
fn the_plugin_reads_back_what_is_written() {
    let selectors = json(
        r#"[{"podSelector":{"matchLabels":{"a":"b"}},"namespaceSelector":{"matchExpressions":[
            {"key":"k","operator":"In","values":["v"]},{"key":"k","operator":"Exists"}]}},{}]"#,
    );
    let tree = Value::parse(json!({"enablement_selectors": selectors}).to_string().as_bytes()).unwrap();
    let mut written = entry();
    written.enablement_selectors = PluginConf::decode(&tree).unwrap().enablement_selectors;
    written.exclude_namespaces = vec!["kube-system".into()];
    written.ambient_enabled = true;
    written.extra.insert("facts_timeout".into(), "7s".into());
    let list = document(r#"{"name":"n","plugins":[]}"#).merge(&written).unwrap();
    let list = Document::parse(&list).unwrap();
    assert!(list.holds(&written));
    let [read] = list.entries()[..] else { panic!("{list:?}") };
    let read = PluginConf::decode(read).unwrap();
    assert_eq!(read.enablement_selectors, written.enablement_selectors);
    assert_eq!(read.exclude_namespaces, written.exclude_namespaces);
    assert_eq!(read.plugin_log_level, "debug");
    assert_eq!(read.facts_timeout.as_secs(), 7);
    assert!(read.ambient_enabled);
}

#[test]
fn the_standalone_file_has_upstreams_order_and_all_keys() {
    let text = String::from_utf8(entry().render_standalone()).unwrap();
    let keys: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("  \"")?.split('"').next()).collect();
    let wanted = [
        "cniVersion",
        "name",
        "type",
        "ipam",
        "dns",
        "plugin_log_level",
        "cni_agent_run_dir",
        "ambient_enabled",
        "enablement_selectors",
        "exclude_namespaces",
        "pod_namespace",
        "native_nftables",
        "enable_ambient_detection_retry",
    ];
    assert_eq!(keys, wanted);
    let standalone = document(&text);
    assert!(standalone.is_standalone() && standalone.holds(&entry()));
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "\\PC{0,8}".prop_map(Into::into),
        Just("istio-cni".into()),
    ];
    let key = prop_oneof![
        Just("type".to_owned()),
        Just("plugins".to_owned()),
        Just("name".to_owned()),
        "[a-z\"\\\\é]{0,3}"
    ];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::Array),
            prop::collection::btree_map(key.clone(), inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_panics(text in "[\\[\\]{}:,\"a-z0-9.\\\\ ]{0,60}") {
        if let Ok(document) = Document::parse(text.as_bytes()) {
            let _ = (document.check(Form::List, 0), document.merge(&entry()), document.without_entry());
        }
    }

    #[test]
    fn taking_out_undoes_putting_in(foreign in prop::collection::vec(any_json(), 1..4), rest in any_json(), other in any_json()) {
        let foreign: Vec<_> = foreign.into_iter().filter(|plugin| plugin["type"] != "istio-cni").collect();
        prop_assume!(!foreign.is_empty());
        let network = json!({"name": "n", "cniVersion": "1.0.0", "x": rest, "plugins": foreign, "z": other});
        let text = network.to_string();
        let before = document(&text);
        let list = Document::parse(&before.merge(&entry()).unwrap()).unwrap();
        prop_assert!(list.holds(&entry()));
        prop_assert!(list.is_same_network(&before));
        let after = list.without_entry().unwrap().unwrap();
        prop_assert_eq!(json(std::str::from_utf8(&after).unwrap()), json(&text));
        let again = Document::parse(&list.merge(&entry()).unwrap()).unwrap().merge(&entry()).unwrap();
        prop_assert_eq!(again, before.merge(&entry()).unwrap());
    }
}
