//! What policies cost traffic that they allow: new connections through a thousand rules, and a stream whose packets are judged each time.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::wires::{self, WORLD};
use testkit::{Agent, NODE_NAME, PATIENCE, PodObject, TestNetns, eventually};

use crate::measures::Measure;
use crate::report::Report;
use crate::sample::Samples;

pub(crate) const ALL: &[Measure] = &[
    Measure { name: "policies: connections through a thousand rules", run: connections },
    Measure { name: "policies: one TCP stream", run: stream },
];

const RULES: usize = 1_000;
const CLASSES: usize = 100;
/// Where everything is answered, and where everything is taken.
const ECHO: u16 = 8080;
const SINK: u16 = 8081;
const ROUNDS: usize = 10;
/// How long connections are made in a round, and how long data flows.
const CONNECTING: Duration = Duration::from_millis(500);
const FLOWING: Duration = Duration::from_secs(1);

/// A node between the world and a pod.
struct Road {
    mesh: Mesh,
    world: TestNetns,
    pod: MeshPod,
    taken: Arc<AtomicU64>,
}

/// A policy for pods with a number; the last of its rules opens both ports to the world.
fn policy(number: usize, rules: usize) -> Value {
    let other = |rule: usize| {
        let at = number * rules + rule;
        let block = format!("198.18.{}.{}/32", at / 256, at % 256);
        json!({"from": [{"ipBlock": {"cidr": block}}], "ports": [{"port": 10_000 + at}]})
    };
    let mut all: Vec<Value> = (1..rules).map(other).collect();
    let ports = json!([{"port": ECHO}, {"port": SINK}]);
    all.push(json!({"from": [{"ipBlock": {"cidr": format!("{WORLD}/32")}}], "ports": ports}));
    let name = name_of(number);
    json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"podSelector": {"matchLabels": {"number": number.to_string()}}, "policyTypes": ["Ingress"], "ingress": all}})
}

fn name_of(number: usize) -> String {
    format!("rules-{number}")
}

// === impl Road ===

impl Road {
    fn new() -> Result<Self> {
        let (mesh, world) = (Mesh::new()?, TestNetns::new()?);
        wires::connect_world(&mesh, &world)?;
        let pod = mesh.running("default", "web", &[("number", "0")])?;
        // The others of the node need no namespace for their rules to be there.
        for number in 1..CLASSES {
            let other = PodObject::named(&format!("other-{number}")).uid(&format!("other-{number}"));
            let other = other.label("number", &number.to_string()).on_node(NODE_NAME);
            let address = Ipv4Addr::from(0x0a50_0000 + u32::try_from(number)?);
            mesh.node.api.set_pod(other.running(&[address.into()]));
        }
        wires::connect_pod(&mesh, &pod, "web")?;
        let road = Self { mesh, world, pod, taken: Arc::default() };
        let bind = |port: u16| road.pod.netns.enter(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
        let (echo, sink, taken) = (bind(ECHO)??, bind(SINK)??, road.taken.clone());
        // They end with the process.
        std::thread::spawn(move || echo.incoming().map_while(Result::ok).for_each(drop));
        std::thread::spawn(move || {
            for mut stream in sink.incoming().map_while(Result::ok) {
                let mut space = vec![0; 1 << 16];
                while let Ok(length @ 1..) = stream.read(&mut space) {
                    taken.fetch_add(length as u64, Ordering::Relaxed);
                }
            }
        });
        Ok(road)
    }

    fn agent(&self, established: &str) -> Result<Agent> {
        let agent = self.mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on");
        agent.env("POLICY_ESTABLISHED", established).ready()
    }

    /// A thousand rules, in so many classes of pods.
    fn set_rules(&self, classes: usize) -> Result<()> {
        for number in 0..classes {
            self.mesh.node.api.set_object(Resource::NetworkPolicies, policy(number, RULES / classes));
        }
        self.wait(RULES - classes)
    }

    fn at(&self, port: u16) -> SocketAddr {
        (self.pod.ip, port).into()
    }

    /// Waits until there are so many rules that are about others.
    fn wait(&self, rules: usize) -> Result<()> {
        eventually("rules are as they should be", PATIENCE, || {
            let mut nft = std::process::Command::new("nft");
            let listed = self.mesh.host.run(nft.args(["list", "ruleset"]))?;
            let found = listed.matches("198.18.").count();
            ensure!(found == rules, "there are {found} rules");
            Ok(())
        })
    }

    /// How long a connection takes from its beginning to its end, as many as come in a while.
    fn connect(&self) -> Result<Samples> {
        let to = self.at(ECHO);
        self.world.enter(|_| -> Result<Samples> {
            let (end, mut samples) = (Instant::now() + CONNECTING, Samples::default());
            while Instant::now() < end {
                let start = Instant::now();
                // Its other end is there and closes it: nothing piles up.
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                ensure!(stream.read(&mut [0])? == 0, "nothing is sent");
                samples.push(start.elapsed());
            }
            Ok(samples)
        })?
    }

    /// How long a gigabyte takes.
    fn flow(&self) -> Result<Duration> {
        let to = self.at(SINK);
        let mut stream = self.world.enter(|_| TcpStream::connect_timeout(&to, PATIENCE))??;
        let (data, before) = (vec![0_u8; 1 << 17], self.taken.load(Ordering::Relaxed));
        let start = Instant::now();
        while start.elapsed() < FLOWING {
            stream.write_all(&data)?;
        }
        let flown = self.taken.load(Ordering::Relaxed) - before;
        ensure!(flown > 0, "nothing flows");
        Ok(start.elapsed().mul_f64(1e9 / flown as f64))
    }
}

fn connections(_: usize, report: &mut Report) -> Result<()> {
    let road = Road::new()?;
    let _agent = road.agent("cut")?;
    // Of a hundred classes of pods each has ten of the rules; and all are one pod's.
    for classes in [CLASSES, 1] {
        let (mut with, mut without) = (Samples::default(), Samples::default());
        for _ in 0..ROUNDS {
            road.wait(0)?;
            without.extend(&road.connect()?);
            road.set_rules(classes)?;
            with.extend(&road.connect()?);
            for number in 0..classes {
                road.mesh.node.api.delete_object(Resource::NetworkPolicies, "default", &name_of(number));
            }
        }
        let rate = with.len() as f64 / without.len() as f64;
        let text =
            format!("policies: connections in a second, 1,000 rules in {classes} classes of pods : none");
        report.at_least(&text, rate, if classes > 1 { 0.95 } else { 0.0 });
    }
    Ok(())
}

fn stream(_: usize, report: &mut Report) -> Result<()> {
    let road = Road::new()?;
    let agent = road.agent("cut")?;
    road.set_rules(CLASSES)?;
    agent.stop()?;
    let [mut cut, mut keep] = [Samples::default(), Samples::default()];
    for _ in 0..ROUNDS {
        for (established, samples) in [("cut", &mut cut), ("keep", &mut keep)] {
            let agent = road.agent(established)?;
            road.wait(RULES - CLASSES)?;
            samples.push(road.flow()?);
            agent.stop()?;
        }
    }
    let share = keep.median().as_secs_f64() / cut.median().as_secs_f64();
    let gbit = |samples: &Samples, share: f64| 8.0 / samples.quantile(share).as_secs_f64();
    let spread = |samples: &Samples| format!("{:.1}–{:.1}", gbit(samples, 1.0), gbit(samples, 0.0));
    eprintln!("  Gbit/s: cut {}, keep {}", spread(&cut), spread(&keep));
    // Within the spread of either it cannot be told from it.
    let slowest_keep = keep.quantile(1.0).as_secs_f64() / keep.median().as_secs_f64();
    report.at_least("policies: one TCP stream, cut : keep", share, 0.97_f64.min(1.0 / slowest_keep));
    Ok(())
}
