//! Ambient mode: pods leave the mesh, and come back, while connections through ztunnel are open.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use testkit::apiserver::{Fault, Resource};
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::relay::Relay;
use testkit::ztunnel::{Answer, Request, Script, Ztunnel};
use testkit::{Agent, PATIENCE, TestNetns, at_once, eventually};

const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const APP: u16 = 8080;
/// How long an answer may take; the machine may be busy.
const ANSWER: Duration = Duration::from_secs(5);
/// `NATIVE_NFTABLES` of both backends.
const BACKENDS: [&str; 2] = ["true", "false"];

/// A pod with a world around it, and an application on both sides that says everything again.
struct Scene {
    mesh: Mesh,
    pod: Arc<MeshPod>,
    world: TestNetns,
    relay: Arc<Mutex<Option<Relay>>>,
}

impl Scene {
    fn new() -> Self {
        let (mesh, world) = (Mesh::new().unwrap(), TestNetns::new().unwrap());
        let pod = mesh.running("default", "web", &[]).unwrap();
        Self::with(mesh, world, pod)
    }

    fn with(mesh: Mesh, world: TestNetns, pod: MeshPod) -> Self {
        let ip = pod.ip;
        pod.netns
            .ip(&[
                format!("link add eth0 type veth peer name eth0 netns {}", world.path().display()),
                "link delete net0".to_owned(),
                format!("address add {ip}/32 dev eth0"),
                "link set eth0 up".to_owned(),
                "route add default dev eth0".to_owned(),
            ])
            .unwrap();
        let world_side = [
            "link set eth0 up".to_owned(),
            format!("address add {WORLD}/32 dev eth0"),
            format!("route add {ip}/32 dev eth0"),
        ];
        world.ip(&world_side).unwrap();
        for namespace in [&pod.netns, &world] {
            let listener =
                namespace.enter(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, APP))).unwrap().unwrap();
            std::thread::spawn(move || listener.incoming().flatten().for_each(say_again));
        }
        Self { mesh, pod: Arc::new(pod), world, relay: Arc::default() }
    }

    /// A ztunnel that takes connections from the pod's being added to its being taken away, and never closes one that is open.
    fn ztunnel(&self) -> Ztunnel {
        let (pod, relay) = (self.pod.clone(), self.relay.clone());
        let script = Script::answering(move |request| {
            let mut relay = relay.lock().unwrap_or_else(PoisonError::into_inner);
            match request {
                Request::Add { uid, .. } if *uid == pod.uid && relay.is_none() => {
                    match Relay::start(&pod.netns) {
                        Ok(started) => *relay = Some(started),
                        Err(error) => return Answer::Nack(format!("{error:#}")),
                    }
                }
                Request::Del(uid) if *uid == pod.uid => {
                    if let Some(relay) = relay.as_ref() {
                        relay.stop();
                    }
                }
                _ => {}
            }
            Answer::Ack
        });
        let ztunnel = self.mesh.ztunnel_that(script.reconnecting()).unwrap();
        ztunnel.wait_snapshot(PATIENCE).unwrap();
        ztunnel
    }

    fn agent(&self, native_nftables: &str, options: &[(&str, &str)]) -> Agent {
        let mut launch = self.mesh.agent().env("NATIVE_NFTABLES", native_nftables);
        for (name, value) in options {
            launch = launch.env(name, value);
        }
        let agent = launch.ready().unwrap();
        let backend = if native_nftables == "true" { "backend=nftables" } else { "backend=iptables" };
        assert!(agent.log().text().contains(backend), "{}", agent.log().text());
        agent
    }

    fn relayed(&self) -> usize {
        self.relay
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map_or(0, |relay| relay.relayed().len())
    }

    fn label(&self, value: Option<&str>) {
        let (namespace, name) = (&self.pod.namespace, &self.pod.name);
        let mut object = self.mesh.node.api.object(Resource::Pods, namespace, name).unwrap();
        object["metadata"]["labels"] =
            value.map_or_else(Default::default, |value| serde_json::json!({ MODE: value }));
        self.mesh.node.api.set_pod(object);
    }

    fn enter(&self) {
        self.label(Some("ambient"));
        self.mesh.wait_annotation(&self.pod, Some("enabled")).unwrap();
    }

    fn leave(&self) {
        self.label(None);
        self.mesh.wait_annotation(&self.pod, None).unwrap();
        eventually("the pod is out for what is new", PATIENCE, || self.is_past_ztunnel()).unwrap();
    }

    /// The annotation goes before the rules do.
    fn is_past_ztunnel(&self) -> Result<()> {
        let before = self.relayed();
        self.connect().iter().for_each(Open::works);
        ensure!(self.relayed() == before, "ztunnel took it");
        Ok(())
    }

    /// One connection in each direction.
    fn connect(&self) -> Vec<Open> {
        let of = |what, from: &TestNetns, to: SocketAddr| {
            let stream = from.enter(|_| TcpStream::connect_timeout(&to, ANSWER)).unwrap();
            let stream = stream.unwrap_or_else(|error| panic!("{what}: {error}"));
            stream.set_read_timeout(Some(ANSWER)).unwrap();
            Open { what, stream }
        };
        let world = SocketAddr::new(IpAddr::V4(WORLD), APP);
        vec![
            of("outbound", &self.pod.netns, world),
            of("inbound", &self.world, SocketAddr::new(self.pod.ip, APP)),
        ]
    }

    /// The same, and ztunnel has them.
    fn connect_through(&self) -> Vec<Open> {
        let before = self.relayed();
        let open = self.connect();
        open.iter().for_each(Open::works);
        assert_eq!(self.relayed(), before + 2);
        open
    }

    fn state(&self) -> Option<String> {
        let path = self.mesh.node.run_dir().join("ambient").join(format!("{}.json", self.pod.uid));
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).unwrap();
        record["state"].as_str().map(str::to_owned)
    }

    fn wait_out(&self, ztunnel: &Ztunnel) {
        eventually("nothing is left", PATIENCE, || {
            ensure!(self.pod.is_clean()?, "something is left in the namespace");
            ensure!(ztunnel.workloads().is_empty(), "ztunnel has it");
            ensure!(self.state().is_none(), "a record is left: {:?}", self.state());
            Ok(())
        })
        .unwrap();
        assert_eq!(self.loose(), "1");
        let entries = self.pod.netns.enter(|_| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
        let entries = entries.unwrap().unwrap();
        assert!(
            !["1500", "15053"].iter().any(|port| entries.contains(&format!("sport={port}"))),
            "{entries}"
        );
        assert_eq!(ztunnel.violations(), Vec::<String>::new());
    }

    /// `nf_conntrack_tcp_loose`.
    fn loose(&self) -> String {
        let mut cat = std::process::Command::new("cat");
        self.pod
            .netns
            .run(cat.arg("/proc/sys/net/netfilter/nf_conntrack_tcp_loose"))
            .unwrap()
            .trim()
            .to_owned()
    }
}

/// One side of a connection.
struct Open {
    what: &'static str,
    stream: TcpStream,
}

impl Open {
    #[track_caller]
    fn works(&self) {
        let mut heard = [0; 4];
        (&self.stream).write_all(b"ping").unwrap_or_else(|error| panic!("{}: {error}", self.what));
        (&self.stream).read_exact(&mut heard).unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }

    /// It has ended, and this side knows without saying anything.
    fn has_ended(&self) -> Result<()> {
        match (&self.stream).read(&mut [0; 4]) {
            Ok(0) => Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            // A signal, such as that of a child that ended, while it waits.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.has_ended(),
            other => bail!("{}: {other:?}", self.what),
        }
    }
}

fn say_again(mut stream: TcpStream) {
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            let _ = stream.write_all(&bytes[..length]);
        }
    });
}

#[test]
fn what_is_open_outlives_the_way_out() {
    at_once(BACKENDS, |native| {
        let scene = Scene::new();
        let agent = scene.agent(native, &[]);
        let ztunnel = scene.ztunnel();
        scene.enter();
        let open = scene.connect_through();
        scene.leave();
        eventually("the pod drains", PATIENCE, || {
            ensure!(agent.metric("istio_cni_ambient_pods{state=\"draining\"}")? == 1.0);
            ensure!(scene.state().as_deref() == Some("draining"), "{:?}", scene.state());
            Ok(())
        })
        .unwrap();
        std::thread::sleep(Duration::from_millis(500));
        open.iter().for_each(Open::works);
        assert!(ztunnel.workloads().contains_key(&scene.pod.uid), "{}", agent.log().text());
        assert!(
            !scene
                .mesh
                .host
                .run(std::process::Command::new("nft").args(["list", "ruleset"]))
                .unwrap()
                .contains(&scene.pod.uid)
        );
        drop(open);
        scene.wait_out(&ztunnel);
        assert_eq!(agent.metric("istio_cni_ambient_connections_ended_total").unwrap(), 0.0);
    });
}

/// The agent is killed while the pod drains; a ztunnel that begins meanwhile hears of the pod.
#[test]
fn a_restart_goes_on_with_it() {
    at_once(BACKENDS, |native| {
        let scene = Scene::new();
        let agent = scene.agent(native, &[]);
        let ztunnel = scene.ztunnel();
        scene.enter();
        let open = scene.connect_through();
        scene.leave();
        eventually("the pod drains", PATIENCE, || {
            ensure!(scene.state().as_deref() == Some("draining"), "{:?}", scene.state());
            Ok(())
        })
        .unwrap();
        agent.kill().unwrap();
        let agent = scene.agent(native, &[]);
        ztunnel.wait_snapshot(PATIENCE).unwrap();
        let second = scene.mesh.ztunnel().unwrap();
        second.wait_snapshot(PATIENCE).unwrap();
        assert!(second.workloads().contains_key(&scene.pod.uid));
        std::thread::sleep(Duration::from_millis(300));
        open.iter().for_each(Open::works);
        assert!(ztunnel.workloads().contains_key(&scene.pod.uid), "{}", agent.log().text());
        scene.is_past_ztunnel().unwrap();
        drop(open);
        scene.wait_out(&ztunnel);
        assert!(second.workloads().is_empty());
    });
}

#[test]
fn a_pod_that_drains_comes_back_and_loses_nothing() {
    at_once(BACKENDS, |native| {
        let scene = Scene::new();
        let agent = scene.agent(native, &[]);
        let ztunnel = scene.ztunnel();
        scene.enter();
        let before = scene.connect_through();
        scene.leave();
        let meanwhile = scene.connect();
        meanwhile.iter().for_each(Open::works);
        scene.enter();
        let after = scene.connect_through();
        let all = || before.iter().chain(&meanwhile).chain(&after);
        all().for_each(Open::works);
        assert_eq!(ztunnel.adds(&scene.pod.uid), 1, "ztunnel has had it all the time");
        assert_eq!(agent.metric("istio_cni_ambient_pods{state=\"enrolled\"}").unwrap(), 1.0);
        // What ended meanwhile is not what the second drain waits for.
        drop(before);
        scene.leave();
        meanwhile.iter().chain(&after).for_each(Open::works);
        drop(after);
        scene.wait_out(&ztunnel);
        meanwhile.iter().for_each(Open::works);
    });
}

/// A drain that ends by its time, and one that has none: the two sides of every connection see an end, though ztunnel closes nothing.
#[test]
fn when_the_time_is_over_everybody_hears_of_it() {
    at_once(BACKENDS.into_iter().flat_map(|native| [(native, "2s"), (native, "0")]), |(native, timeout)| {
        let scene = Scene::new();
        let agent = scene.agent(native, &[("DRAIN_TIMEOUT", timeout)]);
        let ztunnel = scene.ztunnel();
        scene.enter();
        let open = scene.connect_through();
        let began = Instant::now();
        scene.label(None);
        for one in &open {
            one.has_ended()
                .unwrap_or_else(|error| panic!("{native} {timeout}: {error}\n{}", agent.log().text()));
        }
        assert!(timeout == "0" || began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        scene.wait_out(&ztunnel);
        scene.connect().iter().for_each(Open::works);
        assert_eq!(agent.metric("istio_cni_ambient_connections_ended_total").unwrap(), 2.0);
        // The servers have heard, too: ztunnel's own connections are gone.
        eventually("no connection of ztunnel is left", PATIENCE, || {
            let left = scene.pod.netns.run(std::process::Command::new("ss").args([
                "-tnH",
                "state",
                "established",
            ]))?;
            ensure!(!left.contains(&format!(":{APP} ")) || !left.contains("15001"), "{left}");
            Ok(())
        })
        .unwrap();
    });
}

/// Everything is removed: what is open has ten seconds, and ztunnel hears of the pod's end before that of the connections.
#[test]
fn an_uninstallation_lets_connections_end() {
    at_once(BACKENDS, |native| {
        let scene = Scene::new();
        let agent = scene.agent(native, &[("CLEANUP_ON_EXIT", "always")]);
        let ztunnel = scene.ztunnel();
        scene.enter();
        let mut open = scene.connect_through();
        let began = Instant::now();
        agent.signal(Signal::TERM).unwrap();
        eventually("the pod is out for what is new", PATIENCE, || scene.is_past_ztunnel()).unwrap();
        open.iter().for_each(Open::works);
        assert!(ztunnel.workloads().contains_key(&scene.pod.uid), "ztunnel is served meanwhile");
        let stubborn = open.pop().unwrap();
        drop(open);
        stubborn.works();
        stubborn.has_ended().or_else(|_| stubborn.has_ended()).unwrap();
        let ended = agent.ended_by_itself().unwrap();
        let took = began.elapsed();
        assert!(took > Duration::from_secs(8) && took < Duration::from_secs(22), "{took:?}");
        let del =
            ztunnel.requests().into_iter().any(|(_, request)| request == Request::Del(scene.pod.uid.clone()));
        assert!(del, "{}", ended.log.text());
        scene.wait_out(&ztunnel);
    });
}

/// As soon as nothing is open the agent ends.
#[test]
fn an_uninstallation_waits_no_longer_than_it_has_to() {
    let scene = Scene::new();
    let agent = scene.agent("true", &[("CLEANUP_ON_EXIT", "always")]);
    let ztunnel = scene.ztunnel();
    scene.enter();
    drop(scene.connect_through());
    let began = Instant::now();
    agent.stop().unwrap();
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    scene.wait_out(&ztunnel);
}

/// The same addresses and ports: first through ztunnel, then past it, then with the pod back in.
#[test]
fn what_was_redirected_is_not_remembered() {
    at_once([("true", "1h"), ("true", "0"), ("false", "1h")], |(native, timeout)| {
        let scene = Scene::new();
        let _agent = scene.agent(native, &[("DRAIN_TIMEOUT", timeout)]);
        let ztunnel = scene.ztunnel();
        let fixed = || scene.pod.netns.enter(|_| from_port(41_000)).unwrap().unwrap();
        let first = Open { what: "before", stream: fixed() };
        first.works();
        scene.enter();
        first.works();
        abort(first.stream);
        let inside = Open { what: "in the mesh", stream: fixed() };
        inside.works();
        assert_eq!(scene.relayed(), 1);
        abort(inside.stream);
        scene.label(None);
        scene.wait_out(&ztunnel);
        let outside = Open { what: "outside", stream: fixed() };
        outside.works();
        // The relay of before listens no more.
        drop(scene.relay.lock().unwrap().take());
        scene.enter();
        outside.works();
        outside.works();
        assert_eq!(scene.relayed(), 0, "it goes on as it was");
    });
}

/// Where something is open when a running pod enters, the namespace does not pick it up; where nothing is, it is as before.
#[test]
fn only_what_is_open_needs_sparing() {
    at_once([true, false], |something| {
        let scene = Scene::new();
        let _agent = scene.agent("true", &[]);
        let ztunnel = scene.ztunnel();
        let open = something.then(|| scene.connect());
        scene.enter();
        assert_eq!(scene.loose(), if something { "0" } else { "1" });
        scene.connect_through();
        open.iter().flatten().for_each(Open::works);
        drop(open);
        scene.leave();
        scene.wait_out(&ztunnel);
    });
}

/// Rules that somebody removed come back, and what was opened without them goes on without them.
/// So long as a connection is open that was before the rules it goes on, and the setting for that goes back when it has ended.
#[test]
fn what_was_open_before_the_rules_is_spared_until_it_ends() {
    let scene = Scene::new();
    // Its hour is over at each look.
    let options = [("AMBIENT_VERIFY_INTERVAL", "200ms"), ("ISTIO_CNI_HOUR_MS", "1")];
    let agent = scene.agent("true", &options);
    let ztunnel = scene.ztunnel();
    let past = scene.connect();
    scene.enter();
    assert_eq!((scene.loose().as_str(), scene.relayed()), ("0", 0));
    let through = scene.connect_through();
    let verified = || agent.metric("istio_cni_verification_last_timestamp_seconds{scope=\"host\"}");
    for _ in 0..3 {
        let before = verified().unwrap();
        eventually("the next round", PATIENCE, || {
            ensure!(verified()? > before);
            Ok(())
        })
        .unwrap();
    }
    past.iter().chain(&through).for_each(Open::works);
    assert_eq!(scene.loose(), "0", "it is needed");
    drop(past);
    eventually("the setting is back", PATIENCE, || {
        ensure!(scene.loose() == "1");
        Ok(())
    })
    .unwrap();
    let path = scene.mesh.node.run_dir().join("ambient").join(format!("{}.json", scene.pod.uid));
    eventually("its record says so", PATIENCE, || {
        ensure!(!std::fs::read_to_string(&path)?.contains("tcp_loose"));
        Ok(())
    })
    .unwrap();
    through.iter().for_each(Open::works);
    drop(scene.connect_through());
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

#[test]
fn a_repair_cuts_nothing() {
    at_once(
        [("true", "nft flush ruleset"), ("false", "iptables -t nat -F; iptables -t mangle -F")],
        |(native, lose)| {
            let (mesh, world) = (Mesh::new().unwrap(), TestNetns::new().unwrap());
            let pod = mesh.sandbox("mesh", "web").unwrap();
            mesh.node.api.set_pod(pod.object(&[], false));
            let scene = Scene::with(mesh, world, pod);
            let agent = scene.agent(native, &[("AMBIENT_VERIFY_INTERVAL", "700ms")]);
            let ztunnel = scene.ztunnel();
            assert_eq!(scene.mesh.announce(&scene.pod).unwrap().status, 200);
            scene.mesh.wait_annotation(&scene.pod, Some("enabled")).unwrap();
            assert_eq!(scene.loose(), "1", "a pod without a process has nothing to spare");
            let through = scene.connect_through();
            scene.pod.netns.run(std::process::Command::new("sh").args(["-ec", lose])).unwrap();
            let past = scene.connect();
            past.iter().for_each(Open::works);
            assert_eq!(scene.relayed(), 2);
            eventually("the rules are back", PATIENCE, || {
                ensure!(agent.metric("istio_cni_drift_repaired_total{what=\"pod-rules\"}")? >= 1.0);
                Ok(())
            })
            .unwrap();
            through.iter().chain(&past).for_each(Open::works);
            scene.connect_through();
            assert_eq!(scene.loose(), "0");
            drop((through, past));
            // By the next agent, which did not change the setting.
            agent.kill().unwrap();
            let _agent = scene.agent(native, &[]);
            scene.mesh.node.api.set_namespace("mesh", &[]);
            scene.wait_out(&ztunnel);
        },
    );
}

/// The API server takes no patch for a while: the pod is out all the same, and only the patch is repeated.
#[test]
fn an_api_server_that_refuses_keeps_no_pod_in() {
    let scene = Scene::new();
    let agent = scene.agent("true", &[]);
    let ztunnel = scene.ztunnel();
    scene.enter();
    let open = scene.connect_through();
    scene.mesh.node.api.fail_path("/status", 1_000_000, Fault::status(500));
    scene.label(None);
    eventually("the pod is out for what is new", PATIENCE, || scene.is_past_ztunnel()).unwrap();
    open.iter().for_each(Open::works);
    drop(open);
    eventually("nothing is left but the annotation", PATIENCE, || {
        ensure!(scene.pod.is_clean()? && ztunnel.workloads().is_empty());
        Ok(())
    })
    .unwrap();
    assert_eq!(scene.mesh.annotation(&scene.pod).as_deref(), Some("enabled"));
    assert!(scene.state().is_some(), "the next agent knows of it, too");
    let parts = ["1 pod waits for the API server", "take annotation"];
    agent.log().wait_for(&parts, PATIENCE).unwrap();
    scene.mesh.node.api.fail_path("/status", 0, Fault::status(500));
    scene.mesh.wait_annotation(&scene.pod, None).unwrap();
    scene.wait_out(&ztunnel);
}

/// Many pods drain at once, and the agent has no thread for each.
#[test]
fn many_pods_drain_without_a_thread_for_each() {
    let (mesh, agent, ztunnel) = Mesh::served_by(|agent| agent.env("NATIVE_NFTABLES", "true")).unwrap();
    let pods: Vec<MeshPod> =
        (0..40).map(|number| mesh.running("mesh", &format!("web-{number}"), &[]).unwrap()).collect();
    pods.iter().for_each(|pod| mesh.wait_annotation(pod, Some("enabled")).unwrap());
    // What ztunnel has in a pod: a connection on one of its ports.
    let open = |pod: &MeshPod| {
        pod.netns
            .enter(|_| -> std::io::Result<_> {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 15001))?;
                let client = TcpStream::connect(listener.local_addr()?)?;
                Ok((client, listener.accept()?, listener))
            })
            .unwrap()
            .unwrap()
    };
    let connections: Vec<_> = pods.iter().map(open).collect();
    mesh.node.api.set_namespace("mesh", &[]);
    eventually("all of them drain", PATIENCE, || {
        ensure!(agent.metric("istio_cni_ambient_pods{state=\"draining\"}")? == 40.0);
        Ok(())
    })
    .unwrap();
    assert_eq!(ztunnel.workloads().len(), 40);
    // The runtime keeps threads that wait for work for ten seconds; what they did is over.
    eventually("no thread is at work", 2 * PATIENCE, || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", agent.pid()))?.count();
        ensure!(threads < 20, "{threads} threads");
        Ok(())
    })
    .unwrap();
    drop(connections);
    eventually("all are out", PATIENCE, || {
        ensure!(ztunnel.workloads().is_empty());
        ensure!(pods.iter().all(|pod| pod.is_clean().unwrap_or(false)));
        Ok(())
    })
    .unwrap();
}

fn from_port(port: u16) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
    // A program that is started meanwhile would keep it open.
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(ANSWER))?;
    connect(&socket, &SocketAddr::from((WORLD, APP)))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// Ends a connection so that its port is free at once.
fn abort(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    std::thread::sleep(Duration::from_millis(100));
}

/// The mode is off at once for what is new; what is open through ztunnel has its time to drain, and the agent says how many pods do.
#[test]
fn open_connections_outlive_an_upgrade_to_sidecar_mode() {
    at_once(BACKENDS, |native_nftables| {
        let scene = Scene::new();
        let agent = scene.agent(native_nftables, &[]);
        let ztunnel = scene.ztunnel();
        scene.enter();
        let open = scene.connect_through();
        agent.stop().unwrap();
        let launch = scene.mesh.agent().env("NATIVE_NFTABLES", native_nftables);
        let agent = launch.env("AMBIENT_ENABLED", "false").ready().unwrap();
        scene.mesh.wait_annotation(&scene.pod, None).unwrap();
        eventually("the pod is out for what is new", PATIENCE, || scene.is_past_ztunnel()).unwrap();
        open.iter().for_each(Open::works);
        eventually("it is said", PATIENCE, || {
            let verbose = agent.health("/readyz?verbose")?.body;
            ensure!(
                verbose.contains("[!]leftovers: ") && verbose.contains("1 drain (DRAIN_TIMEOUT)"),
                "{verbose}"
            );
            ensure!(agent.metric("istio_cni_ambient_leftover_pods")? == 1.0);
            Ok(())
        })
        .unwrap();
        assert_eq!(scene.state().as_deref(), Some("draining"));
        drop(open);
        scene.wait_out(&ztunnel);
        agent.log().wait_for(&["nothing of ambient mode is left"], PATIENCE).unwrap();
    });
}
