//! Another plugin measured beside ours: the executable that `PEER_CNI` names, an original `istio-cni`.
//!
//! Both add a pod of the same API double over TLS, in turn, with the same configuration; ours also as it works on a node, through its agent.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use testkit::apiserver::{ApiServer, Credentials};
use testkit::{Node, PodCall};

use crate::measures::{Measure, full_sized_pod, namespace};
use crate::report::Report;
use crate::sample::{Samples, peak_rss_kib, time};

pub(crate) const ALL: &[Measure] = &[Measure { name: "beside PEER_CNI", run: beside }];

/// How many times as much the peer took on 29 November 2026, less a tenth: no ratio is to fall below.
struct Ratios {
    api: f64,
    agent: f64,
}

const NFTABLES: Ratios = Ratios { api: 14.4, agent: 26.1 };
const IPTABLES: Ratios = Ratios { api: 12.6, agent: 18.0 };
const MEMORY: f64 = 9.0;
const SIZE: f64 = 8.1;

fn beside(runs: usize, report: &mut Report) -> Result<()> {
    let Some(peer) = std::env::var_os("PEER_CNI").map(PathBuf::from) else {
        eprintln!("  not measured: PEER_CNI names no plugin");
        return Ok(());
    };
    // Each of its calls takes a tenth of a second.
    let runs = runs.min(50);
    for (backend, ratios) in [("nf_tables", NFTABLES), ("iptables", IPTABLES)] {
        let native = backend == "nf_tables";
        let (api, node, ours) = (ApiServer::start()?, node(native)?, testkit::programs().join("istio-cni"));
        api.set_pod(full_sized_pod());
        api.write_kubeconfig(&node.run_dir(), Credentials::Token)?;
        let memory = |plugin: &Path| -> Result<u64> {
            let netns = namespace()?;
            let call = node.call("ADD", "web", netns.path());
            Ok(peak_rss_kib(&mut call.command_of(plugin, &[]), &call.stdin)? * 1024)
        };
        let measure = format!("peak RSS, {backend}: peer : ours");
        report.size_beside(&measure, memory(&ours)?, memory(&peer)?, MEMORY);
        let (mut own, mut others) = (Samples::default(), Samples::default());
        for _ in 0..runs {
            others.push(add(&node, &peer)?);
            own.push(add(&node, &ours)?);
        }
        report.times_as_much(
            &format!("whole ADD, {backend}, facts from the API: peer : ours"),
            &own,
            &others,
            ratios.api,
        );
        let through = through_the_agent(native, runs)?;
        let measure = format!("whole ADD, {backend}: peer from the API : ours from the agent");
        report.times_as_much(&measure, &through, &others, ratios.agent);
    }
    let size = |path: &Path| -> Result<u64> { Ok(std::fs::metadata(path)?.len()) };
    report.size_beside(
        "executable: peer : ours",
        size(&testkit::programs().join("istio-cni"))?,
        size(&peer)?,
        SIZE,
    );
    Ok(())
}

/// A node whose plugin asks the API server.
fn node(native_nftables: bool) -> Result<Node> {
    let mut node = Node::new()?;
    node.conf["native_nftables"] = native_nftables.into();
    node.conf.as_object_mut().context("no configuration")?.remove("pod_source");
    std::fs::create_dir_all(node.run_dir())?;
    Ok(node)
}

fn add(node: &Node, plugin: &Path) -> Result<std::time::Duration> {
    let netns = namespace()?;
    let call = node.call("ADD", "web", netns.path());
    time(&mut call.command_of(plugin, &[]), &call.stdin)
}

fn through_the_agent(native_nftables: bool, runs: usize) -> Result<Samples> {
    let node = testkit::Node::new()?;
    node.sidecar("web", "uid-web");
    let _agent = node.agent().env("NATIVE_NFTABLES", &native_nftables.to_string()).ready()?;
    let mut samples = Samples::default();
    for _ in 0..runs {
        let netns = namespace()?;
        let call = PodCall::new(&node, "web", "uid-web", netns.path())?;
        let (mut command, stdin) = call.command("ADD");
        samples.push(time(&mut command, &stdin)?);
    }
    Ok(samples)
}
