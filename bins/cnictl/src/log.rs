//! `log`: the agent's log.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Subcommand;
use podsource::AgentSource;
use telemetry::Levels;

use crate::configuration::AGENT_PATIENCE;
use crate::node::NodePlaces;
use crate::output::VerbAnswer;

const EXAMPLES: &str = "\
Examples:
  # Which scopes are there, and at which levels?
  cnictl log level

  # Everything of ambient mode and of verification, until the agent ends or this is put back
  cnictl log level ambient:debug,verification:debug

  # As the agent was started
  cnictl log level reset

Exit codes: 0 done
            1 no agent answers
            2 wrong command line";

/// Show or change what the agent on this node logs
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    #[command(subcommand)]
    verb: LogVerb,
}

#[derive(Debug, Subcommand)]
enum LogVerb {
    Level(LevelArgs),
}

/// Show the levels of the agent's log, or change them while it runs
///
/// A change ends with the agent; what it is started with is the option log_output_level.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
struct LevelArgs {
    /// SCOPE:LEVEL with commas between, all:LEVEL for every scope, or reset; without: show them
    #[arg(value_name = "LEVELS", value_parser = levels)]
    levels: Option<String>,
    /// Directory of the node agent's sockets [default: /var/run/istio-cni]
    #[arg(long, value_name = "DIR", value_parser = crate::node::directory)]
    run_dir: Option<PathBuf>,
}

/// The word for the levels of the start.
const RESET: &str = "reset";

fn levels(text: &str) -> Result<String, String> {
    if text == RESET {
        return Ok(String::new());
    }
    Levels::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl LogArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let LogVerb::Level(args) = &self.verb;
        let places = NodePlaces::of_this_machine(None, args.run_dir.clone());
        let agent = AgentSource::new(&places.run_dir, env!("CARGO_PKG_VERSION"));
        match agent.log_levels(args.levels.as_deref(), AGENT_PATIENCE) {
            Ok(levels) => Ok(VerbAnswer::text(
                levels.split(',').map(|line| format!("{}\n", line.replace(':', "   "))).collect(),
            )),
            Err(error) => bail!("{error}"),
        }
    }
}
