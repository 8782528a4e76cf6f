//! `log`: what agent and plugin have logged about this node or a pod, and the levels of the agent's log.

mod node_log;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Subcommand;
use podsource::AgentSource;
use telemetry::Levels;

use crate::audit::since;
use crate::configuration::AGENT_PATIENCE;
use crate::node::{NodePlaces, directory};
use crate::output::{Usage, VerbAnswer};
use crate::pods::NOTHING;
pub(crate) use node_log::NodeLog;

const EXAMPLES: &str = "\
Examples:
  # What has happened to this pod: lines of the plugin and of the agent
  cnictl log shop/web

  # The last hour of everything
  cnictl log --since 1h --tail 0

  # Everything of ambient mode and of verification from now on, until the agent ends or this is put back
  cnictl log level ambient:debug,verification:debug

Exit codes: 0 done
            1 nothing can be read
            2 wrong command line
            3 there is no such line";

const LEVEL_EXAMPLES: &str = "\
Examples:
  # Which scopes are there, and at which levels?
  cnictl log level

  # Everything of ambient mode and of verification, until the agent ends or this is put back
  cnictl log level ambient:debug,verification:debug

  # As the agent was started
  cnictl log level reset

Exit codes: 0 done
            1 no agent answers, or it has no such scope
            2 wrong command line";

/// Where kubelet keeps the logs of containers.
pub(crate) const LOG_DIR: &str = "/var/log/pods";
/// Labels of a line that say whose it is beside the pod's name.
const IDS: [&str; 3] = ["uid", "container", "containerID"];
/// An id is at least so long: a shorter one is in many lines.
const MIN_ID: usize = 6;

/// Show what agent and plugin have logged, of one pod or of the node; show or change levels
///
/// Lines are taken from the log of the agent's container where this program sees the node's directory of container logs, else from the agent, which has
/// the last 200 in memory; and from the plugin's own file in the run directory. Those of a pod are the ones with its name, and with the uid and the
/// ids of containers that stand in these.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct LogArgs {
    #[command(subcommand)]
    verb: Option<LogVerb>,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Debug, Subcommand)]
enum LogVerb {
    Level(LevelArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The pod, as NAMESPACE/NAME, or its name with -n [default: all lines]
    #[arg(value_name = "POD")]
    pod: Option<String>,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", requires = "pod")]
    namespace: Option<String>,
    /// Of so long ago at most, such as 90s, 15m, 2h, 7d
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = since)]
    since: Duration,
    /// So many lines at most, the newest; 0: all
    #[arg(long, value_name = "LINES", default_value_t = 200)]
    tail: usize,
    /// Directory of container logs
    #[arg(long, value_name = "DIR", default_value = LOG_DIR, value_parser = directory)]
    log_dir: PathBuf,
    /// Directory of the node agent's sockets [default: /var/run/istio-cni]
    #[arg(long, value_name = "DIR", value_parser = directory)]
    run_dir: Option<PathBuf>,
}

/// Show the levels of the agent's log, or change them while it runs
///
/// A change ends with the agent; what it is started with is the option log_output_level.
#[derive(Debug, clap::Args)]
#[command(after_help = LEVEL_EXAMPLES)]
struct LevelArgs {
    /// SCOPE:LEVEL with commas between, all:LEVEL for every scope, or reset; without: show them
    #[arg(value_name = "LEVELS", value_parser = levels)]
    levels: Option<String>,
    /// Directory of the node agent's sockets [default: /var/run/istio-cni]
    #[arg(long, value_name = "DIR", value_parser = directory)]
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
        match &self.verb {
            Some(LogVerb::Level(args)) => args.run(),
            None => self.show.run(),
        }
    }
}

impl LevelArgs {
    fn run(&self) -> Result<VerbAnswer> {
        let places = NodePlaces::of_this_machine(None, self.run_dir.clone());
        let agent = AgentSource::new(&places.run_dir, env!("CARGO_PKG_VERSION"));
        match agent.log_levels(self.levels.as_deref(), AGENT_PATIENCE) {
            Ok(levels) => Ok(VerbAnswer::text(
                levels.split(',').map(|line| format!("{}\n", line.replace(':', "   "))).collect(),
            )),
            Err(error) => bail!("{error}"),
        }
    }
}

impl ShowArgs {
    fn run(&self) -> Result<VerbAnswer> {
        let pod = self.pod()?;
        let places = NodePlaces::of_this_machine(None, self.run_dir.clone());
        let NodeLog { mut lines, from, gaps } = NodeLog::read(&places, &self.log_dir, self.since);
        if from.is_empty() {
            bail!("no log can be read here: {}", gaps.join("; "));
        }
        if let Some(pod) = &pod {
            lines = of_pod(&lines, pod);
        }
        let skipped = if self.tail == 0 { 0 } else { lines.len().saturating_sub(self.tail) };
        let mut text: String = lines[skipped..].iter().map(|line| format!("{line}\n")).collect();
        if skipped > 0 {
            text = format!("({skipped} older lines: --tail 0 shows them)\n{text}");
        }
        if lines.is_empty() {
            let of = pod.map_or_else(String::new, |pod| format!(" about pod {pod}"));
            let problem = format!("no line{of} in {}", from.join(", "));
            return Ok(VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(text, problem) });
        }
        Ok(VerbAnswer::text(text))
    }

    /// As lines have it.
    fn pod(&self) -> Result<Option<String>> {
        Ok(match (&self.pod, &self.namespace) {
            (None, _) => None,
            (Some(pod), Some(namespace)) => Some(format!("{namespace}/{pod}")),
            (Some(pod), None) if pod.split('/').filter(|part| !part.is_empty()).count() == 2 => {
                Some(pod.clone())
            }
            (Some(pod), None) => {
                return Err(Usage(format!("name pod {pod} as NAMESPACE/NAME, or with -n NAMESPACE")).into());
            }
        })
    }
}

/// The lines with the pod's name, and those with an id that stands in one of these.
fn of_pod(lines: &[String], pod: &str) -> Vec<String> {
    let named: Vec<&String> = lines.iter().filter(|line| has_word(line, pod)).collect();
    let ids: BTreeSet<String> = named.iter().flat_map(|line| ids(line)).collect();
    let is_meant = |line: &String| has_word(line, pod) || ids.iter().any(|id| has_word(line, id));
    lines.iter().filter(|line| is_meant(line)).cloned().collect()
}

/// The ids in the labels of a line, as text or JSON.
fn ids(line: &str) -> Vec<String> {
    let value = |key: &str| {
        let (_, rest) =
            line.split_once(&format!("{key}=")).or_else(|| line.split_once(&format!("\"{key}\":")))?;
        let id: String = rest.trim_start_matches('"').chars().take_while(|c| is_of_word(*c)).collect();
        (id.len() >= MIN_ID).then_some(id)
    };
    IDS.into_iter().filter_map(value).collect()
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let ends = |c: Option<char>| c.is_none_or(|c| !is_of_word(c));
        // A sentence may end with a name.
        ends(before)
            && (ends(after)
                || after == Some('.') && line[at + word.len() + 1..].chars().next().is_none_or(|c| c == ' '))
    })
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '.'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_pod_are_those_with_its_name_and_with_its_ids() {
        let lines = [
            "t\tinfo\tcni\tadd\tpod=shop/web container=abcdef1 uid=11d5e3c2",
            "t\tinfo\tcni\tdel\tcontainer=abcdef1",
            r#"{"msg":"repaired","uid":"11d5e3c2"}"#,
            "t\tinfo\tcni\tadd\tpod=shop/web-2 container=other77",
            "t\tinfo\tcni\tadd\tpod=workshop/web container=abcdef1-2",
            "pod shop/web. The rest",
        ];
        let all = lines.map(str::to_owned);
        let found = of_pod(&all, "shop/web");
        assert_eq!(found, [lines[0], lines[1], lines[2], lines[5]]);
    }
}
