//! Pods: their namespaces, their ADD, what listens in them.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use testkit::probe::{Listener, Listeners};
use testkit::{TestNetns, wait_until_up};

use crate::expectations::{self, APP, Decision, INBOUND, METRICS, OUTBOUND};
use crate::node::{Answer, CONFLIST, Node, prepare};

/// A running pod.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) case: &'static expectations::Pod,
    pub(crate) netns: TestNetns,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) listeners: Listeners,
}

/// What was observed when a pod was added.
#[derive(Debug, Serialize)]
pub(crate) struct PodReport {
    pub(crate) pod: String,
    /// The first comment of its manifest.
    pub(crate) about: String,
    pub(crate) ips: Vec<IpAddr>,
    /// By the plugin's log.
    pub(crate) captured: bool,
    /// By the plugin's log where it left the pod alone, else how `cnictl explain` sums up the capture.
    pub(crate) reason: String,
    /// By the plugin's log.
    pub(crate) backend: Option<String>,
    /// What the kernel lists.
    pub(crate) rules: usize,
    /// In the order of the chain.
    pub(crate) plugins: Vec<PluginRun>,
    pub(crate) problems: Vec<String>,
}

/// One plugin's part in an ADD.
#[derive(Debug, Serialize)]
pub(crate) struct PluginRun {
    pub(crate) plugin: String,
    pub(crate) ms: f64,
    pub(crate) peak_mib: f64,
}

/// The decision as the plugin logged it.
struct Logged {
    captured: bool,
    reason: String,
    detail: String,
    backend: Option<String>,
}

impl expectations::Pod {
    /// `namespace/name`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Makes the pod's namespace, runs the chain's ADD, and starts what listens in the pod.
///
/// # Errors
/// The ADD fails, or what it did cannot be looked at.
pub(crate) fn add(node: &Node, case: &'static expectations::Pod) -> Result<(Pod, PodReport)> {
    let name = case.full_name();
    let manifest = node.manifest(case.namespace, case.name);
    let netns = TestNetns::new()?;
    prepare(&netns)?;
    let mut arguments = node.chain("add", CONFLIST, &manifest, "results");
    arguments.extend(["--netns".to_owned(), netns.path().display().to_string()]);
    let Answer { report, problem } = node.cnictl(&arguments)?;
    if let Some(problem) = problem {
        bail!("add {name}: {problem}");
    }
    wait_until_up(&netns, "eth0", true)?;
    let listeners = listen(&netns, case).with_context(|| format!("listen in {name}"))?;
    let ips = addresses(&report["result"]);
    ensure!(!ips.is_empty(), "add {name}: the chain's result has no address");
    let logged = logged(node, &name)?;
    let (rules, others) = node.backend.count_rules(&netns)?;
    let pod = Pod { case, netns, ips, listeners };
    let reason = if logged.captured { summary(node, &pod)? } else { logged.detail.clone() };
    let problems = problems(node, case.decision, &logged, rules, others);
    let report = PodReport {
        pod: name,
        about: first_comment(&std::fs::read_to_string(&manifest)?),
        ips: pod.ips.clone(),
        captured: logged.captured,
        reason,
        backend: logged.backend,
        rules,
        plugins: plugins(&report),
        problems,
    };
    Ok((pod, report))
}

fn problems(node: &Node, expected: Decision, logged: &Logged, rules: usize, others: usize) -> Vec<String> {
    let mut problems = Vec::new();
    let observed = if logged.captured { "captured" } else { logged.reason.as_str() };
    let wanted = match expected {
        Decision::Captured => "captured",
        Decision::LeftAlone(reason) => reason,
    };
    if observed != wanted {
        problems.push(format!("expected: {wanted}; the plugin's log says: {observed}"));
    }
    let backend = node.backend.name();
    if logged.captured && logged.backend.as_deref() != Some(backend) {
        problems.push(format!("expected rules in {backend}; the plugin's log says: {:?}", logged.backend));
    }
    if (rules > 0) != (expected == Decision::Captured) || others > 0 {
        problems
            .push(format!("the kernel lists {rules} rules in {backend} and {others} in the other interface"));
    }
    problems
}

fn listen(netns: &TestNetns, case: &expectations::Pod) -> Result<Listeners> {
    let [inbound, outbound] = [INBOUND, OUTBOUND].map(Listener::tcp);
    let inbound = if case.tproxy { inbound.transparent() } else { inbound };
    Listeners::start(netns, [inbound, outbound, Listener::tcp(APP), Listener::tcp(METRICS)])
}

/// What the plugin's log says of the pod's ADD.
fn logged(node: &Node, pod: &str) -> Result<Logged> {
    let lines = node.log_of(pod)?;
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    for line in &lines {
        let backend = line["backend"].as_str().map(str::to_owned);
        if backend.is_some() || line.get("reason").is_some() {
            return Ok(Logged {
                captured: backend.is_some(),
                reason: text(line, "reason"),
                detail: text(line, "msg").trim_start_matches("pod is left alone: ").to_owned(),
                backend,
            });
        }
    }
    bail!("the plugin's log has no decision about {pod}: {lines:?}")
}

/// `sidecar, REDIRECT, IPv4`.
fn summary(node: &Node, pod: &Pod) -> Result<String> {
    let to = format!("{}", std::net::SocketAddr::new(pod.ips[0], APP));
    let explanation = explain(node, pod, &["--in".to_owned(), "--to".to_owned(), to])?;
    let capture = &explanation["capture"];
    let sidecar = if capture["native_sidecar"] == true { "native sidecar" } else { "sidecar" };
    let families = if capture["ipv6"] == true { "IPv4 and IPv6" } else { "IPv4" };
    Ok(format!("{sidecar}, {}, {families}", capture["mode"].as_str().unwrap_or_default()))
}

/// `cnictl explain` about a flow of the pod.
///
/// # Errors
/// It fails.
pub(crate) fn explain(node: &Node, pod: &Pod, flow: &[String]) -> Result<Value> {
    let manifest = node.manifest(pod.case.namespace, pod.case.name);
    let mut arguments = vec!["explain".to_owned(), manifest.display().to_string()];
    arguments.extend(["--conf".to_owned(), node.path(CONFLIST).display().to_string()]);
    for ip in &pod.ips {
        arguments.extend(["--pod-ip".to_owned(), ip.to_string()]);
    }
    arguments.extend_from_slice(flow);
    let Answer { report, problem } = node.cnictl(&arguments)?;
    match problem {
        None => Ok(report),
        Some(problem) => bail!("explain {}: {problem}", pod.case.full_name()),
    }
}

fn first_comment(manifest: &str) -> String {
    let line = manifest.lines().next().unwrap_or_default();
    line.trim_start_matches('#').trim().to_owned()
}

/// The addresses of a result of CNI 1.x, without their prefix lengths.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let list = result["ips"].as_array().into_iter().flatten();
    list.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
}

#[allow(clippy::cast_precision_loss, reason = "memory in KiB is far below 2^52")]
fn plugins(report: &Value) -> Vec<PluginRun> {
    let runs = report["plugins"].as_array().into_iter().flatten();
    runs.map(|run| PluginRun {
        plugin: run["plugin"].as_str().unwrap_or_default().to_owned(),
        ms: run["duration_ms"].as_f64().unwrap_or_default(),
        peak_mib: run["peak_rss_kib"].as_u64().unwrap_or_default() as f64 / 1024.0,
    })
    .collect()
}
