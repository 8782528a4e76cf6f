use std::ffi::OsString;

use super::*;
use crate::sidecars::{RepairMode, RepairTrigger};
use facts::fields::FieldSelector;
use options::agent::Flags;

const CLUSTER: [(&str, &str); 3] =
    [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443"), ("NODE_NAME", "n1")];

fn config(args: &[&str], env: &[(&str, &str)]) -> Result<AgentConfig, String> {
    let args = std::iter::once("install-cni").chain(args.iter().copied()).map(OsString::from);
    let find = |name: &str| {
        let given = env.iter().chain(&CLUSTER).find(|(key, _)| *key == name);
        given.map(|(_, value)| (*value).to_owned())
    };
    let options = Flags::parse(args).unwrap().options(&|_| None, &find);
    options.and_then(|options| AgentConfig::new(&options, &find)).map_err(|error| error.to_string())
}

fn entry(env: &[(&str, &str)]) -> PluginEntry {
    config(&[], env).unwrap().install.entry
}

#[test]
fn defaults_are_the_originals() {
    let config = config(&[], &[]).unwrap();
    assert_eq!(config.install.net_dir, Path::new("/host/etc/cni/net.d"));
    assert_eq!(config.install.bin_source, Path::new("/opt/cni/bin"));
    assert_eq!(config.install.bin_targets, [PathBuf::from("/host/opt/cni/bin")]);
    assert_eq!((config.install.mode, config.install.conf_name), (InstallMode::Chained, None));
    let kubeconfig = config.install.kubeconfig.unwrap();
    assert_eq!(
        (kubeconfig.protocol.as_str(), kubeconfig.host.as_str(), kubeconfig.mode),
        ("https", "10.96.0.1", 0o600)
    );
    assert_eq!(config.monitoring.unwrap().to_string(), "[::]:15014");
    assert_eq!(config.health.unwrap().to_string(), "[::]:8000");
    assert_eq!((config.node.as_str(), config.cleanup), ("n1", CleanupAtEnd::Auto));
    // All that is ours in the entry; an upstream plugin takes it and does not use it.
    let extra = serde_json::Value::Object(config.install.entry.extra);
    assert_eq!(extra, serde_json::json!({"capabilities": {"io.kubernetes.cri.pod-annotations": true}}));
    assert_eq!(config.install.entry.plugin_log_level, "info");
}

#[test]
fn options_reach_the_plugin() {
    let selectors = "- podSelector:\n    matchLabels: {a: b}\n- namespaceSelector:\n    matchExpressions: [{key: k, operator: Exists}]";
    let entry = entry(&[
        ("EXCLUDE_NAMESPACES", "kube-system, istio-system"),
        ("POD_NAMESPACE", "istio-system"),
        ("NATIVE_NFTABLES", "true"),
        ("AMBIENT_ENABLED", "true"),
        ("ENABLE_AMBIENT_DETECTION_RETRY", "1"),
        ("AMBIENT_ENABLEMENT_SELECTOR", selectors),
        ("FAILURE_POLICY", "open"),
        ("CAPTURE", "disabled"),
        ("ADD_TIMEOUT", "20s"),
        ("FACTS_TIMEOUT", "5s"),
        ("KERNEL_NETWORK_RUNTIME_CLASSES", "kata-host, runsc.plain"),
        ("RUNTIME_ANNOTATIONS", "true"),
        ("STRICT_STATUS", "true"),
    ]);
    assert_eq!(entry.exclude_namespaces, ["kube-system", "istio-system"]);
    assert_eq!(entry.native_nftables, Some(true));
    assert!(entry.ambient_enabled && entry.enable_ambient_detection_retry);
    assert_eq!(entry.enablement_selectors.len(), 2);
    assert_eq!(entry.enablement_selectors[0].pod.match_labels["a"], "b");
    let extra = serde_json::Value::Object(entry.extra);
    let expected = serde_json::json!({
        "failure_policy": "open", "capture": "disabled", "add_timeout": "20s", "facts_timeout": "5s",
        "kernel_network_runtime_classes": ["kata-host", "runsc.plain"],
        "strict_status": true,
        "capabilities": {"io.kubernetes.cri.pod-annotations": true},
    });
    assert_eq!(extra, expected);
    let log_level = |level: &str| {
        config(&[&format!("--log_output_level={level}")], &[]).unwrap().install.entry.plugin_log_level
    };
    assert_eq!(log_level("cni-plugin:debug"), "debug");
    assert_eq!(log_level("all:warn"), "warn");
    assert_eq!(log_level("debug"), "info", "a bare word is for another scope");
}

/// What the plugin's entry has, and what ambient mode goes by.
#[test]
fn the_backend_is_true_false_or_left_to_the_node() {
    assert_eq!(entry(&[]).native_nftables, None, "nothing said");
    for (text, wanted) in [
        ("auto", None),
        ("", None),
        ("true", Some(true)),
        ("1", Some(true)),
        ("T", Some(true)),
        ("false", Some(false)),
        ("0", Some(false)),
        ("False", Some(false)),
    ] {
        assert_eq!(entry(&[("NATIVE_NFTABLES", text)]).native_nftables, wanted, "{text}");
    }
    for text in ["Auto", "automatic", "yes", "iptables", "nftables", "null", " ", "true ", "2"] {
        for ambient in ["true", "false"] {
            let env = [("NATIVE_NFTABLES", text), ("AMBIENT_ENABLED", ambient)];
            let error = config(&[], &env).unwrap_err().to_string();
            assert_eq!(error, format!("option native-nftables: {text:?} is not true, false or auto"));
        }
    }
}

/// The agent's own pod must start when nothing else does, whatever its DaemonSet is called.
#[test]
fn the_plugin_hears_by_what_name_it_knows_the_agent() {
    for (pod, prefix) in [
        ("istio-cni-node-x7k2p", None),
        ("mesh-agent-x7k2p", Some("mesh-agent-")),
        ("istio-cni-node-canary-x7k2p", Some("istio-cni-node-canary-")),
        // These are no pods of a DaemonSet; other pods may have names that begin like theirs.
        ("my-agent", None),
        ("agent-0", None),
        ("x7k2p", None),
        ("Mesh-x7k2p", None),
    ] {
        let extra = entry(&[("POD_NAME", pod)]).extra;
        assert_eq!(extra.get("agent_pod_prefix").and_then(|value| value.as_str()), prefix, "{pod}");
    }
}

#[test]
fn annotations_are_not_asked_for_where_that_is_switched_off() {
    assert!(entry(&[("RUNTIME_ANNOTATIONS", "false")]).extra.is_empty());
}

#[test]
fn manifests_need_no_cluster() {
    let of = |env: &[(&str, &str)]| config(&["--pod-source=manifests:/etc/pods"], env).unwrap();
    let config = of(&[("KUBERNETES_SERVICE_HOST", ""), ("POD_NAMESPACE", "istio-system")]);
    assert_eq!(config.pods, PodsOrigin::Manifests { dir: "/etc/pods".into(), cluster: None });
    assert!(config.install.kubeconfig.is_none() && config.own_pod.is_none());
    // In one, the DaemonSet of the agent's pod counts.
    assert!(of(&[("POD_NAMESPACE", "istio-system")]).own_pod.is_none());
    let config = of(&[("POD_NAMESPACE", "istio-system"), ("POD_NAME", "istio-cni-node-x")]);
    assert!(config.install.kubeconfig.is_none() && config.own_pod.is_some());
    assert!(matches!(config.pods, PodsOrigin::Manifests { cluster: Some(_), .. }));
    assert_eq!(config.install.entry.extra["pod_source"], serde_json::json!({"manifests": "/etc/pods"}));
}

/// One predicate for the Istio-owned file, and its two variables.
#[test]
fn modes() {
    let mode = |env: &[(&str, &str)]| config(&[], env).unwrap().install.mode;
    let owned = |name: &str| InstallMode::Owned { file_name: name.into() };
    assert_eq!(mode(&[("CHAINED_CNI_PLUGIN", "false")]), InstallMode::Standalone);
    assert_eq!(
        mode(&[("ISTIO_OWNED_CNI_CONFIG", "true")]),
        InstallMode::Chained,
        "without ambient mode it means nothing"
    );
    let both = [("ISTIO_OWNED_CNI_CONFIG", "true"), ("AMBIENT_ENABLED", "true")];
    assert_eq!(mode(&both), owned("02-istio-cni.conflist"));
    for variable in ["ISTIO_OWNED_CNI_CONFIG_FILENAME", "ISTIO_OWNED_CNI_CONF_FILENAME"] {
        assert_eq!(
            mode(&[both[0], both[1], (variable, "01-x.conflist")]),
            owned("01-x.conflist"),
            "{variable}"
        );
    }
}

#[test]
fn of_the_modes_of_repair_the_first_that_is_on_counts() {
    let on = |on: bool| if on { "true" } else { "false" };
    for bits in 0..8_u8 {
        let [repair, delete, label] = [1, 2, 4].map(|bit| bits & bit != 0);
        let env = [
            ("REPAIR_REPAIR_PODS", on(repair)),
            ("REPAIR_DELETE_PODS", on(delete)),
            ("REPAIR_LABEL_PODS", on(label)),
        ];
        let wanted = match (repair, delete, label) {
            (true, _, _) => RepairMode::Repair,
            (false, true, _) => RepairMode::Delete,
            (false, false, true) => RepairMode::Label,
            (false, false, false) => RepairMode::None,
        };
        assert_eq!(config(&[], &env).unwrap().repair.mode, wanted, "{env:?}");
        let off = [&env[..], &[("REPAIR_ENABLED", "false")]].concat();
        assert_eq!(config(&[], &off).unwrap().repair.mode, RepairMode::None, "{off:?}");
    }
    let chosen = config(&[], &[("REPAIR_TRIGGER", "crash"), ("REPAIR_NODE_NAME", "n1")]).unwrap().repair;
    assert_eq!(chosen.trigger, RepairTrigger::Crash);
    let selectors = [
        ("REPAIR_LABEL_SELECTORS", "app in (web,db),!old"),
        ("REPAIR_FIELD_SELECTORS", "metadata.namespace!=shop"),
    ];
    let chosen = config(&[], &selectors).unwrap().repair;
    assert!(chosen.labels.selects(|key| (key == "app").then_some("web")) && !chosen.labels.selects(|_| None));
    assert_ne!(chosen.fields, FieldSelector::default());
}

#[test]
fn what_means_nothing_is_named() {
    for (name, value, part) in [
        ("POD_SOURCE", "files", "neither kubernetes nor manifests"),
        ("POD_SOURCE", "manifests:pods", "absolute"),
        ("FAILURE_POLICY", "opne", "is not one of \"closed\", \"open\""),
        ("CAPTURE", "off", "is not one of \"enabled\", \"disabled\""),
        ("ADD_TIMEOUT", "soon", "is not a duration"),
        ("FACTS_TIMEOUT", "0s", "more than zero"),
        ("KERNEL_NETWORK_RUNTIME_CLASSES", "kata,[runsc]", "is not the name of a runtime class"),
        ("CLEANUP_ON_EXIT", "perhaps", "neither auto"),
        ("KUBECONFIG_MODE", "rw-------", "is not a whole number"),
        ("KUBECONFIG_MODE", "", "is not a mode"),
        ("KUBECONFIG_MODE", "01777", "is not a mode"),
        ("MONITORING_PORT", "70000", "larger than 65535"),
        ("CNI_AGENT_RUN_DIR", "run", "absolute"),
        ("AMBIENT_ENABLEMENT_SELECTOR", "[", "is not YAML"),
        ("AMBIENT_ENABLEMENT_SELECTOR", "- 7", "expected an object"),
        (
            "AMBIENT_ENABLEMENT_SELECTOR",
            "[{podSelector: {matchLabels: {-a: b}}}]",
            "is not the key of a label",
        ),
        ("LISTEN_ADDRESS", "localhost", "is not an IP address"),
        ("FAILURE_POLICY", "open ", "is not one of \"closed\", \"open\""),
        ("CAPTURE", "Disabled", "is not one of \"enabled\", \"disabled\""),
        ("EXCLUDE_NAMESPACES", "{kube-system,mesh}", "has the item \"{kube-system\""),
        ("EXCLUDE_NAMESPACES", "[kube-system]", "not the name of a namespace"),
        ("EXCLUDE_NAMESPACES", "a,b c", "has the item \"b c\""),
        ("EXCLUDE_NAMESPACES", "a;b", "not the name of a namespace"),
        ("EXCLUDE_NAMESPACES", "kube-*", "not the name of a namespace"),
        ("EXCLUDE_NAMESPACES", "\"a\"", "not the name of a namespace"),
        ("EXCLUDE_NAMESPACES", "Kube-System", "not the name of a namespace"),
        ("POD_NAMESPACE", "istio system", "not the name of a namespace"),
        ("SYSTEM_NAMESPACE", "{istio-system}", "not the name of a namespace"),
        ("NODE_NAME", "node 1", "is not the name of a node"),
        ("NODE_NAME", "$(NODE_NAME)", "is not the name of a node"),
        ("REPAIR_BROKEN_POD_LABEL_KEY", "a b", "is not the key of a label"),
        ("REPAIR_BROKEN_POD_LABEL_KEY", "", "is not the key of a label"),
        ("REPAIR_TRIGGER", "never", "is neither kernel nor crash"),
        ("REPAIR_NODE_NAME", "n2", "is not the node of this agent, n1"),
        ("REPAIR_LABEL_SELECTORS", "=x", "is not the key of a label"),
        ("REPAIR_FIELD_SELECTORS", "spec.schedulerName=x", "is none of metadata.name"),
        ("REPAIR_BROKEN_POD_LABEL_VALUE", "-true", "is not the value of a label"),
        ("REPAIR_BROKEN_POD_LABEL_VALUE", r#"a"b\c"#, "is not the value of a label"),
        // Also where ambient mode is off: it may be put on later.
        ("FORCE_IPTABLES_BINARY", "nftables", "is neither legacy nor nft"),
        ("HOST_PROBE_SENDER", "node", "is neither socket nor kubelet"),
        ("HOST_PROBE_SNAT_IP", "fd00::1", "is not an IPv4 address"),
        ("AMBIENT_VERIFY_INTERVAL", "30", "is not a duration"),
    ] {
        let error = config(&[], &[(name, value)]).unwrap_err();
        let option = name.to_ascii_lowercase().replace('_', "-");
        let named = name == "NODE_NAME" || error.starts_with(&format!("option {option}: "));
        assert!(named && error.contains(part), "{name}={value}: {error}");
    }
    for (level, part) in [
        ("loud", "loud"),
        ("cni-agent:verbose", "cni-agent:verbose"),
        ("default:info,ads:debug", "names the scope \"ads\""),
        ("cni_agent:debug", "names the scope \"cni_agent\""),
        ("All:debug", "names the scope \"All\""),
    ] {
        let error = config(&[&format!("--log_output_level={level}")], &[]).unwrap_err();
        assert!(error.starts_with("option log_output_level: ") && error.contains(part), "{error}");
    }
    for name in ["SYSTEM_NAMESPACE", "ZTUNNEL_UDS_ADDRESS"] {
        config(&[], &[(name, "")]).unwrap();
        let error = config(&[], &[(name, ""), ("AMBIENT_ENABLED", "true")]).unwrap_err();
        assert!(error.contains("is not the"), "{error}");
    }
    assert_eq!(config(&[], &[("MONITORING_PORT", "0")]).unwrap().monitoring, None);
}

/// Variables, then where `/metrics` and `/readyz` answer.
#[test]
fn the_two_ports_may_have_two_addresses() {
    for (env, metrics, health) in [
        (&[("LISTEN_ADDRESS", "10.0.0.1")][..], "10.0.0.1:15014", "10.0.0.1:8000"),
        (&[("HEALTH_ADDRESS", "127.0.0.1")], "[::]:15014", "127.0.0.1:8000"),
        (&[("LISTEN_ADDRESS", "fd00::1"), ("HEALTH_ADDRESS", "::1")], "[fd00::1]:15014", "[::1]:8000"),
    ] {
        let config = config(&[], env).unwrap();
        let found = [config.monitoring, config.health].map(|address| address.unwrap().to_string());
        assert_eq!(found, [metrics, health], "{env:?}");
    }
    for name in ["LISTEN_ADDRESS", "HEALTH_ADDRESS"] {
        let error = config(&[], &[(name, "localhost")]).unwrap_err();
        assert!(error.contains("is not an IP address"), "{error}");
    }
}

/// What tenants' pods use is counted only where tenants are enforced.
#[test]
fn usage_needs_tenants() {
    let with = |usage: &str, interval: &str, tenants: &str| {
        let enforced = [("POLICY_ENFORCEMENT", tenants), ("TENANTS_ENFORCEMENT", tenants)];
        let asked = [("USAGE", usage), ("USAGE_INTERVAL", interval)];
        config(&[], &[enforced, asked].concat()).map(|config| config.usage)
    };
    assert_eq!(config(&[], &[]).unwrap().usage, None);
    assert_eq!(with("off", "60s", "on"), Ok(None));
    assert_eq!(with("on", "60s", "on"), Ok(Some(Duration::from_secs(60))));
    for (usage, interval, tenants) in [
        ("on", "60s", "off"),
        ("yes", "60s", "on"),
        ("on", "999ms", "on"),
        ("on", "11m", "on"),
        ("on", "x", "on"),
    ] {
        let error = with(usage, interval, tenants).unwrap_err();
        assert!(error.contains("usage"), "{error}");
    }
}
