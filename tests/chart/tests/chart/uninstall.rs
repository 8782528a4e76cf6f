//! The hook that runs before an uninstallation.

use chart::{Objects, render, render_set};

const NAME: &str = "istio-cni-uninstall";
const KINDS: [&str; 4] = ["ServiceAccount", "Role", "RoleBinding", "Job"];

fn hooked(values: &[&str]) -> Objects {
    render_set(&[&["agent.uninstallHook=true"], values].concat()).unwrap()
}

#[test]
fn everything_of_the_hook_is_a_hook_and_goes_with_it() {
    let objects = hooked(&[]);
    for kind in KINDS {
        let metadata = &objects.get(kind, NAME)["metadata"];
        assert_eq!(metadata["namespace"], "mesh");
        let annotations = &metadata["annotations"];
        assert_eq!(annotations["helm.sh/hook"], "pre-delete", "{kind}");
        assert_eq!(
            annotations["helm.sh/hook-delete-policy"], "before-hook-creation,hook-succeeded",
            "{kind}"
        );
        // The rights are there before the Job.
        let weight = if kind == "Job" { "0" } else { "-1" };
        assert_eq!(annotations["helm.sh/hook-weight"], weight, "{kind}");
    }
}

/// Rendered without a cluster, the Job may be applied by something that knows no hooks: it would delete the DaemonSet.
#[test]
fn the_hook_is_there_only_for_helm_itself() {
    for args in [&[][..], &["--set", "agent.uninstallHook=auto"], &["--set", "agent.uninstallHook=false"]] {
        assert!(render(args).unwrap().find("Job", NAME).is_none(), "{args:?}");
    }
    assert!(hooked(&["global.resourceScope=namespace"]).find("Job", NAME).is_some());
    assert!(hooked(&["global.resourceScope=cluster"]).find("Job", NAME).is_none());
    assert!(render_set(&["agent.uninstallHook=perhaps"]).is_err());
}

#[test]
fn it_may_delete_the_daemonset_and_nothing_else() {
    let objects = hooked(&[]);
    let rule = serde_json::json!([{"apiGroups": ["apps"], "resources": ["daemonsets"],
        "resourceNames": ["istio-cni-node"], "verbs": ["get", "delete"]}]);
    assert_eq!(objects.get("Role", NAME)["rules"], rule);
    let binding = objects.get("RoleBinding", NAME);
    assert_eq!(binding["roleRef"]["name"], NAME);
    assert_eq!(binding["subjects"][0]["name"], NAME);
}

/// It runs wherever an agent does, with the agent's image, whatever becomes of the pods' network, and ends before Helm's patience does.
#[test]
fn its_pod_starts_on_any_node() {
    for values in [&[][..], &["tolerations=null"], &["hub=reg.example.org", "tag=7"]] {
        let objects = hooked(values);
        let spec = &objects.get("Job", NAME)["spec"];
        let (pod, agent) = (
            &spec["template"]["spec"],
            &objects.get("DaemonSet", "istio-cni-node")["spec"]["template"]["spec"],
        );
        assert_eq!(pod["tolerations"], agent["tolerations"], "{values:?}");
        assert_eq!(pod["nodeSelector"], agent["nodeSelector"], "{values:?}");
        let container = &pod["containers"][0];
        assert_eq!(container["image"], agent["containers"][0]["image"], "{values:?}");
        assert_eq!(container["command"], serde_json::json!(["install-cni", "delete-daemonset"]));
        assert_eq!(container["securityContext"]["capabilities"], serde_json::json!({"drop": ["ALL"]}));
        assert_eq!((&pod["hostNetwork"], &pod["restartPolicy"]), (&true.into(), &"Never".into()));
        assert_eq!(pod["serviceAccountName"], NAME);
        assert!(spec["activeDeadlineSeconds"].as_u64().is_some_and(|seconds| (241..300).contains(&seconds)));
        // The DaemonSet's selector and the mesh's selectors must not take it for something else.
        let labels = &spec["template"]["metadata"]["labels"];
        assert!(labels["k8s-app"].is_null() && labels["istio.io/dataplane-mode"] == "none", "{labels}");
    }
}
