//! `audit query`: lines of the audit files that are asked for.

use anyhow::Result;

use super::files::{EventFormat, FileArgs, Filters, ReadEvent, exit_code, text};
use crate::output::VerbAnswer;

const EXAMPLES: &str = "\
Examples:
  # What was denied of a pod in the last hour?
  cnictl audit query --since 1h --pod shop/web --verdict denied

  # Everything that a policy denied, for a table of another program
  cnictl audit query --policy shop/closed -o csv

  # What was denied between two tenants, whichever of them began it?
  cnictl audit query --tenant red --peer blue

  # Where packets are missing in the audit
  cnictl audit query --type audit_gap

Exit codes: 0 shown, 1 failed, 2 wrong command line, 3 nothing was found";

/// Show lines of this node's audit files
///
/// Reads the files, packed ones too: no agent is needed. Without filters it shows all. In PACKETS, +N were counted by the rule and not logged, so that they are
/// shared out between the ends that were.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct QueryArgs {
    #[command(flatten)]
    filters: Filters,
    /// So many lines at most, the newest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10_000)]
    lines: usize,
    /// How lines are written
    #[arg(short, long, value_enum, default_value_t = EventFormat::Table)]
    output: EventFormat,
    #[command(flatten)]
    file: FileArgs,
}

impl QueryArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let is_meant = self.filters.matcher();
        let mut found = std::collections::VecDeque::<ReadEvent>::new();
        let problem = self.file.read(|one| {
            if is_meant(&one.event) && self.lines > 0 {
                if found.len() == self.lines {
                    found.pop_front();
                }
                found.push_back(one);
            }
        })?;
        let exit = exit_code(problem.as_ref(), found.is_empty());
        Ok(VerbAnswer { text: text(self.output, found.make_contiguous(), true), problem, exit })
    }
}
