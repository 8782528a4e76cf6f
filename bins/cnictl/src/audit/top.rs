//! `audit top`: what is denied most.

use std::collections::HashMap;

use anyhow::Result;
use audit::AuditEvent;
use clap::ValueEnum;
use rundir::denials::DenialEnd;
use serde_json::json;

use super::files::{FileArgs, Filters, exit_code};
use crate::output::{VerbAnswer, columns};

const EXAMPLES: &str = "\
Examples:
  # Which pods are denied most today?
  cnictl audit top --by pod --since 24h

  # Which tenants try to reach which?
  cnictl audit top --by tenant

  # Which policies deny most of what this pod sends or gets?
  cnictl audit top --by policy --pod shop/web

Exit codes: 0 shown, 1 failed, 2 wrong command line, 3 nothing was found";

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TopBy {
    /// The policies that deny
    Policy,
    /// The rule: the set of policies in one direction
    Rule,
    /// The pod whose policies deny
    Pod,
    /// The other end
    Peer,
    /// The tenants of both ends, the source first
    Tenant,
}

/// How the table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TopFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Show what is denied most, by the audit files of this node
///
/// Packets of lines are summed up; those that were counted by rules and not logged are among them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TopArgs {
    /// What is counted
    #[arg(long, value_enum, default_value_t = TopBy::Policy)]
    by: TopBy,
    /// So many, the most denied
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: usize,
    #[command(flatten)]
    filters: Filters,
    /// How it is written
    #[arg(short, long, value_enum, default_value_t = TopFormat::Table)]
    output: TopFormat,
    #[command(flatten)]
    file: FileArgs,
}

impl TopArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let is_meant = self.filters.matcher();
        let mut sums: HashMap<String, (u64, u64)> = HashMap::new();
        let problem = self.file.read(|one| {
            let Some(packets) = one.event.packets.filter(|_| is_meant(&one.event)) else { return };
            for name in names(&one.event, self.by) {
                let (sum, lines) = sums.entry(name).or_default();
                (*sum, *lines) = (*sum + packets, *lines + 1);
            }
        })?;
        let mut sums: Vec<(String, (u64, u64))> = sums.into_iter().collect();
        sums.sort_by(|(name, (packets, _)), (other, (more, _))| more.cmp(packets).then(name.cmp(other)));
        sums.truncate(self.lines);
        let exit = exit_code(problem.as_ref(), sums.is_empty());
        let text = match self.output {
            TopFormat::Json => {
                let items = sums.iter().map(
                    |(name, (packets, lines))| json!({"name": name, "packets": packets, "lines": lines}),
                );
                format!("{}\n", json!({"items": items.collect::<Vec<_>>()}))
            }
            TopFormat::Table if sums.is_empty() => String::new(),
            TopFormat::Table => {
                let heads = ["NAME", "PACKETS", "LINES"].map(str::to_owned).to_vec();
                let rows = sums
                    .into_iter()
                    .map(|(name, (packets, lines))| vec![name, packets.to_string(), lines.to_string()]);
                columns(&std::iter::once(heads).chain(rows).collect::<Vec<_>>())
            }
        };
        Ok(VerbAnswer { text, problem, exit })
    }
}

fn names(event: &AuditEvent, by: TopBy) -> Vec<String> {
    let told =
        |end: &Option<DenialEnd>| end.as_ref().map_or_else(|| "-".to_owned(), DenialEnd::told_without_port);
    let is_egress = event.traffic_direction == "EGRESS";
    let (own, peer) = if is_egress {
        (&event.connection.source, &event.connection.destination)
    } else {
        (&event.connection.destination, &event.connection.source)
    };
    let policies = event.policy.as_ref();
    match by {
        TopBy::Policy => policies.map(|policy| policy.selecting.clone()).unwrap_or_default(),
        TopBy::Rule => policies.map(|policy| policy.id.clone()).into_iter().collect(),
        TopBy::Pod => vec![told(own)],
        TopBy::Peer => vec![told(peer)],
        TopBy::Tenant => {
            let tenant = |end: &Option<DenialEnd>| match end {
                Some(end) if !end.tenant.is_empty() => end.tenant.clone(),
                Some(end) if end.kind == "pod" => "(unassigned)".to_owned(),
                Some(end) => format!("({})", end.kind),
                None => "-".to_owned(),
            };
            vec![format!("{} to {}", tenant(&event.connection.source), tenant(&event.connection.destination))]
        }
    }
}
