//! A node that goes from ambient to sidecar mode: the next agent takes away what is left, or says that it cannot.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::apiserver::{Fault, Resource};
use testkit::mesh::{MODE, Mesh, MeshPod, REDIRECTION};
use testkit::ztunnel::Script;
use testkit::{Agent, Launch, PATIENCE, assert_says, at_once, eventually};

use crate::mesh::wait_in;

const GAUGE: &str = "istio_cni_ambient_leftover_pods";

/// Pods, and a thread that looks at them again and again.
struct Scene {
    mesh: Arc<Mesh>,
    pods: Arc<Vec<MeshPod>>,
    over: Arc<AtomicBool>,
    looks: Option<JoinHandle<usize>>,
}

impl Scene {
    /// Two pods that an agent in ambient mode has taken in; it has ended, and left everything as it was.
    fn new(native_nftables: &str) -> Self {
        let mesh = Mesh::new().unwrap();
        let agent = mesh.agent().env("NATIVE_NFTABLES", native_nftables).ready().unwrap();
        let ztunnel = mesh.ztunnel_that(Script::default()).unwrap();
        let pods: Vec<MeshPod> = ["web", "api"].map(|name| mesh.running("mesh", name, &[]).unwrap()).into();
        pods.iter().for_each(|pod| wait_in(&mesh, pod).unwrap());
        drop(ztunnel);
        agent.stop().unwrap();
        let (mesh, pods, over) = (Arc::new(mesh), Arc::new(pods), Arc::new(AtomicBool::new(false)));
        let looks = Some(std::thread::spawn({
            let (mesh, pods, over) = (mesh.clone(), pods.clone(), over.clone());
            move || look(&mesh, &pods, &over)
        }));
        Self { mesh, pods, over, looks }
    }

    fn sidecar_mode(&self) -> Launch<'_> {
        self.mesh.agent().env("AMBIENT_ENABLED", "false")
    }

    /// A pod that the API server has is out, and so is everything else.
    fn wait_clean(&self, agent: &Agent) {
        for pod in self.pods.iter() {
            self.mesh.wait_annotation(pod, None).unwrap();
            wait_pod_clean(pod);
        }
        wait_nothing_left(&self.mesh, agent);
        assert!(!self.mesh.node.run_dir().join("ambient").exists(), "records are left");
    }

    /// Every look found pods without the annotation, or with rules.
    fn end(mut self) {
        self.over.store(true, Ordering::SeqCst);
        let looks = self.looks.take().unwrap().join().unwrap();
        assert!(looks > 3, "{looks} looks");
    }
}

/// Each 50 ms: whoever is annotated has rules. The rules are looked at first, as they may go once the annotation has.
fn look(mesh: &Mesh, pods: &[MeshPod], over: &AtomicBool) -> usize {
    let mut looks = 0;
    while !over.load(Ordering::SeqCst) {
        for pod in pods {
            let redirected = pod.is_redirected().unwrap();
            let annotation = mesh.annotation(pod);
            assert!(redirected || annotation.is_none(), "{} is {annotation:?} without rules", pod.name);
        }
        looks += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    looks
}

fn wait_pod_clean(pod: &MeshPod) {
    eventually("nothing is left in the pod", PATIENCE, || {
        ensure!(pod.is_clean()?, "something is left in {}", pod.name);
        Ok(())
    })
    .unwrap();
}

fn wait_gauge(agent: &Agent, wanted: f64) {
    eventually("the metric says how many", PATIENCE, || {
        let found = agent.metric(GAUGE)?;
        ensure!(found == wanted, "{found}");
        Ok(())
    })
    .unwrap();
}

fn host_tables(mesh: &Mesh) -> String {
    mesh.host.run(Command::new("nft").args(["list", "tables"])).unwrap()
}

fn wait_nothing_left(mesh: &Mesh, agent: &Agent) {
    agent.log().wait_for(&["nothing of ambient mode is left on this node"], PATIENCE).unwrap();
    assert!(!host_tables(mesh).contains("istio"));
    assert_eq!(mesh.host.run(Command::new("ipset").arg("list").arg("-n")).unwrap(), "");
    assert!(!mesh.host.run(&mut Command::new("iptables-save")).unwrap().contains("ISTIO"));
    wait_gauge(agent, 0.0);
    assert_eq!(notice(agent), None);
}

fn notice(agent: &Agent) -> Option<String> {
    let verbose = agent.health("/readyz?verbose").unwrap();
    assert_eq!(verbose.status, 200, "{verbose:?}");
    verbose.body.lines().find_map(|line| line.strip_prefix("[!]leftovers: ").map(str::to_owned))
}

fn wait_notice(agent: &Agent, parts: &[&str]) -> String {
    eventually("the notice says it", PATIENCE, || {
        let notice = notice(agent).unwrap_or_default();
        ensure!(parts.iter().all(|part| notice.contains(part)), "{notice}");
        Ok(notice)
    })
    .unwrap()
}

/// The names of pods with an event that says this.
fn told(mesh: &Mesh, part: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for event in mesh.node.api.events() {
        ensure!(event["reason"] == "AmbientRemovalFailed" && event["type"] == "Warning", "{event}");
        let message = event["message"].as_str().unwrap_or_default();
        ensure!(message.contains(part), "{message}");
        names.push(event["involvedObject"]["name"].as_str().unwrap_or_default().to_owned());
    }
    names.sort();
    Ok(names)
}

fn wait_told(mesh: &Mesh, part: &str, wanted: &[&str]) {
    eventually("the pods have their events", PATIENCE, || {
        let told = told(mesh, part)?;
        ensure!(told == wanted, "{told:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_agent_that_may_enter_pods_takes_everything_away() {
    at_once(["true", "false"], |native_nftables| {
        let scene = Scene::new(native_nftables);
        let agent = scene.sidecar_mode().env("NATIVE_NFTABLES", native_nftables).ready().unwrap();
        scene.wait_clean(&agent);
        agent.log().wait_for(&["ambient mode is off: its leftovers", "pods=2"], PATIENCE).unwrap();
        for pod in scene.pods.iter() {
            agent
                .log()
                .wait_for(&["pod is out of the mesh", &format!("pod=mesh/{}", pod.name)], PATIENCE)
                .unwrap();
            assert_eq!(scene.mesh.patches(pod), [Some("enabled".to_owned()), None]);
        }
        assert!(scene.mesh.node.api.events().is_empty());
        scene.end();
    });
}

/// The original's agent holds no lock of ours. What its pods have is no leftover.
#[test]
fn another_agent_in_ambient_mode_keeps_its_pods() {
    let scene = Scene::new("true");
    let socket = scene.mesh.event_socket();
    let other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let agent = scene.sidecar_mode().ready().unwrap();
    let process = format!("process {} (", std::process::id());
    wait_notice(&agent, &["another agent is in ambient mode", &process, "pluginevent.sock", "DaemonSets"]);
    std::thread::sleep(Duration::from_millis(1500));
    for pod in scene.pods.iter() {
        assert!(pod.is_redirected().unwrap(), "{}", agent.log().text());
        assert_eq!(scene.mesh.annotation(pod).as_deref(), Some("enabled"));
    }
    assert_says(&host_tables(&scene.mesh), &["istio-ambient-nat"]);
    assert!(socket.exists() && scene.mesh.node.api.events().is_empty());
    // It ends, and leaves a socket that nobody serves.
    drop(other);
    scene.wait_clean(&agent);
    scene.end();
}

/// A sidecar agent without rights is what the chart makes of one that repairs no pods.
#[test]
fn an_agent_that_may_not_enter_pods_says_so_until_they_are_gone() {
    let scene = Scene::new("true");
    let without = ["setpriv", "--bounding-set=-sys_admin,-net_admin,-sys_ptrace", "--inh-caps=-all"];
    let agent = scene.sidecar_mode().behind(&without).ready().unwrap();
    let said = wait_notice(
        &agent,
        &["2 (mesh/api, mesh/web)", "the capabilities NET_ADMIN, SYS_ADMIN", "agent.takePodsOutOfAmbient"],
    );
    assert!(said.len() < 400, "{said}");
    agent.log().wait_for(&["\twarn\t", "ambient mode is off, and pods have rules"], PATIENCE).unwrap();
    assert_eq!(agent.metric(GAUGE).unwrap(), 2.0);
    wait_told(&scene.mesh, "ambient mode is off on this node", &["api", "web"]);
    // Nothing was begun that could not be ended.
    std::thread::sleep(Duration::from_millis(500));
    for pod in scene.pods.iter() {
        assert!(pod.is_redirected().unwrap());
        assert_eq!(scene.mesh.annotation(pod).as_deref(), Some("enabled"));
    }
    assert_says(&host_tables(&scene.mesh), &["istio-ambient-nat"]);
    scene.mesh.delete(&scene.pods[1]).unwrap();
    wait_notice(&agent, &["1 (mesh/web)"]);
    scene.mesh.delete(&scene.pods[0]).unwrap();
    wait_gauge(&agent, 0.0);
    assert_eq!(notice(&agent), None);
    assert_eq!(told(&scene.mesh, "").unwrap().len(), 2);
    scene.end();
}

/// Without /host/proc no running pod's namespace is found.
#[test]
fn an_agent_that_does_not_see_the_nodes_processes_says_so() {
    let scene = Scene::new("true");
    let elsewhere = scene.mesh.node.dir().join("elsewhere");
    let agent = scene.sidecar_mode().env("HOST_ROOT", &elsewhere.to_string_lossy()).ready().unwrap();
    wait_notice(&agent, &["2 (mesh/api, mesh/web)", "no right to enter pods (/host/proc)"]);
    wait_told(&scene.mesh, "/host/proc", &["api", "web"]);
    std::thread::sleep(Duration::from_millis(500));
    scene.end();
}

/// Others send to a pod what its annotation promises: it keeps its rules as long as that cannot be taken away.
#[test]
fn a_pod_whose_annotation_cannot_be_changed_keeps_its_rules() {
    let scene = Scene::new("true");
    scene.mesh.node.api.fail_path("/web/status", usize::MAX, Fault::status(403));
    let agent = scene.sidecar_mode().ready().unwrap();
    let [web, api] = &scene.pods[..] else { panic!("two pods") };
    scene.mesh.wait_annotation(api, None).unwrap();
    wait_pod_clean(api);
    wait_notice(&agent, &["1 (mesh/web); they cannot be taken out: ", "403"]);
    wait_told(&scene.mesh, "cannot be taken out of it", &["web"]);
    assert!(web.is_redirected().unwrap());
    assert_eq!(scene.mesh.annotation(web).as_deref(), Some("enabled"));
    assert_says(&host_tables(&scene.mesh), &["istio-ambient-nat"]);
    assert_eq!(agent.metric(GAUGE).unwrap(), 1.0);
    // The right comes.
    scene.mesh.node.api.fail_path("/web/status", 0, Fault::status(403));
    scene.wait_clean(&agent);
    scene.end();
}

/// A pod with the annotation and no record is one of another agent's, or of none.
#[test]
fn an_annotation_without_a_record_is_taken_away_and_that_of_others_stays() {
    let mesh = Mesh::new().unwrap();
    let annotated = |name: &str, value: &str| {
        let pod = mesh.running("mesh", name, &[]).unwrap();
        let mut object = pod.object(&[], true);
        object["metadata"]["annotations"] = json!({ REDIRECTION: value });
        mesh.node.api.set_pod(object);
        pod
    };
    let (enabled, pending, other) =
        (annotated("enabled", "enabled"), annotated("pending", "pending"), annotated("other", "disabled"));
    let agent = mesh.agent().env("AMBIENT_ENABLED", "false").ready().unwrap();
    for pod in [&enabled, &pending] {
        mesh.wait_annotation(pod, None).unwrap();
    }
    wait_nothing_left(&mesh, &agent);
    assert_eq!(mesh.annotation(&other).as_deref(), Some("disabled"));
    assert_eq!(mesh.patches(&other), []);
}

#[test]
fn the_nodes_own_rules_go_also_where_no_pod_is_left() {
    let mesh = Mesh::new().unwrap();
    mesh.start().unwrap().stop().unwrap();
    assert_says(&host_tables(&mesh), &["istio-ambient-nat"]);
    let agent = mesh.agent().env("AMBIENT_ENABLED", "false").ready().unwrap();
    wait_nothing_left(&mesh, &agent);
}

/// Where ambient mode never was, nothing is made, changed or said.
#[test]
fn a_node_that_was_never_in_ambient_mode_is_left_alone() {
    let mesh = Mesh::new().unwrap();
    let pod = mesh.running("mesh", "web", &[(MODE, "ambient")]).unwrap();
    let agent = mesh.agent().env("AMBIENT_ENABLED", "false").ready().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(host_tables(&mesh), "");
    assert!(pod.is_clean().unwrap() && mesh.patches(&pod).is_empty());
    assert_eq!((notice(&agent), agent.metric(GAUGE).unwrap()), (None, 0.0));
    assert_eq!(agent.log().count(&["ambient mode"]), 0);
    assert!(mesh.node.api.objects(Resource::Events).iter().all(Value::is_null));
}

/// Killed at any moment, the next agent goes on.
#[test]
fn an_agent_that_is_killed_on_the_way_leaves_the_rest_to_the_next() {
    let scene = Scene::new("true");
    for pause in [0, 5, 10, 20, 40, 80] {
        let agent = scene.sidecar_mode().start().unwrap();
        agent.log().wait_for(&["install-cni starts"], PATIENCE).unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        agent.kill().unwrap();
    }
    let agent = scene.sidecar_mode().ready().unwrap();
    for pod in scene.pods.iter() {
        scene.mesh.wait_annotation(pod, None).unwrap();
        wait_pod_clean(pod);
    }
    eventually("nothing is left", PATIENCE, || {
        ensure!(!host_tables(&scene.mesh).contains("istio") && agent.metric(GAUGE)? == 0.0);
        ensure!(notice(&agent).is_none());
        Ok(())
    })
    .unwrap();
    scene.end();
}
