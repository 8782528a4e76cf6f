//! The plugin on the node: configuration, program, kubeconfig, directories.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use checks::{CheckFinding, CheckResult, CheckState, catalogue};
use install::inspect::{Installed, Network};
use install::{PLUGIN, inspect};
use trusted::Links;

use crate::{NodeFiles, space, timed, token};

/// Largest kubeconfig that is read, in bytes.
const MAX_KUBECONFIG: usize = 1 << 20;
/// A token that ends sooner than this is not renewed as it should be: kubelet renews one when a fifth of its time is left, of an hour mostly.
const SOON: Duration = Duration::from_secs(120);

/// What the configuration of CNI is like, in the words of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigState {
    /// Runtimes call the plugin as they should.
    Healthy,
    /// There is no configuration, or the plugin is not in it.
    Missing,
    /// The plugin is in it, and not as it should be.
    Invalid,
    /// It could not be looked at, or something that the plugin needs is wrong.
    Error,
}

/// What a look at the installation found.
#[derive(Debug, Clone, PartialEq)]
pub struct InstallationLook {
    /// The configuration.
    pub state: ConfigState,
    /// Each check.
    pub results: Vec<CheckResult>,
}

// === impl ConfigState ===

impl ConfigState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Missing, Self::Invalid, Self::Error];

    /// The value of the label.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Missing => "missing",
            Self::Invalid => "invalid",
            Self::Error => "error",
        }
    }
}

/// Looks at the installation. `source` is the directory with the program that should be on the node, where this process has it.
pub fn look(node: &NodeFiles, source: Option<&Path>) -> InstallationLook {
    let installed = inspect(&node.net_dir, &node.bin_dirs, &node.run_dir);
    let (mut state, mut conflist) = conflist(&installed);
    let conf_dir = timed(&catalogue::CONF_DIR, || conf_dir(node));
    if conf_dir.state == CheckState::Failed && state == ConfigState::Missing && !node.net_dir.is_dir() {
        conflist = CheckFinding::unknown("there is no directory for it");
    }
    let results = vec![
        conf_dir,
        conflist.of(&catalogue::CONFLIST, 0.0),
        timed(&catalogue::PLUGIN, || plugin(node, &installed, source)),
        timed(&catalogue::KUBECONFIG, || kubeconfig(node, &installed, SystemTime::now())),
        timed(&catalogue::RUN_DIR, || run_dir(node)),
        timed(&catalogue::SECOND_AGENT, || second_agent(&node.run_dir)),
    ];
    let is_bad =
        |result: &CheckResult| result.state == CheckState::Failed && result.id != catalogue::CONFLIST.id;
    if state == ConfigState::Healthy && results.iter().any(is_bad) {
        state = ConfigState::Error;
    }
    InstallationLook { state, results }
}

/// The directory of configurations.
pub fn conf_dir(node: &NodeFiles) -> CheckFinding {
    space::look(
        &node.net_dir,
        "mount the directory that the runtime reads, writable and with space (cniConfDir of the chart)",
    )
}

/// The directories of programs.
pub fn bin_dir(node: &NodeFiles) -> CheckFinding {
    let advice =
        "mount the directory from which the runtime starts plugins (cniBinDir, platform of the chart)";
    let findings: Vec<CheckFinding> = node.bin_dirs.iter().map(|dir| space::look(dir, advice)).collect();
    let worst = findings.into_iter().max_by_key(|finding| finding.state);
    worst.unwrap_or_else(|| CheckFinding::failed("no directory of plugins is configured", advice))
}

fn run_dir(node: &NodeFiles) -> CheckFinding {
    space::look(
        &node.run_dir,
        "look at the node's /var/run and at the volume cni-run-dir of the DaemonSet istio-cni-node",
    )
}

/// Whether an agent waits for the end of the one that works on this node.
fn second_agent(run_dir: &Path) -> CheckFinding {
    match rundir::holder(run_dir, rundir::NEXT_LOCK_NAME) {
        Ok(None) => CheckFinding::ok("no other agent waits for this node"),
        Ok(Some(holder)) => CheckFinding::warning(
            format!("another agent waits for this node: {holder}"),
            "remove one of the two DaemonSets; after an update it is gone within seconds",
        ),
        Err(error) => {
            CheckFinding::unknown(format!("whether another agent waits for this node is not known: {error}"))
        }
    }
}

/// The configuration that runtimes choose, by what is installed.
fn conflist(installed: &Installed) -> (ConfigState, CheckFinding) {
    const RESTORE: &str =
        "the agent puts the plugin in again where it runs; else restore the network's own configuration";
    if let Some(error) = &installed.unreadable {
        return (
            ConfigState::Error,
            CheckFinding::failed(error.to_string(), "look at the directory of CNI configurations"),
        );
    }
    let is_denied = |path: &std::path::PathBuf| path.extension().is_none();
    let active = installed.networks.iter().find(|network| network.is_valid);
    match (active, &installed.obstacle) {
        (None, _) if installed.networks.is_empty() && installed.denied.iter().any(is_denied) => (
            ConfigState::Error,
            CheckFinding::unknown("the directory of CNI configurations may not be looked at"),
        ),
        (_, Some(obstacle)) => (ConfigState::Invalid, CheckFinding::failed(obstacle.to_string(), "")),
        (Some(active), None) => of_active(active, installed, RESTORE),
        (None, None) => match (installed.networks.first(), installed.problems.first()) {
            (Some(broken), _) => {
                let text = format!("{} is broken, so that no runtime loads it", broken.path.display());
                (ConfigState::Invalid, CheckFinding::failed(text, RESTORE))
            }
            (None, Some(problem)) => (
                ConfigState::Invalid,
                CheckFinding::failed(problem.to_string(), "restore the network's own configuration"),
            ),
            (None, None) => {
                let text = "there is no CNI configuration yet";
                (
                    ConfigState::Missing,
                    CheckFinding::failed(text, "the network's own component has to write one"),
                )
            }
        },
    }
}

fn of_active(active: &Network, installed: &Installed, restore: &str) -> (ConfigState, CheckFinding) {
    let path = active.path.display();
    let at = active.plugins.iter().position(|plugin| plugin == PLUGIN);
    let times = active.plugins.iter().filter(|plugin| *plugin == PLUGIN).count();
    match (at, times) {
        (None, _) => match installed.standalone.first() {
            Some(file) => {
                let text = format!(
                    "{} has the plugin alone, for another plugin that refers to it",
                    file.path.display()
                );
                (ConfigState::Healthy, CheckFinding::ok(text))
            }
            None => {
                let text =
                    format!("runtimes use {path}, and {PLUGIN} is not in it: pods start without capture");
                (ConfigState::Missing, CheckFinding::failed(text, restore))
            }
        },
        (Some(_), 2..) => {
            let text = format!("{PLUGIN} is {times} times in {path}");
            (ConfigState::Invalid, CheckFinding::failed(text, "leave it in once, as the last plugin"))
        }
        (Some(at), _) if at + 1 != active.plugins.len() => {
            let after = active.plugins[at + 1..].join(", ");
            let text = format!("{PLUGIN} is not the last plugin of {path}: {after} comes behind it");
            (ConfigState::Invalid, CheckFinding::failed(text, "move it to the end of the list"))
        }
        (Some(_), _) => (
            ConfigState::Healthy,
            CheckFinding::ok(format!("runtimes use {path}, with {PLUGIN} as its last plugin")),
        ),
    }
}

fn plugin(node: &NodeFiles, installed: &Installed, source: Option<&Path>) -> CheckFinding {
    const AGAIN: &str = "restart the agent of this node, which places the program again";
    let Some(program) = installed.programs.first() else {
        let hidden = installed.denied.iter().find(|path| path.ends_with(PLUGIN));
        return match hidden {
            Some(path) => CheckFinding::unknown(format!("{} may not be looked at", path.display())),
            None => CheckFinding::failed("no directory of plugins is configured", ""),
        };
    };
    for program in &installed.programs {
        let path = program.path.display();
        // What of it is still there may answer.
        if is_cut(&program.path) {
            return CheckFinding::failed(format!("{path} is truncated: its end is not there"), AGAIN);
        }
        if let Err(error) = &program.versions {
            let text = if program.path.exists() {
                format!("{path} does not run: {error}")
            } else {
                format!("{path} is not there")
            };
            return CheckFinding::failed(text, AGAIN);
        }
        match &program.version {
            Ok(version) if version == env!("CARGO_PKG_VERSION") => {}
            Ok(version) => {
                let text = format!("{path} is of version {version}, not {}", env!("CARGO_PKG_VERSION"));
                return CheckFinding::warning(text, AGAIN);
            }
            Err(error) => {
                return CheckFinding::unknown(format!("the version of {path} is not known: {error}"));
            }
        }
    }
    let differs =
        |source: &Path| node.bin_dirs.iter().find(|dir| !is_same(&source.join(PLUGIN), &dir.join(PLUGIN)));
    match source.and_then(differs) {
        Some(dir) => CheckFinding::failed(
            format!("{} has other content than the image's", dir.join(PLUGIN).display()),
            AGAIN,
        ),
        None => CheckFinding::ok(format!(
            "{} runs, version {}",
            program.path.display(),
            env!("CARGO_PKG_VERSION")
        )),
    }
}

/// Whether the table of sections, which linkers put at the end of a program, lies behind the end of the file. elf(5): its place is at byte 40 of a
/// 64-bit program, the length of an entry and their number at 58 and 60. Both architectures of ours have the low byte first.
fn is_cut(path: &Path) -> bool {
    let mut head = [0_u8; 64];
    let Ok(mut file) = trusted::open(path, Links::Followed) else { return false };
    let Ok(length) = file.metadata().map(|metadata| metadata.len()) else { return false };
    if file.read_exact(&mut head).is_err() || !head.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let number = |from: usize, bytes: usize| {
        head[from..from + bytes].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let (at, entry, entries) = (number(40, 8), number(58, 2), number(60, 2));
    at.saturating_add(entry * entries) > length
}

/// What cannot be read is not known to differ.
fn is_same(one: &Path, other: &Path) -> bool {
    let length = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len());
    match (length(one), length(other)) {
        (Ok(one_length), Ok(length)) if one_length != length => false,
        (Ok(_), Ok(_)) => match (std::fs::read(one), std::fs::read(other)) {
            (Ok(one), Ok(other)) => one == other,
            _ => true,
        },
        _ => true,
    }
}

fn kubeconfig(node: &NodeFiles, installed: &Installed, now: SystemTime) -> CheckFinding {
    const AGENT: &str = "the agent writes it: look whether one runs on this node";
    let path = node.run_dir.join(rundir::KUBECONFIG);
    let by_manifests =
        |network: &Network| network.entry.as_ref().is_some_and(|entry| entry.get("pod_source").is_some());
    if installed.networks.iter().any(by_manifests) {
        return CheckFinding::skipped("pods come from manifests, so that the plugin needs no kubeconfig");
    }
    let text = match trusted::read(&path, Links::Refused, MAX_KUBECONFIG) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error)
            if error.is_not_found() && installed.networks.iter().all(|network| network.entry.is_none()) =>
        {
            return CheckFinding::unknown(
                "whether the plugin needs a kubeconfig says its entry, which is not there",
            );
        }
        Err(error) if error.is_not_found() => {
            return CheckFinding::failed(format!("{} is not there", path.display()), AGENT);
        }
        Err(_) if installed.denied.contains(&path) => {
            return CheckFinding::unknown(format!("{} may not be read", path.display()));
        }
        Err(error) => return CheckFinding::failed(error.to_string(), AGENT),
    };
    let Some(token) = token::of_kubeconfig(&text) else {
        return CheckFinding::failed(format!("{} has no token", path.display()), AGENT);
    };
    match token::end(token).map(|end| end.duration_since(now)) {
        None => CheckFinding::ok(format!(
            "{} has a token, which does not say until when it is good",
            path.display()
        )),
        Some(Ok(left)) if left > SOON => CheckFinding::ok(format!(
            "the token of {} is good for {} min",
            path.display(),
            left.as_secs() / 60
        )),
        Some(Ok(left)) => {
            let text = format!("the token of {} is good for {} s only", path.display(), left.as_secs());
            CheckFinding::warning(text, AGENT)
        }
        Some(Err(since)) => {
            let ago = since.duration().as_secs() / 60;
            CheckFinding::failed(format!("the token of {} has expired {ago} min ago", path.display()), AGENT)
        }
    }
}

#[cfg(test)]
mod tests;
