//! `audit report`: what a tenant has used, and what was denied of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use audit::{AUDIT_GAP, AuditEvent};
use rundir::denials::DenialEnd;
use serde::Serialize;
use usage::{Hour, ReportFilter, UsageReport};

use super::files::{FileArgs, csv_cell, exit_code};
use super::usage::{UsageFormat, day, read_all};
use crate::output::{VerbAnswer, columns};

const EXAMPLES: &str = "\
Examples:
  # What has red used on this node on a day, and what was denied?
  cnictl audit report --tenant red --day 2026-11-28

  # The same with the pods of others by name, for a table of another program
  cnictl audit report --tenant red --day 2026-11-28 --reveal -o csv

Exit codes: 0 shown, 1 failed, 2 wrong command line, 3 nothing was found";

/// Show what a tenant has used on this node, and what policies denied between it and others
///
/// Reads the files of usage and of the audit: no agent is needed. DIRECTION is as the tenant's pods see it. What is denied is told whichever side's policies do it. Of
/// pods of others only their tenant is told, unless they are to be revealed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReportArgs {
    /// Of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Box<str>,
    /// Of this day only, by UTC
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    day: Option<Hour>,
    /// Name pods and addresses of others
    #[arg(long)]
    reveal: bool,
    /// Directory with the files of usage [default: that of this node's agent]
    #[arg(long, value_name = "DIR")]
    usage: Vec<PathBuf>,
    #[command(flatten)]
    file: FileArgs,
    /// How it is written
    #[arg(short, long, value_enum, default_value_t = UsageFormat::Table)]
    output: UsageFormat,
}

/// Between whom packets of a tenant were denied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct ViolationKey {
    direction: &'static str,
    peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_tenant: Option<String>,
    /// Whose policies: `tenant` or `peer`.
    denied_by: &'static str,
}

/// How many.
#[derive(Debug, Clone, Default, Serialize)]
struct ViolationSum {
    denied: u64,
    would_deny: u64,
    lines: u64,
    last: String,
}

#[derive(Debug, Serialize)]
struct Violation {
    #[serde(flatten)]
    between: ViolationKey,
    #[serde(flatten)]
    sum: ViolationSum,
}

#[derive(Debug, Serialize)]
struct TenantReport {
    tenant: Box<str>,
    usage: UsageReport,
    violations: Vec<Violation>,
    /// Packets of the node that were denied and of which no line tells, of whichever tenant.
    lost: u64,
}

// === impl ReportArgs ===

impl ReportArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let filter = ReportFilter {
            tenant: Some(self.tenant.clone()),
            from: self.day,
            before: self.day.map(Hour::next_day),
            ..ReportFilter::default()
        };
        let usage = UsageReport::new(read_all(&self.usage, &filter)?, &filter);
        let (mut sums, mut lost) = (BTreeMap::<ViolationKey, ViolationSum>::new(), 0_u64);
        // Times of lines begin as the hours do: a day is the beginning of them.
        let day = self.day.map(|day| day.to_string()[..10].to_owned());
        let problem = self.file.read(|one| {
            let event = &one.event;
            if !day.as_ref().is_none_or(|day| event.time.starts_with(day)) {
                return;
            }
            if event.kind == AUDIT_GAP {
                lost = lost.saturating_add(event.lost.unwrap_or_default());
            }
            let Some((key, packets)) = self.key(event).zip(event.packets) else { return };
            let sum = sums.entry(key).or_default();
            let of = if event.allowed == Some(true) { &mut sum.would_deny } else { &mut sum.denied };
            *of = of.saturating_add(packets);
            sum.lines += 1;
            sum.last = sum.last.clone().max(event.time.clone());
        })?;
        let violations: Vec<Violation> =
            sums.into_iter().map(|(between, sum)| Violation { between, sum }).collect();
        let exit = exit_code(problem.as_ref(), usage.rows.is_empty() && violations.is_empty());
        let report = TenantReport { tenant: self.tenant.clone(), usage, violations, lost };
        Ok(VerbAnswer { text: report.to_text(self.output)?, problem, exit })
    }

    /// Between whom it was, as the tenant sees it; nothing where it has neither end.
    fn key(&self, event: &AuditEvent) -> Option<ViolationKey> {
        let (source, destination) =
            (event.connection.source.as_ref()?, event.connection.destination.as_ref()?);
        let is_egress_rule = event.traffic_direction == "EGRESS";
        let [from, to] = [source, destination].map(|end| *end.tenant == *self.tenant);
        // Where both ends are its, it is told once: by the side that denies it.
        let is_egress = if from && to { is_egress_rule } else { from };
        if !from && !to {
            return None;
        }
        let peer = if is_egress { destination } else { source };
        let tenant = Some(peer.tenant.clone()).filter(|tenant| !tenant.is_empty());
        Some(ViolationKey {
            direction: if is_egress { "egress" } else { "ingress" },
            peer: self.told(peer),
            peer_tenant: tenant,
            denied_by: if is_egress == is_egress_rule { "tenant" } else { "peer" },
        })
    }

    fn told(&self, peer: &DenialEnd) -> String {
        match peer.kind.as_str() {
            _ if self.reveal => peer.told_without_port(),
            "pod" if *peer.tenant == *self.tenant => "own".to_owned(),
            "pod" if peer.tenant.is_empty() => "unassigned".to_owned(),
            "pod" => format!("tenant:{}", peer.tenant),
            kind => kind.to_owned(),
        }
    }
}

// === impl TenantReport ===

impl TenantReport {
    fn to_text(&self, format: UsageFormat) -> Result<String> {
        Ok(match format {
            UsageFormat::Json | UsageFormat::Lines => serde_json::to_string_pretty(self)? + "\n",
            UsageFormat::Csv => self.to_csv(),
            UsageFormat::Table => self.to_table(),
        })
    }

    fn to_table(&self) -> String {
        let mut text = format!("Tenant {}\n", self.tenant);
        if !self.usage.rows.is_empty() {
            text += &format!("\nUsage: {}\n{}", self.usage.summary(), columns(&self.usage.to_table()));
        }
        if !self.violations.is_empty() {
            let heads = ["DIRECTION", "PEER", "DENIED BY", "DENIED", "WOULD DENY", "LINES", "LAST"];
            let row = |one: &Violation| {
                let (ViolationKey { direction, peer, denied_by, .. }, sum) = (&one.between, &one.sum);
                let numbers = [sum.denied, sum.would_deny, sum.lines].map(|number| number.to_string());
                let mut row = vec![(*direction).to_owned(), peer.clone(), (*denied_by).to_owned()];
                row.extend(numbers.into_iter().chain([sum.last.clone()]));
                row
            };
            let heads = heads.map(str::to_owned).to_vec();
            let rows: Vec<_> = std::iter::once(heads).chain(self.violations.iter().map(row)).collect();
            text += &format!("\nViolations, in packets:\n{}", columns(&rows));
        }
        if self.lost > 0 {
            text += &format!("\n{} denied packets of this node are in no line\n", self.lost);
        }
        text
    }

    fn to_csv(&self) -> String {
        let mut rows =
            vec![vec!["kind,direction,peer,bytes,packets,connections,denied,would_deny".to_owned()]];
        rows.extend(self.usage.rows.iter().map(|row| {
            let amount = [row.amount.bytes, row.amount.packets, row.amount.connections];
            let mut cells = vec!["usage".to_owned(), row.direction.to_string(), row.peer.to_string()];
            cells.extend(amount.map(|number| number.to_string()));
            cells.extend([String::new(), String::new()]);
            cells.iter().map(|cell| csv_cell(cell)).collect()
        }));
        rows.extend(self.violations.iter().map(|one| {
            let mut cells =
                vec!["violation".to_owned(), one.between.direction.to_owned(), one.between.peer.clone()];
            cells.extend([String::new(), String::new(), String::new()]);
            cells.extend([one.sum.denied, one.sum.would_deny].map(|number| number.to_string()));
            cells.iter().map(|cell| csv_cell(cell)).collect()
        }));
        rows.iter().map(|row: &Vec<String>| row.join(",") + "\n").collect()
    }
}
