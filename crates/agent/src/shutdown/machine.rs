//! Whether the machine itself is shutting down. What is taken off the node then would be missing from its next start on.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::run::Agent;

/// The root of the node's file system as its first process has it, below procfs: no mount of ours is needed.
const ROOT: &str = "1/root";
/// There where systemd is the node's init, sd_booted(3).
const SYSTEMD: &str = "run/systemd/system";
/// Made by systemd when sessions end (`systemd-user-sessions.service`) and before a scheduled shutdown, shutdown(8) and nologin(5).
const NO_LOGIN: &str = "run/nologin";

/// How long systemd, which ends services beside each other, may take to make it.
const LIMIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

/// What says that the machine is shutting down; nothing where nothing does.
pub(super) async fn shuts_down(agent: &Agent) -> Option<&'static str> {
    // kubelet ends the pods while systemd still waits for it.
    if let Some(writer) = &agent.writer
        && writer.node_shuts_down().await.unwrap_or(false)
    {
        return Some("its kubelet says that the node is shutting down");
    }
    ends_sessions(&agent.config.proc_root).await.then_some("/run/nologin is there")
}

async fn ends_sessions(proc_root: &Path) -> bool {
    let root = proc_root.join(ROOT);
    let start = Instant::now();
    while root.join(SYSTEMD).exists() {
        if root.join(NO_LOGIN).exists() {
            return true;
        }
        if start.elapsed() > LIMIT {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    false
}
