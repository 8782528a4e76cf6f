//! `restore`: one repair of a pod by the agent, now.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rundir::pods::{PodReport, RestoreRequest};

use super::one::OnePodArgs;
use super::view::{PATIENCE_FOR_A_LOOK, refuse_if_denied};
use crate::output::VerbAnswer;
use crate::question::confirm;

const EXAMPLES: &str = "\
Examples:
  # What would be put right?
  cnictl restore shop/web --dry-run

  # Put it right now, whatever the agent's pause between repairs
  cnictl restore shop/web --yes

Exit codes: 0 the pod is as planned now; with --dry-run: it is
            1 it is not, or the command failed
            2 wrong command line
            3 there is no such pod, or it should not be captured";

/// How long the agent may take for a repair.
const PATIENCE: Duration = Duration::from_secs(60);

/// Have the agent compare a pod with its plan and put right what differs, once, now
///
/// The agent does that by itself, unless VERIFY_REPAIR is off or it waits because somebody undoes its repairs. This program asks it for one more;
/// it writes nothing itself.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pod: OnePodArgs,
    /// Only show what differs
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl RestoreArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let agent = self.pod.agent()?;
        let known =
            agent.pods(true, PATIENCE_FOR_A_LOOK).map_err(|error| match refuse_if_denied(&error) {
                Err(denied) => denied,
                Ok(()) => anyhow::Error::from(error).context("only the agent restores pods"),
            })?;
        let pod = match self.pod.find(&known.pods)? {
            Ok(pod) => pod,
            Err(answer) => return Ok(answer),
        };
        let name = pod.pod();
        if pod.drift.is_empty() && pod.state == "verified" {
            return Ok(VerbAnswer::text(format!("pod {name} is as planned; nothing to do\n")));
        }
        let plan = plan_text(pod);
        if self.dry_run {
            return Ok(VerbAnswer::failed(
                plan,
                format!("pod {name} is not as planned; nothing was changed"),
            ));
        }
        if !self.yes {
            confirm(&plan, "New connections of the pod follow the plan then.")?;
        }
        let request = RestoreRequest { uid: pod.uid.clone() };
        let report = agent.restore(&request, PATIENCE).context("have the agent restore the pod")?;
        if !report.problem.is_empty() {
            bail!("pod {name} is not as planned: {}", report.problem);
        }
        let done = if report.repaired { "is as planned again" } else { "was as planned already" };
        Ok(VerbAnswer::text(format!("pod {name} {done}\n")))
    }
}

fn plan_text(pod: &PodReport) -> String {
    let differs = pod.drift.iter().map(|line| format!("  {line}\n"));
    let state =
        if pod.reason.is_empty() { pod.state.clone() } else { format!("{} ({})", pod.state, pod.reason) };
    format!("pod {} is {state}:\n{}", pod.pod(), differs.collect::<String>())
}
