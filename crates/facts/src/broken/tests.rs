use serde_json::{Value, json};

use super::*;

const VALIDATION: &str = "istio-validation";

/// Those of the chart, but for code and message.
fn rules(exit_code: i32, message: &str) -> BrokenRules {
    BrokenRules {
        annotation: "sidecar.istio.io/status".into(),
        container: VALIDATION.into(),
        message: message.into(),
        exit_code,
    }
}

fn pod(annotated: bool, statuses: &Value) -> Object {
    let annotations = if annotated { json!({"sidecar.istio.io/status": ""}) } else { json!({}) };
    let pod = json!({
        "kind": "Pod", "metadata": {"name": "web", "annotations": annotations},
        "spec": {"containers": [{"name": "app"}]}, "status": {"initContainerStatuses": statuses},
    });
    // As the agent keeps it.
    serde_json::from_value::<Object>(pod).unwrap().trimmed()
}

fn ended(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "message": message}})
}

fn status(name: &str, state: &Value, last: &Value) -> Value {
    json!({"name": name, "state": state, "lastState": last})
}

#[test]
fn the_cases_of_the_original() {
    let waiting = || json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let failed = || ended(126, "Error", "");
    let well = || ended(0, "Completed", "");
    let none = || json!({});
    let said = |message| ended(0, "Error", message);
    // What it is; annotated; state now and before; code and message that are looked for; whether it is broken.
    for (what, annotated, state, last, code, message, broken) in [
        ("healthy", true, well(), none(), 126, "", false),
        ("failed before and is well now", true, well(), failed(), 126, "", false),
        ("crash loop", true, waiting(), failed(), 126, "", true),
        ("running its second try", true, json!({"running": {}}), failed(), 126, "", true),
        ("has just failed again", true, failed(), failed(), 126, "", true),
        ("another code is wanted", true, waiting(), failed(), 55, "", false),
        ("not injected", false, waiting(), failed(), 126, "", false),
        (
            "the message differs",
            true,
            waiting(),
            said("This Does Not Match"),
            0,
            "Termination Message",
            false,
        ),
        (
            "the message is equal",
            true,
            waiting(),
            said("Termination Message"),
            0,
            "Termination Message",
            true,
        ),
        ("but for blanks", true, waiting(), said("Termination Message  "), 0, "  Termination Message", true),
        ("the code differs", true, waiting(), ended(121, "Error", ""), 126, "", false),
        ("an empty status", true, none(), none(), 126, "", false),
        ("the first failure only", true, failed(), none(), 126, "", false),
    ] {
        let pod = pod(annotated, &json!([status(VALIDATION, &state, &last)]));
        assert_eq!(rules(code, message).is_broken(&pod), broken, "{what}");
    }
    // Annotations are not asked for where none is named.
    let unnamed = BrokenRules { annotation: String::new(), ..rules(126, "") };
    assert!(unnamed.is_broken(&pod(false, &json!([status(VALIDATION, &waiting(), &failed())]))));
}

#[test]
fn any_container_of_the_name_counts_and_without_a_name_any() {
    let waiting = json!({"waiting": {}});
    let fails = |name: &str| status(name, &waiting, &ended(126, "Error", ""));
    let well = |name: &str| status(name, &ended(0, "Completed", ""), &json!({}));
    let second = pod(true, &json!([well("first"), fails(VALIDATION)]));
    assert!(rules(126, "").is_broken(&second));
    let other = pod(true, &json!([fails("other"), well(VALIDATION)]));
    assert!(!rules(126, "").is_broken(&other));
    let any = BrokenRules { container: String::new(), ..rules(126, "") };
    assert!(any.is_broken(&other) && any.is_broken(&second));
}

#[test]
fn the_try_that_failed_last_is_told_by_its_start() {
    let at = |time: &str, code| json!({"terminated": {"exitCode": code, "startedAt": time}});
    let before = at("2026-01-01T00:00:00Z", 126);
    let of = |state: Value| pod(true, &json!([status(VALIDATION, &state, &before)]));
    assert_eq!(rules(126, "").failure(&of(json!({"waiting": {}}))), Some("2026-01-01T00:00:00Z"));
    assert_eq!(rules(126, "").failure(&of(at("2026-01-01T00:00:09Z", 126))), Some("2026-01-01T00:00:09Z"));
    assert_eq!(rules(126, "").failure(&of(at("2026-01-01T00:00:09Z", 0))), None);
}

#[test]
fn a_pod_that_nothing_starts_again_is_lost() {
    let lost = |phase: &str, policy: &str, code| {
        let pod = json!({
            "kind": "Pod", "metadata": {"name": "job", "annotations": {"sidecar.istio.io/status": "{}"}},
            "spec": {"restartPolicy": policy, "containers": [{"name": "app"}]},
            "status": {"phase": phase, "initContainerStatuses": [status(VALIDATION, &ended(code, "Error", ""), &json!({}))]},
        });
        rules(126, "").is_lost(&serde_json::from_value::<Object>(pod).unwrap().trimmed())
    };
    assert!(lost("Failed", "Never", 126));
    assert!(
        !lost("Pending", "Never", 126) && !lost("Failed", "OnFailure", 126) && !lost("Failed", "Never", 1)
    );
}

#[test]
fn a_validation_that_has_failed_waits_for_kubelet_until_it_runs_again() {
    let waiting = || json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let (failed, none) = (|| ended(126, "Error", ""), || json!({}));
    for (what, annotated, state, last, waits) in [
        ("it has not started yet", true, waiting(), none(), false),
        ("the first failure", true, failed(), none(), true),
        ("crash loop", true, waiting(), failed(), true),
        ("it runs again", true, json!({"running": {}}), failed(), false),
        ("it is well now", true, ended(0, "Completed", ""), failed(), false),
        ("it fails otherwise", true, waiting(), ended(1, "Error", ""), false),
        ("it is another's", false, waiting(), failed(), false),
    ] {
        let pod = pod(annotated, &json!([status(VALIDATION, &state, &last)]));
        assert_eq!(rules(126, "").waits_for_kubelet(&pod), waits, "{what}");
    }
}
