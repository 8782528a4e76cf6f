//! What the container may do on the node, and what it sees of it.

use std::collections::BTreeSet;

use chart::{Objects, render, render_set};
use serde_json::{Value, json};

use crate::combinations;

/// What entering a pod's network namespace takes.
const ENTERING: [&str; 5] = ["DAC_OVERRIDE", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"];

fn capabilities(objects: &Objects) -> Vec<&str> {
    let list = objects.container()["securityContext"]["capabilities"]["add"].as_array().unwrap();
    list.iter().map(|c| c.as_str().unwrap()).collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn capabilities_and_mounts_follow_from_the_features() {
    for (features, objects) in combinations() {
        let enters = features.enters();
        let context = &objects.container()["securityContext"];
        assert_eq!(context["privileged"], false);
        assert_eq!(context["runAsUser"], 0);
        assert_eq!(context["runAsGroup"], 0);
        assert_eq!(context["runAsNonRoot"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(
            capabilities(objects),
            if enters { &ENTERING[..] } else { &ENTERING[..1] },
            "{features:?}"
        );
        // The API refuses `false` beside SYS_ADMIN.
        let escalation = if enters { Value::Null } else { json!(false) };
        assert_eq!(context["allowPrivilegeEscalation"], escalation, "{features:?}");

        let pod = &objects.get("DaemonSet", "istio-cni-node")["spec"]["template"]["spec"];
        for shared in ["hostPID", "hostIPC", "shareProcessNamespace"] {
            assert!(pod[shared].is_null(), "{shared} with {features:?}");
        }

        let mut mounts = vec![
            "/host/opt/cni/bin",
            "/host/etc/cni/net.d",
            "/var/run/istio-cni",
            "/var/lib/istio-cni",
            "/host/var/lib/cni",
            "/etc/istio-cni",
        ];
        if enters {
            mounts.push("/host/proc");
            let proc = objects.mount("/host/proc").unwrap();
            assert_eq!(proc["readOnly"], true);
            assert_eq!(objects.host_path("/host/proc"), Some("/proc"));
        }
        if features.ambient {
            mounts.extend(["/host/var/run/netns", "/var/run/ztunnel"]);
            assert_eq!(objects.mount("/host/var/run/netns").unwrap()["mountPropagation"], "HostToContainer");
        }
        let listed = objects.container()["volumeMounts"].as_array().unwrap();
        let listed: Vec<&str> = listed.iter().map(|m| m["mountPath"].as_str().unwrap()).collect();
        assert_eq!(listed, mounts, "{features:?}");
        assert_eq!(pod["volumes"].as_array().unwrap().len(), mounts.len(), "a volume that nothing mounts");
    }
}

/// nf_tables is loaded by netlink; only programs of iptables open raw sockets.
#[test]
fn raw_sockets_are_for_iptables() {
    for (native, raw) in [("true", false), ("false", true), ("auto", true)] {
        let values = ["ambient.enabled=true", &format!("global.nativeNftables={native}")];
        assert_eq!(capabilities(&render_set(&values).unwrap()).contains(&"NET_RAW"), raw, "{native}");
    }
}

#[test]
fn the_run_folder_is_the_nodes() {
    let objects = render_set(&[]).unwrap();
    assert_eq!(objects.host_path("/var/run/istio-cni"), Some("/var/run/istio-cni"));
    let volumes = &objects.get("DaemonSet", "istio-cni-node")["spec"]["template"]["spec"]["volumes"];
    let run =
        volumes.as_array().unwrap().iter().find(|v| v["hostPath"]["path"] == "/var/run/istio-cni").unwrap();
    assert!(run["hostPath"]["type"].is_null());
}

#[test]
fn manifests_are_seen_where_the_plugin_sees_them_and_cannot_be_changed() {
    let objects = render_set(&["agent.podSource=manifests:/etc/pods"]).unwrap();
    assert_eq!(objects.host_path("/etc/pods"), Some("/etc/pods"));
    assert_eq!(objects.mount("/etc/pods").unwrap()["readOnly"], true);
    for source in ["manifests:", "manifests:etc/pods", "manifest:/etc/pods", "files"] {
        let error = render_set(&[&format!("agent.podSource={source}")]).unwrap_err().to_string();
        assert!(error.contains("podSource"), "{source}: {error}");
    }
}

/// Values, and whether the agent's pod is on the node's network then.
#[test]
fn the_agent_is_on_the_nodes_network_unless_it_is_told_otherwise() {
    for (values, shared) in [
        (&[][..], true),
        (&["ambient.enabled=true"], true),
        (&["platform=openshift"], true),
        (&["platform=gke"], true),
        (&["agent.hostNetwork=false"], false),
        (&["agent.hostNetwork=false", "ambient.enabled=true"], false),
        (&["agent.hostNetwork=false", "ambient.shareHostNetworkNamespace=true"], false),
        (
            &["agent.hostNetwork=false", "ambient.enabled=true", "ambient.shareHostNetworkNamespace=true"],
            true,
        ),
        (&["agent.hostNetwork=false", "ambient.enabled=true", "compatibilityVersion=1.25"], true),
    ] {
        let objects = render_set(values).unwrap();
        let pod = &objects.get("DaemonSet", "istio-cni-node")["spec"]["template"]["spec"];
        let (network, policy) =
            if shared { (json!(true), json!("ClusterFirstWithHostNet")) } else { (Value::Null, Value::Null) };
        assert_eq!((&pod["hostNetwork"], &pod["dnsPolicy"]), (&network, &policy), "{values:?}");
        let variable = |name: &str| {
            let env = objects.container()["env"].as_array().unwrap();
            env.iter().find(|variable| variable["name"] == name).cloned().unwrap_or_default()
        };
        // It switches to the node's namespace only where it is in another one.
        let switches = if shared { Value::Null } else { json!("true") };
        assert_eq!(variable("ALLOW_SWITCH_TO_HOST_NS")["value"], switches, "{values:?}");
        // Nobody can reach the ports of the node by surprise.
        let at = if shared { json!("status.hostIP") } else { Value::Null };
        assert_eq!(variable("LISTEN_ADDRESS")["valueFrom"]["fieldRef"]["fieldPath"], at, "{values:?}");
        let local = if shared { json!("127.0.0.1") } else { Value::Null };
        assert_eq!(variable("HEALTH_ADDRESS")["value"], local, "{values:?}");
        assert_eq!(objects.container()["readinessProbe"]["httpGet"]["host"], local, "{values:?}");
    }
    let open = render_set(&["agent.metricsAddress=0.0.0.0"]).unwrap();
    let env = open.container()["env"].to_string();
    assert!(env.contains(r#""name":"LISTEN_ADDRESS","value":"0.0.0.0""#), "{env}");
}

#[test]
fn a_strict_status_needs_the_nodes_network() {
    render_set(&["agent.strictStatus=true"]).unwrap();
    let error = render_set(&["agent.strictStatus=true", "agent.hostNetwork=false"]).unwrap_err().to_string();
    assert!(error.contains("agent.strictStatus needs an agent on the node's network"), "{error}");
}

#[test]
fn profiles_of_the_kernel_are_passed_on() {
    let annotation = "container.apparmor.security.beta.kubernetes.io/install-cni";
    let annotations = |objects: &Objects| {
        objects.get("DaemonSet", "istio-cni-node")["spec"]["template"]["metadata"]["annotations"].clone()
    };
    for (version, by_annotation) in
        [("1.26.0", true), ("1.29.9", true), ("1.30.0", false), ("1.36.1-gke.7", false)]
    {
        let objects = render(&["--kube-version", version]).unwrap();
        let (annotation, context) =
            (&annotations(&objects)[annotation], &objects.container()["securityContext"]);
        assert_eq!(annotation == "unconfined", by_annotation, "{version}: {annotation}");
        assert_eq!(context["appArmorProfile"].is_null(), by_annotation, "{version}: {context}");
        for field in ["seccompProfile", "seLinuxOptions"] {
            assert!(context[field].is_null(), "{field}");
        }
    }
    let set =
        ["useAppArmorAnnotation=false", "seccompProfile.type=RuntimeDefault", "seLinuxOptions.level=s0:c1"];
    let objects = render_set(&set).unwrap();
    let context = &objects.container()["securityContext"];
    assert!(annotations(&objects)[annotation].is_null());
    assert_eq!(context["appArmorProfile"], json!({"type": "Unconfined"}));
    assert_eq!(context["seccompProfile"], json!({"type": "RuntimeDefault"}));
    assert_eq!(context["seLinuxOptions"], json!({"level": "s0:c1", "type": "spc_t"}));
    let typed = render_set(&["seLinuxOptions.type=mine_t"]).unwrap();
    assert_eq!(typed.container()["securityContext"]["seLinuxOptions"], json!({"type": "mine_t"}));
}

#[test]
fn capabilities_can_be_added() {
    let values = ["agent.extraCapabilities={CHOWN}", "repair.enabled=false,verification.enabled=false"];
    let objects = render_set(&values).unwrap();
    assert_eq!(capabilities(&objects), ["CHOWN", "DAC_OVERRIDE"]);
}

/// Rolling back by image only.
#[test]
fn the_originals_image_can_run() {
    let objects =
        render_set(&["image=registry.test/istio/install-cni:1.2", "agent.readOnlyRootFilesystem=false"])
            .unwrap();
    assert_eq!(objects.container()["image"], "registry.test/istio/install-cni:1.2");
    assert_eq!(objects.container()["securityContext"]["readOnlyRootFilesystem"], false);
}
