//! Ambient mode: what a pod waits for on its way into the mesh, and what a node full of such pods costs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use capture::ambient::{NodeOptions, PROBES_V4, PodOptions, ProbeSender, plan_host, plan_pod};
use kernel::RuleStore;
use kernel::nft::Nftables;
use kernel::sets::ProbeSets;
use netns::Host;
use ruleset::{Backend, Family};
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::ztunnel::{Request, Ztunnel};
use testkit::{Agent, Launch, TestNetns, eventually};

use crate::agent::{SETTLE, resident};
use crate::measures::{Measure, fill};
use crate::report::Report;
use crate::sample::{Samples, time};

pub(crate) const ALL: &[Measure] = &[
    Measure { name: "ambient mode: plugins' events, nf_tables", run: events },
    Measure { name: "ambient mode: plugins' events, iptables", run: events_with_iptables },
    Measure { name: "ambient mode: a node of 500 pods", run: full_node },
    Measure { name: "ambient mode: the node's set of addresses", run: sets },
];

/// More than kubelet lets a node have without being told to (110), and as many as the largest nodes of cloud providers.
const PODS: usize = 500;
/// What containers get for a soft limit of open files where nobody says anything else.
const OPEN_FILES: &[&str] = &["prlimit", "--nofile=1024:"];
/// Threads that make namespaces.
const MAKERS: usize = 4;
/// How long anything here may take.
const LONGEST: Duration = Duration::from_secs(60);
/// A namespace of the cluster whose label changes.
pub(crate) const BULK: &str = "bulk";

/// From the plugin's request to the answer: rules applied, ztunnel has acknowledged, addresses in the set.
fn events(runs: usize, report: &mut Report) -> Result<()> {
    let mesh = Mesh::new()?;
    let samples = announce_all(&mesh, &mesh.start()?, runs, || Ok(()))?;
    report.time("ambient: plugin's event until its answer, p50", samples.median(), Duration::from_millis(4));
    report.time("ambient: plugin's event until its answer, p99", samples.quantile(0.99), None);
    Ok(())
}

/// The same with iptables, beside what its programs alone take for the same rules.
fn events_with_iptables(runs: usize, report: &mut Report) -> Result<()> {
    let plan = plan_pod(&NodeOptions::default(), &PodOptions::default(), Backend::Iptables);
    let texts: Vec<(&str, String)> =
        [("iptables-nft-restore", Family::V4), ("ip6tables-nft-restore", Family::V6)]
            .into_iter()
            .map(|(program, family)| Ok((program, ruleset::iptables::render(&plan.layers, family)?)))
            .collect::<Result<_>>()?;
    let mut bare = Samples::default();
    let restore =
        |(program, text): &(&str, String)| time(Command::new(program).arg("--noflush"), text.as_bytes());
    let mesh = Mesh::new()?;
    let both = [("NATIVE_NFTABLES", "false"), ("AMBIENT_IPV6", "true"), ("AMBIENT_DNS_CAPTURE", "true")];
    let agent = both.into_iter().fold(mesh.agent(), |agent, (name, value)| agent.env(name, value)).ready()?;
    let samples = announce_all(&mesh, &agent, runs, || {
        let netns = TestNetns::new()?;
        bare.push(netns.enter(|_| texts.iter().map(restore).sum::<Result<Duration>>())??);
        Ok(())
    })?;
    report.ratio("ambient: plugin's event, iptables : a bare restore of each family", &samples, &bare, 1.6);
    Ok(())
}

/// How long each of many new pods waits for its answer; `between` is done before each.
fn announce_all(
    mesh: &Mesh,
    agent: &Agent,
    runs: usize,
    mut between: impl FnMut() -> Result<()>,
) -> Result<Samples> {
    let ztunnel = mesh.ztunnel()?;
    ztunnel.wait_snapshot(LONGEST)?;
    // A pod whose namespace goes leaves the mesh.
    let (mut samples, mut pods) = (Samples::default(), Vec::new());
    for number in 0..runs {
        let pod = mesh.sandbox("mesh", &format!("web-{number}"))?;
        mesh.node.api.set_pod(pod.object(&[], false));
        wait_for("the agent knows the pod", || Ok(agent.metric("istio_cni_pods")? as usize > number))?;
        between()?;
        let start = Instant::now();
        let reply = mesh.announce(&pod)?;
        samples.push(start.elapsed());
        ensure!(reply.status == 200, "{reply:?}\n{}", agent.log().text());
        pods.push(pod);
    }
    ensure!(ztunnel.workloads().len() == runs, "ztunnel serves {} pods", ztunnel.workloads().len());
    Ok(samples)
}

/// The label of a namespace brings all its pods in; then the agent is killed and another one takes over.
fn full_node(_: usize, report: &mut Report) -> Result<()> {
    let mesh = Mesh::new()?;
    mesh.node.api.set_namespace(BULK, &[]);
    let pods = running_pods(&mesh, PODS)?;
    let agent = limited(&mesh).ready()?;
    wait_for("the agent knows all pods", || Ok(agent.metric("istio_cni_pods")? as usize == PODS))?;
    let ztunnel = mesh.ztunnel()?;
    ztunnel.wait_snapshot(LONGEST)?;
    enrol(&mesh, &agent, &ztunnel, report)?;
    wait_annotated(&mesh, &pods)?;
    std::thread::sleep(SETTLE);
    report.size("agent RSS, 500 pods in the mesh", resident(&agent)?, 24_000_000);
    agent.kill()?;
    drop(ztunnel);
    take_over(&mesh, report)
}

fn enrol(mesh: &Mesh, agent: &Agent, ztunnel: &Ztunnel, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    mesh.node.api.set_namespace(BULK, &[(MODE, "ambient")]);
    ztunnel
        .wait_served(PODS, LONGEST)
        .map_err(|_| anyhow::anyhow!("not all are served\n{}", agent.log().text()))?;
    let requests = ztunnel.requests();
    let adds = requests.iter().filter(|(_, request)| matches!(request, Request::Add { .. }));
    let last = adds.map(|(at, _)| *at).max().context("ztunnel has heard of no pod")?;
    wait_for("all pods are in", || {
        Ok(agent.metric("istio_cni_ambient_pods{state=\"enrolled\"}")? as usize == PODS)
    })?;
    let all = start.elapsed();
    report.time(
        "ambient: 500 pods after a namespace's label, last ack",
        last - start,
        Duration::from_secs(2),
    );
    report.time("ambient: 500 pods after a namespace's label, last rules", all, None);
    ensure!(ztunnel.violations().is_empty(), "{:?}", ztunnel.violations());
    Ok(())
}

/// From the start of the process until it is ready, with every pod's rules verified, and a ztunnel that knows nothing has its snapshot.
fn take_over(mesh: &Mesh, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let agent = limited(mesh).start()?;
    let ztunnel = eventually("a ztunnel connects", LONGEST, || mesh.ztunnel());
    let ztunnel = ztunnel.with_context(|| agent.log().text())?;
    wait_for("the agent is ready", || Ok(agent.readyz().is_ok_and(|reply| reply.status == 200)))?;
    let ready = start.elapsed();
    ztunnel.wait_snapshot(LONGEST)?;
    let both = start.elapsed();
    let line = agent.log().wait_for(&["the pods of an earlier agent are taken over"], LONGEST)?;
    let all = |name: &str, count: usize| line.contains(&format!("{name}={count}"));
    ensure!(
        all("pods", PODS) && all("verified", PODS) && all("repaired", 0),
        "not all were verified: {line}"
    );
    ensure!(ztunnel.workloads().len() == PODS, "the snapshot has {} pods", ztunnel.workloads().len());
    report.time("ambient: agent restart with 500 pods, verified and ready", ready, None);
    report.time("ambient: the same, and ztunnel has its snapshot", both, Duration::from_secs(1));
    Ok(())
}

fn limited(mesh: &Mesh) -> Launch<'_> {
    mesh.agent().behind(OPEN_FILES)
}

/// Namespaces, processes and objects of so many pods.
pub(crate) fn running_pods(mesh: &Mesh, count: usize) -> Result<Vec<MeshPod>> {
    let one = |number: usize| -> Result<MeshPod> {
        let pod = mesh.running(BULK, &format!("web-{number}"), &[])?;
        let mut object = pod.object(&[], true);
        fill(&mut object);
        mesh.node.api.set_pod(object);
        Ok(pod)
    };
    let make = |maker: usize| -> Result<Vec<MeshPod>> { (maker..count).step_by(MAKERS).map(one).collect() };
    std::thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS).map(|maker| scope.spawn(move || make(maker))).collect();
        let mut pods = Vec::new();
        for maker in makers {
            pods.extend(maker.join().map_err(|_| anyhow::anyhow!("a thread that makes pods panicked"))??);
        }
        Ok(pods)
    })
}

/// What the next agent goes by.
fn wait_annotated(mesh: &Mesh, pods: &[MeshPod]) -> Result<()> {
    eventually("all pods are annotated", LONGEST, || {
        let missing = pods.iter().filter(|pod| mesh.annotation(pod).as_deref() != Some("enabled")).count();
        ensure!(missing == 0, "{missing} pods are not");
        Ok(())
    })
}

pub(crate) fn wait_for(what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    // What fails is not waited for.
    eventually(what, LONGEST, || match done() {
        Ok(false) => bail!("it is not so"),
        ended => Ok(ended),
    })?
    .map(drop)
}

/// An address comes and goes, beside those of a full node.
fn sets(runs: usize, report: &mut Report) -> Result<()> {
    let netns = TestNetns::new()?;
    for (backend, name) in [(Backend::Nftables, "nf_tables"), (Backend::Iptables, "ipset")] {
        let mut sets = open(netns.path(), backend)?;
        sets.ensure()?;
        let pod = |number: usize| -> Result<(IpAddr, String)> {
            let [_, _, high, low] = u32::try_from(number)?.to_be_bytes();
            Ok((Ipv4Addr::new(10, 9, high, low).into(), format!("{number:08x}-0000-4000-8000-00000000cafe")))
        };
        sets.reconcile(&(0..PODS).map(pod).collect::<Result<Vec<_>>>()?)?;
        let mut samples = Samples::default();
        for number in PODS..PODS + runs {
            let (ip, uid) = pod(number)?;
            let start = Instant::now();
            sets.upsert(ip, &uid)?;
            sets.remove(ip, &uid)?;
            samples.push(start.elapsed() / 2);
        }
        report.time(&format!("ambient: a change of the node's set, {name}, p50"), samples.median(), CHANGE);
    }
    Ok(())
}

/// The longest that a change of the set may take.
const CHANGE: Duration = Duration::from_micros(50);

/// The set as the agent has it; in nf_tables it comes with the rules.
fn open(path: &Path, backend: Backend) -> Result<ProbeSets> {
    let opened = Host::open(path)?.enter(|inside| -> Result<ProbeSets> {
        if backend == Backend::Nftables {
            let plan = plan_host(&NodeOptions::default(), ProbeSender::AnySocket, backend);
            Nftables.setup(inside.inside(), &plan.layers)?;
        }
        Ok(ProbeSets::open(inside, backend, "istio-ambient-nat", PROBES_V4, None)?)
    });
    opened?
}
