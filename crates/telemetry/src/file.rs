//! The rolling file: appended to by many short processes at once, 10 MB at most, one backup.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::OFlags;

use crate::line::Utc;

/// Name of the log file inside the run directory.
pub const FILE_NAME: &str = "istio-cni.log";

/// Size in bytes that the file does not pass (10 MB, counted as 1024 × 1024 as upstream's library does).
pub const FILE_MAX_BYTES: u64 = 10 * 1024 * 1024;

/// Age from which a backup is removed.
pub const BACKUP_MAX_AGE: Duration = Duration::from_secs(2 * 24 * 3600);

const BACKUP_PREFIX: &str = "istio-cni-";
const BACKUP_SUFFIX: &str = ".log";
/// What a time looks like in a backup's name; `0` stands for any digit.
const STAMP_SHAPE: &[u8] = b"0000-00-00T00-00-00.000";

/// Pause between two tries for the lock. Writes take microseconds; a process that was stopped while it held the lock must not stop the others.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Openings before giving up; each further one means that another process rotated in between.
const OPEN_TRIES: usize = 8;

/// Where lines are appended. The file is opened for each write: a process writes once or twice in its life.
pub(crate) struct RollingFile {
    dir: PathBuf,
    max_bytes: u64,
    cleaned: bool,
}

// === impl RollingFile ===

impl RollingFile {
    pub(crate) fn new(dir: &Path, max_bytes: u64) -> Self {
        Self { dir: dir.to_owned(), max_bytes, cleaned: false }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// Appends complete lines in one write, rotating first when they would not fit. `now` dates the backup. Another process's write is waited for no
    /// longer than `patience`, from which the wait is taken off.
    ///
    /// Fails, and writes nothing, when the file cannot be opened, or when it is full and cannot be rotated.
    pub(crate) fn append(
        &mut self,
        lines: &[u8],
        now: SystemTime,
        patience: &mut Duration,
    ) -> io::Result<()> {
        for _ in 0..OPEN_TRIES {
            let file = self.open()?;
            let locked = lock(&file, patience)?;
            let meta = file.metadata()?;
            if !meta.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            let full = meta.len() > 0 && meta.len() + lines.len() as u64 > self.max_bytes;
            if !locked {
                // Appending is safe without the lock, rotating is not.
                return if full { Err(io::ErrorKind::WouldBlock.into()) } else { (&file).write_all(lines) };
            }
            if !self.still_ours(&meta) {
                continue; // Another process rotated between our opening and our locking.
            }
            if full {
                self.rotate(now)?;
                continue;
            }
            (&file).write_all(lines)?;
            if !self.cleaned {
                self.cleaned = true;
                self.remove_old_backups(now)?;
            }
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "rotated by other processes again and again"))
    }

    fn open(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        // NONBLOCK: opening a FIFO that somebody left under this name would wait for its reader.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.append(true).create(true).mode(0o600).custom_flags(flags.bits() as i32);
        match options.open(self.path()) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o755).create(&self.dir)?;
                options.open(self.path())
            }
            opened => opened,
        }
    }

    fn still_ours(&self, opened: &std::fs::Metadata) -> bool {
        std::fs::symlink_metadata(self.path())
            .is_ok_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino()))
    }

    /// Renames the file to a backup and removes the other backups. The caller holds the lock of the file.
    fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        std::fs::rename(self.path(), self.dir.join(backup_name(now)))?;
        self.cleaned = true;
        self.remove_old_backups(now)
    }

    /// Leaves the newest backup, unless it is too old as well.
    fn remove_old_backups(&self, now: SystemTime) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            if let Ok(name) = entry?.file_name().into_string()
                && is_backup_name(&name)
            {
                names.push(name);
            }
        }
        // All names have one shape, so the greatest is the newest.
        let newest = names.iter().max().cloned();
        let oldest_kept = now.checked_sub(BACKUP_MAX_AGE).map(backup_name).unwrap_or_default();
        for name in names.into_iter().filter(|name| newest.as_ref() != Some(name) || *name < oldest_kept) {
            match std::fs::remove_file(self.dir.join(name)) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether the exclusive lock was got in time. Closing the file gives it back.
fn lock(file: &File, patience: &mut Duration) -> io::Result<bool> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if !patience.is_zero() => {
                let began = Instant::now();
                std::thread::sleep(LOCK_PAUSE);
                *patience = patience.saturating_sub(began.elapsed());
            }
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(err)) => return Err(err),
        }
    }
}

fn backup_name(now: SystemTime) -> String {
    format!("{BACKUP_PREFIX}{}{BACKUP_SUFFIX}", Utc::from(now).file_stamp())
}

/// Whether a file of the run directory with this name is the log or a backup of it.
pub fn is_log_file(name: &str) -> bool {
    name == FILE_NAME || is_backup_name(name)
}

fn is_backup_name(name: &str) -> bool {
    let stamp = name.strip_prefix(BACKUP_PREFIX).and_then(|rest| rest.strip_suffix(BACKUP_SUFFIX));
    stamp.is_some_and(|stamp| {
        stamp.len() == STAMP_SHAPE.len()
            && stamp.bytes().zip(STAMP_SHAPE).all(|(got, &want)| match want {
                b'0' => got.is_ascii_digit(),
                _ => got == want,
            })
    })
}

#[cfg(test)]
mod tests;
