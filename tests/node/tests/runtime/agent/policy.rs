//! What becomes of a pod that cannot be set up, and the switch that turns capture off.

use std::fs;

use serde_json::{Value, json};
use testkit::apiserver::Resource;

use super::Cluster;
use crate::fixture::{check_captured, is_captured_bare, sidecar_pod};

const LABEL: &str = "cni.istio.io/uninitialized";
const COUNTED: &str = r#"istio_cni_uncaptured_pods_total{reason="failure-policy-open"}"#;

fn wait_for_entry(cluster: &Cluster, key: &str, value: &Value) {
    cluster.wait_for("containerd to use the option", || {
        cluster.entry().is_some_and(|entry| entry.get(key).unwrap_or(&Value::Null) == value)
    });
}

fn notes(cluster: &Cluster) -> Vec<Value> {
    let files = fs::read_dir(cluster.run_dir("uncaptured")).into_iter().flatten().flatten();
    let notes = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "json"));
    notes.map(|note| serde_json::from_slice(&fs::read(note.path()).expect("a note")).expect("JSON")).collect()
}

#[test]
fn closed_says_why_and_open_starts_the_pod_and_tells() {
    let cluster = Cluster::start(&[("NATIVE_NFTABLES", "true"), ("FACTS_TIMEOUT", "2s")]);
    cluster.api.stop();
    let pod = sidecar_pod("default", "unknown");
    let error = cluster.run_bare(&pod).expect_err("closed is the default").to_string();
    for part in [
        r#"plugin type="istio-cni" name="istio-cni" failed (add)"#,
        "istio-cni could not set up pod default/unknown",
        "127.0.0.1:6443",
        "Connection refused",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert_eq!(cluster.node.pods().expect("the pods"), Vec::<String>::new());

    // The agent hands the option to the plugin without a restart, and then is away as well.
    cluster.set_option("FAILURE_POLICY", Some("open"));
    wait_for_entry(&cluster, "failure_policy", &json!("open"));
    cluster.kill_agent();
    let sandbox = cluster.must_run_bare(&pod);
    assert!(!is_captured_bare(&cluster.node, &sandbox), "there were no facts to capture it by");
    assert!(cluster.has_logged(&pod, "WITHOUT CAPTURE"), "{:?}", cluster.plugin_lines(&pod));
    let left = notes(&cluster);
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!((&left[0]["name"], &left[0]["uid"]), (&json!("unknown"), &json!(pod.uid)));

    cluster.admit(&pod);
    cluster.restart_api();
    cluster.start_agent();
    cluster.wait_for("a label and an event", || {
        let object = cluster.api.object(Resource::Pods, "default", "unknown").expect("the pod");
        object["metadata"]["labels"][LABEL] == "true" && !cluster.api.events().is_empty()
    });
    let events = cluster.api.events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["reason"], "StartedWithoutCapture");
    assert_eq!(events[0]["involvedObject"]["uid"], *pod.uid);
    assert!(
        events[0]["message"].as_str().is_some_and(|text| text.contains("Connection refused")),
        "{events:?}"
    );
    cluster.wait_for("the note to go", || notes(&cluster).is_empty());
    assert_eq!(cluster.metric(COUNTED), Some(1.0));

    // With facts, open captures like closed.
    let next = sidecar_pod("default", "known");
    cluster.admit(&next);
    let sandbox = cluster.must_run_bare(&next);
    check_captured(&cluster.node, &sandbox, "a pod under the policy open");
}

#[test]
fn an_open_failure_while_the_agent_runs_waits_for_the_api_server() {
    let cluster = Cluster::start(&[("FAILURE_POLICY", "open"), ("FACTS_TIMEOUT", "1s")]);
    cluster.api.stop();
    let pod = sidecar_pod("default", "unknown");
    let sandbox = cluster.must_run_bare(&pod);
    assert!(!is_captured_bare(&cluster.node, &sandbox));
    cluster.wait_for("a note", || notes(&cluster).len() == 1);
    cluster.wait_for("a count", || cluster.metric(COUNTED) == Some(1.0));
    cluster.wait_for("a try that meets no server", || cluster.agent_log().contains("cannot mark a pod"));
    cluster.admit(&pod);
    cluster.restart_api();
    cluster.wait_for("the note to go", || notes(&cluster).is_empty());
    let object = cluster.api.object(Resource::Pods, "default", "unknown").expect("the pod");
    assert_eq!(object["metadata"]["labels"][LABEL], "true");
    assert_eq!((cluster.api.events().len(), cluster.metric(COUNTED)), (1, Some(1.0)));
}

#[test]
fn capture_is_switched_off_and_on_without_a_restart() {
    let cluster = Cluster::start(&[("NATIVE_NFTABLES", "true")]);
    let [off, on] = ["off", "on"].map(|name| sidecar_pod("default", name));
    cluster.admit_known(&[off.clone(), on.clone()]);

    cluster.set_option("CAPTURE", Some("disabled"));
    wait_for_entry(&cluster, "capture", &json!("disabled"));
    let sandbox = cluster.must_run_bare(&off);
    assert!(!is_captured_bare(&cluster.node, &sandbox), "capture is off");
    assert!(cluster.has_logged(&off, "capture: disabled"), "{:?}", cluster.plugin_lines(&off));
    // A mistake changes nothing, and is told.
    cluster.set_option("CAPTURE", Some("perhaps"));
    cluster.wait_for("an agent that tells of the mistake", || cluster.readyz().1.contains("perhaps"));
    assert_eq!(cluster.entry().expect("an entry")["capture"], "disabled");

    cluster.set_option("CAPTURE", None);
    wait_for_entry(&cluster, "capture", &Value::Null);
    cluster.wait_ready();
    let sandbox = cluster.must_run_bare(&on);
    check_captured(&cluster.node, &sandbox, "a pod after capture was switched on again");
}
