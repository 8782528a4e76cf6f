//! `tenants explain`: the rows of a tenant, in the order in which they are asked.

use std::fmt::Write as _;

use anyhow::Result;
use policy::terms::RuleAction;
use policy::{RuleTerms, TrafficDirection};
use rundir::policy::TenantStateReport;
use serde::Serialize;

use super::known;
use crate::output::{Format, VerbAnswer, structured};
use crate::pods::{API_VERSION, EvidenceSource, NOTHING};
use crate::policy::PolicySourceArgs;

const EXAMPLES: &str = "\
Examples:
  # What do the objects of tenant red come to?
  cnictl tenants explain red

  # Which row decides over a connection?
  cnictl policy explain --from red-web/a --to blue-api/b --port 8080

Exit codes: 0 done
            1 failed
            2 wrong command line
            3 there is no such tenant, or tenants are not enforced";

/// Show the rows of a tenant in the order in which they are asked
///
/// The first one that matches denies, or hands on to network policies; the last one matches everything. Replies, what stays in a pod and what comes from a
/// pod's own node pass before.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ExplainTenantArgs {
    /// The tenant
    tenant: String,
    #[command(flatten)]
    source: PolicySourceArgs,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct ExplainedTenant<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    evidence: &'a EvidenceSource,
    tenant: &'a TenantStateReport,
    /// What comes to its pods; empty where it judges nothing.
    ingress: Vec<TenantRow>,
    /// What leaves them.
    egress: Vec<TenantRow>,
}

#[derive(Debug, Serialize)]
struct TenantRow {
    row: String,
    /// `denies`, `would-deny` or `hands-on`.
    result: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    own: String,
    peers: String,
    ports: String,
}

impl ExplainTenantArgs {
    pub(super) fn run(&self) -> Result<VerbAnswer> {
        let known = self.source.load()?;
        let all = known::tenants(&known);
        if all.is_empty() {
            return Ok(known::nothing(&known));
        }
        let Some(tenant) = all.iter().find(|one| one.name == self.tenant) else {
            let names: Vec<&str> = all.iter().map(|one| &*one.name).collect();
            let text = format!("there is no tenant {}; there are: {}", self.tenant, names.join(", "));
            return Ok(VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(String::new(), text) });
        };
        let terms = known::sections(&known.world).find(|terms| *terms.name.name == *self.tenant);
        let rows = |direction| {
            let rules = terms.map(|terms| &terms.direction(direction).rules);
            rules.into_iter().flatten().map(TenantRow::of).collect()
        };
        let document = ExplainedTenant {
            api_version: API_VERSION,
            kind: "ExplainedTenant",
            evidence: &known.evidence,
            tenant,
            ingress: rows(TrafficDirection::Ingress),
            egress: rows(TrafficDirection::Egress),
        };
        Ok(VerbAnswer::text(match self.output {
            Format::Json | Format::Yaml => structured(self.output, &document)?,
            Format::Table | Format::Wide => document.text(),
        }))
    }
}

impl TenantRow {
    fn of(rule: &RuleTerms) -> Self {
        Self {
            row: rule.name.to_string(),
            result: match rule.action {
                RuleAction::Deny | RuleAction::Reject => "denies",
                RuleAction::Audit => "would-deny",
                RuleAction::Accept | RuleAction::Next => "hands-on",
            },
            own: rule.own_text().unwrap_or_default(),
            peers: rule.peers_text(),
            ports: rule.ports_text(),
        }
    }
}

impl ExplainedTenant<'_> {
    fn text(&self) -> String {
        let mut out = format!("tenant {}, {}\n", self.tenant.name, self.tenant.enforcement);
        // Writing to a String cannot fail.
        for claim in &self.tenant.namespaces {
            let _ = match &*claim.state {
                "Member" => writeln!(out, "  namespace {}", claim.name),
                "Missing" => writeln!(out, "  namespace {}, which is not there", claim.name),
                _ => writeln!(out, "  not namespace {}, which is tenant {}'s", claim.name, claim.tenant),
            };
        }
        for (what, rows) in [("to its pods", &self.ingress), ("from its pods", &self.egress)] {
            if rows.is_empty() {
                let _ = writeln!(out, "{what}: nothing is judged");
                continue;
            }
            let _ = writeln!(out, "{what}:");
            for (number, TenantRow { row, result, own, peers, ports }) in (1..).zip(rows) {
                let own = if own.is_empty() { String::new() } else { format!("; own: {own}") };
                let _ = writeln!(out, "  {number:>3} {result:<10} {row}: {peers}; {ports}{own}");
            }
        }
        out + &self.evidence.line() + "\n"
    }
}
