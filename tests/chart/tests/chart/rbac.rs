//! Who may what in the cluster: section 11.1 of the specification, with what `README.md` of the chart adds to it.

use chart::render_set;

use crate::combinations;

const PODS: &str = "core nodes,pods: get,list,watch";
const NAMESPACES: &str = "core namespaces: list,watch";
const DAEMON_SET: &str = "apps daemonsets[istio-cni-node]: get,list,watch";
/// About pods, and about the agent's own: a port that is taken, another agent on the node.
const EVENTS: &str = "core events: create,patch";
const MARKS: &str = "core pods/status: patch";

#[test]
fn rights_follow_from_the_features() {
    for (features, objects) in combinations() {
        let always = [PODS, NAMESPACES, DAEMON_SET, EVENTS];
        let more = if features.out_of_ambient { &[MARKS][..] } else { &[] };
        assert_eq!(objects.rights("istio-cni"), [&always[..], more].concat(), "{features:?}");
        for (role, binding, there) in [
            ("istio-cni", "istio-cni", true),
            ("istio-cni-repair-role", "istio-cni-repair-rolebinding", features.repair),
            ("istio-cni-ambient", "istio-cni-ambient", features.ambient),
        ] {
            assert_eq!(objects.find("ClusterRole", role).is_some(), there, "{role} with {features:?}");
            assert_eq!(
                objects.find("ClusterRoleBinding", binding).is_some(),
                there,
                "{binding} with {features:?}"
            );
            if there {
                if role != "istio-cni" {
                    let labels = (role == "istio-cni-ambient").then_some("core namespaces: get");
                    let deletes = role == "istio-cni-repair-role" && !features.repair_pods;
                    let deletion = deletes.then_some("core pods: delete");
                    let wanted: Vec<&str> = labels.into_iter().chain([MARKS]).chain(deletion).collect();
                    assert_eq!(objects.rights(role), wanted, "{features:?}");
                }
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
    let rights =
        |policy: &str| render_set(&[&format!("agent.failurePolicy={policy}")]).unwrap().rights("istio-cni");
    assert_eq!(rights("open"), [PODS, NAMESPACES, DAEMON_SET, EVENTS, MARKS]);
    assert_eq!(rights("closed"), [PODS, NAMESPACES, DAEMON_SET, EVENTS]);
}

#[test]
fn policies_are_watched_only_where_they_are_enforced() {
    let objects = render_set(&["agent.policyEnforcement=on"]).unwrap();
    let policies = "networking.k8s.io networkpolicies: list,watch";
    let (services, slices) = ("core services: list,watch", "discovery.k8s.io endpointslices: list,watch");
    let wanted = [PODS, NAMESPACES, policies, services, slices, DAEMON_SET, EVENTS];
    assert_eq!(objects.rights("istio-cni"), wanted);
    let none = render_set(&["agent.policyEnforcement=off"]).unwrap();
    assert_eq!(none.rights("istio-cni"), [PODS, NAMESPACES, DAEMON_SET, EVENTS]);
}

#[test]
fn nodes_are_patched_only_where_their_taint_is_the_agents() {
    let rights = |values: &[&str]| render_set(values).unwrap().rights("istio-cni");
    for mode in ["remove", "manage"] {
        let wanted = [PODS, NAMESPACES, DAEMON_SET, EVENTS, "core nodes: patch"];
        assert_eq!(rights(&[&format!("agent.nodeTaint={mode}")]), wanted, "{mode}");
    }
    assert_eq!(rights(&["agent.nodeTaint=off"]), [PODS, NAMESPACES, DAEMON_SET, EVENTS]);
    let manifests = rights(&["agent.nodeTaint=manage", "agent.podSource=manifests:/etc/pods"]);
    assert!(!manifests.iter().any(|right| right.contains("patch")), "{manifests:?}");
    assert!(render_set(&["agent.nodeTaint=set"]).is_err());
}

#[test]
fn manifests_need_no_pods_of_the_api_but_the_agents_own() {
    for ambient in [false, true] {
        let values = [&*format!("ambient.enabled={ambient}"), "agent.podSource=manifests:/etc/pods"];
        let objects = render_set(&values).unwrap();
        assert_eq!(objects.rights("istio-cni"), ["core nodes: get,list,watch", "core pods: get", DAEMON_SET]);
        let roles = objects.iter().filter(|object| object["kind"] == "ClusterRole");
        assert_eq!(roles.count(), 1, "ambient {ambient}");
    }
}

const SECURITY_CONTEXT: &str = "security.openshift.io securitycontextconstraints[privileged]: use";

#[test]
fn openshift_needs_its_security_context() {
    for name in ["platform", "global.platform", "cni.platform"] {
        let rights = render_set(&[&format!("{name}=openshift")]).unwrap().rights("istio-cni");
        assert_eq!(rights, [PODS, NAMESPACES, DAEMON_SET, EVENTS, SECURITY_CONTEXT], "{name}");
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
