//! What it costs an agent to verify a full node, and how soon it puts right what somebody has changed there.

use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use capture::ambient::plan_of_everything;
use kernel::nft::Nftables;
use kernel::{KeptSockets, RuleStore};
use netns::Netns;
use ruleset::Backend;
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::{Agent, Launch};

use crate::agent::{SETTLE, processor_time, resident};
use crate::ambient::{BULK, running_pods, wait_for};
use crate::measures::Measure;
use crate::report::Report;
use crate::sample::Samples;

pub(crate) const ALL: &[Measure] = &[
    Measure { name: "verification of a node of 250 pods, nf_tables", run: nf_tables },
    Measure { name: "verification of a node of 250 pods, iptables-legacy", run: legacy },
];

const PODS: usize = 250;
/// How many of them lose their rules at once.
const AT_ONCE: usize = 50;
/// Threads that delete them: a deletion mostly waits for the kernel.
const DELETERS: usize = 4;
/// How long a pod is new: the agent looks for conflicts at each full comparison of the first minute, and at the next one, up to eleven seconds later.
const NEW: Duration = Duration::from_secs(80);
/// How long the agent is watched. It looks at each pod in every second of it, and compares in full in one of ten.
const WATCHED: Duration = Duration::from_secs(10);
/// How often pods are looked at by default, and those of the largest nodes.
const USUAL: Duration = Duration::from_secs(30);
const SELDOM: Duration = Duration::from_secs(60);
/// Sockets of each namespace, so that what the machine does besides does not count.
const COPIES: usize = 8;

fn nf_tables(_: usize, report: &mut Report) -> Result<()> {
    // Without descriptors for sockets each look is a full comparison.
    let without = verified(
        &node()?.0,
        |agent| agent.env("VERIFY_INTERVAL", "30s").behind(&["prlimit", "--nofile=600"]),
        |_, _| Ok(()),
    )?;
    let (mesh, pods) = node()?;
    let with = verified(
        &mesh,
        |agent| agent,
        |agent, spent| {
            shares(report, "nf_tables", spent, 0.001)?;
            drift(agent, &pods, report)
        },
    )?;
    let sockets = kernel_memory(&pods)?;
    let most = 3_000_000;
    report.size("verification: memory of the kernel for the sockets of 250 pods", sockets, most);
    let all = with.saturating_sub(without) + sockets;
    report.size("verification: memory, agent and kernel, beside 250 pods without sockets", all, most);
    Ok(())
}

/// With tables of the legacy variant, which are hashed at each look.
fn legacy(_: usize, report: &mut Report) -> Result<()> {
    let (mesh, pods) = node()?;
    for pod in &pods {
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            pod.netns.run(Command::new(program).args(["-t", "nat", "-L", "-n"]))?;
        }
    }
    verified(
        &mesh,
        |agent| agent.env("NATIVE_NFTABLES", "false"),
        |_, spent| shares(report, "iptables-legacy", spent, 0.003),
    )?;
    Ok(())
}

/// Pods of a namespace of the cluster that is not in the mesh yet.
fn node() -> Result<(Mesh, Vec<MeshPod>)> {
    let mesh = Mesh::new()?;
    mesh.node.api.set_namespace(BULK, &[]);
    let pods = running_pods(&mesh, PODS)?;
    Ok((mesh, pods))
}

/// What a look at each pod costs, of a core, where there is one in so long.
fn shares(report: &mut Report, backend: &str, spent: Spent, most: f64) -> Result<()> {
    let Spent { floor, steady } = spent;
    let Looked { spent, all } = steady;
    ensure!(all >= 2.0 * PODS as f64, "only {all} looks");
    ensure!(spent > floor, "what looks at nothing has used more: {floor:?}, {spent:?}");
    let look = (spent - floor).as_secs_f64() / all;
    let share = |pods: f64, interval: Duration| look * pods / interval.as_secs_f64();
    let text =
        format!("verification: the same agent in {WATCHED:?} without pods in the mesh, CPU, {backend}");
    report.time(&text, floor, None);
    report.share(
        &format!("verification: 250 pods each 30 s, of a core, {backend}"),
        share(250.0, USUAL),
        most,
    );
    report.share(
        &format!("verification: 5,000 pods each 60 s, of a core, by what 250 cost, {backend}"),
        share(5_000.0, SELDOM),
        0.02,
    );
    Ok(())
}

/// What an agent has used while it looked at nothing, and when its pods are not new any more.
struct Spent {
    floor: Duration,
    steady: Looked,
}

/// What was used for so many looks.
struct Looked {
    spent: Duration,
    all: f64,
}

/// An agent that has looked at nothing for a while, then at all pods for as long; gives its memory then. `then` gets what it has used in both.
fn verified(
    mesh: &Mesh,
    change: impl FnOnce(Launch<'_>) -> Launch<'_>,
    then: impl FnOnce(&Agent, Spent) -> Result<()>,
) -> Result<u64> {
    let launch = mesh.agent().env("VERIFY_INTERVAL", "1s").env("VERIFY_FULL_INTERVAL", "10s");
    let agent = change(launch).ready()?;
    let _ztunnel = mesh.ztunnel()?;
    wait_for("the agent knows all pods", || Ok(agent.metric("istio_cni_pods")? as usize == PODS))?;
    let floor = used_in_a_while(&agent)?;
    mesh.node.api.set_namespace(BULK, &[(MODE, "ambient")]);
    wait_for("all pods are verified", || Ok(agent.metric(VERIFIED)? as usize == PODS))
        .with_context(|| agent.log().text())?;
    std::thread::sleep(NEW);
    let steady = looked_at(&agent)?;
    let resident = resident(&agent)?;
    then(&agent, Spent { floor, steady })?;
    Ok(resident)
}

/// What an agent uses in a while, and how many looks it takes meanwhile.
fn looked_at(agent: &Agent) -> Result<Looked> {
    let before = looks(agent, &["cheap", "full"])?;
    let spent = used_in_a_while(agent)?;
    // Those while it settled do not count.
    let share = WATCHED.as_secs_f64() / (WATCHED + SETTLE).as_secs_f64();
    let all = (looks(agent, &["cheap", "full"])? - before) * share;
    Ok(Looked { spent, all })
}

const VERIFIED: &str = "istio_cni_pods_verified{mode=\"ambient\"}";

fn looks(agent: &Agent, layers: &[&str]) -> Result<f64> {
    let of = |layer: &&str| {
        agent.metric(&format!("istio_cni_verifications_total{{layer=\"{layer}\",result=\"equal\"}}"))
    };
    layers.iter().map(of).sum()
}

fn used_in_a_while(agent: &Agent) -> Result<Duration> {
    std::thread::sleep(SETTLE);
    let before = processor_time(agent)?;
    std::thread::sleep(WATCHED);
    Ok(processor_time(agent)?.saturating_sub(before))
}

/// The rules of many pods go at once, as fast as some threads can.
fn drift(agent: &Agent, pods: &[MeshPod], report: &mut Report) -> Result<()> {
    let mut samples = Samples::default();
    for pods in pods.chunks_exact(AT_ONCE) {
        let open = |pod: &MeshPod| anyhow::Ok(KeptSockets::open(&Arc::new(Netns::open(pod.netns.path())?))?);
        let mut sockets = pods.iter().map(open).collect::<Result<Vec<_>>>()?;
        let gone: Vec<OnceLock<Instant>> = pods.iter().map(|_| OnceLock::new()).collect();
        std::thread::scope(|scope| {
            let each = pods.len().div_ceil(DELETERS);
            let deleters: Vec<_> = pods
                .chunks(each)
                .zip(gone.chunks(each))
                .map(|(pods, gone)| scope.spawn(|| delete(pods, gone)))
                .collect();
            wait_for_all(&mut sockets, &gone, &mut samples)?;
            deleters
                .into_iter()
                .try_for_each(|deleter| deleter.join().map_err(|_| anyhow!("a deleter panicked"))?)
        })?;
        wait_for("all pods are verified", || Ok(agent.metric(VERIFIED)? as usize == PODS))?;
    }
    report.time("verification: drift of 50 of 250 pods at once until repaired, p50", samples.median(), None);
    report.time(
        "verification: drift of 50 of 250 pods at once until repaired, p99",
        samples.quantile(0.99),
        Duration::from_millis(300),
    );
    Ok(())
}

/// Deletes our rules of some pods, and notes when.
fn delete(pods: &[MeshPod], gone: &[OnceLock<Instant>]) -> Result<()> {
    let plan = plan_of_everything(Backend::Nftables);
    for (pod, gone) in pods.iter().zip(gone) {
        pod.netns.enter(|inside| {
            Nftables.cleanup(inside, &plan.layers)?;
            let _ = gone.set(Instant::now());
            anyhow::Ok(())
        })??;
    }
    Ok(())
}

/// Until somebody else has written in each namespace. It is looked while others are still being deleted: who is done first waits for none of them.
fn wait_for_all(
    sockets: &mut [KeptSockets],
    gone: &[OnceLock<Instant>],
    samples: &mut Samples,
) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    let mut repaired: Vec<Option<Instant>> = vec![None; sockets.len()];
    while repaired.iter().any(Option::is_none) {
        ensure!(Instant::now() < end, "rules are not back");
        for (sockets, repaired) in sockets.iter_mut().zip(&mut repaired) {
            let noticed = sockets.take_events()?;
            if repaired.is_none() && noticed.commits.iter().any(|commit| !commit.is_own()) {
                *repaired = Some(Instant::now());
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    for (gone, repaired) in gone.iter().zip(repaired) {
        let (gone, repaired) =
            gone.get().zip(repaired).context("a pod was repaired whose rules were there")?;
        samples.push(repaired.saturating_duration_since(*gone));
    }
    Ok(())
}

/// What the kernel needs for the sockets of all pods: `Slab` of proc(5).
fn kernel_memory(pods: &[MeshPod]) -> Result<u64> {
    let slab = || -> Result<u64> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix("Slab:")).context("no Slab")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    };
    let mut kept = Vec::with_capacity(COPIES * pods.len());
    let before = slab()?;
    for pod in pods {
        let netns = Arc::new(Netns::open(pod.netns.path())?);
        for _ in 0..COPIES {
            kept.push(KeptSockets::open(&netns)?);
        }
    }
    Ok(slab()?.saturating_sub(before) / COPIES as u64)
}
