//! The report of a call to the node agent, so that a process that lives for milliseconds is counted, and a pod that starts uncaptured is found.

use std::time::Duration;

use rundir::{OperationReport, UNCAPTURED_DIR, note};
use telemetry::Logger;

use crate::sources::agent;

/// How long a call may wait for the agent to take its report. The runtime waits for us; an agent that is busy has it in its socket by then.
const LIMIT: Duration = Duration::from_millis(18);
/// Bytes of an error that are reported.
const MAX_ERROR: usize = 4 << 10;

/// Tells the agent. Where that fails nothing is lost but a count, except for a pod that starts without all of its capture: that one is left on
/// disk for the agent to find.
pub(crate) fn send(conf: &cni::PluginConf, mut report: OperationReport, log: &Logger) {
    report.error.truncate(report.error.floor_char_boundary(MAX_ERROR));
    let Some(agent) = agent(conf) else { return };
    let Err(error) = agent.report(&report, LIMIT) else { return };
    log.debug(&error.to_string(), &[]);
    if report.wants_note()
        && let Err(error) = note::leave(&conf.cni_agent_run_dir, &report)
    {
        let dir = conf.cni_agent_run_dir.join(UNCAPTURED_DIR);
        log.error(
            "cannot note for the node agent that this pod started without all of its capture; find it by this line",
            &[("dir", &dir.display()), ("error", &error)],
        );
    }
}
