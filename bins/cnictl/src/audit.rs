//! `audit`: what was denied on this node.

mod files;
mod query;
mod tail;
mod top;
mod usage;
mod verify;

use anyhow::Result;
use clap::Subcommand;

use crate::output::VerbAnswer;
pub(crate) use files::since;

/// Show what was denied on this node
#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    verb: AuditVerb,
}

#[derive(Debug, Subcommand)]
enum AuditVerb {
    Tail(tail::TailArgs),
    Usage(usage::UsageArgs),
    Query(query::QueryArgs),
    Top(top::TopArgs),
    Verify(verify::AuditVerifyArgs),
}

impl AuditArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        match &self.verb {
            AuditVerb::Tail(args) => args.run(),
            AuditVerb::Usage(args) => args.run(),
            AuditVerb::Query(args) => args.run(),
            AuditVerb::Top(args) => args.run(),
            AuditVerb::Verify(args) => args.run(),
        }
    }
}
