use serde_json::{Value, json};

use super::*;

const START: u64 = 1_796_000_000;

fn time(offset: i64) -> String {
    // 2026-11-30T00:53:20Z, and seconds from there.
    let seconds = 53 * 60 + 20 + offset;
    format!("2026-11-30T{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn sidecar(start: i64, ready: Option<i64>) -> Value {
    let ready = ready.map(|ready| {
        json!({"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": time(ready)})
    });
    json!({
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy", "args": ["proxy", "sidecar"]}]},
        "status": {
            "phase": "Running", "podIP": "10.0.0.1", "startTime": time(start),
            "conditions": ready.into_iter().collect::<Vec<_>>(),
        },
    })
}

fn object(value: &Value) -> Object {
    serde_json::from_value::<Object>(value.clone()).unwrap().trimmed()
}

fn rules() -> SuspectRules {
    let scope = Exclusions {
        agent_namespace: "istio-system".into(),
        excluded_namespaces: vec!["kube-system".into()],
        ..Exclusions::default()
    };
    SuspectRules { scope, check: "istio-validation".into() }
}

fn suspect(pod: &Value, from: i64, until: i64) -> bool {
    let at = |offset: i64| START.saturating_add_signed(offset);
    rules().suspect(&object(pod), &[Gap { from: at(from), until: at(until) }]).is_some()
}

const EVER: i64 = -1_700_000_000;

#[test]
fn the_clock_of_these_tests_is_right() {
    assert_eq!(cluster::time::seconds(&time(0)), Some(START));
}

/// When kubelet took the pod up, when its sandbox was ready, the gap, and whether its sandbox may have been made in it.
#[test]
fn a_pod_is_suspect_if_its_sandbox_may_have_been_made_without_the_plugin() {
    for (start, ready, from, until, wanted) in [
        (0, Some(2), EVER, 100, true),
        (0, None, EVER, 100, true),
        // The runtime read the configuration before the plugin was in it.
        (0, Some(20), EVER, 10, true),
        (100, Some(101), EVER, 100, false),
        (100, None, EVER, 100, false),
        // A sandbox that was made anew long after the pod began.
        (0, Some(1000), EVER, 100, false),
        (0, Some(1000), 990, 1010, true),
        // Captured before the configuration was overwritten.
        (0, Some(2), 50, 60, false),
        (0, Some(50), 50, 60, true),
        (55, Some(56), 50, 60, true),
        (60, Some(61), 50, 60, false),
    ] {
        let pod = sidecar(start, ready);
        assert_eq!(suspect(&pod, from, until), wanted, "{start} {ready:?} {from} {until}");
    }
}

/// What is changed of a pod that is suspect, and whether it still is.
#[test]
fn only_pods_that_ask_for_capture_and_do_not_show_it_are_suspect() {
    let status =
        |code: i32| json!([{"name": "istio-validation", "state": {"terminated": {"exitCode": code}}}]);
    let unready =
        json!([{"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": time(1)}]);
    for (path, value, wanted) in [
        ("/metadata/name", json!("api"), true),
        ("/metadata/namespace", json!("kube-system"), false),
        ("/metadata/annotations", json!({}), false),
        (
            "/metadata/annotations",
            json!({"sidecar.istio.io/status": "", "sidecar.istio.io/interceptionMode": "NONE"}),
            false,
        ),
        (
            "/metadata/annotations",
            json!({"sidecar.istio.io/status": "", "traffic.sidecar.istio.io/includeInboundPorts": "x"}),
            true,
        ),
        ("/spec/hostNetwork", json!(true), false),
        ("/spec/initContainers", json!([{"name": "istio-init"}]), false),
        ("/spec/initContainers", json!([{"name": "istio-validation"}]), true),
        ("/spec/containers", json!([{"name": "app"}]), false),
        ("/status/phase", json!("Succeeded"), false),
        ("/status/phase", json!("Pending"), true),
        ("/status/initContainerStatuses", status(0), false),
        ("/status/initContainerStatuses", status(126), true),
        ("/status/startTime", Value::Null, false),
        ("/status/startTime", json!("now"), false),
        // Its ADD may be under way.
        ("/status/podIP", json!(""), false),
        ("/status/conditions", unready, true),
    ] {
        let mut pod = sidecar(0, None);
        let (parent, key) = path.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value.clone();
        assert_eq!(suspect(&pod, EVER, 100), wanted, "{path}: {value}");
    }
    let mut off = rules();
    off.scope.capture_disabled = true;
    assert_eq!(off.suspect(&object(&sidecar(0, None)), &[Gap { from: 0, until: u64::MAX }]), None);
}

/// The pod's name, the uid that the runtime gave, seconds after the pod began: a record of that, and whether it shows that the pod is captured.
#[test]
fn a_record_of_this_sandbox_shows_that_it_is_captured() {
    let mut pod = sidecar(0, Some(2));
    pod["metadata"]["annotations"]["kubernetes.io/config.hash"] = json!("h1");
    let pod = object(&pod);
    let made = Made::of(&pod).unwrap();
    for (name, uid, written, wanted) in [
        ("shop/web", "u1", 1, true),
        ("shop/web", "", 1, true),
        ("shop/web", "h1", 1, true),
        ("shop/web", "u0", 1, false),
        ("shop/web-2", "u1", 1, false),
        ("shop/web", "u1", 500, true),
        ("shop/web", "u1", -300, false),
    ] {
        let origin = Origin {
            netns: netns::NetnsId { dev: 4, ino: 5 },
            pod: name.into(),
            uid: uid.into(),
            interface: "eth0".into(),
            addresses: Vec::new(),
        };
        let written = UNIX_EPOCH + Duration::from_secs(START.saturating_add_signed(written));
        assert_eq!(made.is_recorded(&pod, &origin, written), wanted, "{name} {uid} {written:?}");
    }
}
