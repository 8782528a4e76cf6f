//! `uninstall`: the node without the plugin.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use cni::conflist::PluginEntry;
use install::{Done, InstallMode, InstallOptions, ProgramAtEnd};
use leftover::Results;
use rundir::{
    AMBIENT_DIR, BOOT_NAME, FACTS_DIR, LOCK_NAME, LOCKS_NAME, NEXT_LOCK_NAME, PLUGIN_TIMES_NAME,
    UNCAPTURED_DIR,
};
use rustix::io::Errno;
use serde::Serialize;

use super::places::{NodePlaces, PlaceArgs, directory};
use super::policed::{PolicedPlaces, PolicyRecords};
use super::{agent, host_side, policed};
use crate::configuration::AGENT_PATIENCE;
use crate::output::{Format, VerbAnswer, one_line, structured};
use crate::question::confirm;

const EXAMPLES: &str = "\
Examples:
  # What would be done?
  cnictl uninstall --dry-run

  # After the DaemonSet is gone, without a question, and the plugin's logs too
  cnictl uninstall --yes --purge

Exit codes: 0 nothing of the plugin is left but what is listed as kept (with --dry-run: everything could be looked at)
            1 failed, refused or declined; what could not be done is listed, the rest is done
            2 wrong command line";

/// Take the plugin off this node: out of every CNI configuration, then its files, and the rules of ambient mode and of network policies off the node's own network
///
/// Configurations are restored to the byte if they are unchanged since; from changed ones, only the plugin's entry is removed.
/// Works without the agent, and also after upstream's. Pods that run stay as they are, also those of ambient
/// mode, which keep their rules; rules of network policies go from pods that were added while policies were enforced. New pods start without capture.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    places: PlaceArgs,
    /// Name of the configuration that the agent was told to extend or to write (cni-conf-name), if its name ends in neither .conf nor
    /// .conflist
    #[arg(long, value_name = "NAME", value_parser = file_name)]
    conf_name: Option<String>,
    /// Name of the Istio-owned configuration (istio-owned-cni-config-filename), which goes as a whole [default: 02-istio-cni.conflist]
    #[arg(long, value_name = "NAME", value_parser = file_name)]
    owned_conf_name: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Go on although an agent is there, which installs the plugin again
    #[arg(long)]
    force: bool,
    /// Remove the plugin's logs too, and its program at once: a runtime that deletes pods by the configuration of their ADD (CRI-O, Multus)
    /// cannot delete those that were added with the plugin until a program of its name is there again
    #[arg(long)]
    purge: bool,
    /// Directory where libcni keeps results: while one of them names the plugin its program stays, without --purge
    #[arg(long, value_name = "DIR", default_value = leftover::CACHE_DIR, value_parser = directory)]
    cache_dir: PathBuf,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    dry_run: bool,
    steps: Vec<Step>,
    errors: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Step {
    action: Action,
    /// A file, or something in the kernel by its name.
    path: PathBuf,
    /// What somebody has to know about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Action {
    Restored,
    EntryRemoved,
    Deleted,
    Kept,
}

fn file_name(text: &str) -> Result<String, String> {
    let is_name = Path::new(text).file_name().is_some_and(|name| name == text);
    if is_name {
        Ok(text.to_owned())
    } else {
        Err("give the name of a file, without its directory".to_owned())
    }
}

// === impl UninstallArgs ===

impl UninstallArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let places = &self.places.places();
        let (options, leftovers) = (self.options(places), self.leftovers(places));
        let mut plan = Report::of(install::plan_uninstall(&options, &leftovers), true);
        let records = PolicyRecords { run_dir: &places.run_dir, state_dir: &places.state_dir };
        plan.add_host_side(host_side::look());
        plan.add_kernel(PolicedPlaces::find(&places.run_dir).look());
        let paths = records.paths().into_iter().map(|path| path.display().to_string());
        plan.add_kernel((paths.collect(), Vec::new()));
        plan.say_recorded(&places.run_dir);
        places.own_dirs().into_iter().for_each(|dir| plan.plan_dir_removal(dir));
        let needed = self.needed();
        plan.say_needed(needed);
        if self.dry_run {
            return plan.answer(self.output);
        }
        self.refuse_beside_agent(places)?;
        if !self.yes && !plan.steps.is_empty() {
            confirm(&plan.table(), "Pods will start without capture.")?;
        }
        let mut report = Report::of(install::uninstall(&options, &leftovers), false);
        report.add_host_side(host_side::remove());
        // Anew: pods were added until the plugin was off the node. What says where they are goes last.
        let (found, errors) = PolicedPlaces::find(&places.run_dir).remove();
        report.add_kernel((found, errors.clone()));
        report.add_kernel(records.remove(&errors));
        report.say_recorded(&places.run_dir);
        places.own_dirs().into_iter().for_each(|dir| report.remove_if_empty(dir));
        report.say_needed(needed);
        report.answer(self.output)
    }

    /// Only what says where things are counts.
    fn options(&self, places: &NodePlaces) -> InstallOptions {
        InstallOptions {
            net_dir: places.net_dir.clone(),
            conf_name: self.conf_name.clone(),
            mode: self
                .owned_conf_name
                .clone()
                .map_or(InstallMode::Chained, |file_name| InstallMode::Owned { file_name }),
            group_read: false,
            bin_source: PathBuf::new(),
            bin_targets: places.bin_dirs.clone(),
            run_dir: places.run_dir.clone(),
            kubeconfig: None,
            entry: PluginEntry::default(),
            program_at_end: if self.purge {
                ProgramAtEnd::Goes
            } else {
                let cache = self.cache_dir.clone();
                ProgramAtEnd::StaysWhileNamed { on_node: cache.clone(), cache, sees_node: true }
            },
        }
    }

    /// How many pods need the program that is removed all the same.
    fn needed(&self) -> usize {
        match leftover::look(&self.cache_dir, install::PLUGIN) {
            Results::Naming(count) if self.purge => count,
            _ => 0,
        }
    }

    fn leftovers(&self, places: &NodePlaces) -> Vec<PathBuf> {
        let run_dir = &places.run_dir;
        let mut paths = rundir::sockets(run_dir).to_vec();
        let names = [
            FACTS_DIR,
            UNCAPTURED_DIR,
            rundir::APPLIED_DIR,
            rundir::SANDBOXES_DIR,
            rundir::SETTINGS_DIR,
            PLUGIN_TIMES_NAME,
            LOCKS_NAME,
            LOCK_NAME,
            NEXT_LOCK_NAME,
        ];
        paths.extend(names.map(|name| run_dir.join(name)));
        paths.extend([FACTS_DIR, BOOT_NAME].map(|name| places.state_dir.join(name)));
        if self.purge {
            let names =
                std::fs::read_dir(run_dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
            let is_log = |name: &std::ffi::OsString| name.to_str().is_some_and(telemetry::is_log_file);
            let mut logs: Vec<_> = names.filter(is_log).map(|name| run_dir.join(name)).collect();
            logs.sort();
            paths.extend(logs);
        }
        paths
    }

    /// One that serves nothing yet, or whose sockets somebody has removed.
    fn refuse_beside_holder(&self, places: &NodePlaces) -> Result<()> {
        let Some(holder) = agent::holder(&places.run_dir).filter(|_| !self.force) else { return Ok(()) };
        bail!(
            "a node agent ({holder}) works on this node and would install the plugin again: remove the DaemonSet istio-cni-node first, or \
             give --force; nothing was changed"
        );
    }

    fn refuse_beside_agent(&self, places: &NodePlaces) -> Result<()> {
        let sockets = agent::sockets(&places.run_dir);
        let listening = sockets.into_iter().find(|socket| socket.listening == Some(true));
        let Some(socket) = listening.filter(|_| !self.force) else {
            return self.refuse_beside_holder(places);
        };
        let pid = agent::ask(&places.run_dir, AGENT_PATIENCE).map(|status| format!(" (pid {})", status.pid));
        bail!(
            "a node agent{} listens on {} and would install the plugin again: remove the DaemonSet istio-cni-node first, or give --force; \
             nothing was changed",
            pid.unwrap_or_default(),
            socket.path.display()
        );
    }
}

// === impl Report ===

impl Report {
    fn of(report: install::UninstallReport, dry_run: bool) -> Self {
        let steps = report.done.into_iter().map(Step::from).collect();
        let errors: Vec<_> = report.errors.iter().map(ToString::to_string).collect();
        Self { ok: errors.is_empty(), dry_run, steps, errors }
    }

    /// Adds what ambient mode has in the node's own network namespace.
    fn add_host_side(&mut self, (parts, errors): (Vec<host_side::HostSidePart>, Vec<String>)) {
        self.add_kernel((parts.into_iter().map(host_side::HostSidePart::name).collect(), errors));
    }

    /// Adds what is in the kernel, by its names, and files that go with it.
    fn add_kernel(&mut self, (names, errors): policed::KernelNames) {
        let step = |name: String| Step { action: Action::Deleted, path: name.into(), note: None };
        self.steps.extend(names.into_iter().map(step));
        self.errors.extend(errors);
        self.ok = self.errors.is_empty();
    }

    /// Says what stays in pods.
    fn say_recorded(&mut self, run_dir: &Path) {
        let pods = host_side::recorded_pods(run_dir);
        if pods > 0 {
            let note = format!(
                "rules of ambient mode stay in the network namespaces of its pods ({pods}) and end with them: delete these pods; a new agent \
                 goes by these records"
            );
            self.steps.push(Step { action: Action::Kept, path: run_dir.join(AMBIENT_DIR), note: Some(note) });
        }
    }

    /// Says what becomes of pods that need a program that goes.
    fn say_needed(&mut self, pods: usize) {
        let programs = self.steps.iter_mut().filter(|step| step.path.ends_with(install::PLUGIN));
        for step in programs.filter(|step| pods > 0 && step.action == Action::Deleted) {
            step.note = Some(format!(
                "{pods} kept results name it: a runtime that deletes by them (CRI-O, Multus) cannot delete these pods until it is there again"
            ));
        }
    }

    /// Plans the removal of a directory of the agent's own if it will be empty.
    fn plan_dir_removal(&mut self, dir: &Path) {
        let Ok(mut entries) = std::fs::read_dir(dir) else { return };
        let goes = |path: &PathBuf| {
            self.steps.iter().any(|step| step.path == *path && step.action == Action::Deleted)
        };
        if entries.all(|entry| entry.is_ok_and(|entry| goes(&entry.path()))) {
            self.steps.push(Step { action: Action::Deleted, path: dir.to_owned(), note: None });
        }
    }

    /// Removes a directory of the agent's own, which it made unless it is a mount.
    fn remove_if_empty(&mut self, dir: &Path) {
        match rustix::fs::rmdir(dir) {
            Ok(()) => {
                self.steps.push(Step { action: Action::Deleted, path: dir.to_owned(), note: None });
            }
            // Logs that stay, a mount, a directory that was never there or cannot be removed: none holds anything of the plugin's.
            Err(
                Errno::NOTEMPTY
                | Errno::EXIST
                | Errno::BUSY
                | Errno::NOENT
                | Errno::NOTDIR
                | Errno::ACCESS
                | Errno::PERM
                | Errno::ROFS,
            ) => {}
            Err(error) => {
                self.errors.push(format!("remove {}: {error}", dir.display()));
                self.ok = false;
            }
        }
    }

    fn answer(&self, format: Format) -> Result<VerbAnswer> {
        let text = match format {
            Format::Json | Format::Yaml => structured(format, self)?,
            Format::Table | Format::Wide => self.table(),
        };
        Ok(match self.errors.as_slice() {
            [] => VerbAnswer::text(text),
            errors => VerbAnswer::failed(
                text,
                format!("not all of the plugin can be removed: {}", errors.join("\n  ")),
            ),
        })
    }

    fn table(&self) -> String {
        if self.steps.is_empty() && self.errors.is_empty() {
            return "nothing of the plugin is on this node\n".to_owned();
        }
        let mark = if self.dry_run { " (dry run)" } else { "" };
        let line = |step: &Step| {
            let path = one_line(&step.path.display().to_string());
            let note = step.note.iter().map(|note| format!(": {note}")).collect::<String>();
            format!("{path} {}{note}{mark}\n", step.action.text())
        };
        self.steps.iter().map(line).collect()
    }
}

impl From<Done> for Step {
    fn from(done: Done) -> Self {
        let (action, path, note) = match done {
            Done::Restored(path) => (Action::Restored, path, None),
            Done::EntryRemoved(path) => (Action::EntryRemoved, path, None),
            Done::Deleted(path) => (Action::Deleted, path, None),
            Done::Kept(path, why) => (Action::Kept, path, Some(why.to_string())),
        };
        Self { action, path, note }
    }
}

impl Action {
    fn text(self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::EntryRemoved => "without the plugin",
            Self::Deleted => "deleted",
            Self::Kept => "kept",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_name_leads_nowhere_else() {
        assert!(file_name("05-x.conflist").is_ok());
        for text in ["", ".", "..", "a/b", "/a", "a/"] {
            assert!(file_name(text).is_err(), "{text:?}");
        }
    }
}
