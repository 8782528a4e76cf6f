//! The snapshot of policies in the state directory, for ADDs without the agent and for the next agent: written when something changed, and not more often
//! than it is worth. The time of the file says when that was known: it moves on while nothing changes.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use enforcement::{KeptPolicies, PolicyMemory};
use policy::snapshot::{MAX_SNAPSHOT, PolicySnapshot};
use telemetry::Scope;
use tokio::time::Instant;
use trusted::Links;

use crate::policy_socket::PolicyHandle;

/// The least time between two snapshots. An ADD without the agent goes by one that is so old at most, or as old as the agent's absence.
const PAUSE: Duration = Duration::from_secs(30);
/// How the name ends of one that is being written.
pub(crate) const UNFINISHED: &str = "unfinished";

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
        let known_at = policies.known_at().unwrap_or_else(SystemTime::now);
        let bytes = snapshot.to_bytes();
        drop(snapshot);
        let hash = hasher.hash_one(&bytes);
        if written == Some(hash) {
            let to = path.clone();
            // Where that fails the file says that it is older than it is.
            let _ = tokio::task::spawn_blocking(move || date(&to, known_at)).await;
        } else {
            let to = path.clone();
            let write = move || write(&to, &bytes).and_then(|()| date(&to, known_at));
            match tokio::task::spawn_blocking(write).await {
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

/// What an earlier agent kept, for [`enforcement::PolicyParts::memory`].
pub(crate) fn memory(state_dir: &Path, log: &Scope) -> PolicyMemory {
    let (path, log) = (state_dir.join(rundir::POLICIES_NAME), log.clone());
    Arc::new(move || match read(&path) {
        Ok(kept) => kept,
        Err(error) => {
            let text = "what an earlier agent knew of policies cannot be used: until the API server has listed them, what is in force stays as it is, and \
                        pods that may be isolated start isolated";
            log.error(text, &[("path", &path.display()), ("error", &error)]);
            None
        }
    })
}

fn read(path: &Path) -> Result<Option<KeptPolicies>, String> {
    let file = match trusted::open(path, Links::Refused) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let as_of = file.metadata().and_then(|known| known.modified()).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_SNAPSHOT as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let snapshot = PolicySnapshot::from_bytes(&bytes).map_err(|error| error.to_string())?;
    Ok(Some(KeptPolicies { snapshot, as_of }))
}

/// Says when what is in the file was known.
fn date(path: &Path, known_at: SystemTime) -> std::io::Result<()> {
    File::options().write(true).open(path)?.set_modified(known_at)
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    trusted::replace_synced(path, &path.with_extension(UNFINISHED), content)
}
