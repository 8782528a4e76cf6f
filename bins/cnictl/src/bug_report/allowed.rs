//! What of documents may be handed out: what is on a list, and nothing else.

use serde_json::Value;

/// Keys of CNI configurations whose values are shown: those of the specification, of the usual plugins, and this plugin's own.
const CONF_KEYS: &[&str] = &[
    "cniVersion",
    "cniVersions",
    "name",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "plugins",
    "type",
    "capabilities",
    "portMappings",
    "bandwidth",
    "ips",
    "mac",
    "snat",
    "dns",
    "ipam",
    "ranges",
    "subnet",
    "rangeStart",
    "rangeEnd",
    "gateway",
    "routes",
    "dst",
    "gw",
    "mtu",
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "ipMasq",
    "hairpinMode",
    "forceAddress",
    "promiscMode",
    "vlan",
    "master",
    "mode",
    "externalSetMarkChain",
    "markMasqBit",
    "conditionsV4",
    "conditionsV6",
    "nodename",
    "datastore_type",
    "policy",
    "log_level",
    "log_severity",
    "network",
    "delegate",
    "enable-debug",
    "chaining-mode",
    "readinessindicatorfile",
    "excludeNamespaces",
    "exclude_namespaces",
    "ambient_enabled",
    "native_nftables",
    "capture",
    "failure_policy",
    "cni_agent_run_dir",
    "plugin_log_level",
    "pod_namespace",
    "add_timeout",
    "kernel_network_runtime_classes",
    "enablement_selectors",
    "pod_source",
    "manifests",
    "agent_pod_prefix",
    "enable_ambient_detection_retry",
    "facts_timeout",
    "policy_enforcement",
    "policy_unprepared",
    "state_dir",
    "strict_status",
];
/// What stands for what is not shown.
const REMOVED: &str = "(not shown)";
/// Part of the keys of labels and annotations that are shown.
const ISTIO: &str = "istio.io";

/// A CNI configuration with the values of known keys only; `None` for text that is no JSON object, of which nothing is known.
pub(super) fn configuration(text: &[u8]) -> Option<String> {
    let mut document: Value = serde_json::from_slice(text).ok().filter(Value::is_object)?;
    known_keys(&mut document);
    serde_json::to_string_pretty(&document).ok().map(|text| text + "\n")
}

fn known_keys(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(known_keys),
        Value::Object(members) => {
            for (key, value) in members {
                match key.as_str() {
                    // Of selectors of labels each part is a name or a label.
                    "enablement_selectors" => {}
                    key if !CONF_KEYS.contains(&key) => *value = REMOVED.into(),
                    _ => known_keys(value),
                }
            }
        }
        _ => {}
    }
}

/// An answer of this program without labels and annotations of others; `None` for what is no JSON.
pub(super) fn answer(text: &str) -> Option<String> {
    let mut document: Value = serde_json::from_str(text).ok()?;
    only_istios(&mut document);
    serde_json::to_string_pretty(&document).ok().map(|text| text + "\n")
}

fn only_istios(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(only_istios),
        Value::Object(members) => {
            for (key, value) in members {
                if let ("labels" | "annotations", Value::Object(pairs)) = (key.as_str(), &mut *value) {
                    pairs.retain(|key, _| key.contains(ISTIO));
                }
                only_istios(value);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_unknown_keys_are_not_shown() {
        let text = br#"{"name": "net", "token": "t", "plugins": [{"type": "calico", "mtu": 1440, "policy": {"type": "k8s", "k8s_auth_token": "t"},
            "kubernetes": {"kubeconfig": "/x"}, "env": {"A": "t"}}]}"#;
        let shown: Value = serde_json::from_str(&configuration(text).unwrap()).unwrap();
        let plugin = &shown["plugins"][0];
        assert_eq!((&shown["name"], &shown["token"]), (&"net".into(), &REMOVED.into()));
        assert_eq!((&plugin["mtu"], &plugin["policy"]["type"]), (&1440.into(), &"k8s".into()));
        for hidden in [&plugin["policy"]["k8s_auth_token"], &plugin["kubernetes"], &plugin["env"]] {
            assert_eq!(hidden, REMOVED);
        }
        assert_eq!(configuration(b"users: [{token: t}]"), None);
    }

    #[test]
    fn annotations_of_others_are_not_shown() {
        let text = r#"{"items": [{"labels": {"app": "a", "istio.io/rev": "r"}, "detail": {"annotations": {"secret": "s", "sidecar.istio.io/status": "{}"}}}]}"#;
        let shown: Value = serde_json::from_str(&answer(text).unwrap()).unwrap();
        assert_eq!(shown["items"][0]["labels"], serde_json::json!({"istio.io/rev": "r"}));
        assert_eq!(
            shown["items"][0]["detail"]["annotations"],
            serde_json::json!({"sidecar.istio.io/status": "{}"})
        );
    }
}
