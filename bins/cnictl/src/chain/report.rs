//! What a verb did, for people and for programs.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::attachment::PodAttachment;
use super::run::{ChainJournal, PluginRun};
use crate::look::Looked;
use crate::output::{Format, VerbAnswer, columns, one_line, structured};

/// A verb over a chain.
#[derive(Debug, Serialize)]
pub(super) struct ChainReport {
    network: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    attachment: Option<AttachmentReport>,
    ok: bool,
    /// What failed. What a plugin says about that stands with its call, and only there.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The whole failure, for people.
    #[serde(skip)]
    problem: Option<String>,
    /// In the order of the calls.
    plugins: Vec<PluginRun>,
    /// The calls of DEL after a failed ADD.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rollback: Vec<PluginRun>,
    /// What the runtime gets from ADD.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    /// What was not done, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// What is in the kernel for the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    looked: Option<Looked>,
}

#[derive(Debug, Serialize)]
struct AttachmentReport {
    container_id: String,
    ifname: String,
    netns: String,
}

impl ChainReport {
    pub(super) fn new(network: &str, attachment: Option<&PodAttachment>, journal: ChainJournal) -> Self {
        let problem = journal.problem();
        let failed = journal.runs.iter().find(|run| run.error.is_some());
        let error = failed.map(|run| format!("{} of plugin {} failed", run.command, run.plugin));
        Self {
            network: network.to_owned(),
            attachment: attachment.map(|attachment| AttachmentReport {
                container_id: attachment.container_id.clone(),
                ifname: attachment.ifname.clone(),
                netns: attachment.netns.clone(),
            }),
            ok: problem.is_none(),
            error: error.or_else(|| problem.clone()),
            problem,
            plugins: journal.runs,
            rollback: Vec::new(),
            result: journal.result,
            note: None,
            looked: None,
        }
    }

    /// Adds what is in the kernel. Where a plugin has failed, its words come first.
    pub(super) fn with_look(mut self, looked: Looked) -> Self {
        let problem = looked.problem();
        self.error = self.error.or_else(|| problem.clone());
        self.problem = self.problem.or(problem);
        self.ok = self.problem.is_none();
        self.looked = Some(looked);
        self
    }

    /// Adds the DEL after a failed ADD. A failure of that is told too: something may be left.
    pub(super) fn with_rollback(mut self, rollback: ChainJournal) -> Self {
        let also = rollback.problem();
        if let (Some(error), Some(also)) = (&mut self.problem, also) {
            *error = format!("{error} (and then, while undoing it: {also})");
        }
        self.rollback = rollback.runs;
        self
    }

    /// Adds what went wrong besides the plugins.
    pub(super) fn with_problem(mut self, problem: String) -> Self {
        self.error = self.error.or_else(|| Some(problem.clone()));
        self.problem = self.problem.or(Some(problem));
        self.ok = false;
        self
    }

    pub(super) fn with_note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// The text and exit code; `stats` adds time and memory to the table.
    ///
    /// # Errors
    /// The report has no JSON or YAML form, which would be a mistake in its type.
    pub(super) fn answer(&self, format: Format, stats: bool) -> Result<VerbAnswer> {
        let text = match format {
            Format::Json | Format::Yaml => structured(format, self)?,
            Format::Table => self.table(stats, false),
            Format::Wide => self.table(true, true),
        };
        Ok(match &self.problem {
            None => VerbAnswer::text(text),
            Some(error) => VerbAnswer::failed(text, error.clone()),
        })
    }

    /// What the plugins wrote to standard error, each line with the plugin's name.
    pub(super) fn logs(&self) -> String {
        let runs = self.plugins.iter().chain(&self.rollback);
        let lines = runs
            .flat_map(|run| run.log.lines().map(|line| one_line(&format!("{}: {line}", run.plugin)) + "\n"));
        lines.collect()
    }

    fn table(&self, stats: bool, paths: bool) -> String {
        let mut head = vec!["PLUGIN", "COMMAND", "STATUS"];
        head.extend(stats.then_some(["TIME", "PEAK-RSS"]).iter().flatten());
        head.extend(paths.then_some("PATH"));
        let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        for run in self.plugins.iter().chain(&self.rollback) {
            let status = if run.ok { "ok" } else { "failed" };
            let mut row = vec![run.plugin.clone(), run.command.to_owned(), status.to_owned()];
            if stats {
                row.push(format!("{:.2} ms", run.duration_ms));
                row.push(format!("{:.1} MiB", to_mib(run.peak_rss_kib)));
            }
            row.extend(paths.then(|| run.path.clone()));
            rows.push(row);
        }
        let mut out = columns(&rows);
        for run in self.plugins.iter().chain(&self.rollback) {
            out.extend(run.details().map(|line| one_line(&format!("{}: {line}", run.plugin)) + "\n"));
        }
        if let Some(result) = &self.result {
            let addresses = addresses(result);
            let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
            let attachment = self.attachment.as_ref().map_or("", |attachment| attachment.ifname.as_str());
            let text = one_line(&format!("{}: {attachment} has {addresses}", self.network));
            out.push_str(&format!("\n{text}\n"));
        }
        if let Some(looked) = &self.looked {
            out.push_str(&format!("\n{}", looked.table()));
        }
        if let Some(note) = &self.note {
            out.push_str(&(one_line(&format!("{}: {note}", self.network)) + "\n"));
        }
        out
    }
}

#[allow(clippy::cast_precision_loss, reason = "memory in KiB is far below 2^52")]
fn to_mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The addresses of a result of any version.
fn addresses(result: &Value) -> Vec<String> {
    let list = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let new = list.filter_map(|ip| ip.get("address"));
    let old = ["ip4", "ip6"].iter().filter_map(|key| result.get(key)?.get("ip"));
    new.chain(old).filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_old_and_new_results() {
        let new = json!({"ips": [{"address": "10.1.0.2/24"}, {"address": "fd00::2/64"}]});
        assert_eq!(addresses(&new), ["10.1.0.2/24", "fd00::2/64"]);
        assert_eq!(addresses(&json!({"ip4": {"ip": "10.1.0.2/24"}})), ["10.1.0.2/24"]);
        assert!(addresses(&json!({})).is_empty());
    }
}
