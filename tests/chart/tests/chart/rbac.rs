//! Who may what in the cluster: section 11.1 of the specification, with what `README.md` of the chart adds to it.

use chart::render_set;

use crate::combinations;

const PODS: &str = "core namespaces,nodes,pods: get,list,watch";
const DAEMON_SET: &str = "apps daemonsets[istio-cni-node]: get,list,watch";
/// About pods, and about the agent's own: a port that is taken, another agent on the node.
const EVENTS: &str = "core events: create";
const EVENTS_OF_REPAIR: &str = "core events: create,patch";
const MARKS: &str = "core pods/status: patch";

/// N-14.
#[test]
fn rights_follow_from_the_features() {
    for (features, objects) in combinations() {
        let enters = features.ambient || (features.enabled && features.repair);
        let rights =
            if enters { &[PODS, DAEMON_SET, EVENTS, MARKS][..] } else { &[PODS, DAEMON_SET, EVENTS] };
        assert_eq!(objects.rights("istio-cni"), rights, "{features:?}");

        if features.enabled {
            let mut repair = vec![EVENTS_OF_REPAIR, "core pods: get,list,watch"];
            match (features.repair, features.delete, features.label) {
                (false, true, _) => repair.push("core pods: delete"),
                (false, false, true) => repair.push("core pods/status: patch,update"),
                (true, ..) | (false, false, false) => {}
            }
            assert_eq!(objects.rights("istio-cni-repair-role"), repair, "{features:?}");
        }
        if features.ambient {
            assert_eq!(
                objects.rights("istio-cni-ambient"),
                ["core pods/status: patch,update", EVENTS],
                "{features:?}"
            );
        }
        for (role, binding, there) in [
            ("istio-cni", "istio-cni", true),
            ("istio-cni-repair-role", "istio-cni-repair-rolebinding", features.enabled),
            ("istio-cni-ambient", "istio-cni-ambient", features.ambient),
        ] {
            assert_eq!(objects.find("ClusterRole", role).is_some(), there, "{role} with {features:?}");
            assert_eq!(
                objects.find("ClusterRoleBinding", binding).is_some(),
                there,
                "{binding} with {features:?}"
            );
            if there {
                let binding = objects.get("ClusterRoleBinding", binding);
                assert_eq!(binding["roleRef"]["name"], role);
                let account =
                    serde_json::json!([{"kind": "ServiceAccount", "name": "istio-cni", "namespace": "mesh"}]);
                assert_eq!(binding["subjects"], account);
            }
        }
    }
}

#[test]
fn an_open_failure_policy_may_tell_about_it() {
    let rights = |policy: &str| {
        let policy = format!("agent.failurePolicy={policy}");
        render_set(&[&policy, "repair.repairPods=false"]).unwrap().rights("istio-cni")
    };
    assert_eq!(rights("open"), [PODS, DAEMON_SET, EVENTS, MARKS]);
    assert_eq!(rights("closed"), [PODS, DAEMON_SET, EVENTS]);
}

#[test]
fn manifests_need_no_pods_of_the_api_but_the_agents_own() {
    let rights = render_set(&["agent.podSource=manifests:/etc/pods"]).unwrap().rights("istio-cni");
    assert_eq!(rights, ["core nodes: get,list,watch", "core pods: get", DAEMON_SET, EVENTS, MARKS]);
}

#[test]
fn openshift_needs_its_security_context() {
    let context = "security.openshift.io securitycontextconstraints[privileged]: use";
    for name in ["platform", "global.platform", "cni.platform"] {
        let rights = render_set(&[&format!("{name}=openshift")]).unwrap().rights("istio-cni");
        assert_eq!(rights, [PODS, DAEMON_SET, EVENTS, MARKS, context], "{name}");
    }
}

#[test]
fn no_right_is_for_everything() {
    for (_, objects) in combinations() {
        for role in objects.iter().filter(|object| object["kind"] == "ClusterRole") {
            assert!(!role["rules"].to_string().contains('*'), "{role}");
            assert!(!role["rules"].to_string().contains("secrets"), "{role}");
        }
    }
}
