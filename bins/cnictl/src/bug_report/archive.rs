//! The archive: made in memory, within its size, looked through before anybody gets it.

use std::io::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::addresses::AddressNames;
use super::allowed;
use super::secrets;

/// The most that is kept of one item, in bytes.
const MAX_ITEM: usize = 4 << 20;
/// Its list of contents.
const INDEX: &str = "index.json";

/// One thing that was looked at.
#[derive(Debug, Default)]
pub(super) struct ReportItem {
    /// Its file in the archive.
    pub(super) file: String,
    /// How anybody gets the same.
    pub(super) command: String,
    pub(super) exit: Option<i32>,
    pub(super) seconds: f64,
    /// Why it is not there, or not whole.
    pub(super) problem: String,
    pub(super) text: String,
}

/// An item in the list of contents.
#[derive(Debug, Serialize)]
struct IndexEntry {
    file: String,
    command: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    seconds: f64,
    bytes: usize,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
}

#[derive(Debug, Serialize)]
struct ReportIndex<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    version: &'static str,
    /// When it was begun.
    time: String,
    /// Of the kernel: what is in it depends on that.
    kernel: String,
    addresses_replaced: bool,
    /// What this program said while it collected.
    output: &'a [String],
    /// What is not collected, and why.
    left_out: [&'static str; 3],
    items: &'a [IndexEntry],
}

const LEFT_OUT: [&str; 3] = [
    "Secrets, tokens, certificates, kubeconfigs, environment variables, labels and annotations that are not istio.io's: never",
    "Events: this program has no credentials for the API server; what the agent's Events say is in its log, too",
    "values of keys in CNI configurations that are not known to this program",
];

/// An archive that grows.
pub(super) struct Archive {
    tar: tar::Builder<GzEncoder<Vec<u8>>>,
    /// Whether addresses are replaced, and their names.
    names: Option<AddressNames>,
    /// Its largest size, in bytes.
    max: usize,
    /// Directory within the archive.
    root: String,
    begun: SystemTime,
    entries: Vec<IndexEntry>,
    /// What this program said.
    pub(super) output: Vec<String>,
}

// === impl Archive ===

impl Archive {
    pub(super) fn new(root: String, redacts: bool, max: usize) -> Self {
        let tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        let names = redacts.then(AddressNames::default);
        Self { tar, names, max, root, begun: SystemTime::now(), entries: Vec::new(), output: Vec::new() }
    }

    /// Adds an item, or the reason why it is not there.
    ///
    /// # Errors
    /// There is a secret in it, so that no report is made at all.
    pub(super) fn add(&mut self, mut item: ReportItem) -> Result<()> {
        if item.file.ends_with(".json") && !item.text.is_empty() {
            item.text = allowed::answer(&item.text).unwrap_or_else(|| {
                item.problem = format!("what it printed is no JSON; {}", item.problem);
                String::new()
            });
        }
        if item.text.len() > MAX_ITEM {
            item.text.truncate(item.text.floor_char_boundary(MAX_ITEM));
            item.problem = format!("cut after {} MiB; {}", MAX_ITEM >> 20, item.problem);
        }
        if let Some(names) = &mut self.names {
            for text in [&mut item.text, &mut item.problem, &mut item.command, &mut item.file] {
                *text = names.replace(text);
            }
        }
        for text in [&item.text, &item.problem, &item.command, &item.file] {
            if let Some((kind, line)) = secrets::find(text) {
                let ReportItem { file, command, .. } = &item;
                bail!(
                    "nothing is written: line {line} of {file} ({command}) looks like {kind}; see where it comes from, or leave the item out with --skip {file}"
                );
            }
        }
        // What is packed is smaller; room is kept for the list of contents.
        if self.size() + item.text.len() > self.max {
            item.problem = "left out: the report would be larger than --max".to_owned();
            item.text.clear();
        }
        if !item.text.is_empty() {
            self.file(&item.file, item.text.as_bytes())?;
        }
        let problem = item.problem.trim_end_matches("; ").to_owned();
        let seconds = (item.seconds * 1000.0).round() / 1000.0;
        let ReportItem { file, command, exit, text, .. } = item;
        self.entries.push(IndexEntry { file, command, exit_code: exit, seconds, bytes: text.len(), problem });
        Ok(())
    }

    fn size(&self) -> usize {
        self.tar.get_ref().get_ref().len()
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        let at = self.begun.duration_since(UNIX_EPOCH).unwrap_or_default();
        header.set_mtime(at.as_secs());
        self.tar.append_data(&mut header, format!("{}/{name}", self.root), bytes)
    }

    /// How many items have something in them, of how many.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.entries.iter().filter(|entry| entry.bytes > 0).count(), self.entries.len())
    }

    /// The whole of it.
    ///
    /// # Errors
    /// There is a secret in the list of contents.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let entries = std::mem::take(&mut self.entries);
        let output: Vec<String> = std::mem::take(&mut self.output);
        let index = ReportIndex {
            api_version: crate::pods::API_VERSION,
            kind: "BugReport",
            version: env!("CARGO_PKG_VERSION"),
            time: telemetry::time_text(self.begun),
            kernel: kernel.trim().to_owned(),
            addresses_replaced: self.names.is_some(),
            output: &output,
            left_out: LEFT_OUT,
            items: &entries,
        };
        let mut text = serde_json::to_string_pretty(&index)?;
        if let Some(names) = &mut self.names {
            text = names.replace(&text);
        }
        if let Some((kind, _)) = secrets::find(&text) {
            bail!("nothing is written: there is {kind} in the list of contents");
        }
        self.file(INDEX, text.as_bytes())?;
        let mut packed = self.tar.into_inner().context("end the archive")?;
        packed.flush()?;
        packed.finish().context("end the archive")
    }
}
