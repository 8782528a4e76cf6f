//! `make demo`: a private node, the reference plugin `bridge` and then `istio-cni`, pods, real connections.
//!
//! What is printed was observed: connections by who took them, decisions by the plugin's log, rules by what the kernel lists, reasons
//! by `cnictl explain`, time and memory by `cnictl add`. Only `expectations.rs` says what has to come out.

mod agent;
mod ambient;
mod backend;
mod checks;
mod connections;
mod drift;
mod expectations;
mod next;
mod node;
mod pods;
mod policy;
mod removal;
mod show;
mod tenants;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use testkit::probe::{Listener, Listeners};

use crate::agent::{Agent, AgentReport, Original};
use crate::ambient::AmbientReport;
use crate::backend::Backend;
use crate::checks::CheckReport;
use crate::connections::{ConnectionReport, Places};
use crate::drift::DriftReport;
use crate::expectations::{HTTPS, MYSQL, PODS};
use crate::node::Node;
use crate::pods::PodReport;
use crate::policy::PolicyReport;
use crate::removal::{Host, Made, RemovalReport};
use crate::show::Screen;
use crate::tenants::TenantReport;

/// Shows what the plugin does: pods on a private node, and where their connections go.
///
/// Needs root. Everything is made in network namespaces that nothing else is in, and is removed at the end.
/// Exit codes: 0 all came out as it has to, 1 something did not, 2 wrong command line.
#[derive(Debug, Parser)]
#[command(name = "demo", version, max_term_width = 110)]
struct Cli {
    /// Folder of istio-cni and cnictl
    #[arg(long, value_name = "DIR", env = "ISTIO_CNI_BIN_DIR")]
    bin_dir: PathBuf,
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Plays this act alone
    #[arg(long, value_enum)]
    only: Option<Act>,
    /// With one backend instead of both
    #[arg(long, value_enum, requires = "only")]
    backend: Option<Backend>,
}

/// What can be played by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Act {
    /// A pod enters the mesh and leaves it while connections go on
    Ambient,
    /// Somebody deletes rules of running pods, and they come back
    Drift,
    /// Network policies, from the first packet of a pod on
    Policy,
    /// Two tenants, a grant, and the audit line of what is denied
    Tenants,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// What was observed with one backend.
#[derive(Debug, Serialize)]
struct Report {
    backend: Backend,
    agent: AgentReport,
    pods: Vec<PodReport>,
    connections: Vec<ConnectionReport>,
    /// Left out where something was wrong before.
    checks: Option<CheckReport>,
    removal: RemovalReport,
}

/// What was observed in the acts that can be played alone.
#[derive(Default, Serialize)]
struct Acts {
    ambient: Vec<AmbientReport>,
    drift: Vec<DriftReport>,
    policy: Vec<PolicyReport>,
    tenants: Vec<TenantReport>,
}

const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

/// How many pods start before somebody overwrites the conflist, and before the agent is killed.
const STOMPED_AFTER: usize = 2;
const KILLED_AFTER: usize = 4;

/// How much of it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detail {
    Full,
    /// Only what differs from the run before.
    Compact,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(problems) => {
            eprintln!("demo: {problems} things did not come out as they have to, see ✗ above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The number of problems.
fn run(cli: &Cli) -> Result<usize> {
    let start = Instant::now();
    ensure!(rustix::process::geteuid().is_root(), "run as root: the demo makes network namespaces");
    for program in ["install-cni", "istio-cni", "cnictl"] {
        let file = cli.bin_dir.join(program);
        ensure!(file.is_file(), "{} is missing: run make build, or make demo", file.display());
    }
    // So that a program that outlives the one that started it becomes our child, and is seen at the end.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("become subreaper")?;

    let screen = Screen::new(cli.output == Format::Text);
    if let Some(act) = cli.only {
        let before = Host::observe()?;
        let backends = cli.backend.as_ref().map_or(&BACKENDS[..], std::slice::from_ref);
        let acts = Acts::play(&[act], backends, cli, screen)?;
        let left = Host::observe()?.left_since(&before, &Made::default());
        let problems = left.len() + acts.problems();
        screen.end(&left, problems, acts.connections(), start.elapsed());
        screen.next(&cli.bin_dir, problems);
        return finish(cli, problems, acts.shown(&left)?);
    }
    screen.heading(
        "A private node",
        "namespaces, the conflist of the reference plugin bridge, and install-cni, the node agent; pods from manifests",
    );
    let before = Host::observe()?;
    let nftables = run_backend(Backend::Nftables, Detail::Full, &cli.bin_dir, screen)?;
    let iptables = run_backend(Backend::Iptables, Detail::Compact, &cli.bin_dir, screen)?;
    let acts = Acts::play(&[Act::Ambient, Act::Drift, Act::Policy, Act::Tenants], &BACKENDS, cli, screen)?;
    let after = Host::observe()?;
    let left: Vec<String> = [&nftables, &iptables]
        .iter()
        .flat_map(|report| after.left_since(&before, &report.removal.made))
        .collect();
    let mut problems: usize = [&nftables, &iptables].iter().map(|report| report.problems()).sum();
    problems += left.len() + acts.problems();
    let connections = nftables.connections.len() + iptables.connections.len() + acts.connections();
    screen.end(&left, problems, connections, start.elapsed());
    screen.next(&cli.bin_dir, problems);
    let mut all = acts.shown(&left)?;
    all["backends"] = serde_json::to_value([nftables, iptables])?;
    finish(cli, problems, all)
}

fn play_ambient(backends: &[Backend], cli: &Cli, screen: Screen) -> Result<Vec<AmbientReport>> {
    let mut acts = Vec::new();
    for backend in backends {
        screen.heading(
            &format!("Ambient mode, {}", backend.name()),
            "a pod is labelled into the mesh and out again, while connections go on; no sidecar, no restart",
        );
        let act = ambient::run(&cli.bin_dir, *backend)?;
        screen.ambient(&act);
        acts.push(act);
    }
    Ok(acts)
}

fn play_drift(backends: &[Backend], cli: &Cli, screen: Screen) -> Result<Vec<DriftReport>> {
    let mut acts = Vec::new();
    for backend in backends {
        screen.heading(
            &format!("Deleted rules, {}", backend.name()),
            "somebody deletes rules of a sidecar pod and of one in the mesh; cnictl verify before and after",
        );
        let act = drift::run(&cli.bin_dir, *backend)?;
        screen.drift(&act);
        acts.push(act);
    }
    Ok(acts)
}

fn play_policy(backends: &[Backend], cli: &Cli, screen: Screen) -> Result<Vec<PolicyReport>> {
    let mut acts = Vec::new();
    for backend in backends {
        screen.heading(
            &format!("Network policies, {}", backend.name()),
            "only friends may reach these pods, from their first packet on; kubelet may, a node port does not help",
        );
        let act = policy::run(&cli.bin_dir, *backend)?;
        screen.policy(&act);
        acts.push(act);
    }
    Ok(acts)
}

fn play_tenants(backends: &[Backend], cli: &Cli, screen: Screen) -> Result<Vec<TenantReport>> {
    let mut acts = Vec::new();
    for backend in backends {
        screen.heading(
            &format!("Tenants, {}", backend.name()),
            "red and blue are apart, blue's namespace lets red come on one port, and the audit file says what was denied",
        );
        let act = tenants::run(&cli.bin_dir, *backend)?;
        screen.tenants(&act);
        acts.push(act);
    }
    Ok(acts)
}

/// Writes the result for programs, if it is asked for, and gives the number of problems.
fn finish(cli: &Cli, problems: usize, mut all: serde_json::Value) -> Result<usize> {
    if cli.output == Format::Json {
        all["ok"] = (problems == 0).into();
        serde_json::to_writer_pretty(std::io::stdout(), &all).context("write the result")?;
        println!();
    }
    Ok(problems)
}

fn run_backend(backend: Backend, detail: Detail, bin_dir: &Path, screen: Screen) -> Result<Report> {
    let node = Node::new(backend, bin_dir)?;
    match detail {
        Detail::Full => {
            screen.heading(
                "Pods",
                "one ADD each: bridge, then istio-cni with nftables; time and peak memory of both plugins; the last two without agent",
            );
        }
        Detail::Compact => screen.heading("The same with iptables", ""),
    }
    let original = Original::of(&node)?;
    let mut agent_report = AgentReport::default();
    let mut agent = Some(Agent::start(&node)?);
    agent_report.installed(&node)?;
    node.write_alone()?;
    let (mut pods, mut pod_reports) = (Vec::new(), Vec::new());
    for (number, case) in PODS.iter().enumerate() {
        if number == STOMPED_AFTER
            && let Some(agent) = &agent
        {
            agent.stomp(&node, &original, &mut agent_report)?;
        }
        if number == KILLED_AFTER
            && let Some(agent) = agent.take()
        {
            agent.counted(&node, &mut agent_report)?;
            agent.kill(&mut agent_report)?;
        }
        let (pod, report) = pods::add(&node, case)?;
        pods.push(pod);
        pod_reports.push(report);
    }
    screen.pods(&pod_reports);

    let world = Listeners::start(&node.world, [Listener::tcp(HTTPS), Listener::tcp(MYSQL)])?;
    let places = Places { world: &world, pods: &pods };
    let mut connections = Vec::new();
    for pod in &pods {
        for case in pod.case.connections {
            connections.push(connections::observe(&node, &places, pod, case)?);
        }
    }
    match detail {
        Detail::Full => {
            screen.heading(
                "Connections",
                "real ones; the proxy listens on 15006 (inbound) and 15001 (outbound); why: cnictl explain",
            );
            screen.connections(&pod_reports, &connections);
        }
        Detail::Compact => screen.connections_summary(&connections),
    }

    let wrong = pod_reports.iter().any(|pod| !pod.problems.is_empty())
        || connections.iter().any(|connection| !connection.problems.is_empty());
    let checks = if wrong { None } else { Some(checks::run(&node, &places)?) };
    match (&checks, detail) {
        (None, _) => {}
        (Some(checks), Detail::Full) => {
            screen.heading("Check", "the kernel against the plan");
            screen.checks(checks);
        }
        (Some(checks), Detail::Compact) => screen.checks_summary(checks),
    }

    drop(world);
    let removal = removal::run(node, pods, &original, &mut agent_report)?;
    if detail == Detail::Full {
        screen.heading("The node agent", "meanwhile");
        screen.agent(&agent_report);
        screen.heading("Removal", "");
    } else {
        screen.problems(&agent_report.problems);
    }
    screen.removal(&removal);
    Ok(Report { backend, agent: agent_report, pods: pod_reports, connections, checks, removal })
}

impl Report {
    fn problems(&self) -> usize {
        let pods = self.pods.iter().map(|pod| pod.problems.len());
        let connections = self.connections.iter().map(|connection| connection.problems.len());
        pods.sum::<usize>()
            + connections.sum::<usize>()
            + self.checks.as_ref().map_or(0, |checks| checks.problems.len())
            + self.agent.problems.len()
            + self.removal.problems.len()
    }
}

impl Acts {
    fn play(acts: &[Act], backends: &[Backend], cli: &Cli, screen: Screen) -> Result<Self> {
        let mut played = Self::default();
        for act in acts {
            match act {
                Act::Ambient => played.ambient = play_ambient(backends, cli, screen)?,
                Act::Drift => played.drift = play_drift(backends, cli, screen)?,
                Act::Policy => played.policy = play_policy(backends, cli, screen)?,
                Act::Tenants => played.tenants = play_tenants(backends, cli, screen)?,
            }
        }
        Ok(played)
    }

    /// For programs.
    fn shown(&self, left: &[String]) -> Result<serde_json::Value> {
        let mut all = serde_json::to_value(self)?;
        all["left_on_host"] = left.into();
        Ok(all)
    }

    fn problems(&self) -> usize {
        let ambient = self.ambient.iter().map(|act| act.problems.len());
        let drift = self.drift.iter().map(|act| act.problems.len());
        let policy = self.policy.iter().map(|act| act.problems.len());
        ambient.chain(drift).chain(policy).chain(self.tenants.iter().map(|act| act.problems.len())).sum()
    }

    fn connections(&self) -> usize {
        let ambient: usize = self.ambient.iter().map(AmbientReport::connections).sum();
        let policy: usize = self.policy.iter().map(PolicyReport::connections).sum();
        ambient + policy + self.tenants.iter().map(TenantReport::connections).sum::<usize>()
    }
}
