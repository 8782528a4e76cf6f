use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::PluginConf;

fn document(text: &str) -> Document {
    Document::parse(text.as_bytes()).unwrap()
}

/// The options of the reference files.
fn entry() -> PluginEntry {
    PluginEntry {
        plugin_log_level: "debug".into(),
        cni_agent_run_dir: "/path/to/kubeconfig".into(),
        pod_namespace: "my-namespace".into(),
        native_nftables: Some(false),
        ..PluginEntry::default()
    }
}

fn merged(text: &str) -> String {
    String::from_utf8(document(text).merge(&entry(), &Folder::default()).unwrap()).unwrap()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn forms_follow_the_last_extension() {
    assert_eq!(Form::of("10-calico.conflist"), Some(Form::List));
    assert_eq!(Form::of("10-bridge.conf"), Some(Form::Single));
    assert_eq!(Form::of("10-bridge.json"), Some(Form::Single));
    assert_eq!(Form::of(".hidden.conflist"), Some(Form::List));
    for other in ["conflist", "x.yaml", "x.conf.bak", "x.conflist.tmp.istio-1", "x.CONF"] {
        assert_eq!(Form::of(other), None, "{other}");
    }
}

#[test]
fn the_folder_is_that_of_the_list_which_the_file_is_or_becomes() {
    let folder = |form, text: &str| Document::of_form(Some(form), text.as_bytes()).unwrap().folder();
    assert_eq!(folder(Form::List, r#"{"name":"net"}"#).as_deref(), Some("net"));
    assert_eq!(folder(Form::List, r#"{"name":"net","loadOnlyInlinedPlugins":"true"}"#), None);
    assert_eq!(folder(Form::Single, r#"{"NAME":"net","type":"x"}"#).as_deref(), Some("net"));
    assert_eq!(folder(Form::Single, r#"{"name":null,"type":"x"}"#).as_deref(), Some("k8s-pod-network"));
}

#[test]
fn a_list_with_plugins_in_its_folder_is_not_changed() {
    let folder = Folder { plugins: vec![Ok("bridge".to_owned())], unreadable: None };
    let text = r#"{"name":"net","plugins":[{"type":"ptp"}]}"#;
    let refused = document(text).merge(&entry(), &folder).unwrap_err().to_string();
    let wanted = "libcni 1.1 (containerd 1.6) calls ptp, libcni 1.3 (containerd 2) calls ptp, bridge; move ";
    assert!(refused.starts_with(wanted), "{refused}");
    // the list that a single network becomes would have a folder
    let single = Document::of_form(Some(Form::Single), br#"{"name":"net","type":"ptp"}"#).unwrap();
    let refused = single.merge(&entry(), &folder).unwrap_err().to_string();
    assert!(refused.starts_with("the list with the plugin would not load as this network: "), "{refused}");
}

#[test]
fn the_extension_says_what_a_file_is() {
    let both = r#"{"name":"n","cniVersion":"1.0.0","type":"bridge","plugins":[{"type":"ptp"}]}"#;
    let single = Document::of_form(Some(Form::Single), both.as_bytes()).unwrap();
    assert_eq!(single.plugin_types(), ["bridge"]);
    let merged = single.merge(&entry(), &Folder::default()).unwrap();
    let merged = Document::of_form(Some(Form::List), &merged).unwrap();
    assert_eq!(merged.plugin_types(), ["bridge", "istio-cni"]);
    assert!(merged.is_same_network(&single));
    let list = Document::of_form(Some(Form::List), both.as_bytes()).unwrap();
    assert_eq!(list.plugin_types(), ["ptp"]);
}

#[test]
fn names_and_versions_are_what_libcni_reads() {
    for (text, name, version) in [
        (r#"{"type":"x","name":null,"cniVersion":null}"#, "k8s-pod-network", "0.3.1"),
        (r#"{"type":"x","NAME":"a","CNIversion":"0.4.0"}"#, "a", "0.4.0"),
        (r#"{"type":"x","name":"a","Name":"b","name":null}"#, "b", "0.3.1"),
        (r#"{"type":"x","name":"","cniVersion":""}"#, "", ""),
    ] {
        let merged = json(&merged(text));
        assert_eq!((&merged["name"], &merged["cniVersion"]), (&json!(name), &json!(version)), "{text}");
    }
}

#[test]
fn deep_and_odd_text_is_carried_along() {
    let deep = format!("{}1{}", "[".repeat(3000), "]".repeat(3000));
    let text = format!(r#"{{"name":"n\ud800","plugins":[{{"type":"x","deep":{deep}}}]}}"#);
    let before = document(&text);
    let merged = before.merge(&entry(), &Folder::default()).unwrap();
    assert!(merged.len() < 1 << 20, "{} bytes", merged.len());
    let merged = Document::parse(&merged).unwrap();
    assert!(merged.holds(&entry()) && merged.is_same_network(&before));
    assert_eq!(merged.network().as_deref(), Some("n\u{fffd}"));
    let after = merged.without_entry(&Folder::default()).unwrap().unwrap();
    assert!(Document::parse(&after).unwrap().is_same_network(&before));
}

#[test]
fn an_address_comes_from_another_plugin_than_those_that_only_change_one() {
    let gives = |types: &[&str]| {
        let plugins: Vec<_> = types.iter().map(|kind| json!({"type": kind})).collect();
        document(&json!({"name": "n", "plugins": plugins}).to_string()).gives_address()
    };
    assert!(gives(&["ptp", "portmap", "istio-cni"]));
    assert!(!gives(&["loopback", "portmap", "istio-cni"]) && !gives(&["istio-cni"]));
}

#[test]
fn our_entry_is_the_last_and_all_old_ones_go() {
    let text = r#"{"name":"n","plugins":[{"type":"istio-cni","a":1},{"type":"bridge"},{"TYPE":"istio-cni"},{"type":"x-istio-cni"}]}"#;
    let list = document(&merged(text));
    assert_eq!(list.plugin_types(), ["bridge", "x-istio-cni", "istio-cni"]);
    assert!(list.holds(&entry()));
    assert!(!document(text).holds(&entry()), "two entries are not right, whatever they hold");
    let first =
        json!({"name": "n", "plugins": [json(&merged(r#"{"type":"x"}"#))["plugins"][1], {"type": "x"}]});
    assert!(!document(&first.to_string()).holds(&entry()), "another plugin comes after it");
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
    let refused = |text| document(text).merge(&entry(), &Folder::default()).unwrap_err().to_string();
    assert_eq!(refused(r#"{"name":"n"}"#), "neither a list of plugins (key plugins) nor a plugin (key type)");
    assert_eq!(refused(r#"{"name":"n","plugins":7}"#), "key plugins is not a list");
}

#[test]
fn foreign_text_survives_exactly() {
    let big = "123456789012345678901234567890.12345678901234567890e+7";
    let text = format!(
        r#"{{"z":{big},"name":"n","z":-0.0,"plugins":[{{"type":"x","b":{big},"a":"\u00e9\"]}}\\","b":1,"e":{{ }},"l":[ ]}}],"cniVersion":"1.1.0"}}"#
    );
    let list = merged(&text);
    let plain = |text: &str| text.replace([' ', '\n'], "");
    let start = text.split("],\"cniVersion\"").next().unwrap();
    assert!(plain(&list).starts_with(&plain(start)), "{list}");
    assert_eq!(
        plain(
            std::str::from_utf8(&document(&list).without_entry(&Folder::default()).unwrap().unwrap())
                .unwrap()
        ),
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
    assert_eq!(only.without_entry(&Folder::default()).unwrap(), None);
    assert_eq!(document(r#"{"type":"istio-cni"}"#).without_entry(&Folder::default()).unwrap(), None);
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
    let list =
        document(r#"{"name":"n","plugins":[{"type":"x"}]}"#).merge(&written, &Folder::default()).unwrap();
    let list = Document::parse(&list).unwrap();
    assert!(list.holds(&written));
    let [read] = &list.entries()[..] else { panic!("{list:?}") };
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
    // Where the choice is the node's, the key is left out; an entry that has it is another one.
    let auto = PluginEntry { native_nftables: None, ..entry() };
    let text = String::from_utf8(auto.render_standalone()).unwrap();
    assert!(!text.contains("native_nftables") && text.contains("enable_ambient_detection_retry"), "{text}");
    assert!(document(&text).holds(&auto) && !document(&text).holds(&entry()) && !standalone.holds(&auto));
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
    fn taking_out_undoes_putting_in(foreign in prop::collection::vec(any_json(), 1..4), rest in any_json(), other in any_json()) {
        let foreign: Vec<_> = foreign.iter().map(|conf| json!({"type": "x", "conf": conf})).collect();
        let network = json!({"name": "n", "cniVersion": "1.0.0", "x": rest, "plugins": foreign, "z": other});
        let text = network.to_string();
        let before = document(&text);
        let list = Document::parse(&before.merge(&entry(), &Folder::default()).unwrap()).unwrap();
        prop_assert!(list.holds(&entry()));
        prop_assert!(list.is_same_network(&before));
        let after = list.without_entry(&Folder::default()).unwrap().unwrap();
        prop_assert_eq!(json(std::str::from_utf8(&after).unwrap()), json(&text));
        let again = Document::parse(&list.merge(&entry(), &Folder::default()).unwrap()).unwrap().merge(&entry(), &Folder::default()).unwrap();
        prop_assert_eq!(again, before.merge(&entry(), &Folder::default()).unwrap());
    }
}
