//! Isolated pods that start one after the other, also while the agent is killed at random: which packets of their first processes and of their
//! neighbours arrive. `STORM_PODS` makes it long: `make soak PART=storm`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::probe::{Listener, Listeners, Record};
use testkit::wires::{self, WORLD};
use testkit::{NODE_NAME, PATIENCE, PodCall, PodObject, TestNetns, eventually};

const PODS: usize = 50;
/// Pods that start at the same time.
const LANES: usize = 4;
const PORT: u16 = 8080;
/// Datagrams in each direction, one in a millisecond. They begin with the first process.
const BURST: usize = 20;
/// What some pods live on meanwhile, so that the next agent finds them.
const LONG_BURST: usize = 300;
/// One of so many pods is selected by no policy, or nobody would know whether anything can arrive.
const OPEN: usize = 5;
const LONG: usize = 7;
/// Agents and plugins that start meanwhile are not to keep a pod's sockets.
const NOT_KEPT: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// A node, and the rest of the world.
struct Storm {
    mesh: Mesh,
    world: TestNetns,
    /// What arrives there.
    arrived: Listeners,
    /// In the world, sends to pods.
    neighbour: UdpSocket,
    pods: usize,
    next: AtomicUsize,
    is_over: AtomicBool,
    seen: Mutex<Seen>,
}

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    /// With what the plugin said.
    closed: BTreeMap<IpAddr, String>,
    open: BTreeSet<IpAddr>,
    /// Pods that started behind a guard that the plugin left.
    guarded: usize,
    agents: usize,
    /// What came in that is denied.
    wrong: Vec<String>,
}

/// The sockets of a pod's first process.
struct First {
    listener: TcpListener,
    datagrams: UdpSocket,
    connection: TcpStream,
}

/// An agent, on the node's point.
fn storm(is_killed: bool) {
    let pods = std::env::var("STORM_PODS").map_or(PODS, |text| text.parse().unwrap());
    let storm = Storm::new(pods).unwrap();
    let agent = storm.agent().unwrap();
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| if is_killed { storm.kill(agent) } else { Ok(agent) });
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(|| storm.live())).collect();
        let lived: Vec<Result<()>> = lanes.into_iter().map(|lane| lane.join().unwrap()).collect();
        storm.is_over.store(true, Ordering::Relaxed);
        let agent = killer.join().unwrap().unwrap();
        let log = agent.log().text();
        lived.into_iter().for_each(|lived| lived.unwrap_or_else(|error| panic!("{error:#}\n{log}")));
    });
    storm.judge();
}

impl Storm {
    fn new(pods: usize) -> Result<Self> {
        let (mesh, world) = (Mesh::new()?, TestNetns::new()?);
        wires::connect_world(&mesh, &world)?;
        let policy = json!({"metadata": {"namespace": "default", "name": "closed"}, "spec": {
            "podSelector": {"matchLabels": {"app": "closed"}}, "policyTypes": ["Ingress", "Egress"]}});
        mesh.node.api.set_object(Resource::NetworkPolicies, policy);
        let arrived = Listeners::start(&world, [Listener::tcp(PORT), Listener::udp(PORT)])?;
        let neighbour = world.enter(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        let (next, is_over, seen) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::default());
        Ok(Self { mesh, world, arrived, neighbour, pods, next, is_over, seen })
    }

    /// One that has policies in force and on disk.
    fn agent(&self) -> Result<testkit::Agent> {
        let agent =
            self.mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on").ready()?;
        let snapshot = self.mesh.node.state_dir().join("policies.snapshot");
        eventually("what is known of policies is kept", PATIENCE, || {
            let text = std::fs::read_to_string(&snapshot)?;
            ensure!(text.contains("policy np default closed yes yes"), "{text}");
            Ok(())
        })?;
        Ok(agent)
    }

    /// Kills agents until the storm is over, whatever they are about to do, and lets some time pass before the next one.
    fn kill(&self, mut agent: testkit::Agent) -> Result<testkit::Agent> {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut pause = |most: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            std::thread::sleep(Duration::from_millis(random % most));
        };
        while !self.is_over.load(Ordering::Relaxed) {
            pause(400);
            agent.kill()?;
            pause(200);
            agent = self.agent()?;
            self.seen.lock().unwrap().agents += 1;
        }
        Ok(agent)
    }

    fn live(&self) -> Result<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.pods {
                return Ok(());
            }
            self.pod(number).with_context(|| format!("pod {number}"))?;
        }
    }

    /// The life of a pod.
    fn pod(&self, number: usize) -> Result<()> {
        let is_open = number.is_multiple_of(OPEN);
        let app = if is_open { "open" } else { "closed" };
        let pod = self.mesh.sandbox("default", &format!("{app}-{number}"))?;
        wires::connect_pod(&self.mesh, &pod, &format!("pod{number}"))?;
        let object = PodObject::named(&pod.name).uid(&pod.uid).label("app", app).on_node(NODE_NAME);
        self.mesh.node.api.set_pod(object.container("app"));
        let first = First::new(&pod)?;
        let call = PodCall::new(&self.mesh.node, &pod.name, &pod.uid, pod.netns.path())?.at(pod.ip);
        let answer = call.add()?;
        let burst = if number.is_multiple_of(LONG) { LONG_BURST } else { BURST };
        first.talk(self, pod.ip, burst);
        let came_in = first.came_in();
        // A pod's processes end before its namespace does.
        drop(first);
        let mut seen = self.seen.lock().unwrap();
        seen.guarded += usize::from(answer.stderr.contains("isolated"));
        if is_open {
            seen.open.insert(pod.ip);
        } else {
            seen.closed.insert(pod.ip, format!("{}: {}", pod.name, answer.stderr));
        }
        if came_in != is_open {
            seen.wrong.push(format!("{}: packets came in: {came_in}; {}", pod.name, answer.stderr));
        }
        drop(seen);
        let end = call.run("DEL")?;
        ensure!(end.exit == Some(0), "{end:#?}");
        self.mesh.delete(&pod)
    }

    /// Nothing of an isolated pod has arrived, and of each other one something has.
    fn judge(&self) {
        let records = self.arrived.take_records();
        let from = |record: &Record| record.arrival.peer.ip();
        let arrived: BTreeSet<IpAddr> = records.iter().map(from).collect();
        let seen = self.seen.lock().unwrap();
        println!(
            "{} isolated pods and {} others, {} of them guarded by the plugin, {} agents killed: {} packets of the others arrived",
            seen.closed.len(),
            seen.open.len(),
            seen.guarded,
            seen.agents,
            records.len()
        );
        let what = |record: &Record| {
            let pod = seen.closed.get(&from(record))?;
            let how = if record.udp { "datagram" } else { "connection" };
            Some(format!("{how} {} of {pod}", String::from_utf8_lossy(&record.data)))
        };
        let escaped: Vec<String> = records.iter().filter_map(what).collect();
        assert!(escaped.is_empty() && seen.wrong.is_empty(), "{escaped:#?} {:#?}", seen.wrong);
        assert!(arrived.is_superset(&seen.open), "{arrived:?} {seen:?}");
        assert_eq!(seen.closed.len() + seen.open.len(), self.pods);
    }
}

impl First {
    /// Made before the ADD, so that nothing but the ADD is between them and what they send.
    fn new(pod: &MeshPod) -> Result<Self> {
        pod.netns.enter(|_| {
            let any = Ipv4Addr::UNSPECIFIED;
            let (listener, datagrams) = (TcpListener::bind((any, PORT))?, UdpSocket::bind((any, PORT))?);
            listener.set_nonblocking(true)?;
            datagrams.set_nonblocking(true)?;
            let connection = socket_with(AddressFamily::INET, SocketType::STREAM, NOT_KEPT, None)?;
            Ok(Self { listener, datagrams, connection: connection.into() })
        })?
    }

    /// What it sends at once, and what its neighbour does. What a guard drops on its way out is an error.
    fn talk(&self, storm: &Storm, ip: IpAddr, burst: usize) {
        let world = SocketAddr::from((WORLD, PORT));
        let _ = connect(&self.connection, &world);
        let neighbour = storm.world.enter(|_| {
            let neighbour = socket_with(AddressFamily::INET, SocketType::STREAM, NOT_KEPT, None)?;
            let _ = connect(&neighbour, &SocketAddr::new(ip, PORT));
            rustix::io::Result::Ok(neighbour)
        });
        for number in 0..burst {
            let _ = self.datagrams.send_to(number.to_string().as_bytes(), world);
            let _ = storm.neighbour.send_to(b"in", (ip, PORT));
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(neighbour);
    }

    fn came_in(&self) -> bool {
        // What the world answers comes from its port.
        let is_asked = |from: SocketAddr| from != SocketAddr::from((WORLD, PORT));
        let datagrams = std::iter::from_fn(|| self.datagrams.recv_from(&mut [0; 2048]).ok());
        datagrams.filter(|(_, from)| is_asked(*from)).count() > 0 || self.listener.accept().is_ok()
    }
}

#[test]
fn of_isolated_pods_that_start_no_packet_passes() {
    storm(false);
}

#[test]
fn of_isolated_pods_that_start_no_packet_passes_while_agents_are_killed() {
    storm(true);
}
