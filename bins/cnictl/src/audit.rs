//! `audit`: what was denied on this node.

mod tail;

use anyhow::Result;
use clap::Subcommand;

use crate::output::VerbAnswer;

/// Show what was denied on this node
#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    verb: AuditVerb,
}

#[derive(Debug, Subcommand)]
enum AuditVerb {
    Tail(tail::TailArgs),
}

impl AuditArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        match &self.verb {
            AuditVerb::Tail(args) => args.run(),
        }
    }
}
