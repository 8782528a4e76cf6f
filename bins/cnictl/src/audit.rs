//! `audit`: what was denied on this node, and what tenants use.

mod files;
mod query;
mod report;
mod tail;
mod top;
mod usage;
mod verify;

use anyhow::Result;
use clap::Subcommand;

use crate::output::VerbAnswer;
pub(crate) use files::since;

/// Show what was denied on this node, and what tenants' pods have sent and received
#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    verb: AuditVerb,
}

#[derive(Debug, Subcommand)]
enum AuditVerb {
    Tail(tail::TailArgs),
    Query(query::QueryArgs),
    Top(top::TopArgs),
    Verify(verify::AuditVerifyArgs),
    Usage(usage::UsageArgs),
    Report(report::ReportArgs),
}

impl AuditArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        match &self.verb {
            AuditVerb::Tail(args) => args.run(),
            AuditVerb::Usage(args) => args.run(),
            AuditVerb::Report(args) => args.run(),
            AuditVerb::Query(args) => args.run(),
            AuditVerb::Top(args) => args.run(),
            AuditVerb::Verify(args) => args.run(),
        }
    }
}
