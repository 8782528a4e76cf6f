//! Ambient mode: what it takes to bring pods into the mesh, with a ztunnel that acknowledges at once.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use agent_tests::mesh::{MODE, Mesh, MeshPod};
use anyhow::{Context, Result, ensure};
use capture::ambient::{NodeOptions, PROBES_V4, ProbeSender, plan_host};
use kernel::RuleStore;
use kernel::nft::Nftables;
use kernel::sets::ProbeSets;
use netns::Host;
use ruleset::Backend;
use testkit::TestNetns;
use testkit::ztunnel::Script;

use crate::agent::resident;
use crate::measures::Measure;
use crate::report::Report;
use crate::sample::Samples;

pub(crate) const ALL: &[Measure] = &[
    Measure { name: "pods that the plugin announces", run: announced },
    Measure { name: "500 running pods, and another agent", run: running },
    Measure { name: "a change of the host's sets", run: sets },
];

const PODS: usize = 500;
const PATIENCE: Duration = Duration::from_secs(60);

/// From the plugin's request to the agent's answer: rules, ztunnel, sets.
fn announced(runs: usize, report: &mut Report) -> Result<()> {
    let mesh = Mesh::new()?;
    let _agent = mesh.start()?;
    let ztunnel = mesh.ztunnel()?;
    ztunnel.wait_snapshot(PATIENCE)?;
    let mut samples = Samples::default();
    for number in 0..runs {
        let pod = mesh.sandbox("mesh", &format!("pod-{number}"))?;
        mesh.node.api.set_pod(pod.object(&[], false));
        // The watch tells of it before the runtime announces it, as on a node.
        std::thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        let reply = mesh.announce(&pod)?;
        samples.push(start.elapsed());
        ensure!(reply.status == 200, "{reply:?}");
        mesh.delete(&pod)?;
    }
    report.time(
        "ambient: event → rules, set, ztunnel's ack, p50",
        samples.median(),
        Duration::from_millis(4),
    );
    report.time("ambient: the same, p99", samples.quantile(0.99), None);
    Ok(())
}

fn running(_: usize, report: &mut Report) -> Result<()> {
    let mesh = Mesh::new()?;
    let pods: Vec<MeshPod> = (0..PODS)
        .map(|number| mesh.running("default", &format!("pod-{number}"), &[]))
        .collect::<Result<_>>()?;
    let agent = mesh.start()?;
    let ztunnel = mesh.ztunnel_that(Script::default().reconnecting())?;
    ztunnel.wait_snapshot(PATIENCE)?;
    std::thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    mesh.node.api.set_namespace("default", &[(MODE, "ambient")]);
    ztunnel.wait_served(PODS, PATIENCE)?;
    // The rules of a running pod come last.
    while agent.metric("istio_cni_ambient_pods{state=\"enrolled\"}")? < PODS as f64 {
        ensure!(start.elapsed() < PATIENCE, "not all pods are enrolled");
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = start.elapsed();
    report.time("ambient: 500 running pods after one label, rules included", took, Duration::from_secs(2));
    for pod in &pods {
        mesh.wait_annotation(pod, Some("enabled"))?;
    }
    std::thread::sleep(Duration::from_secs(2));
    report.size("ambient: agent RSS, 500 enrolled pods", resident(&agent)?, 24_000_000);
    agent.kill()?;
    ztunnel.wait_end(PATIENCE)?;
    let start = Instant::now();
    let agent = mesh.agent().start()?;
    // The socket is there before the pods are verified; who connects waits until they are.
    ztunnel.wait_snapshot(PATIENCE)?;
    let took = start.elapsed();
    let log = agent.log().text();
    let line = log.lines().find(|line| line.contains("taken over")).context("pods are taken over")?;
    ensure!(line.contains(&PODS.to_string()), "not all are verified: {line}");
    report.time("ambient: agent restart, 500 pods verified, snapshot sent", took, Duration::from_secs(1));
    ensure!(ztunnel.violations().is_empty(), "{:?}", ztunnel.violations());
    Ok(())
}

/// An address that comes and goes, among 500.
fn sets(runs: usize, report: &mut Report) -> Result<()> {
    let netns = TestNetns::new()?;
    let host = Host::open(netns.path())?;
    let node = NodeOptions { ipv6: false, ..NodeOptions::default() };
    let mut sets = host.enter(|inside| -> Result<ProbeSets> {
        let plan = plan_host(&node, ProbeSender::AnySocket, Backend::Nftables);
        Nftables.setup(inside.inside(), plan.ruleset().context("no rules")?)?;
        Ok(ProbeSets::open(inside, Backend::Nftables, "istio-ambient-nat", PROBES_V4, None)?)
    })??;
    let ip = |number: u32| IpAddr::V4(Ipv4Addr::from(0x0a09_0000 + number));
    for number in 0..PODS as u32 {
        sets.upsert(ip(number), "0000-of-another-pod")?;
    }
    let mut samples = Samples::default();
    for _ in 0..runs {
        let start = Instant::now();
        sets.upsert(ip(60_000), "0000-of-this-pod")?;
        samples.push(start.elapsed());
        let start = Instant::now();
        sets.remove(ip(60_000), "0000-of-this-pod")?;
        samples.push(start.elapsed());
    }
    report.time("ambient: host set change per pod, p50", samples.median(), Duration::from_micros(50));
    Ok(())
}
