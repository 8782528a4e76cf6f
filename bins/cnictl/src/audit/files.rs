//! The audit files of this node, read directly: no agent is needed.

use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use audit::{AuditEvent, FileSet, MAX_LINE_BYTES};
use clap::ValueEnum;
use ipnet::IpNet;
use rundir::denials::DenialEnd;

use crate::chain::seconds;
use crate::output::columns;
use crate::pods::NOTHING;

/// Where the chart mounts it.
pub(super) const FILE: &str = "/var/log/istio-cni/audit.jsonl";
const HEADS: [&str; 8] = ["TIME", "VERDICT", "FROM", "TO", "PROTOCOL", "DIRECTION", "POLICIES", "PACKETS"];
const WIDE: [&str; 4] = ["TYPE", "RULE", "NODE", "SEQ"];
const CSV: [&str; 22] = [
    "time",
    "end_time",
    "type",
    "verdict",
    "traffic_direction",
    "source_namespace",
    "source_pod",
    "source_ip",
    "source_port",
    "destination_namespace",
    "destination_pod",
    "destination_ip",
    "destination_port",
    "protocol",
    "policies",
    "packets",
    "limited",
    "lost",
    "node",
    "seq",
    "source_tenant",
    "destination_tenant",
];

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum EventFormat {
    /// For people
    Table,
    /// For people, with more columns
    Wide,
    /// For programs: the lines as they are in the file
    Json,
    /// The same
    Jsonl,
    /// For tables of other programs
    Csv,
}

/// Which file.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct FileArgs {
    /// The newest audit file; those before it are read from the same directory [default: /var/log/istio-cni/audit.jsonl]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Which lines.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filters {
    /// Of so long ago at most, such as 90s, 15m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Duration>,
    /// With this verdict: dropped, rejected, audit; denied is the first two
    #[arg(long, value_name = "VERDICT")]
    verdict: Option<String>,
    /// That this policy took part in: namespace/name
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// With this pod at either end: namespace/name
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// With a pod of this tenant at either end
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// And with one of this tenant at the other end
    #[arg(long, value_name = "TENANT", requires = "tenant")]
    peer: Option<String>,
    /// With an address of this block at either end
    #[arg(long, value_name = "BLOCK", value_parser = block)]
    cidr: Option<IpNet>,
    /// Of this type, such as policy_violation, audit_gap, audit_start
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
}

fn block(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "not an address or a block".to_owned())
}

/// A time as people write it, such as `90s` or `7d`.
pub(crate) fn since(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    let bad = |error: &dyn fmt::Display| error.to_string();
    match days {
        Some(days) => Ok(Duration::from_secs(days.saturating_mul(24 * 3600))),
        None => cni::config::parse_duration(text).or_else(|error| seconds(text).map_err(|_| bad(&error))),
    }
}

/// A line and what it says.
#[derive(Debug, Clone)]
pub(super) struct ReadEvent {
    pub(super) text: String,
    pub(super) event: AuditEvent,
}

// === impl FileArgs ===

impl FileArgs {
    /// The path, whether there is a file or not.
    pub(super) fn path(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(FILE))
    }

    /// Whether it was named.
    pub(super) fn is_named(&self) -> bool {
        self.file.is_some()
    }

    /// Its files, the oldest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(super) fn files(&self) -> Result<Vec<PathBuf>> {
        let read = || FileSet::of(self.path())?.list();
        read().with_context(|| format!("look for the audit files of {}", self.path().display()))
    }

    /// Gives each line that is one of an audit to `take`, the oldest first. What cannot be read is named at the end.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(super) fn read(&self, mut take: impl FnMut(ReadEvent)) -> Result<Option<String>> {
        let mut problem = None;
        for path in self.files()? {
            let read = audit::lines(&path).and_then(|lines| {
                for line in lines {
                    if let Some(event) = read_event(line?.text) {
                        take(event);
                    }
                }
                Ok(())
            });
            if let Err(error) = read {
                problem = Some(format!("read {}: {error}", path.display()));
            }
        }
        Ok(problem)
    }
}

/// The exit code of a look through files: what could not be read counts more than that nothing was found.
pub(super) fn exit_code(problem: Option<&String>, is_empty: bool) -> u8 {
    match (problem, is_empty) {
        (Some(_), _) => 1,
        (None, true) => NOTHING,
        (None, false) => 0,
    }
}

pub(super) fn read_event(text: String) -> Option<ReadEvent> {
    let event = AuditEvent::read(&text)?;
    Some(ReadEvent { text, event })
}

// === impl Filters ===

impl Filters {
    /// The time before which lines are too old, as lines have it.
    fn oldest(&self) -> Option<String> {
        self.since.map(|since| {
            telemetry::time_text(SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH))
        })
    }

    /// Says of each line whether it is meant.
    pub(super) fn matcher(&self) -> impl Fn(&AuditEvent) -> bool + '_ {
        let oldest = self.oldest();
        move |event| {
            let ends = || event.connection.source.iter().chain(&event.connection.destination);
            let verdict = |wanted: &String| match wanted.to_ascii_lowercase().as_str() {
                "denied" => ["DROPPED", "REJECTED"].contains(&event.verdict.as_str()),
                wanted => event.verdict.eq_ignore_ascii_case(wanted),
            };
            let last = if event.end_time.is_empty() { &event.time } else { &event.end_time };
            let policies = || event.policy.iter().flat_map(|policy| &policy.selecting);
            let is_pod =
                |pod: &String, end: &DenialEnd| pod.split_once('/') == Some((&end.namespace, &end.pod_name));
            oldest.as_ref().is_none_or(|oldest| last >= oldest)
                && self.verdict.as_ref().is_none_or(verdict)
                && self.policy.as_ref().is_none_or(|policy| policies().any(|one| one == policy))
                && self.pod.as_ref().is_none_or(|pod| ends().any(|end| is_pod(pod, end)))
                && self
                    .cidr
                    .is_none_or(|block| ends().any(|end| end.ip.is_some_and(|ip| block.contains(&ip))))
                && self.are_meant(event)
                && self.kind.as_ref().is_none_or(|kind| event.kind == *kind)
        }
    }
}

impl Filters {
    /// Whether the tenants of both ends are those that are asked for.
    fn are_meant(&self, event: &AuditEvent) -> bool {
        let tenant = |end: &Option<DenialEnd>| end.as_ref().map(|end| end.tenant.clone()).unwrap_or_default();
        let [one, other] = [&event.connection.source, &event.connection.destination].map(tenant);
        let is_it = |own: &str, peer: &str| {
            self.tenant.as_deref().is_none_or(|wanted| wanted == own)
                && self.peer.as_deref().is_none_or(|wanted| wanted == peer)
        };
        is_it(&one, &other) || is_it(&other, &one)
    }
}

/// Lines as they are written, with or without a first line of heads.
pub(super) fn text(format: EventFormat, events: &[ReadEvent], with_heads: bool) -> String {
    match format {
        EventFormat::Json | EventFormat::Jsonl => {
            events.iter().map(|one| format!("{}\n", one.text)).collect()
        }
        EventFormat::Csv => {
            let heads = with_heads.then(|| CSV.map(str::to_owned).to_vec());
            let rows = heads.into_iter().chain(events.iter().map(|one| csv_row(&one.event)));
            rows.map(|row| row.iter().map(|cell| csv_cell(cell)).collect::<Vec<_>>().join(",") + "\n")
                .collect()
        }
        EventFormat::Table | EventFormat::Wide if events.is_empty() => String::new(),
        EventFormat::Table | EventFormat::Wide => {
            let is_wide = format == EventFormat::Wide;
            let more: &[&str] = if is_wide { &WIDE } else { &[] };
            let heads = HEADS.iter().chain(more).map(ToString::to_string).collect();
            let heads = with_heads.then_some(heads);
            columns(
                &heads
                    .into_iter()
                    .chain(events.iter().map(|one| row(&one.event, is_wide)))
                    .collect::<Vec<_>>(),
            )
        }
    }
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn row(event: &AuditEvent, is_wide: bool) -> Vec<String> {
    let told = |end: &Option<DenialEnd>, with_port| match end {
        Some(end) if end.kind == "many" => format!("{} addresses", end.distinct),
        Some(end) if with_port => end.told(),
        Some(end) => end.told_without_port(),
        None => "-".to_owned(),
    };
    let packets = match (event.packets, event.lost) {
        (Some(packets), _) if event.limited > 0 => {
            format!("{}+{}", packets.saturating_sub(event.limited), event.limited)
        }
        (Some(packets), _) => packets.to_string(),
        (None, Some(lost)) => format!("{lost} lost"),
        (None, None) => "-".to_owned(),
    };
    let verdict = if event.verdict.is_empty() { &event.kind } else { &event.verdict };
    let policy = event.policy.as_ref();
    let mut row = vec![
        event.time.clone(),
        verdict.clone(),
        told(&event.connection.source, false),
        told(&event.connection.destination, true),
        or_none(&event.connection.protocol),
        or_none(&event.traffic_direction.to_ascii_lowercase()),
        or_none(&policy.map(|policy| policy.selecting.join(",")).unwrap_or_default()),
        packets,
    ];
    if is_wide {
        let rule = policy.map(|policy| policy.id.clone()).unwrap_or_default();
        row.extend([event.kind.clone(), or_none(&rule), event.node.clone(), event.seq.to_string()]);
    }
    row
}

fn csv_row(event: &AuditEvent) -> Vec<String> {
    let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
    let end = |end: &Option<DenialEnd>| {
        let end = end.clone().unwrap_or_default();
        let ip = end.ip.map(|ip| ip.to_string()).unwrap_or_default();
        [end.namespace, end.pod_name, ip, end.port.map(|port| port.to_string()).unwrap_or_default()]
    };
    let policies = event.policy.as_ref().map(|policy| policy.selecting.join(" ")).unwrap_or_default();
    let [time, end_time, kind, verdict, direction] =
        [&event.time, &event.end_time, &event.kind, &event.verdict, &event.traffic_direction]
            .map(Clone::clone);
    let mut row = vec![time, end_time, kind, verdict, direction];
    row.extend(end(&event.connection.source).into_iter().chain(end(&event.connection.destination)));
    let last = [
        event.connection.protocol.clone(),
        policies,
        number(event.packets),
        event.limited.to_string(),
        number(event.lost),
    ];
    row.extend(last.into_iter().chain([event.node.clone(), event.seq.to_string()]));
    let tenant = |end: &Option<DenialEnd>| end.as_ref().map(|end| end.tenant.clone()).unwrap_or_default();
    row.extend([&event.connection.source, &event.connection.destination].map(tenant));
    row
}

/// A cell that a spreadsheet takes as text: what begins as a formula does not.
pub(super) fn csv_cell(cell: &str) -> String {
    let safe = if cell.starts_with(['=', '+', '-', '@']) { format!("'{cell}") } else { cell.to_owned() };
    match safe.contains([',', '"', '\n']) {
        true => format!("\"{}\"", safe.replace('"', "\"\"")),
        false => safe,
    }
}

/// Follows the newest file over rotations.
pub(super) struct Follower {
    path: PathBuf,
    open: Option<(BufReader<File>, u64)>,
    part: String,
}

// === impl Follower ===

impl Follower {
    /// From the end of the file on.
    pub(super) fn new(path: &Path) -> Self {
        let mut follower = Self { path: path.to_owned(), open: None, part: String::new() };
        if follower.reopen()
            && let Some((reader, _)) = &mut follower.open
        {
            let _ = reader.seek(SeekFrom::End(0));
        }
        follower
    }

    fn reopen(&mut self) -> bool {
        let Ok(file) = File::open(&self.path) else { return false };
        let inode = file.metadata().map_or(0, |of| of.ino());
        if self.open.as_ref().is_some_and(|(_, open)| *open == inode) {
            return false;
        }
        self.open = Some((BufReader::new(file), inode));
        true
    }

    /// What has come since.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn next(&mut self) -> Result<Vec<ReadEvent>> {
        let mut found = Vec::new();
        loop {
            if let Some((reader, _)) = &mut self.open {
                while reader
                    .read_line(&mut self.part)
                    .with_context(|| format!("read {}", self.path.display()))?
                    > 0
                {
                    if self.part.ends_with('\n') {
                        found.extend(read_event(self.part.trim_end().to_owned()));
                        self.part.clear();
                    } else if self.part.len() > MAX_LINE_BYTES {
                        self.part.clear();
                    }
                }
            }
            if !self.reopen() {
                return Ok(found);
            }
            self.part.clear();
        }
    }
}
