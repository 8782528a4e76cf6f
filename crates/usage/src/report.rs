//! Many lines, for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use policy::TrafficDirection;

use crate::class::PeerClass;
use crate::hour::Hour;
use crate::line::{PodShare, UsageLine};
use crate::reading::Amount;

/// Pods that a report names.
const TOP: usize = 10;

/// Which lines are meant.
#[derive(Debug, Clone, Default)]
pub struct ReportFilter {
    /// Of this tenant.
    pub tenant: Option<Box<str>>,
    /// With this tenant at the other end.
    pub peer: Option<Box<str>>,
    /// From this hour on.
    pub from: Option<Hour>,
    /// Before this hour.
    pub before: Option<Hour>,
    /// A row for each hour.
    pub by_hour: bool,
}

/// Sums of lines.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UsageReport {
    /// Of the first line.
    pub from: Option<Hour>,
    /// Of the last line.
    pub to: Option<Hour>,
    /// How many nodes' lines there are.
    pub nodes: usize,
    /// Where packets were counted.
    pub measured_at: Box<str>,
    /// The part of the pods' time in which their packets were counted, from 0 to 1; nothing where no time has passed.
    pub coverage: Option<f64>,
    /// Whether packets are known not to be in it.
    pub incomplete: bool,
    /// The sums.
    pub rows: Vec<ReportRow>,
    /// The pods with most bytes of those that lines name, at most ten. A pod that is not among the first ten of its node and hour is not counted there.
    pub top: Vec<PodShare>,
}

/// A sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReportRow {
    /// Where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour: Option<Hour>,
    /// The tenant.
    pub tenant: Box<str>,
    /// What the other end is.
    pub peer: PeerClass,
    /// The other end's tenant, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_tenant: Option<Box<str>>,
    /// Which way.
    #[serde(serialize_with = "crate::direction::serialize")]
    pub direction: TrafficDirection,
    /// How much.
    #[serde(flatten)]
    pub amount: Amount,
}

type RowKey = (Option<Hour>, Box<str>, PeerClass, TrafficDirection);

// === impl UsageReport ===

impl UsageReport {
    /// Of lines in the order in which they were written: of several of a node, tenant and hour the last one counts.
    pub fn new(lines: impl IntoIterator<Item = UsageLine>, filter: &ReportFilter) -> Self {
        let mut last: BTreeMap<(Box<str>, Hour, Box<str>), UsageLine> = BTreeMap::new();
        for line in lines.into_iter().filter(|line| filter.takes(line)) {
            last.insert((line.node.clone(), line.hour, line.tenant.clone()), line);
        }
        let mut rows: BTreeMap<RowKey, Amount> = BTreeMap::new();
        let (mut observed, mut expected, mut incomplete) = (0_u64, 0_u64, false);
        let (mut nodes, mut shares) = (BTreeSet::new(), BTreeMap::<Box<str>, u64>::new());
        let hours: Vec<Hour> = last.values().map(|line| line.hour).collect();
        for line in last.into_values() {
            observed = observed.saturating_add(line.observed_pod_seconds);
            expected = expected.saturating_add(line.pod_seconds);
            incomplete |= line.incomplete;
            nodes.insert(line.node);
            for row in line.rows {
                let is_meant = |peer: &str| row.peer.tenant(&line.tenant) == Some(peer);
                if !filter.peer.as_deref().is_none_or(is_meant) {
                    continue;
                }
                let hour = filter.by_hour.then_some(line.hour);
                *rows.entry((hour, line.tenant.clone(), row.peer, row.direction)).or_default() += row.amount;
            }
            for share in line.top {
                let sum = shares.entry(share.pod).or_default();
                *sum = sum.saturating_add(share.bytes);
            }
        }
        let mut top: Vec<PodShare> = shares.into_iter().map(|(pod, bytes)| PodShare { pod, bytes }).collect();
        top.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.pod.cmp(&other.pod)));
        top.truncate(TOP);
        let row = |((hour, tenant, peer, direction), amount): (RowKey, Amount)| {
            let peer_tenant = peer.tenant(&tenant).map(Box::from);
            ReportRow { hour, tenant, peer, peer_tenant, direction, amount }
        };
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let coverage = (expected > 0).then(|| observed as f64 / expected as f64);
        Self {
            from: hours.iter().min().copied(),
            to: hours.iter().max().copied(),
            nodes: nodes.len(),
            measured_at: "pod".into(),
            coverage,
            incomplete,
            rows: rows.into_iter().map(row).collect(),
            top,
        }
    }

    /// As a table.
    pub fn to_table(&self) -> Vec<Vec<String>> {
        let by_hour = self.rows.iter().any(|row| row.hour.is_some());
        let mut head: Vec<&str> = Vec::new();
        head.extend(by_hour.then_some("HOUR"));
        head.extend(["TENANT", "PEER", "DIRECTION", "BYTES", "PACKETS", "CONNECTIONS"]);
        let mut table = vec![head.into_iter().map(str::to_owned).collect()];
        for row in &self.rows {
            let mut line: Vec<String> = row.hour.iter().map(Hour::to_string).collect();
            let Amount { bytes, packets, connections } = row.amount;
            line.extend([row.tenant.to_string(), row.peer.to_string(), row.direction.to_string()]);
            line.extend([bytes, packets, connections].map(|number| number.to_string()));
            table.push(line);
        }
        table
    }

    /// What a reader of the table is to know beside it.
    pub fn summary(&self) -> String {
        let mut text = format!("nodes: {}, measured at: {}", self.nodes, self.measured_at);
        if let (Some(from), Some(to)) = (self.from, self.to) {
            let _ = write!(text, ", hours: {from} to {to}");
        }
        if let Some(coverage) = self.coverage {
            let _ = write!(text, ", coverage: {:.2}%", coverage * 100.0);
        }
        if self.incomplete {
            text.push_str(", incomplete: some packets are not in these numbers");
        }
        text
    }

    /// As comma-separated values with a head. No value has a comma or a quote in it: names of tenants are labels of the DNS; what is not is quoted.
    pub fn to_csv(&self) -> String {
        let mut text = String::from("hour,tenant,peer,direction,bytes,packets,connections\n");
        for row in &self.rows {
            let hour = row.hour.map(|hour| hour.to_string()).unwrap_or_default();
            let (tenant, peer) = (csv(&row.tenant), csv(&row.peer.to_string()));
            let Amount { bytes, packets, connections } = row.amount;
            let _ =
                writeln!(text, "{hour},{tenant},{peer},{},{bytes},{packets},{connections}", row.direction);
        }
        text
    }
}

// === impl ReportFilter ===

impl ReportFilter {
    /// Whether a line is meant; of its rows those with another end than the one that is asked for are not.
    pub fn takes(&self, line: &UsageLine) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| *tenant == line.tenant)
            && self.from.is_none_or(|from| line.hour >= from)
            && self.before.is_none_or(|before| line.hour < before)
    }
}

fn csv(text: &str) -> String {
    // A cell that begins so is a formula for programs of tables.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.:_/".contains(c);
    let is_safe = text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(is_plain);
    if is_safe { text.to_owned() } else { format!("\"'{}\"", text.replace('"', "\"\"")) }
}
