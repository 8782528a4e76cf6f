//! What is measured.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use capture::{PlanTarget, Settings};
use kernel::RuleStore;
use kernel::nft::Nftables;
use ruleset::{Backend, Family, Plan};
use testkit::apiserver::{ApiServer, Credentials};
use testkit::{Node, PodObject, TestNetns};

use crate::report::Report;
use crate::sample::{Samples, peak_rss_kib, time};

/// One measure.
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) run: fn(usize, &mut Report) -> Result<()>,
}

pub(crate) const ALL: &[Measure] = &[
    Measure { name: "whole ADD, nf_tables, facts from manifests", run: add_nftables },
    Measure { name: "whole ADD, iptables IPv4", run: add_iptables },
    Measure { name: "rules in process, netlink", run: rules_in_process },
    Measure { name: "peak memory", run: memory },
    Measure { name: "size", run: size },
    Measure { name: "ADDs in parallel", run: parallel },
];

/// A fresh namespace with an address that counts as the pod's.
pub(crate) fn namespace() -> Result<TestNetns> {
    let netns = TestNetns::new()?;
    netns.ip(&["addr add 10.77.0.2/32 dev lo"])?;
    Ok(netns)
}

fn node(native_nftables: bool) -> Result<Node> {
    let mut node = Node::bare()?;
    node.conf["native_nftables"] = native_nftables.into();
    node.write_manifest(PodObject::named("web").sidecar())?;
    Ok(node)
}

/// The program next to this one that does nothing.
pub(crate) fn noop() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let noop = own.parent().context("an executable without a folder")?.join("noop");
    anyhow::ensure!(noop.is_file(), "{} is missing: build the whole package", noop.display());
    Ok(noop)
}

fn plan(backend: Backend) -> Plan {
    capture::plan(&Settings::default(), PlanTarget { backend, ipv6: false })
}

fn add_nftables(runs: usize, report: &mut Report) -> Result<()> {
    let (node, noop) = (node(true)?, noop()?);
    let (mut ours, mut base) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        let netns = namespace()?;
        let call = node.call("ADD", "web", netns.path());
        base.push(time(&mut Command::new(&noop), b"")?);
        ours.push(time(&mut call.command(), &call.stdin)?);
    }
    report.ratio("whole ADD, nf_tables, manifests : static no-op process", &ours, &base, 5.0);
    Ok(())
}

fn add_iptables(runs: usize, report: &mut Report) -> Result<()> {
    let node = node(false)?;
    let plan = plan(Backend::Iptables);
    let text = ruleset::iptables::render(&plan.layers, Family::V4)?;
    let (mut ours, mut base) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        let (bare, whole) = (namespace()?, namespace()?);
        let call = node.call("ADD", "web", whole.path());
        let restore = || time(Command::new("iptables-nft-restore").arg("--noflush"), text.as_bytes());
        base.push(bare.enter(|_| restore())??);
        ours.push(time(&mut call.command(), &call.stdin)?);
    }
    report.ratio("whole ADD, iptables IPv4 : bare iptables-restore --noflush", &ours, &base, 1.5);
    Ok(())
}

fn rules_in_process(runs: usize, report: &mut Report) -> Result<()> {
    let plan = plan(Backend::Nftables);
    let batch = kernel::nft::encode(&plan.layers);
    let (mut ours, mut base) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        let (raw, whole) = (namespace()?, namespace()?);
        let raw = raw.enter(|inside| {
            let start = Instant::now();
            kernel::nft::send(inside, &batch).map(|()| start.elapsed())
        });
        base.push(raw??);
        let whole = whole.enter(|inside| {
            let start = Instant::now();
            Nftables.setup(inside, &plan.layers).map(|_| start.elapsed())
        });
        ours.push(whole??);
    }
    report.ratio("rules in process, netlink : raw batch send + ack", &ours, &base, 1.3);
    Ok(())
}

fn memory(runs: usize, report: &mut Report) -> Result<()> {
    let worst = |node: &Node| -> Result<u64> {
        let mut worst = 0;
        for _ in 0..runs.min(50) {
            let netns = namespace()?;
            let call = node.call("ADD", "web", netns.path());
            worst = worst.max(peak_rss_kib(&mut call.command(), &call.stdin)?);
        }
        Ok(worst * 1024)
    };
    let mut node = node(true)?;
    report.size("peak RSS, manifests", worst(&node)?, 3_300_000);
    let server = ApiServer::start()?;
    server.set_pod(full_sized_pod());
    node.conf.as_object_mut().context("no configuration")?.remove("pod_source");
    std::fs::create_dir_all(node.run_dir())?;
    server.write_kubeconfig(&node.run_dir(), Credentials::Token)?;
    report.size("peak RSS, Kubernetes API over TLS", worst(&node)?, 5_000_000);
    Ok(())
}

/// A pod object of the size that an injected pod has in a cluster: about 9 KB.
pub(crate) fn full_sized_pod() -> serde_json::Value {
    let mut pod = PodObject::named("web").sidecar().json();
    fill(&mut pod);
    pod
}

/// Gives a pod the size that it has in a cluster.
pub(crate) fn fill(pod: &mut serde_json::Value) {
    let filler: Vec<serde_json::Value> = (0..80)
        .map(|n| serde_json::json!({"name": format!("VARIABLE_{n}"), "value": format!("{:0>60}", n)}))
        .collect();
    pod["spec"]["containers"][0]["env"] = filler.into();
}

fn size(_: usize, report: &mut Report) -> Result<()> {
    let plugin = testkit::programs().join("istio-cni");
    report.size("stripped plugin binary", std::fs::metadata(plugin)?.len(), 4_000_000);
    Ok(())
}

fn parallel(runs: usize, report: &mut Report) -> Result<()> {
    const LANES: usize = 8;
    let node = node(true)?;
    let rounds = runs.div_ceil(LANES);
    let namespaces = || (0..LANES).map(|_| namespace()).collect::<Result<Vec<_>>>();
    let (mut serial, mut at_once) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..rounds {
        let fresh = namespaces()?;
        let start = Instant::now();
        for netns in &fresh {
            add(&node, netns.path())?;
        }
        serial += start.elapsed();
        let fresh = namespaces()?;
        let start = Instant::now();
        std::thread::scope(|scope| {
            let lanes: Vec<_> = fresh.iter().map(|netns| scope.spawn(|| add(&node, netns.path()))).collect();
            lanes
                .into_iter()
                .try_for_each(|lane| lane.join().unwrap_or_else(|_| anyhow::bail!("a lane panicked")))
        })?;
        at_once += start.elapsed();
    }
    report.gain("8 ADDs in parallel : one at a time (throughput)", at_once, serial, 1.6);
    Ok(())
}

fn add(node: &Node, netns: &Path) -> Result<()> {
    let call = node.call("ADD", "web", netns);
    time(&mut call.command(), &call.stdin).map(drop)
}
