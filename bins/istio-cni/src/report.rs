//! What the node agent is told of a call, so that a process that lives for milliseconds is counted, and a pod that starts uncaptured is found.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use facts::Report;
use facts::exchange::{MAX_REPORT, Outcome, UNCAPTURED_DIR};
use telemetry::Logger;

use crate::sources::agent;

/// How long a call may wait for the agent to take its report. The runtime waits for us.
const LIMIT: Duration = Duration::from_millis(200);
/// Bytes of an error that are reported.
const MAX_ERROR: usize = 4 << 10;

/// Tells the agent. Where that fails nothing is lost but a count, except for a pod that starts uncaptured: that one is left on disk for the
/// agent to find.
pub(crate) fn send(conf: &cni::PluginConf, mut report: Report, log: &Logger) {
    report.error.truncate(report.error.floor_char_boundary(MAX_ERROR));
    let Some(agent) = agent(conf) else { return };
    let Err(error) = agent.report(&report, LIMIT) else { return };
    log.debug(&error.to_string(), &[]);
    if error.is_hung() {
        log.leave_agent_out();
    }
    if report.result == Outcome::Uncaptured
        && let Err(error) = leave(&conf.cni_agent_run_dir, &report)
    {
        let dir = conf.cni_agent_run_dir.join(UNCAPTURED_DIR);
        log.error(
            "cannot note for the node agent that this pod started without capture; find it by this line",
            &[("dir", &dir.display()), ("error", &error)],
        );
    }
}

/// Writes the report beside the agent's socket, whole or not at all. The container's id is one that the protocol layer has checked.
fn leave(run_dir: &Path, report: &Report) -> io::Result<()> {
    let dir = run_dir.join(UNCAPTURED_DIR);
    match DirBuilder::new().mode(0o700).create(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let text = serde_json::to_vec(report)?;
    if text.len() > MAX_REPORT {
        return Err(io::Error::other("it is too large"));
    }
    let temporary = dir.join(format!(".{}.tmp", report.container));
    let written =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary).and_then(
            |mut file| {
                file.write_all(&text)?;
                file.sync_all()
            },
        );
    let done =
        written.and_then(|()| std::fs::rename(&temporary, dir.join(format!("{}.json", report.container))));
    if done.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    done
}
