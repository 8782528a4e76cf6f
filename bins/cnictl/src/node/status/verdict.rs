//! What is wrong, and what to do about it.

use serde::Serialize;

use super::mesh::VerificationCounts;
use super::report::{ConfigurationReport, StatusReport};
use super::words::count;
use crate::node::places::NodePlaces;

/// Age in seconds from which a kubeconfig's token may have ended. Service account tokens are good for an hour, and the agent writes a
/// new one before that.
const OLD_TOKEN: u64 = 3600;
/// How many uncaptured pods are named in a message.
const NAMED: usize = 5;

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct StatusVerdict {
    /// There is no problem, and everything could be looked at.
    pub(super) healthy: bool,
    /// Pods are not captured, or will not start, or are about to.
    pub(super) problems: Vec<String>,
    /// What works all the same.
    pub(super) warnings: Vec<String>,
}

/// Judges what was found.
pub(super) fn judge(report: &StatusReport, places: &NodePlaces) -> StatusVerdict {
    let mut verdict = StatusVerdict::default();
    verdict.configuration(report, places);
    if let Some(used) = report.used() {
        verdict.options(used, places);
    }
    verdict.plugins(report);
    verdict.kubeconfig(report, places);
    verdict.agent(report);
    verdict.uncaptured(report);
    verdict.warnings.extend(report.verification.as_ref().and_then(VerificationCounts::warning));
    verdict.healthy = verdict.problems.is_empty() && report.not_looked_at.is_empty();
    verdict
}

impl StatusVerdict {
    fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    fn warning(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    fn configuration(&mut self, report: &StatusReport, places: &NodePlaces) {
        let dir = places.net_dir.display();
        if let Some(error) = &report.unreadable {
            return self.problem(format!(
                "{error}; name the right directory with --net-dir, and run cnictl as root"
            ));
        }
        self.warnings.extend(report.passed_over.iter().cloned());
        if let Some(obstacle) = &report.obstacle {
            self.problem(obstacle);
        }
        for file in report.configurations.iter().filter(|file| !file.valid) {
            self.warning(format!(
                "{} is no valid network configuration any more; the agent restores it from the original beside it",
                file.path.display()
            ));
        }
        // Which file comes first is not known without all of them.
        if report.is_hidden(&places.net_dir) {
            return;
        }
        let Some(active) = report.active() else {
            return self.problem(format!(
                "no valid network configuration in {dir}; install the node's CNI plugin, or name its directory with --net-dir"
            ));
        };
        if active.mode.is_some() {
            return;
        }
        let (active, holder) =
            (active.path.display(), report.configurations.iter().find(|file| file.mode.is_some()));
        match (report.used(), holder) {
            (Some(standalone), _) => self.warning(format!(
                "{} is standalone: the plugin is called only where another plugin, such as Multus, refers to that file",
                standalone.path.display()
            )),
            (None, Some(holder)) => self.problem(format!(
                "the runtime uses {active}, and the plugin is in {}; remove the first, or let the agent extend it (cniConfFileName)",
                holder.path.display()
            )),
            (None, None) => self.problem(format!(
                "the plugin is not in {active}, which the runtime uses: pods start without capture; the agent puts it there, see that it runs"
            )),
        }
    }

    fn options(&mut self, used: &ConfigurationReport, places: &NodePlaces) {
        let path = used.path.display();
        if let Some(error) = &used.options_error {
            self.problem(format!(
                "the plugin refuses its options in {path}: {error}; correct the agent's options (ConfigMap istio-cni-config)"
            ));
        }
        let Some(options) = &used.options else { return };
        if options.run_dir != places.run_dir {
            self.problem(format!(
                "the plugin of {path} looks for the agent in {}, and cnictl in {}; give the plugin's directory with --run-dir",
                options.run_dir.display(),
                places.run_dir.display()
            ));
        }
        if options.capture == "disabled" {
            self.warning(format!("capture is switched off in {path}: pods start without it"));
        }
    }

    fn plugins(&mut self, report: &StatusReport) {
        for plugin in &report.plugins {
            let path = plugin.path.display();
            if let Some(error) = &plugin.error {
                self.problem(format!(
                    "{path} does not run: {error}; the agent puts it there, or name the directory with --bin-dir"
                ));
            }
            let agent = report.agent.status.as_ref().map(|status| &status.version);
            if let (Some(version), Some(agent)) = (&plugin.version, agent)
                && version != agent
            {
                self.warning(format!("{path} is of version {version}, and the agent of {agent}"));
            }
        }
    }

    fn kubeconfig(&mut self, report: &StatusReport, places: &NodePlaces) {
        let options = report.used().and_then(|used| used.options.as_ref());
        if !options.is_some_and(super::options::StatusOptions::needs_kubeconfig) {
            return;
        }
        match &report.kubeconfig {
            None if report.is_hidden(&places.run_dir.join(rundir::KUBECONFIG)) => {}
            None => self.problem(format!(
                "there is no kubeconfig in {}: the plugin cannot ask the API server when the agent is away; the agent writes it, see its log",
                places.run_dir.display()
            )),
            Some(kubeconfig) if kubeconfig.age_seconds.is_some_and(|age| age > OLD_TOKEN) => self.warning(format!(
                "{} is older than an hour: its token may have ended; the agent renews it while it runs",
                kubeconfig.path.display()
            )),
            Some(_) => {}
        }
    }

    fn agent(&mut self, report: &StatusReport) {
        if let Some(error) = &report.agent.error {
            self.problem(error);
        }
        let Some(status) = &report.agent.status else { return };
        if !status.ready {
            let pending = if status.pending.is_empty() {
                "it does not say why".to_owned()
            } else {
                status.pending.join("; ")
            };
            self.problem(format!("the agent is not ready: {pending}; see its log"));
        }
        for notice in &status.notices {
            self.warning(format!("the agent says: {notice}"));
        }
        if !status.last_error.is_empty() {
            self.warning(format!("the agent does not see all changes of pods: {}", status.last_error));
        }
        for socket in report.sockets.iter().filter(|socket| socket.listening == Some(false)) {
            let error = socket.error.as_deref().unwrap_or_default();
            self.warning(format!("socket {}: {error}", socket.path.display()));
        }
    }

    fn uncaptured(&mut self, report: &StatusReport) {
        let Some(pods) = &report.uncaptured else { return };
        if pods.is_empty() {
            return;
        }
        let named = pods.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = pods.len().saturating_sub(NAMED);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        self.problem(format!(
            "{} started without capture and wait to be marked by the agent: {named}{more}; restart them when the plugin works",
            count(pods.len(), "pod")
        ));
    }
}
