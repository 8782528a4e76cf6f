//! Sidecar pods whose labels and annotations change while they run.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::probe::answer_bytes;
use testkit::{Agent, PATIENCE, PodCall, PodObject, TestNetns, at_once, eventually};

const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Ports of servers in the world.
pub(crate) const APP: u16 = 8080;
const OTHER: u16 = 9090;
const ANSWER: Duration = Duration::from_secs(5);
/// After this time whatever follows a change has been done.
const A_WHILE: Duration = Duration::from_millis(1500);
const EXCLUDE: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
/// `native_nftables` of both backends.
pub(crate) const BACKENDS: [bool; 2] = [true, false];

/// A captured pod whose proxy answers everything itself, and a world around it.
pub(crate) struct Scene {
    mesh: Mesh,
    pub(crate) pod: MeshPod,
    pub(crate) world: TestNetns,
}

impl Scene {
    pub(crate) fn new(native: bool, updates: &str, annotations: &[(&str, &str)]) -> (Self, Agent) {
        Self::with(native, updates, annotations, &[])
    }

    fn with(
        native: bool,
        updates: &str,
        annotations: &[(&str, &str)],
        options: &[(&str, &str)],
    ) -> (Self, Agent) {
        let (mesh, world) = (Mesh::new().unwrap(), TestNetns::new().unwrap());
        let pod = mesh.sandbox("default", "web").unwrap();
        let scene = Self { mesh, pod, world };
        scene.connect_namespaces();
        let (pod, agent) = (&scene.pod, scene.agent_with(updates, options));
        let object = PodObject::named(&pod.name).in_namespace(&pod.namespace).uid(&pod.uid).on_node("n1");
        scene.mesh.node.api.set_pod(object.sidecar().annotations(annotations).running(&[pod.ip]));
        let mut call = scene.call();
        call.conf["native_nftables"] = json!(native);
        call.add().unwrap();
        scene.mesh.run(&scene.pod).unwrap();
        // As kubelet tells when the containers run.
        scene.edit("labels", "started", "true");
        std::thread::sleep(A_WHILE);
        for port in [15001, 15006] {
            answer_bytes(&scene.pod.netns, port, b'p').unwrap();
        }
        for port in [APP, OTHER] {
            answer_bytes(&scene.world, port, b's').unwrap();
        }
        (scene, agent)
    }

    fn call(&self) -> PodCall {
        PodCall::new(&self.mesh.node, "web", &self.pod.uid, self.pod.netns.path()).unwrap()
    }

    fn connect_namespaces(&self) {
        let ip = self.pod.ip;
        let link = format!("link add eth0 type veth peer name eth0 netns {}", self.world.path().display());
        let address = format!("address add {ip}/32 dev eth0");
        let own = [&*link, "link delete net0", &address, "link set eth0 up", "route add default dev eth0"];
        self.pod.netns.ip(&own).unwrap();
        let world = [
            "link set eth0 up",
            &format!("address add {WORLD}/32 dev eth0"),
            &format!("route add {ip}/32 dev eth0"),
        ];
        self.world.ip(&world).unwrap();
    }

    fn agent(&self, updates: &str) -> Agent {
        self.agent_with(updates, &[])
    }

    fn agent_with(&self, updates: &str, options: &[(&str, &str)]) -> Agent {
        let agent = self.mesh.node.agent().env("LIVE_UPDATES", updates);
        let agent = agent.env("HOST_ROOT", &self.mesh.root().to_string_lossy());
        let agent = options.iter().fold(agent, |agent, (name, value)| agent.env(name, value));
        agent.env("CLEANUP_ON_EXIT", "never").ready().unwrap()
    }

    /// Changes labels or annotations of the pod as somebody does who edits it.
    pub(crate) fn edit(&self, what: &str, name: &str, value: &str) {
        let mut object = self.mesh.node.api.object(Resource::Pods, "default", "web").unwrap();
        object["metadata"][what][name] = Value::from(value);
        self.mesh.node.api.set_pod(object);
    }

    /// Notes as an API server does who wrote an annotation last.
    fn written_by(&self, manager: &str, annotation: &str) {
        let mut object = self.mesh.node.api.object(Resource::Pods, "default", "web").unwrap();
        let fields = json!({"f:metadata": {"f:annotations": {format!("f:{annotation}"): {}}}});
        object["metadata"]["managedFields"] =
            json!([{"manager": manager, "time": "2026-08-01T09:30:00Z", "fieldsV1": fields}]);
        self.mesh.node.api.set_pod(object);
    }

    fn open(&self, port: u16) -> TcpStream {
        connect(&self.pod.netns, SocketAddr::new(IpAddr::V4(WORLD), port))
    }

    /// Waits until new connections to a port are answered by whom; says how long that took.
    fn wait_answered(&self, port: u16, by: char) -> Duration {
        let began = Instant::now();
        eventually("new connections go by the new rules", PATIENCE, || {
            let found = asked(&self.open(port));
            ensure!(found == by, "{found} answers on {port}");
            Ok(())
        })
        .unwrap();
        began.elapsed()
    }

    pub(crate) fn rules(&self) -> String {
        let line = "(nft -s list ruleset; iptables-save) | sed '/^#/d'";
        self.pod.netns.run(Command::new("sh").args(["-ec", line])).unwrap()
    }

    pub(crate) fn wait_without_rules(&self) {
        eventually("nothing of ours is left", PATIENCE, || {
            let rules = self.rules();
            ensure!(!rules.contains("istio") && !rules.contains("ISTIO"), "{rules}");
            Ok(())
        })
        .unwrap();
    }

    fn event(&self, reason: &str) -> Option<String> {
        let events = self.mesh.node.api.events();
        let its = events.iter().rfind(|event| event["reason"] == reason)?;
        Some(its["message"].as_str().unwrap_or_default().to_owned())
    }

    fn wait_event(&self, reason: &str, says: &str) {
        eventually(&format!("Event {reason}"), PATIENCE, || -> Result<()> {
            let event = self.event(reason);
            ensure!(event.as_ref().is_some_and(|message| message.contains(says)), "{event:?}");
            Ok(())
        })
        .unwrap();
    }
}

pub(crate) fn connect(from: &TestNetns, to: SocketAddr) -> TcpStream {
    let stream = from.enter(|_| TcpStream::connect_timeout(&to, ANSWER)).unwrap().unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream
}

/// Who answers: `p` is the proxy, `s` a server of the world.
#[track_caller]
pub(crate) fn asked(mut stream: &TcpStream) -> char {
    let mut heard = [0];
    stream.write_all(b"?").unwrap();
    stream.read_exact(&mut heard).unwrap();
    heard[0].into()
}

#[test]
fn a_port_that_is_excluded_now_is_not_captured_any_more_and_what_is_open_goes_on() {
    at_once(BACKENDS, |native| {
        let (scene, agent) =
            Scene::new(native, "safe", &[("traffic.sidecar.istio.io/excludeInterfaces", "net7")]);
        let before = scene.open(OTHER);
        assert_eq!(asked(&before), 'p');
        scene.edit("annotations", EXCLUDE, "9090");
        scene.edit("annotations", "traffic.sidecar.istio.io/excludeInterfaces", "");
        println!("{native}: in force after {:?}", scene.wait_answered(OTHER, 's'));
        assert_eq!((asked(&before), asked(&scene.open(APP))), ('p', 'p'));
        scene.wait_event("CaptureUpdated", "istio-local-outbound-ports-exclude: 15020 → 9090");
        eventually("nothing of the old rules is left", PATIENCE, || {
            ensure!(!scene.rules().contains("net7"), "{}", scene.rules());
            Ok(())
        })
        .unwrap();
        // The plugin compares with what is in force now.
        let check = scene.call().run("CHECK").unwrap();
        assert_eq!(check.exit, Some(0), "{check:#?}");
        // The next agent knows it as well.
        agent.kill().unwrap();
        let rules = scene.rules();
        let _agent = scene.agent("safe");
        std::thread::sleep(A_WHILE);
        assert_eq!(scene.rules(), rules);
        assert_eq!(asked(&before), 'p');
    });
}

#[test]
fn what_a_running_proxy_cannot_follow_is_refused_once() {
    let (scene, agent) = Scene::new(true, "safe", &[]);
    let rules = scene.rules();
    scene.written_by("kubectl-annotate", EXCLUDE);
    scene.edit("annotations", EXCLUDE, "many");
    scene.wait_event("CaptureSettingsInvalid", EXCLUDE);
    scene.wait_event("CaptureSettingsInvalid", "changed by kubectl-annotate");
    scene.edit("annotations", EXCLUDE, "9090");
    scene.edit("annotations", "sidecar.istio.io/interceptionMode", "TPROXY");
    scene.wait_event("CaptureChangeNeedsRestart", "the interception mode has changed");
    scene.edit("labels", "seen", "true");
    std::thread::sleep(A_WHILE);
    assert!(scene.rules().contains("15006") && !scene.rules().contains("tproxy"), "{}", scene.rules());
    scene.edit("annotations", "sidecar.istio.io/interceptionMode", "REDIRECT");
    scene.wait_answered(OTHER, 's');
    agent
        .log()
        .wait_for(&["annotations of a running pod are in force", "manager=kubectl-annotate"], PATIENCE)
        .unwrap();
    assert_ne!(scene.rules(), rules);
    let refusals = scene.mesh.node.api.events();
    let refusals = refusals.iter().filter(|event| event["reason"] == "CaptureChangeNeedsRestart");
    assert_eq!(refusals.count(), 1, "{}", agent.log().text());
}

#[test]
fn a_pod_that_is_not_to_be_captured_any_more_keeps_its_rules_while_its_proxy_runs() {
    let (scene, agent) = Scene::new(true, "safe", &[]);
    let rules = scene.rules();
    scene.edit("labels", "sidecar.istio.io/inject", "false");
    scene.wait_event("CaptureChangeNeedsRestart", "its proxy runs");
    std::thread::sleep(A_WHILE);
    assert_eq!(scene.rules(), rules, "{}", agent.log().text());
    assert_eq!(asked(&scene.open(APP)), 'p');
    assert_eq!(agent.metric("istio_cni_pods_unexpected").unwrap(), 1.0);
}

#[test]
fn a_pod_that_is_not_to_be_captured_any_more_drains_where_that_is_wanted() {
    at_once(BACKENDS, |native| {
        let (scene, agent) = Scene::new(native, "on", &[]);
        let before = scene.open(APP);
        assert_eq!(asked(&before), 'p');
        scene.edit("labels", "sidecar.istio.io/inject", "false");
        println!("{native}: new connections go past the proxy after {:?}", scene.wait_answered(APP, 's'));
        scene.wait_event("CaptureUpdated", "sidecar.istio.io/inject is false");
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            assert_eq!((asked(&before), asked(&scene.open(APP))), ('p', 's'));
            std::thread::sleep(Duration::from_millis(100));
        }
        // Another agent goes on with it, with whatever option.
        agent.kill().unwrap();
        let agent = scene.agent(if native { "on" } else { "off" });
        std::thread::sleep(A_WHILE);
        assert_eq!((asked(&before), asked(&scene.open(APP))), ('p', 's'), "{}", agent.log().text());
        drop(before);
        scene.wait_without_rules();
        assert_eq!(asked(&scene.open(APP)), 's');
    });
}

/// As of a pod that the original's plugin has set up.
#[test]
fn rules_of_which_no_record_says_that_they_are_ours_stay() {
    let (scene, agent) = Scene::new(true, "on", &[]);
    let rules = scene.rules();
    std::fs::remove_dir_all(scene.mesh.node.run_dir().join("applied")).unwrap();
    scene.edit("labels", "sidecar.istio.io/inject", "false");
    eventually("they are counted", PATIENCE, || {
        ensure!(agent.metric("istio_cni_pods_unexpected")? == 1.0);
        Ok(())
    })
    .unwrap();
    std::thread::sleep(A_WHILE);
    assert_eq!(scene.rules(), rules, "{}", agent.log().text());
    assert_eq!(asked(&scene.open(APP)), 'p');
}

/// It starts anew, say, and listens again in a moment.
#[test]
fn a_proxy_that_kubelet_says_to_run_is_not_taken_for_ended() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.node.agent().env("HOST_ROOT", &mesh.root().to_string_lossy());
    let agent = agent.env("CLEANUP_ON_EXIT", "never").ready().unwrap();
    let pod = mesh.sandbox("default", "web").unwrap();
    let running = json!([{"name": "istio-proxy", "state": {"running": {}}}]);
    let object = || {
        let object = PodObject::named(&pod.name).in_namespace(&pod.namespace).uid(&pod.uid).on_node("n1");
        object.sidecar().running(&[pod.ip]).with("/status/containerStatuses", running.clone())
    };
    mesh.node.api.set_pod(object());
    PodCall::new(&mesh.node, "web", &pod.uid, pod.netns.path()).unwrap().add().unwrap();
    mesh.run(&pod).unwrap();
    mesh.node.api.set_pod(object().label("sidecar.istio.io/inject", "false"));
    eventually("the change is refused", PATIENCE, || {
        let events = mesh.node.api.events();
        let refused = events.iter().any(|event| event["reason"] == "CaptureChangeNeedsRestart");
        ensure!(refused, "{events:?}\n{}", agent.log().text());
        Ok(())
    })
    .unwrap();
    assert!(pod.netns.nft_text().unwrap().contains("15001"));
}

#[test]
fn a_pod_that_drains_comes_back_and_loses_nothing() {
    let (scene, agent) = Scene::new(true, "on", &[]);
    let before = scene.open(APP);
    scene.edit("labels", "sidecar.istio.io/inject", "false");
    scene.wait_answered(APP, 's');
    let meanwhile = scene.open(APP);
    scene.edit("labels", "sidecar.istio.io/inject", "true");
    scene.wait_answered(APP, 'p');
    assert_eq!((asked(&before), asked(&meanwhile)), ('p', 's'), "{}", agent.log().text());
}

#[test]
fn what_has_not_ended_in_time_is_reset() {
    let (scene, agent) = Scene::with(true, "on", &[], &[("DRAIN_TIMEOUT", "1s")]);
    let before = scene.open(APP);
    assert_eq!(asked(&before), 'p');
    scene.edit("labels", "sidecar.istio.io/inject", "false");
    scene.wait_answered(APP, 's');
    let heard = (&before).read(&mut [0]);
    assert!(!matches!(heard, Ok(1..)), "{heard:?}");
    eventually("nothing of ours is left", PATIENCE, || {
        ensure!(!scene.rules().contains("istio"), "{}\n{}", scene.rules(), agent.log().text());
        Ok(())
    })
    .unwrap();
}

/// What the agent changes beside rules goes back with them.
#[test]
fn a_setting_that_keeps_packets_from_a_transparent_proxy_is_changed_until_the_rules_leave() {
    let options = [("CONFLICT_RESOLUTION", "all"), ("DRAIN_TIMEOUT", "1s"), ("VERIFY_INTERVAL", "1s")];
    let mode = [("sidecar.istio.io/interceptionMode", "TPROXY")];
    let (scene, agent) = Scene::with(true, "on", &mode, &options);
    let netns = &scene.pod.netns;
    let setting = || netns.run(Command::new("cat").arg("/proc/sys/net/ipv4/conf/all/rp_filter")).unwrap();
    let eventually_set = |value: &str| {
        eventually("the setting", PATIENCE, || {
            let now = setting();
            ensure!(now.trim() == value, "{now}; {}", agent.log().text());
            Ok(())
        })
        .unwrap();
    };
    netns.set_sysctl("net.ipv4.conf.all.rp_filter", "1").unwrap();
    // Of settings the kernel tells nothing.
    netns.nft("add table ip other").unwrap();
    eventually_set("2");
    let metric = "istio_cni_conflicts_resolved_total{id=\"CF-P13\"}";
    eventually("it is counted", PATIENCE, || {
        let count = agent.metric(metric)?;
        // Of the loopback interface, and of the pod's.
        ensure!(count == 2.0, "{count}");
        Ok(())
    })
    .unwrap();
    let kept = || std::fs::read_dir(scene.mesh.node.run_dir().join("settings")).map(Iterator::count);
    let own = std::fs::read_dir(scene.mesh.node.run_dir().join("settings"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let of_another = std::fs::read_to_string(&own).unwrap().replace("\nuid ", "\nuid gone-");
    std::fs::write(own.with_file_name("netns-4-1"), of_another).unwrap();
    eventually("only what is kept of a pod that is gone is forgotten", PATIENCE, || {
        ensure!(kept()? == 1 && own.exists(), "{}", kept()?);
        Ok(())
    })
    .unwrap();
    scene.edit("labels", "sidecar.istio.io/inject", "false");
    eventually_set("1");
    eventually("nothing is kept of it", PATIENCE, || {
        let kept = kept()?;
        ensure!(kept == 0 && !scene.rules().contains("istio"), "{kept}; {}", scene.rules());
        Ok(())
    })
    .unwrap();
}

#[test]
fn nothing_changes_where_updates_are_off() {
    let (scene, agent) = Scene::new(true, "off", &[]);
    let rules = scene.rules();
    scene.edit("annotations", EXCLUDE, "9090");
    scene.edit("annotations", "traffic.sidecar.istio.io/includeInboundPorts", "nonsense");
    std::thread::sleep(A_WHILE);
    agent.kill().unwrap();
    let _agent = scene.agent("off");
    std::thread::sleep(A_WHILE);
    assert_eq!(scene.rules(), rules);
    let reasons = ["CaptureUpdated", "CaptureSettingsInvalid", "CaptureChangeNeedsRestart"];
    assert_eq!(reasons.map(|reason| scene.event(reason)), [None, None, None]);
}

/// Labels may ask for injection as they like: without a proxy the pod's traffic would go nowhere.
#[test]
fn a_pod_without_a_proxy_is_never_programmed() {
    let mesh = Mesh::new().unwrap();
    let pod = mesh.running("default", "web", &[("sidecar.istio.io/inject", "true")]).unwrap();
    let agent = mesh.node.agent().env("LIVE_UPDATES", "on").env("REPAIR_REPAIR_PODS", "true");
    let agent = agent.env("HOST_ROOT", &mesh.root().to_string_lossy()).env("CLEANUP_ON_EXIT", "never");
    let agent = agent.ready().unwrap();
    let mut object = mesh.node.api.object(Resource::Pods, "default", "web").unwrap();
    object["metadata"]["annotations"]["sidecar.istio.io/status"] = json!("{}");
    object["spec"]["ephemeralContainers"] = json!([{"name": "istio-proxy", "image": "debug"}]);
    mesh.node.api.set_pod(object);
    std::thread::sleep(A_WHILE);
    assert!(!pod.has_rules().unwrap(), "{}", agent.log().text());
}
