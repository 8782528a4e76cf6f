//! `tenants`: which there are, what they come to, and what in them is probably not meant.

mod explain;
mod known;
mod lint;
mod list;

use anyhow::Result;
use clap::Subcommand;

use crate::output::VerbAnswer;

/// Say what tenants come to
#[derive(Debug, clap::Args)]
pub(crate) struct TenantsArgs {
    #[command(subcommand)]
    verb: TenantsVerb,
}

#[derive(Debug, Subcommand)]
enum TenantsVerb {
    List(list::ListTenantsArgs),
    Explain(explain::ExplainTenantArgs),
    Lint(lint::LintTenantsArgs),
}

impl TenantsArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        match &self.verb {
            TenantsVerb::List(args) => args.run(),
            TenantsVerb::Explain(args) => args.run(),
            TenantsVerb::Lint(args) => args.run(),
        }
    }
}
