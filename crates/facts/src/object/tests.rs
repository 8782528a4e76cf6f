use super::*;
use crate::PodRef;

const POD: &str = r#"{
  "apiVersion": "v1", "kind": "Pod",
  "metadata": {
    "name": "web-0", "namespace": "shop", "uid": "u1", "resourceVersion": "7", "managedFields": [{"manager": "x"}],
    "labels": {"app": "web"},
    "annotations": {"sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/excludeInboundPorts": "1", "istio.io/rev": "a",
      "kubernetes.io/config.hash": "h", "prometheus.io/scrape": "true", "notistio.io/x": "1", "plain": "1"}
  },
  "spec": {
    "hostNetwork": false, "runtimeClassName": "runc-hardened",
    "securityContext": {"runAsGroup": 1338, "fsGroup": 77, "sysctls": [{"name": "x"}]}, "volumes": [{"name": "v"}],
    "initContainers": [{"name": "setup", "image": "i", "args": ["a"], "env": [{"name": "PASSWORD", "value": "secret"}]}],
    "containers": [
      {"name": "app", "env": [{"name": "TOKEN", "value": "secret"}], "securityContext": {"runAsUser": 5}},
      {"name": "istio-proxy", "args": ["proxy", "sidecar", "--secret"], "restartPolicy": "Always",
       "env": [{"name": "ISTIO_DUAL_STACK", "value": "true"}, {"name": "OTHER", "value": "secret"}, {"name": "INVALID_DROP"}],
       "securityContext": {"runAsUser": 1337, "runAsGroup": 1338, "capabilities": {}}}]
  },
  "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "conditions": []}
}"#;

fn pod() -> Object {
    serde_json::from_str(POD).unwrap()
}

#[test]
fn trimming_keeps_the_decision_and_drops_what_nobody_reads() {
    let whole = pod();
    let trimmed = pod().trimmed();
    let text = serde_json::to_string(&trimmed).unwrap();
    for dropped in
        ["secret", "prometheus", "notistio", "plain", "volumes", "conditions", "resourceVersion", "null"]
    {
        assert!(!text.contains(dropped), "{dropped} in {text}");
    }
    assert!(!text.contains("fsGroup") && !text.contains(r#""securityContext":{}"#), "{text}");
    let kept = pod().trimmed().into_pod(&PodRef::default()).unwrap();
    assert_eq!((kept.run_as_user, kept.run_as_group), (None, Some(1338)));
    assert_eq!(kept.runtime_class.as_deref(), Some("runc-hardened"));
    assert_eq!((kept.containers[0].run_as_user, kept.containers[0].run_as_group), (Some(5), None));
    let decide = |object: Object| {
        let pod = object.into_pod(&PodRef::default()).unwrap();
        capture::decide(&pod, &Default::default(), &Default::default(), &Default::default())
    };
    let kept: Object = serde_json::from_str(&text).unwrap();
    assert_eq!(decide(kept), decide(whole));
}

#[test]
fn trimming_keeps_when_the_sandbox_was_made_whose_check_ended_and_whether_the_proxy_runs() {
    let condition = |kind: &str, status: &str| {
        format!(
            r#"{{"type": "{kind}", "status": "{status}", "lastTransitionTime": "2026-11-29T10:00:05Z", "message": "m"}}"#
        )
    };
    let init = |name: &str, state: &str| format!(r#"{{"name": "{name}", "image": "i", "state": {state}}}"#);
    let status = |ready: &str| -> Object {
        let text = format!(
            r#"{{"status": {{"startTime": "2026-11-29T10:00:00Z", "conditions": [{}, {}],
              "initContainerStatuses": [{}, {}, {}, {}], "containerStatuses": [{}, {}]}}}}"#,
            condition("Ready", "True"),
            condition("PodReadyToStartContainers", ready),
            init("istio-validation", r#"{"terminated": {"exitCode": 0, "reason": "Completed"}}"#),
            init("setup", r#"{"terminated": {"exitCode": 126}}"#),
            init("slow", r#"{"running": {}}"#),
            init("new", "null"),
            init("app", r#"{"running": {}}"#),
            init("istio-proxy", r#"{"running": {"startedAt": "2026-11-29T10:00:07Z"}}"#),
        );
        serde_json::from_str::<Object>(&text).unwrap().trimmed()
    };
    let pod = status("True");
    assert_eq!(pod.start_time(), Some("2026-11-29T10:00:00Z"));
    assert_eq!(pod.sandbox_ready_time(), Some("2026-11-29T10:00:05Z"));
    let completed = ["istio-validation", "setup", "slow", "new", "other"].map(|name| pod.has_completed(name));
    assert_eq!(completed, [true, false, false, false, false]);
    assert!(pod.proxy_runs());
    let kept = pod.status.unwrap();
    assert_eq!((kept.conditions.unwrap().len(), kept.init_container_statuses.unwrap().len()), (1, 2));
    assert_eq!(kept.container_statuses.unwrap().len(), 1);
    let unready = status("False");
    assert_eq!(unready.sandbox_ready_time(), None);
    assert_eq!(unready.status.unwrap().conditions, None);
}

#[test]
fn a_trimmed_object_reads_as_it_was_written() {
    let trimmed = Object { status: None, ..pod().trimmed() };
    let mut read: Object = serde_json::from_str(&serde_json::to_string(&trimmed).unwrap()).unwrap();
    if let Some(metadata) = &mut read.metadata {
        metadata.resource_version = Some("7".into());
    }
    assert_eq!(read, trimmed);
}

#[test]
fn another_incarnation_is_told_from_a_static_pod() {
    let id = |uid: &str| PodRef { uid: uid.into(), ..PodRef::default() };
    assert!(pod().into_pod(&id("u1")).is_ok());
    assert!(pod().into_pod(&id("h")).is_ok(), "the hash of a static pod");
    let stale = Unfit::Stale { wanted: "u2".into(), found: "u1".into() };
    assert_eq!(pod().into_pod(&id("u2")), Err(stale));
}

#[test]
fn status_is_read() {
    let status = pod().status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ips.unwrap()[1].ip.as_deref(), Some("fd00::1"));
}

/// What ambient mode reads survives the trimming; phase and addresses are handed on, and nothing else of the status.
#[test]
fn what_ambient_mode_reads() {
    let object: Object = serde_json::from_str(
        r#"{"kind":"Pod","metadata":{"name":"a","namespace":"n","uid":"u","labels":{"app":"x","none":null},
            "annotations":{"ambient.istio.io/redirection":"enabled","other/one":"1"}},
            "spec":{"serviceAccountName":"sa","runtimeClassName":"kata","hostNetwork":true,"containers":[{"name":"c"}]},
            "status":{"phase":"Failed","podIP":"10.0.0.9","podIPs":[{"ip":"10.0.0.1"},{"ip":"::ffff:10.0.0.2"},{"ip":"fd00::1"},{"ip":"no"},{}]}}"#,
    )
    .unwrap();
    let pod = object.trimmed();
    assert_eq!((pod.label("app"), pod.label("none"), pod.label("absent")), (Some("x"), Some(""), None));
    assert_eq!(pod.annotation("ambient.istio.io/redirection"), Some("enabled"));
    assert_eq!(pod.annotations().len(), 1);
    assert_eq!((pod.service_account(), pod.runtime_class(), pod.host_network()), ("sa", Some("kata"), true));
    assert!(pod.is_terminal());
    let ips: Vec<std::net::IpAddr> = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|ip| ip.parse().unwrap()).into();
    assert_eq!(pod.ips(), ips);
    let again: Object = serde_json::from_slice(&serde_json::to_vec(&pod).unwrap()).unwrap();
    assert_eq!((again.service_account(), again.runtime_class()), ("sa", Some("kata")));
    assert_eq!((again.phase(), again.ips()), ("Failed", ips));
    let one: Object = serde_json::from_str(r#"{"status":{"podIP":"10.0.0.9","podIPs":[]}}"#).unwrap();
    assert_eq!(one.ips(), ["10.0.0.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(Object::default().ips(), Vec::<std::net::IpAddr>::new());
}

/// By what a running pod's namespace is found, also after the object was kept on disk.
#[test]
fn what_a_namespace_is_found_by() {
    let of = |metadata: &str, spec: &str| {
        let text = format!(
            r#"{{"kind": "Pod", "metadata": {{"annotations": {{{metadata}}}}}, "spec": {{{spec}}}}}"#
        );
        let object: Object = serde_json::from_str(&text).unwrap();
        let kept: Object = serde_json::from_str(&serde_json::to_string(&object.trimmed()).unwrap()).unwrap();
        (kept.static_hash().map(str::to_owned), kept.has_own_users())
    };
    assert_eq!(of("", ""), (None, false));
    assert_eq!(of("", r#""hostUsers": true"#), (None, false));
    assert_eq!(of("", r#""hostUsers": false"#), (None, true));
    // Anybody may write the one, only a node the other.
    let (hash, mirror) = (r#""kubernetes.io/config.hash": "h""#, r#""kubernetes.io/config.mirror": "m""#);
    assert_eq!(of(hash, "").0, None);
    assert_eq!(of(mirror, "").0.as_deref(), Some("m"));
    assert_eq!(of(&format!("{hash}, {mirror}"), "").0.as_deref(), Some("h"));
}
