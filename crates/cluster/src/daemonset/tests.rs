use serde_json::{Value, json};

use super::*;

fn set(spec: &Value) -> DaemonSet {
    serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"template": {"spec": spec}}})).unwrap()
}

fn deleting() -> DaemonSet {
    let metadata = json!({"name": "a", "deletionTimestamp": "2026-08-01T09:30:00Z"});
    serde_json::from_value(json!({"metadata": metadata})).unwrap()
}

fn orphaning() -> DaemonSet {
    let metadata = json!({"deletionTimestamp": "2026-08-01T09:30:00Z", "finalizers": ["x/y", "orphan"]});
    serde_json::from_value(json!({"metadata": metadata})).unwrap()
}

fn node(taints: &Value) -> Node {
    let metadata = json!({"name": "n1", "labels": {"pool": "mesh", "kubernetes.io/os": "linux"}});
    serde_json::from_value(json!({"metadata": metadata, "spec": {"taints": taints}})).unwrap()
}

fn affinity(operator: &str, values: &[&str]) -> Value {
    let term = json!({"matchExpressions": [{"key": "pool", "operator": operator, "values": values}]});
    let required = json!({"nodeSelectorTerms": [term]});
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
}

/// What was seen, and what follows from it: the whole decision.
#[test]
fn what_was_seen_decides() {
    let anywhere = || Sight::There(set(&json!({})));
    let selects = |value: &str| Sight::There(set(&json!({"nodeSelector": {"pool": value}})));
    let known = || Some(node(&json!([])));
    let table = [
        ("nothing was seen", Sight::Never, None, "was not seen", false),
        ("only the node was seen", Sight::Never, known(), "was not seen", false),
        ("it exists", anywhere(), known(), "another agent follows", false),
        ("it exists, the node is not known", anywhere(), None, "another agent follows", false),
        ("it is being deleted", Sight::There(deleting()), known(), "was deleted", true),
        (
            "it is being deleted without its pods",
            Sight::There(orphaning()),
            known(),
            "without its pods",
            false,
        ),
        ("it was deleted without its pods", Sight::Orphaned, known(), "without its pods", false),
        ("it was deleted", Sight::Deleted, known(), "was deleted", true),
        ("it was deleted, the node is not known", Sight::Deleted, None, "was deleted", true),
        ("it never existed", Sight::Absent, known(), "does not exist", true),
        ("its nodeSelector fits", selects("mesh"), known(), "another agent follows", false),
        ("its nodeSelector does not fit", selects("edge"), known(), "lacks the label pool=edge", true),
        ("its nodeSelector and no node", selects("edge"), None, "node was not seen", false),
        ("its affinity fits", Sight::There(set(&affinity("In", &["mesh"]))), known(), "follows", false),
        (
            "its affinity does not",
            Sight::There(set(&affinity("NotIn", &["mesh"]))),
            known(),
            "affinity",
            true,
        ),
        (
            "its affinity is not valid",
            Sight::There(set(&affinity("Has", &["a"]))),
            known(),
            "is not valid",
            false,
        ),
        ("its affinity is empty", Sight::There(set(&affinity("In", &[]))), known(), "is not valid", false),
        ("another node", Sight::There(set(&json!({"nodeName": "n2"}))), known(), "for node n2", true),
        ("this node", Sight::There(set(&json!({"nodeName": "n1"}))), known(), "follows", false),
    ];
    for (row, daemonset, node, text, is_end) in table {
        let outlook = decide(&Seen { name: "a".into(), daemonset, node, ..Seen::default() });
        assert!(outlook.to_string().contains(text), "{row}: {outlook}");
        assert_eq!(outlook.is_end(), is_end, "{row}: {outlook}");
    }
}

#[test]
fn taints_keep_off_what_does_not_tolerate_them() {
    let mine = json!({"key": "team", "value": "db", "effect": "NoSchedule"});
    let of = |key: &str, effect: &str| json!({"key": key, "effect": effect});
    let every = |effect: &str| json!([{"operator": "Exists", "effect": effect}]);
    let table = [
        ("no toleration", json!([]), mine.clone(), true),
        ("the chart's", every("NoSchedule"), mine.clone(), false),
        ("of another effect", every("NoExecute"), mine.clone(), true),
        ("of every effect", json!([{"operator": "Exists"}]), mine.clone(), false),
        ("by key and value", json!([{"key": "team", "value": "db"}]), mine.clone(), false),
        (
            "of another value",
            json!([{"key": "team", "operator": "Equal", "value": "web"}]),
            mine.clone(),
            true,
        ),
        ("of another key", json!([{"key": "owner", "operator": "Exists"}]), mine.clone(), true),
        ("an operator of later", json!([{"key": "team", "operator": "Gt", "value": "1"}]), mine, false),
        ("evicting", json!([]), of("team", "NoExecute"), true),
        ("a preference", json!([]), of("team", "PreferNoSchedule"), false),
        ("cordoned", json!([]), of("node.kubernetes.io/unschedulable", "NoSchedule"), false),
        ("not ready", json!([]), of("node.kubernetes.io/not-ready", "NoExecute"), false),
        ("not ready, for the scheduler", json!([]), of("node.kubernetes.io/not-ready", "NoSchedule"), false),
        ("unreachable", json!([]), of("node.kubernetes.io/unreachable", "NoExecute"), false),
        ("short of memory", json!([]), of("node.kubernetes.io/memory-pressure", "NoSchedule"), false),
        (
            "not set up yet",
            json!([]),
            of("node.cloudprovider.kubernetes.io/uninitialized", "NoSchedule"),
            false,
        ),
        ("a domain that looks alike", json!([]), of("node.kubernetes.io.example.org/x", "NoSchedule"), true),
    ];
    for (row, tolerations, taint, is_end) in table {
        let daemonset = Sight::There(set(&json!({"tolerations": tolerations})));
        let mut seen =
            Seen { name: "a".into(), daemonset, node: Some(node(&json!([&taint]))), ..Seen::default() };
        let outlook = decide(&seen);
        assert_eq!(outlook.is_end(), is_end, "{row}: {outlook}");
        seen.pod_stays = true;
        let evicts = taint["effect"] == "NoExecute";
        assert_eq!(decide(&seen).is_end(), is_end && evicts, "{row}: a pod that is not being deleted");
    }
}

/// Its pods are deleted after it, so that they are there is no sign that they stay.
#[test]
fn a_deletion_is_an_end_though_the_pod_is_still_there() {
    for daemonset in [Sight::There(deleting()), Sight::Deleted, Sight::Absent] {
        let seen = Seen { daemonset, pod_stays: true, ..Seen::default() };
        assert!(decide(&seen).is_end(), "{seen:?}");
    }
}

#[test]
fn one_that_is_there_again_takes_the_evidence_back() {
    let mut seen = Seen::default();
    seen.gone();
    assert_eq!(decide(&seen), Outlook::Absent);
    seen.there(set(&json!({})));
    assert_eq!(decide(&seen), Outlook::Follows);
    for _ in 0..2 {
        seen.gone();
        assert_eq!(decide(&seen), Outlook::Deleted);
    }
    seen.there(deleting());
    assert_eq!(decide(&seen), Outlook::Deleted);
    seen.there(set(&json!({})));
    assert_eq!(decide(&seen), Outlook::Follows);
}

/// `kubectl delete --cascade=orphan` is how people change what cannot be changed in a DaemonSet: the agents go on.
#[test]
fn a_deletion_without_its_pods_is_no_end() {
    let mut seen = Seen { daemonset: Sight::There(set(&json!({}))), ..Seen::default() };
    seen.there(orphaning());
    assert!(!decide(&seen).is_end());
    seen.gone();
    seen.gone();
    assert!(!decide(&seen).is_end());
    seen.there(set(&json!({})));
    assert_eq!(decide(&seen), Outlook::Follows);
    seen.there(deleting());
    seen.gone();
    assert_eq!(decide(&seen), Outlook::Deleted);
}
