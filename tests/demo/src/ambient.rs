//! A pod enters the mesh and leaves it again while connections go on: to it, from it, and the node's probes of it.
//!
//! Whether a connection went through ztunnel is not guessed from its phase: the relay that stands for ztunnel notes each client.

mod held;
mod loops;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::probe::{Listener, Listeners};
use testkit::relay::Relay;
use testkit::ztunnel::{Answer, Request, Script};
use testkit::{Agent, PATIENCE, TestNetns, eventually, wires};

use crate::backend::Backend;
use crate::expectations::{APP, HTTPS, WORLD};
use crate::removal;

pub(crate) use held::HeldReport;
use held::{Echo, Held};
pub(crate) use loops::LoopReport;
use loops::{Attempt, Loops, Moments, Phase, Route};

/// How long connections run before the pod enters, while it is in the mesh, and after it has left.
const PHASE: Duration = Duration::from_millis(700);
/// The source by which a pod in the mesh tells probes.
const PROBE: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 7, 127));

/// What was observed.
#[derive(Debug, Serialize)]
pub(crate) struct AmbientReport {
    pub(crate) backend: Backend,
    pub(crate) loops: Vec<LoopReport>,
    /// Connections that were open all the while.
    pub(crate) held: Vec<HeldReport>,
    /// From the label to the annotation that says that the pod is in.
    pub(crate) entered_ms: f64,
    /// From the label's removal until nothing new goes through ztunnel.
    pub(crate) left_ms: f64,
    /// Sources that the pod saw of probes while it was in the mesh.
    pub(crate) probe_sources: Vec<IpAddr>,
    pub(crate) namespaces: usize,
    pub(crate) problems: Vec<String>,
}

/// Everything that runs.
struct Scene {
    mesh: Mesh,
    pod: Arc<MeshPod>,
    world: TestNetns,
}

type Relays = Arc<Mutex<Option<Relay>>>;

/// Plays it.
///
/// # Errors
/// A step could not be done.
pub(crate) fn run(programs: &Path, backend: Backend) -> Result<AmbientReport> {
    testkit::use_programs(programs);
    let scene = Scene::new()?;
    let namespaces = [&scene.mesh.host, &scene.world, &scene.pod.netns].map(removal::inode);
    let namespaces = namespaces.into_iter().collect::<Result<Vec<u64>>>()?;
    let native = if backend == Backend::Nftables { "true" } else { "false" };
    let agent = scene.mesh.agent().env("NATIVE_NFTABLES", native).ready()?;
    let relays = Relays::default();
    let ztunnel = scene.mesh.ztunnel_that(script(scene.pod.clone(), relays.clone()))?;
    ztunnel.wait_snapshot(PATIENCE)?;
    let (attempts, moments, held) = scene.play(backend)?;
    let relay = relays.lock().unwrap_or_else(PoisonError::into_inner).take();
    let relay = relay.context("ztunnel was never told of the pod")?;
    let mut problems = relay.failures();
    let loops = LoopReport::all(&attempts, &moments, &relay.relayed(), &mut problems);
    problems.extend(held.iter().filter_map(HeldReport::problem));
    if relay.relayed().iter().filter(|one| held::is_held(one)).count() != 2 {
        problems.push(
            "of the connections that were held open ztunnel has to take those of the time in the mesh"
                .to_owned(),
        );
    }
    let probe_sources = probe_sources(&attempts, &moments, &mut problems);
    problems
        .extend(ztunnel.violations().into_iter().map(|rule| format!("the agent's words to ztunnel: {rule}")));
    problems.extend(scene.left()?);
    drop((relay, ztunnel));
    end(agent, &mut problems)?;
    let (count, entered, left) = (namespaces.len(), moments.entered(), moments.left());
    drop(scene);
    problems.extend(removal::holders(&namespaces)?);
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    Ok(AmbientReport {
        backend,
        loops,
        held,
        entered_ms: ms(entered),
        left_ms: ms(left),
        probe_sources,
        namespaces: count,
        problems,
    })
}

/// A ztunnel that listens in the pod before it says that it has taken it, and takes nothing new once it is told to let go.
fn script(pod: Arc<MeshPod>, relays: Relays) -> Script {
    Script::answering(move |request| {
        let mut relay = relays.lock().unwrap_or_else(PoisonError::into_inner);
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
    })
}

/// Every probe came from the node's own address, and from the one for probes while the pod was in the mesh.
fn probe_sources(attempts: &[Attempt], moments: &Moments, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let mut sources = Vec::new();
    for attempt in attempts.iter().filter(|attempt| attempt.route == Route::Probe) {
        let Some(phase) = moments.phase(attempt.began) else { continue };
        let Ok(arrival) = &attempt.result else { continue };
        let source = arrival.peer.ip();
        let inside = phase == loops::Phase::Inside;
        if inside && !sources.contains(&source) {
            sources.push(source);
        }
        if (source == PROBE) != inside {
            problems.push(format!("a probe came from {source} {}", phase.text()));
        }
    }
    sources
}

fn end(agent: Agent, problems: &mut Vec<String>) -> Result<()> {
    let ended = agent.stop()?;
    if !ended.status.success() {
        problems.push(format!("SIGTERM has to end the agent with 0, it was {}", ended.status));
    }
    Ok(())
}

// === impl AmbientReport ===

impl AmbientReport {
    /// How many ended by the pod's way in or out.
    pub(crate) fn cut(&self) -> usize {
        let held = self.held.iter().filter(|one| one.end.is_some()).count();
        self.loops.iter().map(|one| one.cut.len()).sum::<usize>() + held
    }

    /// How many ended otherwise, or never began.
    pub(crate) fn failed(&self) -> usize {
        self.loops.iter().map(|one| one.failed.len()).sum()
    }

    /// How many did what they have to.
    pub(crate) fn connections(&self) -> usize {
        let all = |one: &LoopReport| {
            one.before + one.entering + one.inside + one.leaving + one.after
                - one.cut.len()
                - one.failed.len()
        };
        self.loops.iter().map(all).sum::<usize>() + self.held.iter().filter(|one| one.end.is_none()).count()
    }
}

// === impl Scene ===

impl Scene {
    fn new() -> Result<Self> {
        let (mesh, world) = (Mesh::new()?, TestNetns::new()?);
        let pod = mesh.running("default", "web", &[])?;
        wires::connect_world(&mesh, &world)?;
        wires::connect_pod(&mesh, &pod, "pod")?;
        Ok(Self { mesh, pod: Arc::new(pod), world })
    }

    /// Lets connections run, labels the pod, takes the label away.
    fn play(&self, backend: Backend) -> Result<(Vec<Attempt>, Moments, Vec<HeldReport>)> {
        let app = SocketAddr::new(self.pod.ip, APP);
        let _app = Listeners::start(&self.pod.netns, [Listener::tcp(APP)])?;
        let _world = Listeners::start(&self.world, [Listener::tcp(HTTPS)])?;
        let _echoes = [Echo::start(&self.pod.netns)?, Echo::start(&self.world)?];
        let mut held = self.hold(Phase::Before)?;
        let loops = Loops::new([
            (Route::Inbound, &self.world, app),
            (Route::Outbound, &self.pod.netns, SocketAddr::new(WORLD, HTTPS)),
            (Route::Probe, &self.mesh.host, app),
        ]);
        let (attempts, moments) = loops.run_during(|| {
            loops.let_run(PHASE);
            let labelled = Instant::now();
            self.label(Some("ambient"))?;
            self.mesh.wait_annotation(&self.pod, Some("enabled"))?;
            let inside = Instant::now();
            let (rules, others) = backend.count_rules(&self.pod.netns)?;
            ensure!(rules > 0 && others == 0, "{rules} rules by {}, {others} otherwise", backend.name());
            held.extend(self.hold(Phase::Inside)?);
            loops.let_run(PHASE);
            let unlabelled = Instant::now();
            self.label(None)?;
            self.wait_past_ztunnel()?;
            let outside = Instant::now();
            loops.let_run(PHASE);
            Ok(Moments { labelled, inside, unlabelled, outside })
        })?;
        Ok((attempts, moments, held.into_iter().map(Held::end).collect()))
    }

    /// Opens a connection in each direction and talks on it.
    fn hold(&self, since: Phase) -> Result<Vec<Held>> {
        Ok(vec![
            Held::open(since, Route::Inbound, &self.world, self.pod.ip)?,
            Held::open(since, Route::Outbound, &self.pod.netns, WORLD)?,
        ])
    }

    /// The annotation goes first, what was open ends last; what is new is for neither.
    fn wait_past_ztunnel(&self) -> Result<()> {
        self.mesh.wait_annotation(&self.pod, None)?;
        eventually("nothing new goes through ztunnel", PATIENCE, || {
            ensure!(!self.pod.is_redirected()?, "the pod's rules redirect still");
            ensure!(self.mesh.probes()?.is_empty(), "probes have the source that rules let through still");
            Ok(())
        })
    }

    /// As `kubectl label` does it.
    fn label(&self, value: Option<&str>) -> Result<()> {
        let MeshPod { namespace, name, .. } = &*self.pod;
        let mut object =
            self.mesh.node.api.object(Resource::Pods, namespace, name).context("the pod is gone")?;
        object["metadata"]["labels"] = value.map_or_else(|| json!({}), |value| json!({ MODE: value }));
        ensure!(object["metadata"] != Value::Null, "the pod has no metadata");
        self.mesh.node.api.set_pod(object);
        Ok(())
    }

    /// What is left of the mesh in the pod and on the node.
    fn left(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        // No connection through ztunnel is open any more.
        let clean = || {
            ensure!(self.pod.is_clean()?, "the pod's namespace has something of the mesh still");
            Ok(())
        };
        left.extend(eventually("the pod is out", PATIENCE, clean).err().map(|error| format!("{error:#}")));
        left.extend(
            self.mesh.probes()?.keys().map(|ip| format!("{ip} is in the node's set of probes still")),
        );
        Ok(left)
    }
}
