//! The snapshot of policies in the state directory, for ADDs without the agent: written when something changed, and not more often than it is worth.

#[cfg(test)]
mod tests;

use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use telemetry::Scope;
use tokio::time::Instant;

use crate::policy_socket::PolicyHandle;

/// The least time between two snapshots. An ADD without the agent goes by one that is so old at most, or as old as the agent's absence.
const PAUSE: Duration = Duration::from_secs(30);

/// Keeps what the task of policies knows, until it ends.
pub(crate) async fn live(state_dir: PathBuf, policies: Arc<dyn PolicyHandle>, log: Scope) {
    let path = state_dir.join(rundir::POLICIES_NAME);
    // What was written is known by its hash: it may be megabytes.
    let (mut changes, mut written, hasher) = (policies.changes(), None, RandomState::new());
    changes.mark_changed();
    // It ends with the task of policies.
    while changes.changed().await.is_ok() {
        let next = Instant::now() + PAUSE;
        let Some(snapshot) = policies.snapshot().await else { continue };
        let bytes = snapshot.to_bytes();
        drop(snapshot);
        let hash = hasher.hash_one(&bytes);
        if written != Some(hash) {
            let to = path.clone();
            match tokio::task::spawn_blocking(move || write(&to, &bytes)).await {
                Ok(Ok(())) => {
                    log.settled(&[("path", &path.display())]);
                    written = Some(hash);
                }
                Ok(Err(error)) => {
                    let text = "the snapshot of policies is not written: an ADD without the agent goes by an older one or none; free space in the state \
                                directory, or set STATE_DIR";
                    log.error(text, &[("path", &path.display()), ("error", &error)]);
                    changes.mark_changed();
                }
                Err(_) => return,
            }
        }
        tokio::time::sleep_until(next).await;
    }
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    trusted::replace_synced(path, &path.with_extension("unfinished"), content)
}
