//! A directory with a file for each variable, as a mounted ConfigMap is one: options that change while the agent runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{Inotify, WatchMask};

/// Largest file that is read, in bytes; a larger one counts as absent.
const MAX_FILE: u64 = 64 << 10;
/// How often the directory is looked at where it cannot be watched.
const PERIOD: Duration = Duration::from_secs(10);
/// After a change, time for the rest of it.
const SETTLE: Duration = Duration::from_millis(100);

/// The value of a variable, without the newline that editors leave at its end.
pub(crate) fn read(dir: &Path, variable: &str) -> Option<String> {
    let path = dir.join(variable);
    let metadata = std::fs::metadata(&path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.strip_suffix('\n').map_or_else(|| text.clone(), str::to_owned))
}

/// Calls `changed` once and after every change in the directory, on a thread of its own that lives as long as the process.
///
/// # Errors
/// The system gives no thread.
pub(crate) fn watch(dir: PathBuf, mut changed: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name("config-dir".into()).spawn(move || {
        loop {
            // First the watch, then the look: a change in between is one more turn, and none is missed.
            let watch = begin(&dir);
            changed();
            // Without a watch, for want of the directory or of watches, the changes of a period are found at its end.
            if watch.and_then(wait).is_err() {
                std::thread::sleep(PERIOD);
            }
            std::thread::sleep(SETTLE);
        }
    })?;
    Ok(())
}

/// Watches the directory from now on. Kubelet replaces a mounted ConfigMap by renaming a link in its directory.
fn begin(dir: &Path) -> std::io::Result<Inotify> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE_SELF
        | WatchMask::ONLYDIR;
    inotify.watches().add(dir, mask)?;
    Ok(inotify)
}

/// Waits for the next change.
fn wait(mut inotify: Inotify) -> std::io::Result<()> {
    inotify.read_events_blocking(&mut [0; 4096])?;
    Ok(())
}
