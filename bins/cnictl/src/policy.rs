//! `policy`: what network policies mean.

mod eval;

use anyhow::Result;
use clap::Subcommand;

use crate::output::VerbAnswer;

/// Say what network policies mean
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    verb: PolicyVerb,
}

#[derive(Debug, Subcommand)]
enum PolicyVerb {
    Eval(eval::EvalArgs),
}

impl PolicyArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        match &self.verb {
            PolicyVerb::Eval(args) => args.run(),
        }
    }
}
