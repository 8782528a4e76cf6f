//! Names, labels and shapes of the objects.

use std::collections::HashSet;

use chart::{Objects, check_fields, render_set};

use crate::combinations;

/// Values that between them render every line of the templates, one set a row.
const EVERY_LINE: &[&[&str]] = &[
    &[],
    &[
        "image=registry.test/a/b:c",
        "pullPolicy=Always",
        "agent.failurePolicy=open",
        "agent.podSource=manifests:/etc/pods",
    ],
    &[
        "agent.serviceMonitor.enabled=true",
        "agent.serviceMonitor.interval=30s",
        "agent.serviceMonitor.labels.release=p",
    ],
    &[
        "platform=openshift",
        "global.networkPolicy.enabled=true",
        "resourceQuotas.enabled=true",
        "revision=canary",
    ],
    &["profile=ambient", "ambient.shareHostNetworkNamespace=true", "useAppArmorAnnotation=false"],
    &[
        "seccompProfile.type=RuntimeDefault",
        "seLinuxOptions.level=s0",
        "affinity.podAffinity=null",
        "env.A=1",
    ],
    &["global.imagePullSecrets={a,b}", "global.logAsJson=true", "podLabels.app=mine", "podAnnotations.a=b"],
    &["resources.limits.memory=64Mi", "daemonSetLabels.team=net", "agent.extraCapabilities={CHOWN}"],
    &["tenants.enabled=true"],
    &["monitoring.rules.enabled=true", "monitoring.dashboard.enabled=true", "monitoring.rules.labels.a=b"],
];

fn check(objects: &Objects) {
    let names = objects.names();
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "twice: {names:?}");
    for object in objects.iter() {
        check_fields(object).unwrap_or_else(|error| panic!("{error:#}"));
        let labels = &object["metadata"]["labels"];
        for (label, value) in [
            ("app.kubernetes.io/name", "istio-cni"),
            ("app.kubernetes.io/instance", "istio-cni"),
            ("app.kubernetes.io/managed-by", "Helm"),
            ("app.kubernetes.io/part-of", "istio"),
            ("operator.istio.io/component", "Cni"),
            ("install.operator.istio.io/owning-resource", "unknown"),
        ] {
            assert_eq!(labels[label], value, "{label} of {object}");
        }
    }
}

#[test]
fn every_object_has_the_shape_of_its_kind_and_the_labels() {
    for values in EVERY_LINE {
        check(&render_set(values).unwrap());
    }
    for (_, objects) in combinations() {
        check(objects);
    }
}

/// Other components, and a release of the original that is upgraded, find the objects by these names.
#[test]
fn names_are_fixed() {
    let with_defaults = [
        "ClusterRole/istio-cni",
        "ClusterRole/istio-cni-repair-role",
        "ClusterRoleBinding/istio-cni",
        "ClusterRoleBinding/istio-cni-repair-rolebinding",
        "ConfigMap/istio-cni-config",
        "DaemonSet/istio-cni-node",
        "ServiceAccount/istio-cni",
    ];
    assert_eq!(render_set(&[]).unwrap().names(), with_defaults);

    let all = [
        "ambient.enabled=true",
        "provider=multus",
        "resourceQuotas.enabled=true",
        "global.networkPolicy.enabled=true",
    ];
    let names = render_set(&all).unwrap().names();
    for more in [
        "ClusterRole/istio-cni-ambient",
        "ClusterRoleBinding/istio-cni-ambient",
        "NetworkAttachmentDefinition/istio-cni",
        "NetworkPolicy/istio-cni",
        "ResourceQuota/istio-cni-resource-quota",
    ] {
        assert!(names.contains(&more.to_owned()), "{more} is not among {names:?}");
    }
    assert_eq!(names.len(), with_defaults.len() + 5, "{names:?}");
}

#[test]
fn the_pods_are_found_and_left_alone_by_the_mesh() {
    let objects =
        render_set(&["podLabels.k8s-app=other", "podAnnotations.prometheus\\.io/scrape=no"]).unwrap();
    let set = objects.get("DaemonSet", "istio-cni-node");
    // The selector of an existing DaemonSet cannot be changed, so it is the original's and nothing more.
    assert_eq!(set["spec"]["selector"]["matchLabels"], serde_json::json!({"k8s-app": "istio-cni-node"}));
    let metadata = &set["spec"]["template"]["metadata"];
    for (label, value) in [
        ("k8s-app", "istio-cni-node"),
        ("sidecar.istio.io/inject", "false"),
        ("istio.io/dataplane-mode", "none"),
    ] {
        assert_eq!(metadata["labels"][label], value, "{label}");
    }
    assert!(metadata["labels"]["istio.io/rev"].is_null(), "a revision asks for a sidecar");
    for (annotation, value) in [
        ("sidecar.istio.io/inject", "false"),
        ("prometheus.io/scrape", "no"),
        ("prometheus.io/port", "15014"),
        ("prometheus.io/path", "/metrics"),
    ] {
        assert_eq!(metadata["annotations"][annotation], value, "{annotation}");
    }
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"], serde_json::json!({"kubernetes.io/os": "linux"}));
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["serviceAccountName"], "istio-cni");
    assert_eq!(pod["terminationGracePeriodSeconds"], 30);
    let container = objects.container();
    assert_eq!(
        container["readinessProbe"]["httpGet"],
        serde_json::json!({"host": "127.0.0.1", "path": "/readyz", "port": 8000})
    );
    // An update waits for it on every node: half a second on average, and not five of the usual ten.
    assert_eq!(container["readinessProbe"]["periodSeconds"], 1);
    assert!(container["readinessProbe"]["initialDelaySeconds"].is_null());
    for killing in ["livenessProbe", "startupProbe"] {
        assert!(container[killing].is_null(), "{killing}");
    }
    assert_eq!(
        container["ports"][0],
        serde_json::json!({"name": "metrics", "containerPort": 15014, "protocol": "TCP"})
    );
    assert_eq!(container["command"], serde_json::json!(["install-cni"]));
}

#[test]
fn the_monitor_finds_the_service_that_finds_the_pods() {
    let values = [
        "agent.serviceMonitor.enabled=true",
        "agent.serviceMonitor.interval=30s",
        "agent.serviceMonitor.labels.release=p",
    ];
    let objects = render_set(&values).unwrap();
    let (service, monitor) =
        (objects.get("Service", "istio-cni-node"), objects.get("ServiceMonitor", "istio-cni-node"));
    let selected = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    assert!(!selected.is_empty() && selected.iter().all(|(k, v)| service["metadata"]["labels"][k] == *v));
    assert_eq!(service["spec"]["selector"], serde_json::json!({"k8s-app": "istio-cni-node"}));
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], objects.container()["ports"][0]["name"]);
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], service["spec"]["ports"][0]["name"]);
    assert_eq!(monitor["spec"]["endpoints"][0]["interval"], "30s");
    assert_eq!(monitor["metadata"]["labels"]["release"], "p");
    assert_eq!(monitor["spec"]["namespaceSelector"]["matchNames"][0], "mesh");
}

#[test]
fn everything_follows_the_ports() {
    for (health, metrics, network) in [(9001, 9002, true), (8000, 15090, true), (18000, 15014, false)] {
        let objects = render_set(&[
            &format!("agent.healthPort={health}"),
            &format!("agent.metricsPort={metrics}"),
            &format!("agent.hostNetwork={network}"),
            "agent.serviceMonitor.enabled=true",
            "global.networkPolicy.enabled=true",
        ])
        .unwrap();
        let option = |name: &str| objects.option(name).map(|port| port.parse::<u16>().unwrap());
        assert_eq!(option("HEALTH_PORT").unwrap_or(8000), health);
        assert_eq!(option("MONITORING_PORT").unwrap_or(15014), metrics);
        let container = objects.container();
        assert_eq!(container["readinessProbe"]["httpGet"]["port"], health);
        assert_eq!(container["ports"][0]["containerPort"], metrics);
        let set = objects.get("DaemonSet", "istio-cni-node");
        let annotations = &set["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(annotations["prometheus.io/port"], metrics.to_string());
        let service = &objects.get("Service", "istio-cni-node")["spec"]["ports"][0];
        assert_eq!((&service["port"], &service["targetPort"]), (&metrics.into(), &"metrics".into()));
        let policy = &objects.get("NetworkPolicy", "istio-cni")["spec"]["ingress"][0]["ports"];
        assert_eq!((&policy[0]["port"], &policy[1]["port"]), (&metrics.into(), &health.into()));
    }
    for (values, part) in [
        (["agent.healthPort=15014", "agent.metricsPort=15014"], "are both 15014"),
        (["agent.healthPort=0", "agent.metricsPort=15014"], "healthPort"),
        (["agent.healthPort=8000", "agent.metricsPort=70000"], "metricsPort"),
        (["agent.metricsAddress=node", "agent.metricsPort=15014"], "metricsAddress"),
    ] {
        let error = render_set(&values).unwrap_err().to_string();
        assert!(error.contains(part), "{values:?}: {error}");
    }
}

#[test]
fn a_scope_leaves_the_other_half_out() {
    let cluster =
        render_set(&["global.resourceScope=cluster", "global.networkPolicy.enabled=true", "provider=multus"])
            .unwrap();
    let namespaced = render_set(&["global.resourceScope=namespace"]).unwrap();
    assert!(
        cluster.iter().all(|o| o["kind"].as_str().unwrap().starts_with("ClusterRole")),
        "{:?}",
        cluster.names()
    );
    assert!(
        !namespaced.iter().any(|o| o["kind"].as_str().unwrap().starts_with("Cluster")),
        "{:?}",
        namespaced.names()
    );
    let mut both = [cluster.names(), namespaced.names()].concat();
    both.sort();
    assert_eq!(both, render_set(&[]).unwrap().names());
}

#[test]
fn network_policy_and_quota_are_as_asked() {
    let objects = render_set(&[
        "global.networkPolicy.enabled=true",
        "resourceQuotas.enabled=true",
        "resourceQuotas.pods=7",
    ])
    .unwrap();
    let policy = &objects.get("NetworkPolicy", "istio-cni")["spec"];
    assert_eq!(policy["podSelector"]["matchLabels"], serde_json::json!({"k8s-app": "istio-cni-node"}));
    let ports: Vec<_> = policy["ingress"][0]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["port"].as_i64().unwrap())
        .collect();
    assert_eq!(ports, [15014, 8000]);
    assert_eq!(policy["egress"], serde_json::json!([{}]));
    let quota = &objects.get("ResourceQuota", "istio-cni-resource-quota")["spec"];
    assert_eq!(quota["hard"]["pods"], "7");
    assert_eq!(
        quota["scopeSelector"]["matchExpressions"][0]["values"],
        serde_json::json!(["system-node-critical"])
    );
}

#[test]
fn alerts_and_dashboard_come_where_they_are_asked_for() {
    assert!(!render_set(&[]).unwrap().iter().any(|object| object["kind"] == "PrometheusRule"));
    let values = [
        "monitoring.rules.enabled=true",
        "monitoring.rules.labels.release=p",
        "monitoring.dashboard.enabled=true",
        "monitoring.runbookUrl=https://docs.example.com/runbooks/",
    ];
    let objects = render_set(&values).unwrap();
    let rules = objects.get("PrometheusRule", "istio-cni-node");
    assert_eq!(rules["metadata"]["labels"]["release"], "p");
    let alerts = rules["spec"]["groups"][0]["rules"].as_array().unwrap();
    assert!(alerts.len() > 10, "{}", alerts.len());
    for alert in alerts {
        let runbook = alert["annotations"]["runbook_url"].as_str().unwrap();
        assert!(
            runbook.starts_with("https://docs.example.com/runbooks/") && runbook.ends_with(".md"),
            "{runbook}"
        );
    }
    let dashboard = objects.get("ConfigMap", "istio-cni-dashboard");
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    let dashboard: serde_json::Value =
        serde_json::from_str(dashboard["data"]["istio-cni-nodes.json"].as_str().unwrap()).unwrap();
    assert_eq!(
        dashboard["panels"][1]["links"][0]["url"],
        "https://docs.example.com/runbooks/MeshPodsUnverified.md"
    );
}
