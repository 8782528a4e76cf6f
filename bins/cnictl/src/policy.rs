//! `policy`: what network policies mean.

mod diff;
mod dry_run;
mod end;
mod eval;
mod explain;
mod held;
mod judged;
mod lint;
mod list;
mod source;
mod status;

use anyhow::Result;
use clap::Subcommand;

use crate::output::VerbAnswer;
pub(crate) use list::{PolicySide, policies_of};
pub(crate) use source::{KnownCluster, PolicySourceArgs};

/// Say what network policies mean
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    verb: PolicyVerb,
}

#[derive(Debug, Subcommand)]
enum PolicyVerb {
    Explain(explain::ExplainPolicyArgs),
    List(list::PolicyListArgs),
    Status(status::PolicyStatusArgs),
    Lint(lint::LintArgs),
    Diff(diff::PolicyDiffArgs),
    DryRun(dry_run::DryRunArgs),
    Eval(eval::EvalArgs),
}

impl PolicyArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        match &self.verb {
            PolicyVerb::Explain(args) => args.run(),
            PolicyVerb::List(args) => args.run(),
            PolicyVerb::Status(args) => args.run(),
            PolicyVerb::Lint(args) => args.run(),
            PolicyVerb::Diff(args) => args.run(),
            PolicyVerb::DryRun(args) => args.run(),
            PolicyVerb::Eval(args) => args.run(),
        }
    }
}
