//! Profiles, platforms, compatibility versions, and the order in which values win.

use chart::{render, render_set};
use serde_json::json;

const BIN: &str = "/host/opt/cni/bin";
const CONF: &str = "/host/etc/cni/net.d";

/// Platform, folder of plugins, folder of configurations.
const PLATFORMS: &[(&str, &str, &str)] = &[
    ("gke", "/opt/cni/bin", "/etc/cni/net.d"),
    ("k3d", "/bin", "/var/lib/rancher/k3s/agent/etc/cni/net.d"),
    ("k3s", "/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d"),
    ("microk8s", "/var/snap/microk8s/current/opt/cni/bin", "/var/snap/microk8s/current/args/cni-network"),
    ("minikube", "/opt/cni/bin", "/etc/cni/net.d"),
    ("openshift", "/var/lib/cni/bin", "/etc/cni/multus/net.d"),
];

#[test]
fn platforms_give_their_folders() {
    for (platform, bin, conf) in PLATFORMS {
        for name in ["platform", "global.platform", "cni.platform", "cni.global.platform"] {
            let objects = render_set(&[&format!("{name}={platform}")]).unwrap();
            assert_eq!(objects.host_path(BIN), Some(*bin), "{name}={platform}");
            assert_eq!(objects.host_path(CONF), Some(*conf), "{name}={platform}");
        }
    }
}

#[test]
fn platforms_give_the_rest() {
    let gke = render_set(&["platform=gke"]).unwrap();
    assert_eq!(gke.get("ResourceQuota", "istio-cni-resource-quota")["spec"]["hard"]["pods"], "5000");
    let minikube = render_set(&["platform=minikube", "ambient.enabled=true"]).unwrap();
    assert_eq!(minikube.host_path("/host/var/run/netns"), Some("/var/run/docker/netns"));
    let openshift = render_set(&["platform=openshift"]).unwrap();
    assert_eq!(openshift.option("CHAINED_CNI_PLUGIN"), Some("false"));
    assert_eq!(openshift.option("CNI_CONF_NAME"), Some("istio-cni.conf"));
    assert_eq!(openshift.container()["securityContext"]["seLinuxOptions"], json!({"type": "spc_t"}));
    let attachment = openshift.get("NetworkAttachmentDefinition", "istio-cni");
    assert_eq!(attachment["metadata"]["namespace"], "default");
    assert!(attachment["spec"].is_null());
}

#[test]
fn gke_is_recognised_by_its_version() {
    for (version, value, bin) in [
        ("v1.33.0-gke.100", "cniBinDir=", "/home/kubernetes/bin"),
        ("v1.33.0-gke.100", "platform=gke", "/home/kubernetes/bin"),
        ("v1.33.0-gke.100", "cniBinDir=/x", "/x"),
        ("v1.33.0", "cniBinDir=", "/opt/cni/bin"),
    ] {
        let objects = render(&["--kube-version", version, "--set", value]).unwrap();
        assert_eq!(objects.host_path(BIN), Some(bin), "{version} {value}");
    }
}

#[test]
fn profiles_give_their_values() {
    for name in ["profile", "global.profile", "cni.profile"] {
        let ambient = render_set(&[&format!("{name}=ambient")]).unwrap();
        assert_eq!(ambient.option("AMBIENT_ENABLED"), Some("true"), "{name}");
    }
    let demo = render_set(&["profile=demo"]).unwrap();
    assert_eq!(
        demo.container()["resources"],
        json!({"requests": {"cpu": "10m", "memory": "40Mi"}, "limits": {"memory": "256Mi"}})
    );
    for same in ["preview", "remote", "stable"] {
        let objects = render_set(&[&format!("profile={same}")]).unwrap();
        assert!(objects.iter().eq(render_set(&[]).unwrap().iter()), "{same}");
    }
}

#[test]
fn compatibility_versions_give_what_has_changed_since() {
    for (version, reconcile, network) in [
        ("1.25", "false", json!(true)),
        ("1.26", "false", json!(null)),
        ("1.27", "false", json!(null)),
        ("1.28", "false", json!(null)),
        ("1.29", "true", json!(null)),
        ("1.30", "true", json!(null)),
    ] {
        let version = format!("compatibilityVersion={version}");
        let values = "ambient.enabled=true,agent.hostNetwork=false";
        let objects = render(&["--set-string", &version, "--set", values]).unwrap();
        assert_eq!(objects.option("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP"), Some(reconcile), "{version}");
        let pod = &objects.get("DaemonSet", "istio-cni-node")["spec"]["template"]["spec"];
        assert_eq!(pod["hostNetwork"], network, "{version}");
    }
}

/// Defaults, presets, plain values, prefixed values: the later wins.
#[test]
fn values_win_over_presets_and_prefixed_ones_over_plain_ones() {
    for (values, bin) in [
        (&["platform=k3s"][..], "/var/lib/rancher/k3s/data/cni"),
        (&["platform=k3s", "cniBinDir=/plain"], "/plain"),
        (&["platform=k3s", "cni.cniBinDir=/prefixed"], "/prefixed"),
        (&["cni.cniBinDir=/prefixed", "cniBinDir=/plain"], "/prefixed"),
        (&["cni.platform=k3d"], "/bin"),
        (&["profile=ambient", "platform=k3d"], "/bin"),
    ] {
        assert_eq!(render_set(values).unwrap().host_path(BIN), Some(bin), "{values:?}");
    }
    // False, empty and absent are values too.
    let objects = render_set(&["profile=ambient", "ambient.enabled=false"]).unwrap();
    assert_eq!(objects.option("AMBIENT_ENABLED"), Some("false"));
    let objects = render_set(&["tolerations=null"]).unwrap();
    assert!(objects.get("DaemonSet", "istio-cni-node")["spec"]["template"]["spec"]["tolerations"].is_null());
}

/// The prefix gives the same as no prefix.
#[test]
fn a_prefixed_value_is_the_plain_one() {
    for value in [
        "hub=h",
        "repair.enabled=false",
        "ambient.enabled=true",
        "excludeNamespaces={a}",
        "env.A=b",
        "agent.failurePolicy=open",
        "global.tag=t",
        "resources.limits.memory=1Gi",
    ] {
        let (plain, prefixed) =
            (render_set(&[value]).unwrap(), render_set(&[&format!("cni.{value}")]).unwrap());
        assert!(plain.iter().eq(prefixed.iter()), "{value}");
        assert!(!plain.iter().eq(render_set(&[]).unwrap().iter()), "{value} changes nothing");
    }
}

/// A mesh has one file of values for all its charts.
#[test]
fn values_of_other_charts_are_ignored() {
    let others =
        ["pilot.env.A=b", "global.proxy.image=x", "meshConfig.accessLogFile=/dev/stdout", "ztunnel.image=y"];
    assert!(render_set(&others).unwrap().iter().eq(render_set(&[]).unwrap().iter()));
}
