//! What is kept of usage on disk: the sums of the present hour with what is known of counters, and a line for each tenant and hour that is over.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use audit::{ChainStart, ChainWriter, FileLimits, FileSet, Naming};
use telemetry::Scope;
use usage::{Hour, PodKey, SCHEMA, USAGE_FILES, USAGE_STATE, UsageBook, UsageLine};

use crate::boot;

/// How long lines are kept.
const KEEP: Duration = Duration::from_secs(35 * 24 * 60 * 60);
/// Longest kept state that is read.
const MOST_BYTES: u64 = 64 << 20;
/// The sums of the hour in which counting was turned off: where it is turned on again in that hour its line has both parts.
const LEFT: &str = "usage-left.json";

/// Whether an agent has counted here and has not ended that.
pub(in crate::policy) fn has_state(dir: &Path) -> bool {
    dir.join(USAGE_STATE).exists()
}

/// See the module.
pub(super) struct UsageRecords {
    dir: PathBuf,
    book: UsageBook,
    log: Scope,
}

// === impl UsageRecords ===

impl UsageRecords {
    /// Goes on with what an earlier agent kept. Lines that are too old go.
    pub(super) fn open(dir: PathBuf, node: &str, log: Scope, now: u64) -> Self {
        let (mut path, boot) = (dir.join(USAGE_STATE), boot::id());
        let read = |path: &Path| -> io::Result<UsageBook> {
            if std::fs::metadata(path)?.len() > MOST_BYTES {
                return Err(io::Error::other("it is too large"));
            }
            Ok(UsageBook::restore(&std::fs::read_to_string(path)?, node, &boot)?)
        };
        let is_none = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let mut known = read(&path);
        if known.as_ref().is_err_and(is_none) {
            path = dir.join(LEFT);
            known = read(&path);
            if known.as_ref().is_ok_and(|book| book.hour() != Hour::of(now)) {
                known = Ok(UsageBook::new(node, &boot, now));
            }
        }
        let book = known.unwrap_or_else(|error| {
            if !is_none(&error) {
                let text =
                    "what is kept of tenants' usage cannot be read; what was not written by hour is lost";
                log.warn(text, &[("path", &path.display()), ("error", &error)]);
            }
            UsageBook::new(node, &boot, now)
        });
        match dir.exists().then(|| writer(&dir)).transpose() {
            Ok(Some((_, ChainStart::Broken))) => {
                let text = "the last line of tenants' usage is not one of its chain: files were changed";
                log.warn(text, &[("dir", &dir.display())]);
            }
            Ok(_) => {}
            Err(error) => {
                let text = "files of tenants' usage cannot be read";
                log.warn(text, &[("dir", &dir.display()), ("error", &error)]);
            }
        }
        Self { dir, book, log }
    }

    pub(super) fn book(&mut self) -> &mut UsageBook {
        &mut self.book
    }

    /// Pods of which an earlier agent knew and that are not there any more. Whether there are such.
    pub(super) fn forget_others(&mut self, now: u64, there: &BTreeSet<PodKey>) -> bool {
        let gone: Vec<PodKey> = self.book.pods().filter(|key| !there.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.book.gone(now, key, false));
        !gone.is_empty()
    }

    /// Writes the lines of an hour that is over, and then what is known. Where the agent ends between both, the lines are written again, and the later
    /// ones count.
    pub(super) async fn keep(&mut self, now: u64) {
        let mut next = self.book.clone();
        let (hour, lines) = (self.book.hour(), next.close(now));
        let (dir, text) = (self.dir.clone(), next.save(now));
        let write = move || -> io::Result<()> {
            append(&dir, hour, &lines)?;
            std::fs::create_dir_all(&dir)?;
            let path = dir.join(USAGE_STATE);
            trusted::replace_synced(&path, &path.with_extension("unfinished"), text.as_bytes())
        };
        if self.is_written(write).await {
            self.book = next;
        }
    }

    /// Writes what is known of the hour so far, and ends.
    pub(super) async fn finish(&mut self, now: u64) {
        self.forget_others(now, &BTreeSet::new());
        let (dir, hour, lines) = (self.dir.clone(), self.book.hour(), self.book.lines());
        let left = self.book.save(now);
        self.is_written(move || {
            append(&dir, hour, &lines)?;
            let path = dir.join(LEFT);
            trusted::replace_synced(&path, &path.with_extension("unfinished"), left.as_bytes())?;
            std::fs::remove_file(dir.join(USAGE_STATE))
        })
        .await;
    }

    async fn is_written(&self, write: impl FnOnce() -> io::Result<()> + Send + 'static) -> bool {
        let dir = self.dir.display();
        match tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => {
                self.log.settled(&[("dir", &dir)]);
                true
            }
            Err(error) => {
                let text = "tenants' usage is not written; it is added up in memory and tried again: free space in the state directory, or set STATE_DIR";
                self.log.error(text, &[("dir", &dir), ("error", &error)]);
                false
            }
        }
    }
}

/// An hour comes once: files are opened for it.
fn append(dir: &Path, hour: Hour, lines: &[UsageLine]) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let (mut writer, _) = writer(dir)?;
    let bodies: Vec<String> = lines.iter().map(UsageLine::to_json).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    // The file of the day in which the hour began.
    writer.append(UNIX_EPOCH + Duration::from_secs(hour.begins()), &bodies)?;
    writer.sync()
}

fn writer(dir: &Path) -> io::Result<(ChainWriter, ChainStart)> {
    let set = FileSet { dir: dir.to_owned(), naming: Naming::Daily(USAGE_FILES.to_owned()) };
    let limits = FileLimits { bytes: u64::MAX, age: KEEP, files: usize::MAX, keep: KEEP, gid: None };
    ChainWriter::open(set, SCHEMA, limits, SystemTime::now())
}
