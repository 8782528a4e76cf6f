//! What each check looks at.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checks::{CheckFinding, CheckResult, CheckState, catalogue};
use doctor::dns::ClusterDns;
use doctor::installation::ConfigState;
use doctor::{NodeFiles, installation, kernel_parts, server, timed};

use super::NodeCheck;
use crate::ambient::open_host;
use crate::config::PodsOrigin;
use crate::health::{HealthPart, count_and_names};
use crate::run::Agent;
use crate::verification::rule_counts;

/// The plugin's own account is asked for each so many times: a new connection costs the API server a handshake.
const PLUGIN_TURNS: u32 = 5;
/// Less than the limit of a check, so that it is the API server that is named.
const PLUGIN_LIMIT: Duration = Duration::from_secs(3);
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What a look found.
#[derive(Debug)]
pub(super) struct CheckLook {
    pub(super) results: Vec<CheckResult>,
    pub(super) config_state: Option<ConfigState>,
}

/// Whether there is anything to look at.
pub(super) fn applies(agent: &Agent, check: NodeCheck) -> bool {
    match check {
        NodeCheck::Ztunnel => !agent.config.ambient.is_off,
        NodeCheck::Api => agent.writer.is_some(),
        _ => true,
    }
}

pub(super) async fn look(agent: &Arc<Agent>, check: NodeCheck, turn: u32) -> CheckLook {
    let only = |results| CheckLook { results, config_state: None };
    match check {
        NodeCheck::Config => in_thread(agent, config).await,
        NodeCheck::Kernel => only(kernel(agent)),
        NodeCheck::Rules => only(vec![timed(&catalogue::PODS, || rules(agent))]),
        NodeCheck::Ztunnel => only(vec![timed(&catalogue::ZTUNNEL, || ztunnel(agent))]),
        NodeCheck::Api => api(agent, turn).await,
        NodeCheck::Dns => in_thread(agent, dns).await,
    }
}

/// Not one of the threads for the node's network namespace: what is looked at may stand still.
async fn in_thread(agent: &Arc<Agent>, look: fn(&Agent) -> CheckLook) -> CheckLook {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let for_thread = agent.clone();
    let begun = std::thread::Builder::new().name("check".into()).spawn(move || {
        let _ = sender.send(look(&for_thread));
    });
    if let Err(error) = begun {
        agent.log.warn("a check cannot be made: the system gives no thread", &[("error", &error)]);
    }
    receiver.await.unwrap_or(CheckLook { results: Vec::new(), config_state: None })
}

fn config(agent: &Agent) -> CheckLook {
    let install = &agent.config.install;
    let root = &agent.config.host_root;
    let node = NodeFiles {
        net_dir: install.net_dir.clone(),
        bin_dirs: install.bin_targets.clone(),
        run_dir: install.run_dir.clone(),
        etc: root.join("etc"),
        proc: agent.config.proc_root.clone(),
        sys: root.join("sys"),
        modules: root.join("lib/modules"),
        run: root.join("run"),
    };
    let found = installation::look(&node, Some(&install.bin_source));
    CheckLook { results: found.results, config_state: Some(found.state) }
}

fn kernel(agent: &Agent) -> Vec<CheckResult> {
    let backend = || match agent.health.reason(HealthPart::Backend) {
        None => CheckFinding::ok("rules can be loaded on this node"),
        Some(reason) => CheckFinding::failed(reason, ""),
    };
    let sysctl = Path::new("/proc/sys");
    let ambient = &agent.config.ambient;
    let captured = (!ambient.is_off).then(|| ambient.node.now().ipv6);
    // The node's own, wherever the agent runs.
    let of_host = |look: &(dyn Fn() -> CheckFinding + Sync)| {
        let looked = open_host(ambient).and_then(|host| host.enter(|_| look()));
        looked.unwrap_or_else(|error| CheckFinding::unknown(fault::chain(&error)))
    };
    // Of several that fail the last one is told: what hurts most.
    vec![
        timed(&catalogue::IPV6, || of_host(&|| kernel_parts::ipv6(sysctl, captured))),
        timed(&catalogue::OPEN_FILES, || kernel_parts::open_files_of(Path::new("/proc/self"))),
        timed(&catalogue::CONNTRACK, || of_host(&|| kernel_parts::conntrack(sysctl))),
        timed(&catalogue::NFTABLES, backend),
    ]
}

fn rules(agent: &Agent) -> CheckFinding {
    let pods = agent.verifier.pods();
    let counts = rule_counts(&pods);
    let wrong = counts.missing + counts.different;
    if wrong > 0 {
        let names: Vec<String> =
            pods.iter().filter(|pod| !pod.drift.is_empty()).map(|pod| pod.pod.to_string()).collect();
        let text = format!("rules of {wrong} pods are missing or differ: {}", count_and_names(&names));
        return CheckFinding::failed(text, "cnictl verify names each, with what differs");
    }
    match (counts.healthy, counts.unverifiable) {
        (0, 0) => CheckFinding::ok("no pod of this node should be captured"),
        (healthy, 0) => CheckFinding::ok(format!("the rules of {healthy} pods are as planned")),
        (healthy, unknown) => {
            let text = format!(
                "of {unknown} pods it is not known whether they have their rules; {healthy} are as planned"
            );
            CheckFinding::warning(text, "cnictl verify says why")
        }
    }
}

fn ztunnel(agent: &Agent) -> CheckFinding {
    match agent.ambient.ztunnels() {
        0 => CheckFinding::failed("no ztunnel is connected", "look at the DaemonSet ztunnel on this node"),
        1 => CheckFinding::ok("a ztunnel is connected"),
        more => CheckFinding::ok(format!("{more} ztunnels are connected")),
    }
}

async fn api(agent: &Arc<Agent>, turn: u32) -> CheckLook {
    let mut results = Vec::new();
    if let Some(writer) = &agent.writer {
        let begun = Instant::now();
        let finding = match writer.server_answers().await {
            Ok(()) => {
                CheckFinding::ok(format!("the API server answered in {} ms", begun.elapsed().as_millis()))
            }
            Err(error) => CheckFinding::failed(error.to_string(), ""),
        };
        results.push(finding.of(&catalogue::API, begun.elapsed().as_secs_f64()));
    }
    let kept = agent.health.check_results(NodeCheck::Api);
    // Where there is no kubeconfig yet, asking costs nothing.
    let is_unknown =
        |result: &CheckResult| result.id == catalogue::API_PLUGIN.id && result.state == CheckState::Unknown;
    let is_due = kept.iter().any(is_unknown) || turn.is_multiple_of(PLUGIN_TURNS);
    if is_due && matches!(agent.config.pods, PodsOrigin::Kubernetes(_)) {
        results.extend(in_thread(agent, as_plugin).await.results);
    } else {
        results.extend(kept.into_iter().filter(|result| result.id != catalogue::API.id));
    }
    CheckLook { results, config_state: None }
}

fn as_plugin(agent: &Agent) -> CheckLook {
    let results = server::look(&agent.config.run_dir, &agent.config.pod.namespace, PLUGIN_LIMIT);
    CheckLook { results: results.into(), config_state: None }
}

fn dns(agent: &Agent) -> CheckLook {
    let resolver = Path::new(RESOLV_CONF);
    let dns = match agent.config.checks.dns_servers.as_slice() {
        [] => ClusterDns::read(resolver),
        named => Some(ClusterDns::named(named, resolver)),
    };
    let look = || match dns {
        Some(dns) => dns.look(),
        None => CheckFinding::skipped(
            "cluster DNS is not configured: /etc/resolv.conf is not the cluster's, and HEALTH_DNS_SERVERS is not set",
        ),
    };
    CheckLook { results: vec![timed(&catalogue::DNS, look)], config_state: None }
}
