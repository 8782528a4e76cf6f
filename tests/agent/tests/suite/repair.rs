//! Sidecar pods that started without the plugin: they get their rules while they run, or are deleted or labelled.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::apiserver::{Fault, Resource};
use testkit::mesh::{Mesh, MeshPod};
use testkit::{Agent, Launch, PATIENCE, PodCall, PodObject, Process, at_once, eventually};

const LABEL: &str = "cni.istio.io/uninitialized";
/// From the moment in which a pod's sandbox can be seen.
const IN_TIME: Duration = Duration::from_secs(2);
/// After this time whatever follows a change has been done.
pub(crate) const A_WHILE: Duration = Duration::from_millis(1500);

/// An agent in sidecar mode on a node whose processes and namespaces it sees.
pub(crate) fn agent<'a>(mesh: &'a Mesh, mode: &str) -> Launch<'a> {
    let launch = mesh.node.agent();
    let launch = launch.env("HOST_ROOT", &mesh.root().to_string_lossy()).env("CLEANUP_ON_EXIT", "never");
    if mode.is_empty() { launch } else { launch.env(&format!("REPAIR_{mode}_PODS"), "true") }
}

/// The pod as the injector leaves it, while its init containers run.
pub(crate) fn object(pod: &MeshPod) -> PodObject {
    let status = json!({"phase": "Pending", "podIP": pod.ip, "podIPs": [{"ip": pod.ip}]});
    let object = PodObject::named(&pod.name).in_namespace(&pod.namespace).uid(&pod.uid);
    object.on_node("n1").sidecar().with("/status", status)
}

/// A pod whose sandbox is there, and that the API server has.
pub(crate) fn started(mesh: &Mesh, name: &str, change: impl FnOnce(PodObject) -> PodObject) -> MeshPod {
    let pod = mesh.sandbox("default", name).unwrap();
    mesh.run(&pod).unwrap();
    mesh.node.api.set_pod(change(object(&pod)));
    pod
}

/// As kubelet has a pod whose validation fails again and again.
pub(crate) fn broken(object: PodObject) -> PodObject {
    broken_at(object, "2026-01-01T00:00:00Z")
}

/// The same; `time` is when the last try was begun.
fn broken_at(object: PodObject, time: &str) -> PodObject {
    let end = json!({"terminated": {"exitCode": 126, "reason": "Error", "startedAt": time}});
    let state = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let status = json!([{"name": "istio-validation", "lastState": end, "state": state}]);
    object.with("/status/initContainerStatuses", status)
}

/// The rules of both backends and the routing, without what differs from load to load.
pub(crate) fn rules(pod: &MeshPod) -> String {
    let iptables = ["iptables-save", "ip6tables-save"].map(|program| {
        let text = pod.netns.run(&mut Command::new(program)).unwrap();
        text.lines().filter(|line| line.starts_with("-A")).collect::<Vec<_>>().join("\n")
    });
    let ip = |args: &[&str]| pod.netns.run(Command::new("ip").args(args)).unwrap();
    let routes = ip(&["route", "show", "table", "all"]);
    let routes: Vec<&str> = routes.lines().filter(|line| line.contains("table 133")).collect();
    let routing = [ip(&["rule"]), ip(&["-6", "rule"]), routes.join("\n")].join("");
    format!("{}\n{}\n{routing}", pod.netns.nft_text().unwrap(), iptables.join("\n"))
}

pub(crate) fn has_rules(pod: &MeshPod) -> bool {
    rules(pod).contains("15001")
}

pub(crate) fn wait_repaired(pod: &MeshPod) {
    eventually("the pod has its rules", PATIENCE, || {
        ensure!(has_rules(pod), "{}", rules(pod));
        Ok(())
    })
    .unwrap();
}

pub(crate) fn repaired(agent: &Agent, kind: &str, result: &str) -> f64 {
    let series = format!("istio_cni_repair_pods_repaired_total{{result=\"{result}\",type=\"{kind}\"}}");
    agent.metric(&series).unwrap_or(0.0)
}

pub(crate) fn wait_counted(agent: &Agent, kind: &str, result: &str, wanted: f64) {
    eventually(&format!("{kind}/{result} is {wanted}"), PATIENCE, || {
        let found = repaired(agent, kind, result);
        ensure!(found == wanted, "{found}\n{}", agent.log().text());
        Ok(())
    })
    .unwrap();
}

/// Reason, component and message of every Event.
pub(crate) fn events(mesh: &Mesh) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |event: Value| {
        assert_eq!(event["type"], "Warning", "{event}");
        (text(&event["reason"]), text(&event["source"]["component"]), text(&event["message"]))
    };
    mesh.node.api.events().into_iter().map(of).collect()
}

fn wait_events(mesh: &Mesh, count: usize) {
    eventually(&format!("{count} events"), PATIENCE, || {
        let events = mesh.node.api.events();
        ensure!(events.len() == count, "{events:?}");
        Ok(())
    })
    .unwrap();
}

/// The validation container's program where anybody may read it.
pub(crate) struct ValidationProgram(tempfile::TempDir);

impl ValidationProgram {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let program = folder.path().join("istio-iptables");
        testkit::copy_program(&testkit::programs().join("istio-iptables"), &program).unwrap();
        Self(folder)
    }

    /// Starts it in a pod, as kubelet starts the container: as the proxy's user.
    pub(crate) fn start(&self, pod: &MeshPod) -> Process {
        pod.netns.ip(&["link set lo up"]).unwrap();
        let mut validation = Command::new(self.0.path().join("istio-iptables"));
        validation.args(["--run-validation", "--skip-rule-apply"]).uid(1337).gid(1337);
        pod.netns.spawn(&mut validation).unwrap()
    }
}

/// Waits until a validation ends.
pub(crate) fn validation_code(mut validation: Process) -> Option<i32> {
    let ended = eventually("the validation ends", 2 * PATIENCE, || {
        validation.ended()?.ok_or_else(|| anyhow::anyhow!("it runs"))
    });
    ended.unwrap().code()
}

/// Calls of the API that change something.
fn writes(mesh: &Mesh) -> Vec<String> {
    let all = mesh.node.api.requests().into_iter();
    let changes = all.filter(|request| request.method != "GET" && !request.path.contains("/leases"));
    changes.map(|request| format!("{} {}", request.method, request.path)).collect()
}

#[test]
fn a_job_that_started_without_the_plugin_has_its_rules_in_time_for_its_validation() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "REPAIR").ready().unwrap();
    let program = ValidationProgram::new();
    let pod = mesh.sandbox("default", "job").unwrap();
    let validation = program.start(&pod);
    mesh.run(&pod).unwrap();
    let seen = Instant::now();
    mesh.node.api.set_pod(object(&pod).with("/spec/restartPolicy", "Never"));
    wait_repaired(&pod);
    assert!(seen.elapsed() < IN_TIME, "{:?}", seen.elapsed());
    assert_eq!(validation_code(validation), Some(0));
    wait_counted(&agent, "repair", "success", 1.0);
    // However often the pod changes.
    for number in 0..20 {
        mesh.node.api.set_pod(object(&pod).label("number", &number.to_string()));
    }
    std::thread::sleep(A_WHILE);
    assert_eq!((repaired(&agent, "repair", "success"), repaired(&agent, "repair", "fail")), (1.0, 0.0));
}

#[test]
fn a_repaired_pod_has_what_the_plugin_would_have_loaded() {
    at_once(["true", "false", "auto"], |native| {
        let mesh = Mesh::new().unwrap();
        let agent = agent(&mesh, "REPAIR").env("NATIVE_NFTABLES", native).ready().unwrap();
        for (name, annotations, env) in [
            ("plain", &[][..], &[][..]),
            ("lists", &[("excludeOutboundPorts", "9090"), ("includeInboundPorts", "80,81")], &[]),
            ("dns", &[], &[("ISTIO_META_DNS_CAPTURE", "true")]),
        ] {
            let change = |object: PodObject| {
                let all = annotations.iter();
                let full = |(key, value): &(&str, &str)| {
                    (format!("traffic.sidecar.istio.io/{key}"), (*value).to_owned())
                };
                let object =
                    all.map(full).fold(object, |object, (key, value)| object.annotation(&key, &value));
                object.proxy_env(env)
            };
            assert_same_as_plugin(&mesh, name, change);
        }
        let tproxy = |object: PodObject| object.annotation("sidecar.istio.io/interceptionMode", "TPROXY");
        let pod = assert_same_as_plugin(&mesh, "tproxy", tproxy);
        // A try that was begun before says nothing, and one after it that something is wrong. What is there stays as it is.
        mesh.node.api.set_pod(broken(tproxy(object(&pod))));
        mesh.node.api.set_pod(broken_at(tproxy(object(&pod)), "2099-01-01T00:00:00Z"));
        agent.log().wait_for(&["conflict suspected", "pod=default/tproxy"], PATIENCE).unwrap();
        assert_eq!(agent.log().count(&["conflict suspected"]), 1);
        assert!(agent.log().text().contains("none is known in its network namespace"));
        let lookups = pod.netns.run(Command::new("ip").args(["rule"])).unwrap();
        assert_eq!(lookups.matches("lookup 133").count(), 1, "{lookups}");
        wait_counted(&agent, "repair", "success", 4.0);
    });
}

#[test]
fn a_validation_that_fails_again_is_told_with_the_rule_that_may_be_why() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "REPAIR")
        .env("CONFLICT_RESOLUTION", "off")
        .env("VERIFY_INTERVAL", "60s")
        .ready()
        .unwrap();
    let pod = started(&mesh, "web", |object| object);
    wait_repaired(&pod);
    pod.netns
        .nft("table ip other { chain o { type nat hook output priority -150; tcp dport 1-65535 redirect to :9999; }; }")
        .unwrap();
    // What a failed validation is told with is what is known by then.
    agent.log().wait_for(&["CF-P1: ", "in chain o of table other"], PATIENCE).unwrap();
    mesh.node.api.set_pod(broken_at(object(&pod), "2099-01-01T00:00:00Z"));
    agent.log().wait_for(&["conflict suspected: CF-P1: ", "pod=default/web"], PATIENCE).unwrap();
    eventually("the pod's Event says it", PATIENCE, || {
        let told = |event: &serde_json::Value| {
            let text = event["message"].as_str().unwrap_or_default();
            event["reason"] == "CaptureDrift" && text.contains("conflict suspected: CF-P1: ")
        };
        let events = mesh.node.api.events();
        ensure!(events.iter().any(told), "{events:?}");
        Ok(())
    })
    .unwrap();
}

/// Repairs one pod and lets the plugin set up another one with the same object; gives the repaired one.
fn assert_same_as_plugin(mesh: &Mesh, name: &str, change: impl Fn(PodObject) -> PodObject) -> MeshPod {
    let pod = started(mesh, name, &change);
    wait_repaired(&pod);
    let twin = mesh.sandbox("default", &format!("{name}-twin")).unwrap();
    mesh.node.api.set_pod(change(object(&twin)));
    PodCall::new(&mesh.node, &twin.name, &twin.uid, twin.netns.path()).unwrap().add().unwrap();
    assert_eq!(rules(&pod), rules(&twin), "{name}");
    pod
}

#[test]
fn a_pod_that_the_plugin_has_set_up_is_left_as_it_is() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "REPAIR").ready().unwrap();
    let pod = mesh.sandbox("default", "web").unwrap();
    mesh.node.api.set_pod(object(&pod));
    PodCall::new(&mesh.node, "web", &pod.uid, pod.netns.path()).unwrap().add().unwrap();
    let before = rules(&pod);
    mesh.run(&pod).unwrap();
    mesh.node.api.set_pod(object(&pod).label("seen", "true"));
    std::thread::sleep(A_WHILE);
    assert_eq!(rules(&pod), before);
    assert_eq!(repaired(&agent, "repair", "success"), 0.0);
}

#[test]
fn without_a_mode_nothing_is_loaded_and_nothing_written() {
    let mut watches = Vec::new();
    for (mode, enabled) in [("", "true"), ("REPAIR", "false")] {
        let mesh = Mesh::new().unwrap();
        let _agent = agent(&mesh, mode).env("REPAIR_ENABLED", enabled).ready().unwrap();
        let pod = started(&mesh, "web", broken);
        std::thread::sleep(A_WHILE);
        assert!(!has_rules(&pod), "{mode}");
        assert_eq!(writes(&mesh), Vec::<String>::new(), "{mode}");
        watches.push(mesh.node.api.watches());
    }
    assert_eq!(watches[0], watches[1], "repair that is off has no watch of its own");
}

#[test]
fn a_pod_without_a_proxy_or_on_the_nodes_network_never_gets_rules() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "REPAIR").env("EXCLUDE_NAMESPACES", "kube-system").ready().unwrap();
    let plain = started(&mesh, "plain", |pod| {
        broken(pod)
            .label("sidecar.istio.io/inject", "true")
            .with("/spec/containers", json!([{"name": "app"}]))
    });
    let host = mesh.sandbox("default", "host").unwrap();
    mesh.process(900, mesh.host.path(), &format!("/kubepods/pod{}/c", host.uid), 900).unwrap();
    mesh.node.api.set_pod(broken(object(&host)).with("/spec/hostNetwork", true));
    let excluded = mesh.sandbox("kube-system", "web").unwrap();
    mesh.run(&excluded).unwrap();
    mesh.node.api.set_pod(broken(object(&excluded)));
    let last = started(&mesh, "last", |pod| pod);
    wait_repaired(&last);
    std::thread::sleep(A_WHILE);
    assert!(!has_rules(&plain) && !has_rules(&host) && !has_rules(&excluded));
    assert!(!mesh.host.nft_text().unwrap().contains("istio"));
    assert_eq!(agent.metric("istio_cni_not_injected_pods").unwrap(), 1.0);
    assert_eq!(repaired(&agent, "repair", "success"), 1.0);
}

#[test]
fn a_pod_that_is_made_again_under_its_name_is_repaired_again() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "REPAIR").ready().unwrap();
    let first = started(&mesh, "web", |pod| pod);
    wait_repaired(&first);
    // One that a watch shows as a change of the same name.
    let second = started(&mesh, "web", |pod| pod);
    wait_repaired(&second);
    mesh.delete(&second).unwrap();
    let third = started(&mesh, "web", |pod| pod);
    wait_repaired(&third);
    wait_counted(&agent, "repair", "success", 3.0);
    // A sandbox that kubelet made anew for the same pod.
    let mut third = third;
    mesh.stop(&third).unwrap();
    mesh.new_sandbox(&mut third).unwrap();
    mesh.run(&third).unwrap();
    mesh.node.api.set_pod(object(&third).label("sandbox", "second"));
    wait_repaired(&third);
    wait_counted(&agent, "repair", "success", 4.0);
}

#[test]
fn what_cannot_be_repaired_is_tried_five_times_for_each_change() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "REPAIR").ready().unwrap();
    let pod = mesh.sandbox("default", "web").unwrap();
    mesh.node.api.set_pod(broken(object(&pod)));
    agent
        .log()
        .wait_for(&["\terror\t", "get netns: ", "tried 5 times", "pod=default/web"], PATIENCE)
        .unwrap();
    wait_counted(&agent, "repair", "fail", 5.0);
    std::thread::sleep(A_WHILE);
    assert_eq!(repaired(&agent, "repair", "fail"), 5.0);
    mesh.node.api.set_pod(broken(object(&pod)).label("next", "true"));
    wait_counted(&agent, "repair", "fail", 10.0);
    // Its process is seen at last.
    mesh.run(&pod).unwrap();
    mesh.node.api.set_pod(broken(object(&pod)));
    wait_repaired(&pod);
    wait_counted(&agent, "repair", "success", 1.0);
}

#[test]
fn by_crash_only_a_pod_whose_validation_fails_is_repaired_and_no_event_is_written() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "REPAIR").env("REPAIR_TRIGGER", "crash").ready().unwrap();
    let quiet = started(&mesh, "quiet", |pod| pod);
    let fails = started(&mesh, "fails", broken);
    wait_repaired(&fails);
    std::thread::sleep(A_WHILE);
    assert!(!has_rules(&quiet));
    assert_eq!(writes(&mesh), Vec::<String>::new());
    assert_eq!(repaired(&agent, "repair", "success"), 1.0);
}

#[test]
fn a_repaired_pod_whose_validation_had_failed_is_told_that_kubelet_waits() {
    let mesh = Mesh::new().unwrap();
    let _agent = agent(&mesh, "REPAIR").ready().unwrap();
    let pods = [started(&mesh, "quiet", |pod| pod), started(&mesh, "fails", broken)];
    pods.iter().for_each(wait_repaired);
    wait_events(&mesh, 1);
    std::thread::sleep(A_WHILE);
    let events = mesh.node.api.events();
    let told = |path: &str| events[0].pointer(path).and_then(Value::as_str).unwrap();
    assert_eq!((told("/involvedObject/name"), events.len()), ("fails", 1), "{events:?}");
    assert_eq!((told("/reason"), told("/type")), ("CaptureRepaired", "Normal"));
    assert!(told("/message").contains("up to 5 minutes") && told("/message").len() < 300, "{events:?}");
}

/// A job's pod that nothing starts again is told of once, by this agent and the next, and is not deleted.
#[test]
fn a_pod_that_no_repair_can_help_is_told_of_once() {
    let mesh = Mesh::new().unwrap();
    let end =
        json!([{"name": "istio-validation", "state": {"terminated": {"exitCode": 126, "reason": "Error"}}}]);
    let lost = |pod: &MeshPod| {
        object(pod)
            .with("/spec/restartPolicy", "Never")
            .with("/status/phase", "Failed")
            .with("/status/initContainerStatuses", end.clone())
    };
    let pod = mesh.sandbox("default", "job").unwrap();
    for start in 0..2 {
        let _agent = agent(&mesh, "REPAIR").ready().unwrap();
        mesh.node.api.set_pod(lost(&pod).label("start", &start.to_string()));
        wait_events(&mesh, 1);
        std::thread::sleep(A_WHILE);
    }
    let events = events(&mesh);
    assert_eq!((&*events[0].0, &*events[0].1, events.len()), ("RepairImpossible", "istio-cni-node", 1));
    assert!(mesh.node.api.object(Resource::Pods, "default", "job").is_some());
}

#[test]
fn a_broken_pod_is_deleted_as_it_was_seen() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "DELETE").env("REPAIR_LABEL_PODS", "true").ready().unwrap();
    let on_its_way = |pod| broken(pod).with("/metadata/deletionTimestamp", "2026-01-01T00:00:00Z");
    started(&mesh, "gone-soon", on_its_way);
    std::thread::sleep(A_WHILE);
    let pod = started(&mesh, "web", broken);
    eventually("the pod is deleted", PATIENCE, || {
        ensure!(mesh.node.api.object(Resource::Pods, "default", "web").is_none());
        Ok(())
    })
    .unwrap();
    let deletions = mesh.node.api.requests().into_iter().filter(|request| request.method == "DELETE");
    let bodies: Vec<Value> = deletions.map(|request| serde_json::from_str(&request.body).unwrap()).collect();
    assert_eq!(bodies.len(), 1);
    assert_eq!(bodies[0]["preconditions"]["uid"], pod.uid);
    assert!(bodies[0]["preconditions"]["resourceVersion"].is_string(), "{}", bodies[0]);
    assert!(bodies[0]["gracePeriodSeconds"].is_null());
    wait_counted(&agent, "delete", "success", 1.0);
    let expected = ("DeleteBrokenPod".into(), "cni-repair".into(), "pod detected as broken, deleted".into());
    assert_eq!(events(&mesh), [expected]);
    assert!(!has_rules(&pod));

    // One in a minute, of so few pods.
    started(&mesh, "next", broken);
    std::thread::sleep(A_WHILE);
    assert!(mesh.node.api.object(Resource::Pods, "default", "next").is_some());
    assert_eq!(repaired(&agent, "delete", "success"), 1.0);
}

#[test]
fn a_broken_pod_is_labelled_by_its_status() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "LABEL").ready().unwrap();
    started(&mesh, "web", broken);
    wait_counted(&agent, "label", "success", 1.0);
    let patches = mesh.node.api.patches();
    assert_eq!(patches.len(), 1);
    assert_eq!(patches[0].path, "/api/v1/namespaces/default/pods/web/status?");
    assert_eq!(patches[0].body["metadata"]["labels"], json!({LABEL: "true"}));
    let expected = ("LabelBrokenPod".into(), "cni-repair".into(), "pod detected as broken, labeled".into());
    assert_eq!(events(&mesh), [expected]);

    // Whoever has labelled it already, with whatever value.
    started(&mesh, "other", |pod| broken(pod).label(LABEL, "false"));
    wait_counted(&agent, "label", "skip", 1.0);
    assert_eq!(mesh.node.api.patches().len(), 1);

    mesh.node.api.fail_path("/pods/third/status", usize::MAX, Fault::status(500));
    started(&mesh, "third", broken);
    wait_counted(&agent, "label", "fail", 5.0);
    // What fails again is counted in the same Event.
    wait_events(&mesh, 2);
    let failures = events(&mesh).into_iter().filter(|(_, _, message)| message.contains("failed to label: "));
    let failures: Vec<_> = failures.map(|(reason, component, _)| (reason, component)).collect();
    assert_eq!(failures, vec![("LabelBrokenPod".to_owned(), "cni-repair".to_owned())]);
}
