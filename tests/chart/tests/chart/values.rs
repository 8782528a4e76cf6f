//! Which values there are, their defaults, and what is refused.

use std::fs;

use chart::{render, render_set, root};
use serde_json::{Value, json};

fn read_yaml(path: &str) -> Value {
    serde_saphyr::from_str(&fs::read_to_string(root().join(path)).unwrap()).unwrap()
}

/// The original's values, where its default is ours too.
#[test]
fn defaults_are_the_originals() {
    let file = read_yaml("deploy/charts/istio-cni/values.yaml");
    let defaults = &file["_internal_defaults_do_not_set"];
    for (path, value) in [
        ("/hub", json!("")),
        ("/tag", json!("")),
        ("/variant", json!("")),
        ("/image", json!("install-cni")),
        ("/pullPolicy", json!("")),
        ("/logging/level", json!("")),
        ("/cniBinDir", json!("/opt/cni/bin")),
        ("/cniConfDir", json!("/etc/cni/net.d")),
        ("/cniConfFileName", json!("")),
        ("/cniNetnsDir", json!("/var/run/netns")),
        ("/istioOwnedCNIConfig", json!(false)),
        ("/istioOwnedCNIConfigFileName", json!("")),
        ("/excludeNamespaces", json!(["kube-system"])),
        ("/affinity", json!({})),
        ("/updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}})),
        ("/terminationGracePeriodSeconds", json!(30)),
        ("/daemonSetLabels", json!({})),
        ("/podLabels", json!({})),
        ("/podAnnotations", json!({})),
        ("/chained", json!(true)),
        ("/provider", json!("default")),
        ("/ambient/enabled", json!(false)),
        ("/ambient/dnsCapture", json!(true)),
        ("/ambient/ipv6", json!(true)),
        ("/ambient/reconcileIptablesOnStartup", json!(true)),
        ("/ambient/shareHostNetworkNamespace", json!(false)),
        ("/ambient/enableAmbientDetectionRetry", json!(false)),
        ("/repair/enabled", json!(true)),
        ("/repair/repairPods", json!(true)),
        ("/repair/deletePods", json!(false)),
        ("/repair/labelPods", json!(false)),
        ("/repair/trigger", json!("kernel")),
        ("/verification/enabled", json!(true)),
        ("/repair/initContainerName", json!("istio-validation")),
        ("/repair/brokenPodLabelKey", json!("cni.istio.io/uninitialized")),
        ("/repair/brokenPodLabelValue", json!("true")),
        ("/seccompProfile", json!({})),
        ("/seLinuxOptions", json!({})),
        ("/useAppArmorAnnotation", json!(true)),
        ("/resources/requests", json!({"cpu": "100m", "memory": "100Mi"})),
        ("/resourceQuotas", json!({"enabled": false, "pods": 5000})),
        ("/revision", json!("")),
        ("/ownerName", json!("")),
        ("/env", json!({})),
        ("/global/variant", json!("")),
        ("/global/imagePullPolicy", json!("")),
        ("/global/imagePullSecrets", json!([])),
        ("/global/logging/level", json!("info")),
        ("/global/logAsJson", json!(false)),
        ("/global/networkPolicy/enabled", json!(false)),
        ("/global/nativeNftables", json!("auto")),
        ("/global/resourceScope", json!("all")),
    ] {
        assert_eq!(defaults.pointer(path), Some(&value), "{path}");
    }
    let tolerations = defaults["tolerations"].as_array().unwrap();
    for wanted in [
        json!({"effect": "NoSchedule", "operator": "Exists"}),
        json!({"effect": "NoExecute", "operator": "Exists"}),
        json!({"key": "CriticalAddonsOnly", "operator": "Exists"}),
    ] {
        assert!(tolerations.contains(&wanted), "{wanted}");
    }
}

#[test]
fn the_schema_has_a_type_for_every_default() {
    let text = fs::read_to_string(root().join("deploy/charts/istio-cni/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    let file = read_yaml("deploy/charts/istio-cni/values.yaml");
    let mut missing = Vec::new();
    find_missing(&file["_internal_defaults_do_not_set"], &schema["definitions"]["values"], "", &mut missing);
    assert!(missing.is_empty(), "not in values.schema.json: {missing:?}");
}

fn find_missing(value: &Value, schema: &Value, path: &str, missing: &mut Vec<String>) {
    let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object()) else {
        return;
    };
    for (name, value) in fields {
        let path = format!("{path}/{name}");
        match properties.get(name) {
            Some(schema) => find_missing(value, schema, &path, missing),
            None => missing.push(path),
        }
    }
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    for (value, message) in [
        ("defaults.hub=x", "values under `defaults` are not read"),
        ("profile=nope", "unknown profile \"nope\"; there are: ambient, demo, preview, remote, stable"),
        ("global.profile=nope", "unknown profile \"nope\""),
        (
            "platform=nope",
            "unknown platform \"nope\"; there are: gke, k3d, k3s, microk8s, minikube, openshift",
        ),
        ("cni.platform=nope", "unknown platform \"nope\""),
        ("compatibilityVersion=1.3", "unknown compatibility version \"1.3\""),
        ("profile=../platform/k3s", "unknown profile"),
        ("updateStrategy.rollingUpdate.maxSurge=1", "maxSurge is 1: a second agent on a node"),
        ("agent.failurPolicy=open", "failurPolicy"),
        ("agent.failurePolicy=ajar", "failurePolicy"),
        ("agent.capture=off", "capture"),
        ("agent.addTimeout=20", "addTimeout"),
        ("cni.agent.capture=off", "capture"),
        ("repair.enabled=maybe", "enabled"),
        ("global.resourceScope=some", "resourceScope"),
        ("provider=flannel", "provider"),
        ("cniConfDir=etc", "cniConfDir"),
        ("cniConfFileName=../x.conf", "cniConfFileName"),
        ("terminationGracePeriodSeconds=-1", "terminationGracePeriodSeconds"),
    ] {
        let error = render_set(&[value]).unwrap_err().to_string();
        assert!(error.contains(message), "{value}: {error}");
    }
    let quoted = render(&["--set-string", "chained=no"]).unwrap_err().to_string();
    assert!(quoted.contains("chained"), "{quoted}");
}

/// As `--set-string` and tools that know no other kind of value give them.
#[test]
fn a_switch_may_be_a_text() {
    let rendered = |flag: &str, values: &str| format!("{:?}", render(&[flag, values]).unwrap());
    for (on, off) in [
        ("ambient.enabled=true", "ambient.enabled=false"),
        ("cni.ambient.enabled=true", "cni.ambient.enabled=false"),
        ("repair.enabled=true,repair.repairPods=true", "repair.enabled=false,repair.repairPods=false"),
        ("agent.hostNetwork=true", "agent.hostNetwork=false"),
        ("global.networkPolicy.enabled=true", "global.networkPolicy.enabled=false"),
        ("chained=true", "chained=false"),
    ] {
        for values in [on, off] {
            assert_eq!(rendered("--set-string", values), rendered("--set", values), "{values}");
        }
        assert_ne!(rendered("--set-string", on), rendered("--set-string", off), "{on}");
    }
}

#[test]
fn the_image_is_put_together() {
    let version = env!("CARGO_PKG_VERSION");
    for (values, image) in [
        (&[][..], format!("localhost/install-cni:{version}")),
        (&["global.hub=h/i", "global.tag=t"], "h/i/install-cni:t".to_owned()),
        (&["hub=a", "tag=b", "global.hub=h", "global.tag=t"], "a/install-cni:b".to_owned()),
        (&["variant=debug", "tag=b"], "localhost/install-cni:b-debug".to_owned()),
        (&["global.variant=distroless", "image=other", "tag=b"], "localhost/other:b-distroless".to_owned()),
        (&["image=r/x:y", "hub=a", "tag=b", "variant=v"], "r/x:y".to_owned()),
    ] {
        assert_eq!(render_set(values).unwrap().container()["image"], image, "{values:?}");
    }
    for (values, policy) in [
        (&[][..], Value::Null),
        (&["global.imagePullPolicy=Never"], json!("Never")),
        (&["global.imagePullPolicy=Never", "pullPolicy=Always"], json!("Always")),
    ] {
        assert_eq!(render_set(values).unwrap().container()["imagePullPolicy"], policy, "{values:?}");
    }
    let objects = render_set(&["global.imagePullSecrets={a,b}"]).unwrap();
    assert_eq!(
        objects.get("ServiceAccount", "istio-cni")["imagePullSecrets"],
        json!([{"name": "a"}, {"name": "b"}])
    );
}

#[test]
fn resources_leave_out_what_says_nothing() {
    let request = json!({"requests": {"cpu": "100m", "memory": "100Mi"}});
    for (values, resources) in [
        (&[][..], json!({"requests": request["requests"], "limits": {"memory": "256Mi"}})),
        (&["resources.limits=null"], request.clone()),
        (&["resources=null"], request),
        (&["resources=null", "global.defaultResources=null"], Value::Null),
        (&["resources.requests.cpu=", "resources.requests.memory=", "resources.limits.memory="], Value::Null),
        (
            &["resources.requests.cpu=", "resources.limits.memory=64Mi"],
            json!({"requests": {"memory": "100Mi"}, "limits": {"memory": "64Mi"}}),
        ),
    ] {
        assert_eq!(render_set(values).unwrap().container()["resources"], resources, "{values:?}");
    }
}

#[test]
fn the_chart_has_the_version_of_the_workspace() {
    let chart = read_yaml("deploy/charts/istio-cni/Chart.yaml");
    for field in ["version", "appVersion"] {
        assert_eq!(chart[field], env!("CARGO_PKG_VERSION"), "{field}");
    }
}

/// A file of values that was made by `helm show values` from the original's chart, edited, has them under this key.
#[test]
fn defaults_that_were_edited_hold() {
    let objects = render_set(&["_internal_defaults_do_not_set.cniBinDir=/x"]).unwrap();
    assert_eq!(objects.host_path("/host/opt/cni/bin"), Some("/x"));
}
