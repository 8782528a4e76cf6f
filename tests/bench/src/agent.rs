//! The node agent: what it costs to ask it, to have it, to start it.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use facts::PodRef;
use podsource::PodSource;
use testkit::{Agent, Node, PodCall, PodObject};

use crate::measures::{Measure, namespace, noop};
use crate::report::Report;
use crate::sample::{Samples, time};

pub(crate) const ALL: &[Measure] = &[
    Measure { name: "whole ADD, nf_tables, facts from the agent", run: add },
    Measure { name: "questions to the agent", run: questions },
    Measure { name: "memory of the agent, its processor time, its start", run: life },
    Measure { name: "size of the agent", run: size },
];

/// Callers at once.
const CALLERS: usize = 64;
/// How long an idle agent is watched.
const IDLE: Duration = Duration::from_secs(30);
/// After becoming ready, time for what goes on behind it.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

fn add(runs: usize, report: &mut Report) -> Result<()> {
    let (node, noop) = (Node::new()?, noop()?);
    node.sidecar("web", "uid-web");
    let agent = node.start()?;
    let (mut ours, mut base) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        let netns = namespace()?;
        let call = PodCall::new(&node, "web", "uid-web", netns.path())?;
        base.push(time(&mut Command::new(&noop), b"")?);
        let (mut command, stdin) = call.command("ADD");
        ours.push(time(&mut command, &stdin)?);
    }
    let counted = agent.metric("istio_cni_facts_source_total{source=\"agent\"}")?;
    ensure!(counted >= runs as f64, "only {counted} of {runs} ADDs had their facts from the agent");
    report.ratio("whole ADD, nf_tables, facts from the agent : static no-op process", &ours, &base, 5.0);
    Ok(())
}

fn questions(runs: usize, report: &mut Report) -> Result<()> {
    let node = Node::new()?;
    node.sidecar("web", "uid-web");
    let _agent = node.start()?;
    let alone = ask(&node, runs)?;
    report.time("facts from the agent, one caller, p50", alone.median(), Duration::from_micros(300));
    let each = runs.div_ceil(8).max(20);
    let all = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(|| ask(&node, each))).collect();
        let mut all = Samples::default();
        for caller in callers {
            all.extend(&caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??);
        }
        anyhow::Ok(all)
    })?;
    report.time("facts from the agent, 64 callers at once, p50", all.median(), None);
    report.time(
        "facts from the agent, 64 callers at once, p99",
        all.quantile(0.99),
        Duration::from_millis(5),
    );
    Ok(())
}

/// As the plugin asks: a connection for each question.
fn ask(node: &Node, times: usize) -> Result<Samples> {
    let agent = podsource::AgentSource::new(&node.run_dir(), "bench");
    let id = PodRef { namespace: "default".into(), name: "web".into(), uid: "uid-web".into() };
    let mut samples = Samples::default();
    for _ in 0..times {
        let start = Instant::now();
        agent.pod(&id)?;
        samples.push(start.elapsed());
    }
    Ok(samples)
}

fn life(_: usize, report: &mut Report) -> Result<()> {
    for (pods, most) in [(0, 12_000_000), (250, 16_000_000), (5_000, 40_000_000)] {
        let node = filled(pods)?;
        let agent = node.start()?;
        std::thread::sleep(SETTLE);
        ensure!(agent.metric("istio_cni_pods")? as usize == pods, "the agent does not know {pods} pods");
        report.size(&format!("agent RSS, {pods} pods"), resident(&agent)?, most);
        if pods == 250 {
            let before = processor_times(&agent)?;
            std::thread::sleep(IDLE);
            let since = |(thread, time): (String, u64)| {
                time.saturating_sub(before.get(&thread).copied().unwrap_or(0))
            };
            let used = Duration::from_nanos(processor_times(&agent)?.into_iter().map(since).sum());
            report.share(
                "agent CPU idle, 250 pods, of a core",
                used.as_secs_f64() / IDLE.as_secs_f64(),
                0.001,
            );
        }
    }
    let node = filled(1_000)?;
    let start = Instant::now();
    let _agent = node.start()?;
    report.time(
        "agent start until ready, 1000 pods, the API's time included",
        start.elapsed(),
        Duration::from_secs(1),
    );
    Ok(())
}

/// A node whose API has so many pods of the size that injected pods have.
fn filled(pods: usize) -> Result<Node> {
    let node = Node::new()?;
    for number in 0..pods {
        let name = format!("pod-{number:05}");
        let mut pod = PodObject::named(&name).sidecar().uid(&format!("uid-{number}")).on_node("n1").json();
        crate::measures::fill(&mut pod);
        node.api.set_pod(pod);
    }
    Ok(node)
}

/// `VmRSS` of proc(5).
pub(crate) fn resident(agent: &Agent) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// What the process has used, threads that have ended included: user and system time in its `stat`, in hundredths of a second (`USER_HZ`).
pub(crate) fn processor_time(agent: &Agent) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid()))?;
    // The name before may have anything in it.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let times = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let hundredths = times.sum::<Result<u64, std::num::ParseIntError>>()?;
    Ok(Duration::from_millis(hundredths * 10))
}

/// Time on a processor of each thread, which may end between two looks: the first number in its `schedstat`, in nanoseconds.
pub(crate) fn processor_times(agent: &Agent) -> Result<HashMap<String, u64>> {
    let mut times = HashMap::new();
    for task in std::fs::read_dir(Path::new("/proc").join(agent.pid().to_string()).join("task"))? {
        let task = task?;
        let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) else { continue };
        let time = text.split(' ').next().and_then(|first| first.parse().ok()).context("no schedstat")?;
        times.insert(task.file_name().to_string_lossy().into_owned(), time);
    }
    Ok(times)
}

fn size(_: usize, report: &mut Report) -> Result<()> {
    let agent = testkit::programs().join("install-cni");
    report.size("stripped agent binary", std::fs::metadata(agent)?.len(), 12_000_000);
    Ok(())
}
