//! What reaches the agent: flags and environment variables.

use std::collections::BTreeSet;

use chart::{Objects, render, render_set};
use serde_json::Value;

use crate::combinations;

/// The variables that the agent reads (sections 1 and 11 of the specification, and ours at the end).
const KNOWN: &[&str] = &[
    "ALLOW_SWITCH_TO_HOST_NS",
    "AMBIENT_DISABLE_SAFE_UPGRADE",
    "AMBIENT_DNS_CAPTURE",
    "AMBIENT_ENABLED",
    "AMBIENT_ENABLEMENT_SELECTOR",
    "AMBIENT_IPV6",
    "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP",
    "CHAINED_CNI_PLUGIN",
    "CNI_AGENT_RUN_DIR",
    "CNI_CONF_GROUP_READ",
    "CNI_CONF_NAME",
    "ENABLE_AMBIENT_DETECTION_RETRY",
    "EXCLUDE_NAMESPACES",
    "ISTIO_OWNED_CNI_CONFIG",
    "ISTIO_OWNED_CNI_CONFIG_FILENAME",
    "KUBECONFIG_MODE",
    "KUBE_CA_FILE",
    "MONITORING_PORT",
    "MOUNTED_CNI_NET_DIR",
    "NATIVE_NFTABLES",
    "NODE_NAME",
    "POD_NAME",
    "POD_NAMESPACE",
    "REPAIR_BROKEN_POD_LABEL_KEY",
    "REPAIR_BROKEN_POD_LABEL_VALUE",
    "REPAIR_DELETE_PODS",
    "REPAIR_ENABLED",
    "REPAIR_FIELD_SELECTORS",
    "REPAIR_INIT_CONTAINER_EXIT_CODE",
    "REPAIR_INIT_CONTAINER_NAME",
    "REPAIR_INIT_CONTAINER_TERMINATION_MESSAGE",
    "REPAIR_LABEL_PODS",
    "REPAIR_LABEL_SELECTORS",
    "REPAIR_NODE_NAME",
    "REPAIR_REPAIR_PODS",
    "REPAIR_SIDECAR_ANNOTATION",
    "SKIP_TLS_VERIFY",
    "ZTUNNEL_UDS_ADDRESS",
    "ADD_TIMEOUT",
    "DRAIN_TIMEOUT",
    "LIVE_UPDATES",
    "VERIFY_INTERVAL",
    "VERIFY_FULL_INTERVAL",
    "VERIFY_REPAIR",
    "HEALTH_CONFIG_INTERVAL",
    "HEALTH_CONNECTIVITY_INTERVAL",
    "HEALTH_DNS_SERVERS",
    "HEALTH_METRICS_SHORT_NAMES",
    "CONFLICT_RESOLUTION",
    "CONFLICTS_BLOCK_READY",
    "POLICY_ENFORCEMENT",
    "POLICY_POINT",
    "POLICY_ESTABLISHED",
    "POLICY_EGRESS_TO_OWN_NODE",
    "POLICY_UNPREPARED",
    "POLICY_DENY",
    "POLICY_HBONE",
    "POLICY_POD_POINT_MAX",
    "AUDIT_LOG",
    "AUDIT_LOG_MAX_MB",
    "AUDIT_LOG_MAX_AGE",
    "AUDIT_LOG_FILES",
    "AUDIT_LOG_KEEP",
    "AUDIT_GID",
    "AUDIT_MASK",
    "AUDIT_WINDOW",
    "AUDIT_NODE_RATE",
    "TENANTS_ENFORCEMENT",
    "USAGE",
    "CAPTURE",
    "CNI_CACHE_DIR",
    "CONFIG_DIR",
    "FACTS_TIMEOUT",
    "FAILURE_POLICY",
    "HEALTH_ADDRESS",
    "HEALTH_PORT",
    "KERNEL_NETWORK_RUNTIME_CLASSES",
    "LISTEN_ADDRESS",
    "POD_SOURCE",
    "REPAIR_TRIGGER",
    "RUNTIME_ANNOTATIONS",
    "NODE_TAINT",
    "NODE_TAINT_KEY",
    "STATE_DIR",
    "STRICT_STATUS",
];

/// For people, and for the original's image; no option.
const NOT_OPTIONS: &[&str] = &["CURRENT_AGENT_VERSION", "GOMEMLIMIT", "REPAIR_RUN_AS_DAEMON"];

/// The ConfigMap with the defaults, which is the original's with any features.
const ALWAYS: &[&str] = &[
    "AMBIENT_DNS_CAPTURE",
    "AMBIENT_ENABLED",
    "AMBIENT_ENABLEMENT_SELECTOR",
    "AMBIENT_IPV6",
    "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP",
    "CHAINED_CNI_PLUGIN",
    "CURRENT_AGENT_VERSION",
    "ENABLE_AMBIENT_DETECTION_RETRY",
    "EXCLUDE_NAMESPACES",
    "ISTIO_OWNED_CNI_CONFIG",
    "NATIVE_NFTABLES",
    "REPAIR_BROKEN_POD_LABEL_KEY",
    "REPAIR_BROKEN_POD_LABEL_VALUE",
    "REPAIR_DELETE_PODS",
    "REPAIR_ENABLED",
    "REPAIR_INIT_CONTAINER_NAME",
    "REPAIR_LABEL_PODS",
    "REPAIR_REPAIR_PODS",
];

fn keys(objects: &Objects) -> Vec<String> {
    let data = objects.get("ConfigMap", "istio-cni-config")["data"].as_object().unwrap();
    data.keys().cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

fn variables(objects: &Objects) -> Vec<&str> {
    objects.container()["env"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect()
}

#[test]
fn the_config_map_has_the_originals_keys_with_any_features() {
    for (features, objects) in combinations() {
        assert_eq!(keys(objects), ALWAYS, "{features:?}");
        for (key, value) in [
            ("REPAIR_ENABLED", features.repair),
            ("REPAIR_REPAIR_PODS", features.repair_pods),
            ("REPAIR_DELETE_PODS", true),
            ("REPAIR_LABEL_PODS", false),
            ("AMBIENT_ENABLED", features.ambient),
        ] {
            assert_eq!(objects.option(key), Some(value.to_string().as_str()), "{key} with {features:?}");
        }
    }
}

#[test]
fn every_variable_is_one_that_the_agent_reads() {
    let everything = [
        "cniConfFileName=a.conflist",
        "istioOwnedCNIConfig=true",
        "istioOwnedCNIConfigFileName=b.conflist",
        "agent.failurePolicy=open",
        "agent.capture=disabled",
        "agent.addTimeout=20s",
        "agent.drainTimeout=10m",
        "agent.liveUpdates=on",
        "agent.verifyInterval=10s",
        "agent.verifyFullInterval=5m",
        "agent.verifyRepair=off",
        "agent.healthConfigInterval=30s",
        "agent.healthConnectivityInterval=5m",
        "agent.healthDnsServers={10.96.0.10}",
        "agent.healthMetricsShortNames=true",
        "agent.conflictResolution=off",
        "agent.conflictsBlockReady=node-errors",
        "agent.policyEnforcement=on",
        "agent.policyPoint=pod",
        "agent.policyEstablished=keep",
        "agent.policyEgressToOwnNode=allow",
        "agent.policyUnprepared=fail",
        "agent.policyDeny=reject",
        "agent.policyHbone=port",
        "agent.policyPodPointMax=5000",
        "agent.auditLog=/var/log/istio-cni/audit.jsonl",
        "agent.auditLogMaxMb=20",
        "agent.auditLogMaxAge=12h",
        "agent.auditLogFiles=9",
        "agent.auditLogKeep=48h",
        "agent.auditGid=1000",
        "agent.auditMask=/24\\,/48",
        "agent.auditWindow=30s",
        "agent.auditNodeRate=500",
        "agent.tenantsEnforcement=on",
        "agent.usage=on",
        "agent.factsTimeout=10s",
        "agent.kernelNetworkRuntimeClasses={kata-host}",
        "agent.runtimeAnnotations=false",
        "agent.strictStatus=true",
        "agent.podSource=manifests:/etc/pods",
        "agent.healthPort=9000",
        "agent.metricsPort=9001",
        "ambient.enabled=true",
    ];
    let objects = render_set(&everything).unwrap();
    let (keys, variables) = (keys(&objects), variables(&objects));
    for name in keys.iter().map(String::as_str).chain(variables) {
        assert!(KNOWN.contains(&name) || NOT_OPTIONS.contains(&name), "the agent does not read {name}");
    }
    assert_eq!(keys.len(), ALWAYS.len() + 42, "{keys:?}");
}

/// One value, what it renders.
#[test]
fn each_value_sets_its_option() {
    for (value, option, text) in [
        ("cniConfFileName=10-x.conflist", "CNI_CONF_NAME", Some("10-x.conflist")),
        ("cniConfFileName=", "CNI_CONF_NAME", None),
        ("chained=false", "CHAINED_CNI_PLUGIN", Some("false")),
        ("excludeNamespaces={a,b}", "EXCLUDE_NAMESPACES", Some("a,b")),
        ("excludeNamespaces=null", "EXCLUDE_NAMESPACES", Some("")),
        ("istioOwnedCNIConfig=true", "ISTIO_OWNED_CNI_CONFIG", Some("true")),
        ("istioOwnedCNIConfigFileName=x", "ISTIO_OWNED_CNI_CONFIG_FILENAME", None),
        ("ambient.dnsCapture=false", "AMBIENT_DNS_CAPTURE", Some("false")),
        ("ambient.ipv6=false", "AMBIENT_IPV6", Some("false")),
        ("ambient.reconcileIptablesOnStartup=false", "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", Some("false")),
        ("ambient.enableAmbientDetectionRetry=true", "ENABLE_AMBIENT_DETECTION_RETRY", Some("true")),
        ("ambient.enablementSelectors=null", "AMBIENT_ENABLEMENT_SELECTOR", Some("null")),
        ("repair.initContainerName=check", "REPAIR_INIT_CONTAINER_NAME", Some("check")),
        ("repair.trigger=kernel", "REPAIR_TRIGGER", None),
        ("repair.trigger=crash", "REPAIR_TRIGGER", Some("crash")),
        ("repair.brokenPodLabelKey=k", "REPAIR_BROKEN_POD_LABEL_KEY", Some("k")),
        ("repair.brokenPodLabelValue=v", "REPAIR_BROKEN_POD_LABEL_VALUE", Some("v")),
        ("global.nativeNftables=true", "NATIVE_NFTABLES", Some("true")),
        ("global.nativeNftables=false", "NATIVE_NFTABLES", Some("false")),
        ("global.nativeNftables=auto", "NATIVE_NFTABLES", Some("auto")),
        ("global.nativeNftables=null", "NATIVE_NFTABLES", Some("auto")),
        ("ambient.enabled=true", "NATIVE_NFTABLES", Some("auto")),
        ("agent.podSource=manifests:/etc/pods", "NATIVE_NFTABLES", Some("auto")),
        ("global.tag=1.2", "CURRENT_AGENT_VERSION", Some("1.2")),
        ("agent.failurePolicy=closed", "FAILURE_POLICY", Some("closed")),
        ("agent.capture=disabled", "CAPTURE", Some("disabled")),
        ("agent.addTimeout=1m30s", "ADD_TIMEOUT", Some("1m30s")),
        ("agent.drainTimeout=0s", "DRAIN_TIMEOUT", Some("0s")),
        ("agent.liveUpdates=off", "LIVE_UPDATES", Some("off")),
        ("agent.liveUpdates=", "LIVE_UPDATES", None),
        ("agent.verifyInterval=10s", "VERIFY_INTERVAL", Some("10s")),
        ("agent.verifyFullInterval=5m", "VERIFY_FULL_INTERVAL", Some("5m")),
        ("agent.verifyRepair=off", "VERIFY_REPAIR", Some("off")),
        ("agent.healthConfigInterval=30s", "HEALTH_CONFIG_INTERVAL", Some("30s")),
        ("agent.healthConnectivityInterval=0s", "HEALTH_CONNECTIVITY_INTERVAL", Some("0s")),
        ("agent.healthDnsServers={10.96.0.10}", "HEALTH_DNS_SERVERS", Some("10.96.0.10")),
        ("agent.healthMetricsShortNames=true", "HEALTH_METRICS_SHORT_NAMES", Some("true")),
        ("agent.healthMetricsShortNames=false", "HEALTH_METRICS_SHORT_NAMES", None),
        ("agent.conflictResolution=off", "CONFLICT_RESOLUTION", Some("off")),
        ("agent.conflictsBlockReady=node-errors", "CONFLICTS_BLOCK_READY", Some("node-errors")),
        ("agent.policyEnforcement=on", "POLICY_ENFORCEMENT", Some("on")),
        ("agent.policyPoint=pod", "POLICY_POINT", Some("pod")),
        ("agent.policyEstablished=keep", "POLICY_ESTABLISHED", Some("keep")),
        ("agent.policyEgressToOwnNode=allow", "POLICY_EGRESS_TO_OWN_NODE", Some("allow")),
        ("agent.policyUnprepared=fail", "POLICY_UNPREPARED", Some("fail")),
        ("agent.policyDeny=reject", "POLICY_DENY", Some("reject")),
        ("agent.policyHbone=port", "POLICY_HBONE", Some("port")),
        ("agent.policyPodPointMax=5000", "POLICY_POD_POINT_MAX", Some("5000")),
        (
            "agent.auditLog=/var/log/istio-cni/audit.jsonl",
            "AUDIT_LOG",
            Some("/var/log/istio-cni/audit.jsonl"),
        ),
        ("agent.auditLogMaxMb=20", "AUDIT_LOG_MAX_MB", Some("20")),
        ("agent.auditLogMaxAge=12h", "AUDIT_LOG_MAX_AGE", Some("12h")),
        ("agent.auditLogFiles=9", "AUDIT_LOG_FILES", Some("9")),
        ("agent.auditLogKeep=48h", "AUDIT_LOG_KEEP", Some("48h")),
        ("agent.auditGid=1000", "AUDIT_GID", Some("1000")),
        ("agent.auditMask=/24\\,/48", "AUDIT_MASK", Some("/24,/48")),
        ("agent.auditWindow=30s", "AUDIT_WINDOW", Some("30s")),
        ("agent.auditNodeRate=500", "AUDIT_NODE_RATE", Some("500")),
        ("agent.policyEnforcement=on,agent.tenantsEnforcement=on", "TENANTS_ENFORCEMENT", Some("on")),
        ("agent.tenantsEnforcement=off", "TENANTS_ENFORCEMENT", Some("off")),
        ("agent.policyEnforcement=on,agent.tenantsEnforcement=on,agent.usage=on", "USAGE", Some("on")),
        ("agent.usage=off", "USAGE", Some("off")),
        ("agent.policyEnforcement=", "POLICY_ENFORCEMENT", None),
        ("agent.factsTimeout=500ms", "FACTS_TIMEOUT", Some("500ms")),
        ("agent.kernelNetworkRuntimeClasses={a,b}", "KERNEL_NETWORK_RUNTIME_CLASSES", Some("a,b")),
        ("agent.kernelNetworkRuntimeClasses=null", "KERNEL_NETWORK_RUNTIME_CLASSES", None),
        ("agent.runtimeAnnotations=true", "RUNTIME_ANNOTATIONS", None),
        ("agent.runtimeAnnotations=null", "RUNTIME_ANNOTATIONS", None),
        ("agent.runtimeAnnotations=false", "RUNTIME_ANNOTATIONS", Some("false")),
        ("agent.strictStatus=true", "STRICT_STATUS", Some("true")),
        ("agent.strictStatus=false", "STRICT_STATUS", None),
        ("agent.podSource=kubernetes", "POD_SOURCE", Some("kubernetes")),
        ("agent.podSource=manifests:/etc/pods", "POD_SOURCE", Some("manifests:/etc/pods")),
        ("agent.healthPort=8000", "HEALTH_PORT", None),
        ("agent.healthPort=8001", "HEALTH_PORT", Some("8001")),
        ("agent.metricsPort=15014", "MONITORING_PORT", None),
        ("agent.metricsPort=15015", "MONITORING_PORT", Some("15015")),
        ("agent.cniCacheDir=/var/lib/cni", "CNI_CACHE_DIR", None),
        ("agent.cniCacheDir=/var/cache/cni", "CNI_CACHE_DIR", Some("/var/cache/cni")),
        ("agent.nodeTaint=off", "NODE_TAINT", None),
        ("agent.nodeTaint=null", "NODE_TAINT", None),
        ("agent.nodeTaint=remove", "NODE_TAINT", Some("remove")),
        ("agent.nodeTaint=manage", "NODE_TAINT", Some("manage")),
        ("agent.nodeTaintKey=example.com/mesh", "NODE_TAINT_KEY", Some("example.com/mesh")),
        ("agent.stateDir=/var/lib/istio-cni", "STATE_DIR", None),
        ("agent.stateDir=/opt/state", "STATE_DIR", Some("/opt/state")),
        ("env.MONITORING_PORT=0", "MONITORING_PORT", Some("0")),
        ("env.NATIVE_NFTABLES=true", "NATIVE_NFTABLES", Some("true")),
    ] {
        assert_eq!(render_set(&[value]).unwrap().option(option), text, "{value}");
    }
    for text in ["true", "false", "auto"] {
        let value = format!("global.nativeNftables={text}");
        let rendered = render(&["--set-string", &value]).unwrap();
        assert_eq!(rendered.option("NATIVE_NFTABLES"), Some(text), "as a text");
    }
    for text in ["Auto", "nftables", "yes", "1"] {
        let refused =
            render(&["--set-string", &format!("global.nativeNftables={text}")]).unwrap_err().to_string();
        assert!(refused.contains("nativeNftables"), "{text}: {refused}");
    }
    let owned = render_set(&["istioOwnedCNIConfig=true", "istioOwnedCNIConfigFileName=x.conflist"]).unwrap();
    assert_eq!(owned.option("ISTIO_OWNED_CNI_CONFIG_FILENAME"), Some("x.conflist"));
}

#[test]
fn selectors_reach_the_agent_as_a_yaml_list() {
    let objects = render_set(&[]).unwrap();
    let selectors: Vec<Value> =
        serde_saphyr::from_str(objects.option("AMBIENT_ENABLEMENT_SELECTOR").unwrap()).unwrap();
    assert_eq!(
        Value::from(selectors),
        serde_json::json!([
            {"podSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}},
            {
                "podSelector": {
                    "matchExpressions": [{"key": "istio.io/dataplane-mode", "operator": "NotIn", "values": ["none"]}],
                },
                "namespaceSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}},
            },
        ])
    );
}

#[test]
fn the_container_has_variables_beside_the_config_map() {
    let objects = render_set(&["env.EXTRA=7"]).unwrap();
    let env = objects.container()["env"].as_array().unwrap();
    let find =
        |name: &str| env.iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("no {name} in {env:?}"));
    for (name, field) in [
        ("NODE_NAME", "spec.nodeName"),
        ("REPAIR_NODE_NAME", "spec.nodeName"),
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("LISTEN_ADDRESS", "status.hostIP"),
    ] {
        assert_eq!(find(name)["valueFrom"]["fieldRef"]["fieldPath"], field, "{name}");
    }
    for (name, value) in [
        ("HEALTH_ADDRESS", "127.0.0.1"),
        ("REPAIR_RUN_AS_DAEMON", "true"),
        ("REPAIR_SIDECAR_ANNOTATION", "sidecar.istio.io/status"),
        ("EXTRA", "7"),
    ] {
        assert_eq!(find(name)["value"], value, "{name}");
    }
    assert_eq!(find("GOMEMLIMIT")["valueFrom"]["resourceFieldRef"]["resource"], "limits.memory");
    assert_eq!(objects.option("EXTRA"), Some("7"));
    assert_eq!(objects.container()["envFrom"][0]["configMapRef"]["name"], "istio-cni-config");
}

#[test]
fn flags_carry_the_log_settings() {
    for (values, args) in [
        (&[][..], serde_json::json!(["--log_output_level=info"])),
        (&["global.logging.level=warn"], serde_json::json!(["--log_output_level=warn"])),
        (
            &["logging.level=cni-plugin:debug", "global.logging.level=warn"],
            serde_json::json!(["--log_output_level=cni-plugin:debug"]),
        ),
        (&["global.logAsJson=true"], serde_json::json!(["--log_output_level=info", "--log_as_json"])),
        (&["global.logging.level="], Value::Null),
    ] {
        assert_eq!(render_set(values).unwrap().container()["args"], args, "{values:?}");
    }
}

#[test]
fn other_options_are_another_pod() {
    let checksum = |values: &[&str]| {
        let objects = render_set(values).unwrap();
        objects.get("DaemonSet", "istio-cni-node")["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone()
    };
    assert!(checksum(&[]).is_string());
    assert_eq!(checksum(&[]), checksum(&["daemonSetLabels.a=b"]));
    assert_ne!(checksum(&[]), checksum(&["agent.capture=disabled"]));
}
