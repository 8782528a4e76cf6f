//! What the agent says of the node: its state, pods, conflicts, and its own checks.

use std::path::Path;
use std::time::Duration;

use checks::{CheckFinding, CheckReport, CheckResult, CheckSpec, catalogue};
use doctor::dns::ClusterDns;
use doctor::kernel_parts::KernelDemand;
use doctor::{NodeFiles, server, timed};
use podsource::AgentSource;
use rundir::AgentStatus;
use rundir::pods::{ConflictReport, ConflictsReport, PodReport, PodsReport};

use crate::node::agent::{self, Silence};
use crate::output::one_line;

/// Longest wait for each answer of the agent, and for the API server: all looks together end within 5 s.
const PATIENCE: Duration = Duration::from_millis(800);
const SERVER_PATIENCE: Duration = Duration::from_millis(2000);
/// Names that are told.
const NAMED: usize = 5;
const DENIED: &str = "the agent's socket may not be used by this user; run cnictl as root";
const VERIFIED: &str = "verified";

/// What the agent answered.
pub(super) struct AskedAgent {
    /// `None`: it was not asked, before an installation.
    status: Option<Result<AgentStatus, Silence>>,
    pub(super) pods: Option<PodsReport>,
    conflicts: Option<ConflictsReport>,
    checks: Option<CheckReport>,
}

impl AskedAgent {
    pub(super) fn ask(run_dir: &Path, pre: bool) -> Self {
        let nothing = Self { status: None, pods: None, conflicts: None, checks: None };
        if pre {
            return nothing;
        }
        let source = AgentSource::new(run_dir, env!("CARGO_PKG_VERSION"));
        match agent::ask(run_dir, PATIENCE) {
            Err(silence) => Self { status: Some(Err(silence)), ..nothing },
            Ok(status) => Self {
                status: Some(Ok(status)),
                pods: source.pods(false, PATIENCE).ok(),
                conflicts: source.conflicts(PATIENCE).ok(),
                checks: source.checks(PATIENCE).ok(),
            },
        }
    }

    fn answered(&self) -> Option<&AgentStatus> {
        self.status.as_ref()?.as_ref().ok()
    }

    /// What the configuration asks of the kernel.
    pub(super) fn of_kernel(&self, node: &NodeFiles) -> KernelDemand {
        let installed = install::inspect(&node.net_dir, &[], &node.run_dir);
        let entry = installed.networks.iter().find_map(|network| network.entry.as_ref());
        let flag = |key: &str| match entry.and_then(|entry| entry.get(key)) {
            Some(cni::json::Value::Bool(flag)) => Some(*flag),
            _ => None,
        };
        let ambient = self.answered().and_then(|status| status.ambient.as_ref());
        KernelDemand {
            nftables: flag("native_nftables"),
            ambient: ambient.is_some() || flag("ambient_enabled") == Some(true),
            ipv6: ambient.map(|ambient| ambient.ipv6),
            agent: self.answered().map(|status| status.pid),
        }
    }

    /// All that rests on its word.
    pub(super) fn results(&self, run_dir: &Path) -> Vec<CheckResult> {
        let mut results = vec![
            timed(&catalogue::AGENT, || self.agent()),
            timed(&catalogue::SOCKETS, || self.sockets(run_dir)),
            timed(&catalogue::AGENT_NOTICES, || self.notices()),
            timed(&catalogue::PODS, || self.verified()),
            timed(&catalogue::POD_CONFLICTS, || self.conflicts(true)),
            timed(&catalogue::NOT_INJECTED, || self.not_injected()),
            timed(&catalogue::UNCAPTURED, || uncaptured(run_dir)),
            timed(&catalogue::HOST_RULES, || self.conflicts(false)),
            timed(&catalogue::PORTS, || self.notice("port: ", "the agent has its ports")),
            timed(&catalogue::NODE_NAME, || self.pending("node: ", "the API server knows this node")),
        ];
        results
            .extend([&catalogue::API, &catalogue::ZTUNNEL].into_iter().filter_map(|check| self.own(check)));
        results
    }

    fn unanswered(&self) -> CheckFinding {
        let is_denied = matches!(self.status, Some(Err(Silence::Denied)));
        CheckFinding::unknown(if is_denied { DENIED } else { "no agent answers" })
    }

    fn agent(&self) -> CheckFinding {
        match &self.status {
            Some(Ok(status)) if status.ready => {
                CheckFinding::ok(format!("version {}, ready, {} pods", status.version, status.pods))
            }
            Some(Ok(status)) => CheckFinding::failed(
                format!("it is not ready: {}", status.pending.join("; ")),
                "docs/troubleshooting.md#the-agent-is-not-ready explains each line",
            ),
            Some(Err(Silence::Denied)) => CheckFinding::unknown(DENIED),
            Some(Err(Silence::Failed(error))) => CheckFinding::failed(error.clone(), ""),
            None => CheckFinding::skipped("nothing is installed yet"),
        }
    }

    fn sockets(&self, run_dir: &Path) -> CheckFinding {
        let all = agent::sockets(run_dir);
        let name = |socket: &agent::RunDirSocket| {
            socket.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
        };
        let broken =
            all.iter().filter_map(|socket| Some(format!("{}: {}", name(socket), socket.error.as_ref()?)));
        let wanted = [rundir::SOCKET_NAME, rundir::LOG_SOCKET_NAME];
        let missing = wanted.into_iter().filter(|wanted| !all.iter().any(|socket| name(socket) == *wanted));
        let wrong: Vec<String> = broken.chain(missing.map(|name| format!("{name} is not there"))).collect();
        if !wrong.is_empty() {
            let advice = "a running agent makes it again within seconds; ss -xlp shows who listens";
            return CheckFinding::failed(wrong.join(", "), advice);
        }
        if all.iter().any(|socket| socket.listening.is_none()) {
            return CheckFinding::unknown(DENIED);
        }
        CheckFinding::ok(format!("{} sockets, and a process listens on each", all.len()))
    }

    fn notices(&self) -> CheckFinding {
        let Some(status) = self.answered() else { return self.unanswered() };
        // Those have checks of their own.
        let own = ["port: ", "uncaptured pods: "];
        let told: Vec<&str> = status
            .notices
            .iter()
            .map(String::as_str)
            .filter(|text| !own.iter().any(|own| text.starts_with(own)))
            .collect();
        match told.as_slice() {
            [] => CheckFinding::ok("the agent has nothing to say"),
            told => CheckFinding::warning(told.join("; "), ""),
        }
    }

    /// What a notice of the agent says.
    fn notice(&self, name: &str, fine: &str) -> CheckFinding {
        let Some(status) = self.answered() else { return self.unanswered() };
        let told = status.notices.iter().find_map(|text| text.strip_prefix(name));
        told.map_or_else(|| CheckFinding::ok(fine), |text| CheckFinding::failed(text, ""))
    }

    /// What makes the agent unready.
    fn pending(&self, name: &str, fine: &str) -> CheckFinding {
        let Some(status) = self.answered() else { return self.unanswered() };
        match status.pending.iter().find_map(|text| text.strip_prefix(name)) {
            Some("has not begun") => CheckFinding::unknown("the agent has not looked yet"),
            Some(text) => CheckFinding::failed(text, ""),
            None => CheckFinding::ok(fine),
        }
    }

    fn verified(&self) -> CheckFinding {
        let Some(report) = &self.pods else { return self.unanswered() };
        let expected: Vec<_> = report.pods.iter().filter(|pod| !pod.state.is_empty()).collect();
        let unverified = expected.iter().filter(|pod| pod.state != VERIFIED);
        let (bad, open): (Vec<_>, Vec<_>) =
            unverified.partition(|pod| ["drifted", "contended"].contains(&pod.state.as_str()));
        let name = |pod: &&&PodReport| {
            let why = if pod.problem.is_empty() { &pod.state } else { &pod.problem };
            format!("{}/{} ({})", pod.namespace, pod.name, one_line(why))
        };
        let names = |pods: &[&&rundir::pods::PodReport]| some(pods.iter().map(name).collect());
        let (all, good) = (expected.len(), expected.len() - bad.len() - open.len());
        match (bad.is_empty(), open.is_empty()) {
            (false, _) => CheckFinding::failed(
                format!("{good} of {all} pods have their rules; not: {}", names(&bad)),
                "cnictl verify shows each",
            ),
            (true, false) => CheckFinding::warning(
                format!("{good} of {all} pods are verified; not: {}", names(&open)),
                "cnictl verify shows each",
            ),
            (true, true) if !report.synced => CheckFinding::unknown("the agent has not listed the pods yet"),
            (true, true) => CheckFinding::ok(format!("{all} pods should be captured, and are")),
        }
    }

    /// Their labels ask for a proxy, and the injector has not handled them.
    fn not_injected(&self) -> CheckFinding {
        let Some(report) = &self.pods else { return self.unanswered() };
        let of: Vec<&PodReport> = report.pods.iter().filter(|pod| pod.is_not_injected()).collect();
        let name = |pod: &&PodReport| format!("{}/{} ({})", pod.namespace, pod.name, one_line(&pod.decision));
        match of.as_slice() {
            [] if !report.synced => CheckFinding::unknown("the agent has not listed the pods yet"),
            [] => CheckFinding::ok("no pod asks for a proxy without having one"),
            of => CheckFinding::failed(
                format!("{} pods run outside of the mesh: {}", of.len(), some(of.iter().map(name).collect())),
                "see that the injector runs, and create the pods again",
            ),
        }
    }

    /// A result of the agent's own, where it has made this check.
    pub(super) fn own(&self, check: &CheckSpec) -> Option<CheckResult> {
        self.checks.as_ref()?.items.iter().find(|item| item.id == check.id).cloned()
    }

    fn conflicts(&self, of_pods: bool) -> CheckFinding {
        let Some(report) = &self.conflicts else { return self.unanswered() };
        let meant = |conflict: &&ConflictReport| {
            conflict.pod.is_some() == of_pods && conflict.severity != "info" && !conflict.gone
        };
        let found: Vec<&ConflictReport> = report.conflicts.iter().filter(meant).collect();
        let text = |conflict: &&ConflictReport| {
            let place = conflict.pod.as_ref().map_or_else(|| "node".to_owned(), ToString::to_string);
            format!("{place}: {} by \"{}\"", conflict.id, one_line(&conflict.foreign))
        };
        if found.is_empty() {
            return CheckFinding::ok("nothing of others changes what rules of the mesh do");
        }
        let names = some(found.iter().map(text).collect());
        let advice = "cnictl conflicts -o wide shows each rule, its owner and what helps";
        if found.iter().any(|conflict| conflict.severity == "error") {
            CheckFinding::failed(format!("conflicts with rules of others: {names}"), advice)
        } else {
            CheckFinding::warning(format!("conflicts with rules of others: {names}"), advice)
        }
    }
}

fn uncaptured(run_dir: &Path) -> CheckFinding {
    if !run_dir.is_dir() {
        return CheckFinding::unknown(format!("{} is not there", run_dir.display()));
    }
    match agent::uncaptured(run_dir) {
        Err(dir) => CheckFinding::unknown(format!("{} may not be looked at", dir.display())),
        Ok(pods) if pods.is_empty() => CheckFinding::ok("no pod was let through without capture"),
        Ok(pods) => CheckFinding::failed(
            format!("{} pods started without capture: {}", pods.len(), some(pods)),
            "delete them when the cause, in their event StartedWithoutCapture, is gone",
        ),
    }
}

fn some(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let names = names.join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}

/// The API server with the plugin's account, and cluster DNS, looked at from here.
pub(super) fn cluster(run_dir: &Path, asked: &AskedAgent) -> Vec<CheckResult> {
    let by_manifests = asked.checks.as_ref().is_some_and(|report| {
        report
            .items
            .iter()
            .any(|item| item.id == catalogue::KUBECONFIG.id && item.state == checks::CheckState::Skipped)
    });
    let mut results = Vec::new();
    if !by_manifests {
        results.extend(server::look(run_dir, "", SERVER_PATIENCE));
    }
    let known = asked.own(&catalogue::DNS);
    results.push(known.unwrap_or_else(|| timed(&catalogue::DNS, || match ClusterDns::read(Path::new("/etc/resolv.conf")) {
        Some(dns) => dns.look(),
        None => CheckFinding::skipped("/etc/resolv.conf is not the cluster's; the agent checks its DNS where HEALTH_DNS_SERVERS names it"),
    })));
    results
}
