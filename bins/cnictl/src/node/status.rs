//! `status`: whether pods of this node are captured from now on, and if not, what is wrong.

mod mesh;
mod options;
mod report;
mod verdict;
mod words;

use std::path::PathBuf;

use anyhow::Result;

use super::places::PlaceArgs;
use crate::chain::RunArgs;
use crate::configuration::ConfigurationArgs;
use crate::output::{Format, Usage, VerbAnswer, fitted, one_line, structured};
use report::StatusReport;
pub(crate) use words::short;

const EXAMPLES: &str = "\
Examples:
  # Is the plugin on this node, is it in the configuration that the runtime uses, does the agent answer?
  cnictl status

  # In the agent's container, where the host's directories are mounted elsewhere, for a program
  kubectl -n istio-system exec istio-cni-node-xxxxx -- cnictl status -o json

  # Ask every plugin of a chain whether it could serve an ADD (CNI 1.1)
  cnictl status --conf 10-net.conflist

Exit codes: 0 healthy: the plugin is installed and the agent answers; with --conf: every plugin is ready
            1 something is wrong; the message says what and what to do
            2 wrong command line
            4 nothing wrong was seen, but not everything could be looked at: run it as root";

/// Exit code where something could not be looked at.
const INCOMPLETE: u8 = 4;

/// Show how the plugin and its agent are on this node; with --conf, ask the plugins of a chain instead
///
/// The node is only looked at; each program of the plugin is started for its version, and the agent is asked over its socket.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    places: PlaceArgs,
    /// Ask every plugin of this network configuration list whether it could serve an ADD (CNI 1.1)
    #[arg(long, value_name = "CONFLIST", conflicts_with_all = ["net_dir", "bin_dirs", "run_dir"])]
    conf: Option<PathBuf>,
    #[command(flatten)]
    chain: RunArgs,
}

/// The node's installation as the page shows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeSummary {
    pub(crate) problems: Vec<String>,
    pub(crate) warnings: Vec<String>,
    /// What was found, by name.
    pub(crate) rows: Vec<(&'static str, String)>,
}

/// Looks at the installation as `status` does.
pub(crate) fn summary(configuration: &ConfigurationArgs) -> NodeSummary {
    let places = configuration.places();
    let report = StatusReport::look(&places);
    let mut problems = report.verdict.problems.clone();
    if !report.not_looked_at.is_empty() {
        problems.push(report.incomplete_text());
    }
    NodeSummary { problems, warnings: report.verdict.warnings.clone(), rows: report.rows(&places) }
}

impl StatusArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        if let Some(conf) = &self.conf {
            return self.chain.status(conf);
        }
        if self.chain.stats || self.chain.verbose {
            return Err(Usage("--stats and --verbose are about plugins: give their --conf".to_owned()).into());
        }
        let places = self.places.places();
        let report = StatusReport::look(&places);
        let text = match self.chain.output {
            Format::Json | Format::Yaml => structured(self.chain.output, &report)?,
            Format::Table | Format::Wide => fitted(report.table(&places)),
        };
        Ok(match report.verdict.problems.as_slice() {
            [] if report.not_looked_at.is_empty() => VerbAnswer::text(text),
            [] => VerbAnswer { exit: INCOMPLETE, ..VerbAnswer::failed(text, report.incomplete_text()) },
            [problem] => VerbAnswer::failed(text, one_line(problem)),
            [first, more @ ..] => {
                VerbAnswer::failed(text, format!("{} (and {} more)", one_line(first), more.len()))
            }
        })
    }
}
