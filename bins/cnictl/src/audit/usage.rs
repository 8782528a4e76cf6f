//! `audit usage`: what tenants' pods have sent and received, from the files that agents write.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use audit::{FileSet, Naming};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use usage::{Hour, ReportFilter, USAGE_DIR, USAGE_FILES, USAGE_STATE, UsageBook, UsageLine, UsageReport};

use crate::kubectl::{ClusterArgs, finished};
use crate::node::NodePlaces;
use crate::output::{VerbAnswer, columns};
use crate::pods::NOTHING;

const EXAMPLES: &str = "\
Examples:
  # What each tenant has sent and received on this node, as far as files go back
  cnictl audit usage

  # One tenant and day, an hour each, for a table of another program
  cnictl audit usage --tenant red --day 2026-11-28 --by-hour -o csv

  # The whole cluster, by the agents' containers and your own kubectl
  cnictl audit usage --tenant red --all-nodes

  # The same, from directories that were copied from its nodes
  cnictl audit usage --tenant red node-a/usage node-b/usage

Exit codes: 0 shown, 1 failed, 2 wrong command line, 3 nothing was counted, 4 not every node answers";

/// How sums are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum UsageFormat {
    /// For people
    Table,
    /// For programs
    Json,
    /// For tables of other programs
    Csv,
    /// What the agents wrote and what is not over, to be added up with that of other nodes
    #[value(hide = true)]
    Lines,
}

/// What a node has, for another one of this program.
#[derive(Debug, Serialize, Deserialize)]
struct LinesDocument {
    lines: Vec<UsageLine>,
}

/// Show what tenants' pods have sent and received
///
/// Bytes are those of packets in pods' network namespaces, headers of the network included, and not what stays in a pod. PEER is what the other end is:
/// `own` (the same tenant), `tenant:NAME`, `unassigned` (pods of no tenant), `service` (an address of a Service), `node`, `external`, or `denied`:
/// dropped in the pod's namespace, whatever it was. CONNECTIONS counts packets that began one. Files are read, no agent is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UsageArgs {
    /// Files, or directories with them, of one node or of several [default: the directory of this node's agent]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Of this tenant only
    #[arg(long, value_name = "NAME")]
    tenant: Option<Box<str>>,
    /// With this tenant at the other end only
    #[arg(long, value_name = "NAME")]
    peer: Option<Box<str>>,
    /// Of this day only, by UTC
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    day: Option<Hour>,
    /// A row for each hour
    #[arg(long)]
    by_hour: bool,
    /// Ask every node of the cluster, by kubectl
    #[arg(long, conflicts_with = "paths")]
    all_nodes: bool,
    /// How sums are written
    #[arg(short, long, value_enum, default_value_t = UsageFormat::Table)]
    output: UsageFormat,
    #[command(flatten, next_help_heading = "With --all-nodes")]
    cluster: ClusterArgs,
}

impl UsageArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let filter = ReportFilter {
            tenant: self.tenant.clone(),
            peer: self.peer.clone(),
            from: self.day,
            before: self.day.map(Hour::next_day),
            by_hour: self.by_hour,
        };
        if self.all_nodes {
            // A node has many days of all tenants: it says what is asked for.
            let tenant = self.tenant.as_ref().map(|tenant| format!("--tenant={tenant}"));
            let day = self.day.map(|day| format!("--day={}", &day.to_string()[..10]));
            let mut words = vec!["audit", "usage", "--output", "lines"];
            words.extend([&tenant, &day].into_iter().flatten().map(String::as_str));
            let nodes = self.cluster.ask(&words)?;
            let mut lines = Vec::new();
            for said in nodes.iter().filter_map(|node| node.said.as_ref()) {
                let of_node: LinesDocument = serde_json::from_value(said.clone())
                    .context("read what a node has counted: is it of another version?")?;
                lines.extend(of_node.lines);
            }
            let (text, exit) = self.told(lines, &filter)?;
            return Ok(match finished(text, None, &nodes) {
                answer if answer.exit == 0 => VerbAnswer { exit, ..answer },
                answer => answer,
            });
        }
        let (text, exit) = self.told(read_all(&self.paths, &filter)?, &filter)?;
        Ok(VerbAnswer { text, problem: None, exit })
    }

    fn told(&self, lines: Vec<UsageLine>, filter: &ReportFilter) -> Result<(String, u8)> {
        if self.output == UsageFormat::Lines {
            return Ok((serde_json::to_string(&LinesDocument { lines })?, 0));
        }
        let report = UsageReport::new(lines, filter);
        let exit = if report.rows.is_empty() { NOTHING } else { 0 };
        let text = match self.output {
            UsageFormat::Csv => report.to_csv(),
            UsageFormat::Table if report.rows.is_empty() => String::new(),
            UsageFormat::Table => format!("{}\n{}\n", columns(&report.to_table()), report.summary()),
            UsageFormat::Json | UsageFormat::Lines => serde_json::to_string_pretty(&report)? + "\n",
        };
        Ok((text, exit))
    }
}

/// The lines of files and directories that are meant; without any, those of this node's agent.
pub(super) fn read_all(paths: &[PathBuf], filter: &ReportFilter) -> Result<Vec<UsageLine>> {
    // Where nothing was ever counted there is none.
    let own = NodePlaces::of_this_machine(None, None).state_dir.join(USAGE_DIR);
    let own: Vec<PathBuf> = [own].into_iter().filter(|dir| dir.exists()).collect();
    let mut lines = Vec::new();
    for path in if paths.is_empty() { &own[..] } else { paths } {
        read(path, filter, &mut lines).with_context(|| format!("read {}", path.display()))?;
    }
    Ok(lines)
}

/// The lines of a file, or of all files of a directory and of the hour that is not over.
fn read(path: &Path, filter: &ReportFilter, found: &mut Vec<UsageLine>) -> Result<()> {
    if !path.is_dir() {
        return read_file(path, filter, found);
    }
    let now = path.join(USAGE_STATE);
    match std::fs::read_to_string(&now) {
        Ok(text) => {
            let book = UsageBook::read_kept(&text)
                .with_context(|| format!("{} is not what an agent keeps", now.display()))?;
            found.extend(book.lines().into_iter().filter(|line| filter.takes(line)));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", now.display())),
    }
    // What was written of an hour that is over comes later, and counts.
    let set = FileSet { dir: path.to_owned(), naming: Naming::Daily(USAGE_FILES.to_owned()) };
    set.list()?.iter().try_for_each(|file| read_file(file, filter, found))
}

fn read_file(path: &Path, filter: &ReportFilter, found: &mut Vec<UsageLine>) -> Result<()> {
    let told = || path.display().to_string();
    for (number, line) in audit::lines(path).with_context(told)?.enumerate() {
        let line = line.with_context(told)?;
        // The last line of a file that is being written.
        if !line.is_whole {
            break;
        }
        let parsed = UsageLine::parse(&line.text);
        let parsed = parsed.with_context(|| format!("{} line {}: no line of usage", told(), number + 1))?;
        found.extend(parsed.filter(|line| filter.takes(line)));
    }
    Ok(())
}

pub(super) fn day(text: &str) -> Result<Hour, String> {
    Hour::of_day(text).ok_or_else(|| format!("{text:?} is no day such as 2026-11-28"))
}
