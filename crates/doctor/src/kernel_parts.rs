//! What the kernel can do, and how full it is.

mod modules;

use std::path::Path;

use checks::{CheckFinding, CheckResult, CheckSpec, catalogue};
use kernel::iptables::Iptables;
use kernel::nft::{self, Support};
use netns::Netns;

use crate::{NodeFiles, timed};

/// Part of the table of tracked connections, in percent, from which people should know, and from which it is as good as full.
const NEARLY_FULL: u64 = 75;
const FULL: u64 = 90;
/// Least number of open files: in ambient mode an agent has several for each of 250 pods.
const LEAST_FILES: u64 = 4096;
/// Least number of network namespaces: one for each pod, with room.
const LEAST_NAMESPACES: u64 = 512;

/// What the node's configuration asks of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelDemand {
    /// `native_nftables` where it is said.
    pub nftables: Option<bool>,
    /// Ambient mode is on.
    pub ambient: bool,
    /// Ambient mode captures IPv6, where that is known.
    pub ipv6: Option<bool>,
    /// The agent's process, where it is known.
    pub agent: Option<u32>,
}

/// All checks of the kernel and its modules.
pub fn look(node: &NodeFiles, asked: KernelDemand) -> Vec<CheckResult> {
    let support = support();
    let iptables = Iptables::new();
    let usable = support
        .as_ref()
        .ok()
        .map(|support| iptables.usable_with(*support).map_err(|error| fault::chain(&error)));
    let sysctl = node.proc.join("sys");
    let mut results = vec![timed(&catalogue::KERNEL_VERSION, version)];
    let mut add = |check: &CheckSpec, look: &dyn Fn() -> CheckFinding| results.push(timed(check, look));
    add(&catalogue::NFTABLES, &|| nftables(&support, usable.as_ref(), asked));
    add(&catalogue::IPTABLES, &|| by_iptables(&support, usable.as_ref(), asked));
    add(&catalogue::EVENTS, &events);
    add(&catalogue::CONNTRACK, &|| conntrack(&sysctl));
    add(&catalogue::IPV6, &|| ipv6(&sysctl, asked.ipv6));
    add(&catalogue::NAMESPACES, &|| namespaces(&sysctl));
    add(&catalogue::OPEN_FILES, &|| open_files(&node.proc, asked.agent));
    add(&catalogue::MODULES, &|| modules::look(&node.modules, &support));
    results
}

fn version() -> CheckFinding {
    let name = rustix::system::uname();
    CheckFinding::ok(format!(
        "Linux {} on {}",
        name.release().to_string_lossy(),
        name.machine().to_string_lossy()
    ))
}

/// Asks in a network namespace that nobody else has; nothing is committed there.
fn support() -> Result<Support, String> {
    let netns = Netns::unnamed().map_err(|error| fault::chain(&error))?;
    let asked = netns.enter(nft::probe).map_err(|error| fault::chain(&error))?;
    asked.map_err(|error| fault::chain(&error))
}

type Usable<'a> = Option<&'a Result<(), String>>;

fn nftables(support: &Result<Support, String>, iptables: Usable<'_>, asked: KernelDemand) -> CheckFinding {
    let support = match support {
        Ok(support) => *support,
        Err(error) => return CheckFinding::unknown(format!("nf_tables cannot be tried: {error}")),
    };
    let Some(missing) = missing(support, asked.ambient) else {
        return match support.tproxy {
            true => CheckFinding::ok("nf_tables with nat, redirect, tproxy and marks of connections"),
            false => CheckFinding::warning(
                "nf_tables has no tproxy: pods that ask for the interception mode TPROXY are refused",
                "load the module nft_tproxy where the kernel has it",
            ),
        };
    };
    let advice =
        "load the modules nf_tables, nft_chain_nat, nft_redir and nft_tproxy where the kernel has them";
    match (asked.nftables, iptables) {
        (Some(true), _) => {
            CheckFinding::failed(format!("{missing}, and native_nftables asks for nf_tables only"), advice)
        }
        (_, Some(Ok(()))) => {
            CheckFinding::warning(format!("{missing}; pods get their rules by iptables"), advice)
        }
        _ => CheckFinding::failed(missing, advice),
    }
}

fn missing(support: Support, ambient: bool) -> Option<&'static str> {
    match support {
        Support { tables: false, .. } => Some("the kernel has no nf_tables"),
        Support { redirect: false, .. } => Some("the kernel has no nf_tables nat for both families"),
        Support { marks: false, .. } if ambient => {
            Some("the kernel has no nf_tables route chains for both families or marks of connections")
        }
        _ => None,
    }
}

fn by_iptables(support: &Result<Support, String>, usable: Usable<'_>, asked: KernelDemand) -> CheckFinding {
    let advice =
        "install iptables on the node, or let the kernel's nf_tables be taken (native_nftables: auto)";
    match (usable, support) {
        (Some(Ok(())), _) => CheckFinding::ok("programs of iptables are here"),
        (Some(Err(error)), _) if asked.nftables == Some(false) => {
            CheckFinding::failed(format!("native_nftables asks for iptables only: {error}"), advice)
        }
        (Some(Err(_)), Ok(support)) if missing(*support, asked.ambient).is_none() => {
            CheckFinding::skipped("no iptables is here, and none is needed: nf_tables has everything")
        }
        (Some(Err(error)), _) => CheckFinding::failed(error.clone(), advice),
        (None, _) => {
            CheckFinding::unknown("whether iptables works depends on nf_tables, which cannot be tried")
        }
    }
}

fn events() -> CheckFinding {
    match kernel::watch::probe() {
        Ok(support) if support.events && support.culprits => {
            CheckFinding::ok("the kernel tells of changes of rules, and who made them")
        }
        Ok(support) if support.generation => {
            let text = "the kernel does not tell by itself of changes of rules, or not by whom: they are found by turns";
            CheckFinding::warning(text, "")
        }
        Ok(_) => CheckFinding::warning(
            "the kernel tells nothing of changes of rules: pods are compared in full by turns",
            "",
        ),
        Err(error) => CheckFinding::unknown(format!("it cannot be tried: {}", fault::chain(&error))),
    }
}

/// How full the table of tracked connections is.
pub fn conntrack(sysctl: &Path) -> CheckFinding {
    let dir = sysctl.join("net/netfilter");
    let (count, max) = (number(&dir.join("nf_conntrack_count")), number(&dir.join("nf_conntrack_max")));
    match (count, max) {
        (Some(count), Some(max)) => fill(count, max),
        _ if !dir.exists() => CheckFinding::skipped("connections are not tracked in this network namespace"),
        _ => CheckFinding::unknown(format!("{} cannot be read", dir.display())),
    }
}

fn fill(count: u64, max: u64) -> CheckFinding {
    let advice = "raise net.netfilter.nf_conntrack_max, and look what fills it (conntrack -S)";
    // 0 is no limit.
    let percent = (count * 100).checked_div(max).unwrap_or(0);
    let text = format!("{count} of {max} connections are tracked ({percent} %)");
    match percent {
        FULL.. => CheckFinding::failed(text, advice),
        NEARLY_FULL.. => CheckFinding::warning(text, advice),
        _ => CheckFinding::ok(text),
    }
}

/// Whether IPv6 is on in this network namespace, and whether ambient mode captures it, where that is known.
pub fn ipv6(sysctl: &Path, captured: Option<bool>) -> CheckFinding {
    let off = match std::fs::read_to_string(sysctl.join("net/ipv6/conf/all/disable_ipv6")) {
        Ok(text) => text.trim() == "1",
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return CheckFinding::unknown(format!("it cannot be read whether IPv6 is on: {error}")),
    };
    match (off, captured) {
        (true, Some(true)) => CheckFinding::failed(
            "IPv6 is off in the kernel, and ambient mode is to capture it (AMBIENT_IPV6)",
            "set ambient.ipv6 of the chart to false, or switch IPv6 on",
        ),
        (false, Some(false)) => {
            CheckFinding::ok("IPv6 is on, and ambient mode does not capture it (AMBIENT_IPV6 is off)")
        }
        (true, _) => CheckFinding::ok("IPv6 is off in the kernel"),
        (false, _) => CheckFinding::ok("IPv6 is on"),
    }
}

fn namespaces(sysctl: &Path) -> CheckFinding {
    match number(&sysctl.join("user/max_net_namespaces")) {
        Some(max) if max < LEAST_NAMESPACES => {
            let text = format!("this node may have {max} network namespaces only");
            CheckFinding::failed(text, "raise user.max_net_namespaces")
        }
        Some(max) => CheckFinding::ok(format!("this node may have {max} network namespaces")),
        None => CheckFinding::unknown("user.max_net_namespaces cannot be read"),
    }
}

fn open_files(proc: &Path, agent: Option<u32>) -> CheckFinding {
    let Some(pid) = agent else { return CheckFinding::skipped("no agent answers, whose limit it would be") };
    let process = proc.join(pid.to_string());
    // The agent's number is its own view; on the node another process may have it.
    let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    if name.trim() != "install-cni" {
        return CheckFinding::skipped("the agent's process cannot be told from here; ask in its container");
    }
    open_files_of(&process)
}

/// How many files an agent may have open, by its directory in procfs.
pub fn open_files_of(process: &Path) -> CheckFinding {
    let Ok(limits) = std::fs::read_to_string(process.join("limits")) else {
        return CheckFinding::unknown("the limits of the agent's process cannot be read");
    };
    files_of(&limits)
}

fn files_of(limits: &str) -> CheckFinding {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next().map(str::to_owned));
    match soft.as_deref().map(|soft| (soft, soft.parse::<u64>())) {
        Some((_, Ok(files))) if files < LEAST_FILES => CheckFinding::failed(
            format!("the agent may have {files} files open, and needs {LEAST_FILES}"),
            "raise the limit of the container runtime's unit (LimitNOFILE)",
        ),
        Some((soft, _)) => CheckFinding::ok(format!("the agent may have {soft} files open")),
        None => CheckFinding::unknown("the limits of the agent's process say nothing of open files"),
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests;
