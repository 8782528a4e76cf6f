//! Everything that was found on the node, for people and for programs.

use std::path::{Path, PathBuf};

use install::inspect::{Installed, Kubeconfig, Network, Program};
use rundir::AgentStatus;
use serde::Serialize;

use super::mesh::{VerificationCounts, ambient_text};
use super::options::StatusOptions;
use super::verdict::{StatusVerdict, judge};
use super::words::{age, count, written};
use crate::configuration::AGENT_PATIENCE;
use crate::node::agent::{self, RunDirSocket, Silence};
use crate::node::places::NodePlaces;
use crate::output::{Colour, columns, one_line, paint};

#[derive(Debug, Serialize)]
pub(super) struct StatusReport {
    #[serde(flatten)]
    pub(super) verdict: StatusVerdict,
    pub(super) configurations: Vec<ConfigurationReport>,
    /// Files of the directory of configurations that were passed over, and why.
    pub(super) passed_over: Vec<String>,
    /// Which of them a runtime uses, or may use, before the configurations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) obstacle: Option<String>,
    /// Why there may be more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unreadable: Option<String>,
    pub(super) plugins: Vec<PluginProgram>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kubeconfig: Option<KubeconfigReport>,
    pub(super) agent: AgentReport,
    /// Of the pods that should be captured, how many are known to be; absent where the agent does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) verification: Option<VerificationCounts>,
    pub(super) sockets: Vec<RunDirSocket>,
    /// Pods whose last known facts are on disk; absent where they may not be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_known_facts: Option<usize>,
    /// Pods that started without capture and are not marked yet; absent likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uncaptured: Option<Vec<String>>,
    /// What this user may not look at. Nothing is said about it.
    pub(super) not_looked_at: Vec<PathBuf>,
}

/// In place of what this user may not look at.
const NOT_LOOKED_AT: &str = "not looked at: permission denied";

/// A file that a runtime, or another plugin, could use.
#[derive(Debug, Serialize)]
pub(super) struct ConfigurationReport {
    pub(super) path: PathBuf,
    /// It is the one that the runtime uses.
    pub(super) active: bool,
    pub(super) valid: bool,
    /// How our plugin is in it, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<ConfigurationMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) network: Option<String>,
    pub(super) chain: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) options: Option<StatusOptions>,
    /// Why the plugin will refuse its options.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) options_error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ConfigurationMode {
    Chained,
    IstioOwned,
    Standalone,
}

#[derive(Debug, Serialize)]
pub(super) struct PluginProgram {
    pub(super) path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
    pub(super) cni_versions: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) age_seconds: Option<u64>,
    /// Why a runtime cannot use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct KubeconfigReport {
    pub(super) path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) age_seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct AgentReport {
    pub(super) answers: bool,
    #[serde(flatten)]
    pub(super) status: Option<AgentStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

// === impl StatusReport ===

impl StatusReport {
    /// Looks at the node.
    pub(super) fn look(places: &NodePlaces) -> Self {
        let NodePlaces { net_dir, bin_dirs, run_dir, .. } = places;
        let installed = install::inspect(net_dir, bin_dirs, run_dir);
        let mut not_looked_at = installed.denied.clone();
        let (status, error) = match agent::ask(run_dir, AGENT_PATIENCE) {
            Ok(status) => (Some(status), None),
            Err(Silence::Failed(error)) => (None, Some(error)),
            Err(Silence::Denied) => (None, None),
        };
        let pods = status.as_ref().and_then(|_| agent::pods(run_dir));
        let sockets = agent::sockets(run_dir);
        let hidden = sockets.iter().filter(|socket| socket.listening.is_none());
        not_looked_at.extend(hidden.map(|socket| socket.path.clone()));
        let mut seen_below = |path: PathBuf| not_looked_at.push(path);
        let last_known_facts = agent::last_known(run_dir).map_err(&mut seen_below).ok();
        let uncaptured = agent::uncaptured(run_dir).map_err(&mut seen_below).ok();
        let mut report = Self {
            verdict: StatusVerdict::default(),
            configurations: configurations(&installed),
            passed_over: installed.problems.iter().map(ToString::to_string).collect(),
            obstacle: installed.obstacle.as_ref().map(ToString::to_string),
            unreadable: installed.unreadable.map(|error| error.to_string()),
            plugins: installed.programs.into_iter().map(PluginProgram::from).collect(),
            kubeconfig: installed.kubeconfig.map(KubeconfigReport::from),
            agent: AgentReport { answers: status.is_some(), status, error },
            verification: pods.as_ref().map(VerificationCounts::of),
            sockets,
            last_known_facts,
            uncaptured,
            not_looked_at,
        };
        report.verdict = judge(&report, places);
        report
    }

    /// Whether something below a directory could not be looked at, or the directory itself.
    pub(super) fn is_hidden(&self, dir: &Path) -> bool {
        self.not_looked_at.iter().any(|path| path.starts_with(dir))
    }

    /// What could not be looked at, in a line.
    pub(super) fn incomplete_text(&self) -> String {
        let paths: Vec<_> = self.not_looked_at.iter().map(|path| path.display().to_string()).collect();
        format!("{NOT_LOOKED_AT}: {}; run cnictl as root", one_line(&paths.join(", ")))
    }

    /// The file that the runtime uses.
    pub(super) fn active(&self) -> Option<&ConfigurationReport> {
        self.configurations.iter().find(|configuration| configuration.active)
    }

    /// The file by which the plugin is called: the active one, or one of the standalone mode.
    pub(super) fn used(&self) -> Option<&ConfigurationReport> {
        let of_active = self.active().filter(|active| active.mode.is_some());
        of_active.or_else(|| {
            self.configurations.iter().find(|file| file.mode == Some(ConfigurationMode::Standalone))
        })
    }

    pub(super) fn table(&self, places: &NodePlaces) -> String {
        let rows = self.rows(places).into_iter();
        let rows: Vec<_> = rows.map(|(name, text)| vec![name.to_owned(), one_line(&text)]).collect();
        columns(&rows) + &self.verdict_text()
    }

    /// What was found, by name.
    pub(super) fn rows(&self, places: &NodePlaces) -> Vec<(&'static str, String)> {
        let mut rows: Vec<(&str, String)> = Vec::new();
        let mut row = |name, text: String| rows.push((name, text));
        match self.active() {
            Some(active) => {
                row("Configuration", format!("{}{}", active.path.display(), active.mode_text()));
                row("Network", active.network_text());
            }
            None if self.is_hidden(&places.net_dir) => row("Configuration", NOT_LOOKED_AT.to_owned()),
            None => row("Configuration", "none that a runtime uses".to_owned()),
        }
        if let Some(used) = self.used() {
            let error = || used.options_error.clone().unwrap_or_default();
            row("Options", used.options.as_ref().map_or_else(error, StatusOptions::text));
        }
        for file in self.configurations.iter().filter(|file| !file.active) {
            let broken = if file.valid { "" } else { " (broken)" };
            let text =
                format!("{}{}{broken}: {}", file.path.display(), file.mode_text(), file.network_text());
            row("Other file", text);
        }
        self.plugins.iter().for_each(|plugin| row("Plugin", plugin.text()));
        for dir in places.bin_dirs.iter().filter(|dir| self.is_hidden(dir)) {
            row("Plugin", format!("{}: {NOT_LOOKED_AT}", dir.join(install::PLUGIN).display()));
        }
        let hidden = self.is_hidden(&places.run_dir.join(rundir::KUBECONFIG));
        let without = || if hidden { NOT_LOOKED_AT } else { "none" }.to_owned();
        row("Kubeconfig", self.kubeconfig.as_ref().map_or_else(without, KubeconfigReport::text));
        row("Agent", self.agent.text());
        if let Some(status) = &self.agent.status {
            row("Ambient", ambient_text(status.ambient.as_ref()));
        }
        if let Some(counts) = &self.verification {
            row("Captured", counts.text());
        }
        row("Sockets", self.sockets_text());
        let unless_hidden = |number: Option<usize>, text: &dyn Fn(String) -> String| {
            number.map_or_else(|| NOT_LOOKED_AT.to_owned(), |number| text(count(number, "pod")))
        };
        row("Last known", unless_hidden(self.last_known_facts, &|pods| format!("facts of {pods}")));
        row("Uncaptured", unless_hidden(self.uncaptured.as_ref().map(Vec::len), &|pods| pods));
        rows
    }

    fn sockets_text(&self) -> String {
        let name = |socket: &RunDirSocket| {
            socket.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
        };
        let text = |socket: &RunDirSocket| match &socket.error {
            None if socket.listening.is_none() => format!("{} {NOT_LOOKED_AT}", name(socket)),
            None => format!("{} listens", name(socket)),
            Some(error) => format!("{}: {error}", name(socket)),
        };
        let texts: Vec<_> = self.sockets.iter().map(text).collect();
        if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
    }

    fn verdict_text(&self) -> String {
        let StatusVerdict { healthy, problems, warnings } = &self.verdict;
        let mut out = String::from("\n");
        let lines = problems.iter().map(|text| ("problem:", Colour::Red, text));
        for (kind, colour, text) in
            lines.chain(warnings.iter().map(|text| ("warning:", Colour::Yellow, text)))
        {
            out.push_str(&format!("{} {}\n", paint(kind, colour), one_line(text)));
        }
        let verdict = match (healthy, problems.len()) {
            (true, _) => {
                format!("{}: the plugin is installed and the agent answers", paint("healthy", Colour::Green))
            }
            (false, 0) => format!(
                "{}: nothing wrong was seen, and not everything could be looked at; run cnictl as root",
                paint("unknown", Colour::Yellow)
            ),
            (false, number) => format!("{}: {}", paint("unhealthy", Colour::Red), count(number, "problem")),
        };
        out + &verdict + "\n"
    }
}

// === impl ConfigurationReport ===

fn configurations(installed: &Installed) -> Vec<ConfigurationReport> {
    let active = installed.networks.iter().position(|network| network.is_valid);
    let networks = installed.networks.iter().enumerate();
    let mut all: Vec<_> =
        networks.map(|(index, network)| ConfigurationReport::of(network, Some(index) == active)).collect();
    all.extend(installed.standalone.iter().map(|file| {
        let mut configuration = ConfigurationReport {
            path: file.path.clone(),
            active: false,
            valid: true,
            mode: Some(ConfigurationMode::Standalone),
            network: None,
            chain: vec![install::PLUGIN.to_owned()],
            options: None,
            options_error: None,
        };
        configuration.take_options(&file.entry);
        configuration
    }));
    all
}

impl ConfigurationReport {
    fn of(network: &Network, active: bool) -> Self {
        // A copy of ours has the default name, and never an original of its own.
        let is_owned = network.path.ends_with(install::options::OWNED_NAME) && !network.has_original;
        let mode = if is_owned { ConfigurationMode::IstioOwned } else { ConfigurationMode::Chained };
        let entry = network.entry.as_ref().filter(|_| network.is_valid);
        let mut configuration = Self {
            path: network.path.clone(),
            active,
            valid: network.is_valid,
            mode: entry.map(|_| mode),
            network: network.name.clone(),
            chain: network.plugins.clone(),
            options: None,
            options_error: None,
        };
        if let Some(entry) = entry {
            configuration.take_options(entry);
        }
        configuration
    }

    fn take_options(&mut self, entry: &cni::json::Value) {
        match StatusOptions::parse(entry) {
            Ok(options) => self.options = Some(options),
            Err(error) => self.options_error = Some(error),
        }
    }

    fn mode_text(&self) -> &'static str {
        match self.mode {
            None => "",
            Some(ConfigurationMode::Chained) => " (chained)",
            Some(ConfigurationMode::IstioOwned) => " (Istio-owned)",
            Some(ConfigurationMode::Standalone) => " (standalone)",
        }
    }

    fn network_text(&self) -> String {
        let chain = self.chain.join(", ");
        self.network.as_ref().map_or_else(|| chain.clone(), |name| format!("{name}: {chain}"))
    }
}

// === the others ===

impl From<Program> for PluginProgram {
    fn from(program: Program) -> Self {
        let (cni_versions, error) = match program.versions {
            Ok(versions) => (versions, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let age_seconds = age(program.modified);
        Self { path: program.path, version: program.version.ok(), cni_versions, age_seconds, error }
    }
}

impl PluginProgram {
    fn text(&self) -> String {
        let path = self.path.display();
        if let Some(error) = &self.error {
            return format!("{path}: {error}");
        }
        let version = self.version.as_deref().unwrap_or("of unknown version");
        format!("{path} {version}, CNI {}{}", self.cni_versions.join(" "), written(self.age_seconds))
    }
}

impl From<Kubeconfig> for KubeconfigReport {
    fn from(kubeconfig: Kubeconfig) -> Self {
        Self { age_seconds: age(kubeconfig.modified), path: kubeconfig.path, server: kubeconfig.server }
    }
}

impl KubeconfigReport {
    fn text(&self) -> String {
        let server = self.server.as_deref().unwrap_or("an unknown server");
        format!("{} for {server}{}", self.path.display(), written(self.age_seconds))
    }
}

impl AgentReport {
    fn text(&self) -> String {
        let Some(status) = &self.status else {
            return if self.error.is_some() { "does not answer" } else { NOT_LOOKED_AT }.to_owned();
        };
        let ready = if status.ready { "ready" } else { "not ready" };
        let synced = if status.synced { "" } else { ", pods not listed yet" };
        format!("{}, pid {}, {ready}, {}{synced}", status.version, status.pid, count(status.pods, "pod"))
    }
}
