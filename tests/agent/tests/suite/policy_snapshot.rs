//! An agent that starts while the API server is away goes on with what an earlier one knew of policies.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Agent, NODE_NAME, PATIENCE, PodCall, PodObject, TestNetns, eventually, until, wires};

use crate::mesh_render::cnictl;

const PORT: u16 = 8080;
/// A packet that is dropped costs the whole of it.
const LOST: Duration = Duration::from_millis(150);
const AGE: &str = "istio_cni_policy_snapshot_age_seconds";

/// A server that only friends may reach, one of which is on another node.
struct Shop {
    mesh: Mesh,
    server: MeshPod,
    arrived: Listeners,
    stranger: MeshPod,
    world: TestNetns,
}

fn policy(role: &str) -> Value {
    json!({"metadata": {"namespace": "default", "name": "friends"}, "spec": {
        "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": role}}}]}]}})
}

impl Shop {
    fn new() -> Result<Self> {
        let mesh = Mesh::new()?;
        mesh.node.api.set_object(Resource::NetworkPolicies, policy("friend"));
        let world = TestNetns::new()?;
        wires::connect_world(&mesh, &world)?;
        let far = PodObject::named("far").uid("0000fa00-0000-4000-8000-00000000beef").label("role", "friend");
        mesh.node.api.set_pod(far.on_node("n2").container("app").running(&[wires::WORLD.into()]));
        let server = mesh.running("default", "server", &[("app", "server")])?;
        wires::connect_pod(&mesh, &server, "server")?;
        let stranger = mesh.running("default", "stranger", &[("role", "stranger")])?;
        wires::connect_pod(&mesh, &stranger, "stranger")?;
        let arrived = Listeners::start(&server.netns, [Listener::tcp(PORT), Listener::udp(PORT)])?;
        Ok(Self { mesh, server, arrived, stranger, world })
    }

    fn agent(&self) -> testkit::Launch<'_> {
        self.mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on")
    }

    /// An agent that has the API server, and has kept what it knows.
    fn informed(&self) -> Result<Agent> {
        let agent = self.agent().ready()?;
        self.wait_kept(&wires::WORLD.to_string())?;
        Ok(agent)
    }

    fn wait_kept(&self, word: &str) -> Result<()> {
        let path = self.mesh.node.state_dir().join("policies.snapshot");
        eventually("what is known of policies is kept", Duration::from_secs(40), || {
            let text = std::fs::read_to_string(&path)?;
            ensure!(text.contains(word) && text.contains("server"), "{text}");
            Ok(())
        })
    }

    /// A pod that was bound to the node and has no sandbox yet.
    fn bound(&self, name: &str, label: (&str, &str)) -> Result<MeshPod> {
        let pod = self.mesh.sandbox("default", name)?;
        wires::connect_pod(&self.mesh, &pod, name)?;
        let object = PodObject::named(name).uid(&pod.uid).label(label.0, label.1);
        self.mesh.node.api.set_pod(object.on_node(NODE_NAME).container("app"));
        eventually("the agent keeps the pod's facts", PATIENCE, || {
            let found =
                Command::new("grep").arg("-rqs").arg(&pod.uid).arg(self.mesh.node.run_dir()).status()?;
            ensure!(found.success(), "{name} is not there");
            Ok(())
        })?;
        Ok(pod)
    }

    /// A pod's sandbox is made, and it talks to the server at once; gives how many packets arrive.
    fn start(&self, pod: &MeshPod) -> Result<(PodCall, usize)> {
        let socket = pod.netns.enter(|_| UdpSocket::bind(("0.0.0.0", 0)))??;
        let call = PodCall::new(&self.mesh.node, &pod.name, &pod.uid, pod.netns.path())?.at(pod.ip);
        drop(self.arrived.take_records());
        call.add()?;
        let to = SocketAddr::new(self.server.ip, PORT);
        socket.send_to(b"x", to)?;
        Flow::from(&pod.netns).patience(LOST).tcp(to)?;
        Ok((call, self.arrived.take_records().len()))
    }

    /// Who of the friend on the other node and the stranger reaches the server.
    fn reach(&self) -> [bool; 2] {
        [&self.world, &self.stranger.netns].map(|from| reaches(from, self.server.ip))
    }

    /// What the node's table has, without what its counters have counted.
    fn handles(&self) -> String {
        let listed = self.nft("nft -a list table inet istio-policy-mangle");
        let is_named = |line: &&str| line.contains("# handle") && !line.contains("counter");
        listed.lines().filter(is_named).collect::<Vec<_>>().join("\n")
    }

    fn nft(&self, line: &str) -> String {
        self.mesh.host.run(Command::new("sh").args(["-c", line])).unwrap()
    }

    /// An agent that has no API server, and goes on with what is kept.
    fn uninformed(&self) -> Result<Agent> {
        let agent = self.agent().start()?;
        until(
            "the agent goes on with the snapshot",
            PATIENCE,
            || agent.health("/readyz?verbose").is_ok_and(|reply| reply.body.contains("policy snapshot: ")),
            || agent.log().text(),
        )?;
        Ok(agent)
    }
}

fn reaches(from: &TestNetns, to: IpAddr) -> bool {
    Flow::from(from).patience(LOST).tcp((to, PORT).into()).is_ok_and(|flow| flow.port() == Some(PORT))
}

#[test]
fn without_an_api_server_pods_are_judged_by_what_was_known_last() {
    let shop = Shop::new().unwrap();
    let agent = shop.informed().unwrap();
    let bound = |name: &str, label| shop.bound(name, label).unwrap();
    let (friend, next) = (bound("friend", ("role", "friend")), bound("next", ("role", "next")));
    let server = bound("server2", ("app", "server"));
    let heir = bound("heir", ("role", "heir"));
    assert_eq!(shop.reach(), [true, false]);
    let before = shop.handles();
    shop.mesh.node.api.stop();
    agent.kill().unwrap();
    let agent = shop.uninformed().unwrap();
    assert_eq!(shop.handles(), before, "what the kernel has stays as it is");
    assert_eq!(shop.reach(), [true, false]);
    assert!(agent.metric(AGE).unwrap() >= 1.0, "{}", agent.log().text());
    let verbose = agent.health("/readyz?verbose").unwrap().body;
    assert!(verbose.contains("[+]policies ok"), "{verbose}");
    let (exit, status, why) = cnictl(&shop.mesh, "policy status").unwrap();
    assert_eq!(exit, Some(0), "{status}{why}");
    assert!(status.contains("remembered") && status.contains("an earlier agent knew"), "{status}");

    // Pods that start, each with its first packet.
    let (_, arrived) = shop.start(&next).unwrap();
    assert_eq!(arrived, 0, "{}", agent.log().text());
    let (call, arrived) = shop.start(&friend).unwrap();
    assert_eq!(arrived, 2, "{}", agent.log().text());
    shop.start(&server).unwrap();
    let _listens = Listeners::start(&server.netns, [Listener::tcp(PORT)]).unwrap();
    let at_second =
        || [&shop.world, &friend.netns, &shop.stranger.netns].map(|from| reaches(from, server.ip));
    assert_eq!(at_second(), [true, true, false], "{}", agent.log().text());

    // Somebody removes everything.
    shop.nft("nft flush ruleset");
    until(
        "the rules are back",
        PATIENCE,
        || shop.nft("nft list tables").contains("istio-policy-mangle"),
        || agent.log().text(),
    )
    .unwrap();
    assert_eq!((shop.reach(), at_second()), ([true, false], [true, true, false]));

    // Or a part.
    shop.nft("nft flush chain inet istio-policy-mangle postrouting");
    until("the chain is filled", PATIENCE, || shop.reach() == [true, false], || agent.log().text()).unwrap();

    // The next agent, without the run directory.
    shop.wait_kept("server2").unwrap();
    agent.kill().unwrap();
    for entry in std::fs::read_dir(shop.mesh.node.run_dir()).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }.unwrap();
    }
    let agent = shop.uninformed().unwrap();
    assert_eq!((shop.reach(), at_second()), ([true, false], [true, true, false]));

    // An address comes to another pod. What the plugin had noted of the first one went with the run directory, so that nothing is told of its end.
    let end = call.run("DEL").unwrap();
    assert_eq!(end.exit, Some(0), "{end:#?}");
    shop.mesh.host.ip(&["link delete friend".to_owned()]).unwrap();
    let mut heir = heir;
    heir.ip = friend.ip;
    shop.mesh.host.ip(&[format!("route add {}/32 dev heir", heir.ip)]).unwrap();
    heir.netns.ip(&[format!("address add {}/32 dev eth0", heir.ip)]).unwrap();
    assert_eq!(shop.start(&heir).unwrap().1, 0, "{}", agent.log().text());

    // The API server comes back with other policies, and nothing passes on the way there.
    shop.mesh.node.api.set_object(Resource::NetworkPolicies, policy("stranger"));
    let (ends, to) = (AtomicBool::new(false), SocketAddr::new(shop.server.ip, PORT));
    drop(shop.arrived.take_records());
    let socket = next.netns.enter(|_| UdpSocket::bind(("0.0.0.0", 0))).unwrap().unwrap();
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !ends.load(Ordering::Relaxed) {
                sent += usize::from(socket.send_to(b"x", to).is_ok());
                std::thread::sleep(Duration::from_millis(2));
            }
            sent
        });
        shop.mesh.node.api.restart().unwrap();
        let followed = until(
            "the policy of now is in force",
            PATIENCE,
            || shop.reach() == [false, true],
            || agent.log().text(),
        );
        ends.store(true, Ordering::Relaxed);
        followed.unwrap();
        sender.join().unwrap()
    });
    let from = |record: &testkit::probe::Record| record.arrival.peer.ip() == next.ip;
    let passed = shop.arrived.take_records().iter().filter(|record| from(record)).count();
    assert_eq!(passed, 0, "of {sent} datagrams");
    assert_eq!(agent.metric(AGE).unwrap(), 0.0);
    let verbose = agent.health("/readyz?verbose").unwrap().body;
    assert!(!verbose.contains("policy snapshot"), "{verbose}");
    println!("{sent} datagrams of a denied pod while the API server came back, none passed");
}

#[test]
fn a_snapshot_that_cannot_be_read_opens_and_closes_nothing() {
    let shop = Shop::new().unwrap();
    let agent = shop.informed().unwrap();
    let pod = shop.bound("server2", ("app", "server")).unwrap();
    let before = shop.handles();
    shop.mesh.node.api.stop();
    agent.kill().unwrap();
    let path = shop.mesh.node.state_dir().join("policies.snapshot");
    let kept = std::fs::read_to_string(&path).unwrap();
    let (_, rest) = kept.split_once('\n').unwrap();
    for (text, why) in [
        (format!("istio-cni policies 1\n{rest}"), "another version"),
        (kept[..kept.len() - 3].to_owned(), "not whole"),
    ] {
        std::fs::write(&path, text).unwrap();
        let agent = shop.agent().start().unwrap();
        until("it says so", PATIENCE, || agent.log().text().contains(why), || agent.log().text()).unwrap();
        let verbose = agent.health("/readyz?verbose").unwrap().body;
        assert!(verbose.contains("[-]policies failed"), "{verbose}");
        assert_eq!((shop.handles(), shop.reach()), (before.clone(), [true, false]));
        agent.kill().unwrap();
    }
    let _agent = shop.agent().start().unwrap();
    shop.start(&pod).unwrap();
    let _listens = Listeners::start(&pod.netns, [Listener::tcp(PORT)]).unwrap();
    assert!(!reaches(&shop.world, pod.ip), "it may be isolated, so it is");
}
