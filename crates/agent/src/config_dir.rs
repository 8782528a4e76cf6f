//! A directory with a file for each variable, as a mounted ConfigMap is one: options that change while the agent runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use trusted::Links;

use options::agent::{BadOption, Flags, Lookup, Options, SPECS, Setting};

/// Largest file that is read, in bytes.
const MAX_FILE: usize = 64 << 10;
/// How often the directory is looked at where it cannot be watched.
const PERIOD: Duration = Duration::from_secs(10);
/// After a change, time for the rest of it.
const SETTLE: Duration = Duration::from_millis(100);

/// Why the options cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    /// A file that cannot be read as an option.
    #[error("read options from {}: {cause}", path.display())]
    File {
        /// The file or the directory.
        path: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// A text is not of its option's kind.
    #[error(transparent)]
    Option(#[from] BadOption),
}

/// Reads the options of this process, again and again.
#[derive(Debug, Clone)]
pub(crate) struct OptionsReader {
    flags: Flags,
    /// Variables that had a file once. A container has the same ConfigMap as variables too, which stay as they were at its start: a switch that
    /// is taken out of the ConfigMap must not live on in them.
    followed: BTreeSet<String>,
}

impl OptionsReader {
    pub(crate) fn new(flags: Flags) -> Self {
        Self { flags, followed: BTreeSet::new() }
    }

    /// The options as they are now.
    ///
    /// # Errors
    /// The directory has gone, a file in it cannot be read, or a text is not of its option's kind.
    pub(crate) fn read(&mut self, env: Lookup<'_>) -> Result<Options, Unreadable> {
        let dir = self.flags.text(Setting::ConfigDir, env);
        let dir = Path::new(&dir);
        if dir.as_os_str().is_empty() {
            return Ok(self.flags.options(&|_| None, env)?);
        }
        let unreadable = |path: &Path, cause| Unreadable::File { path: path.to_owned(), cause };
        if !self.followed.is_empty() {
            std::fs::read_dir(dir).map_err(|cause| unreadable(dir, cause))?;
        }
        let mut files = BTreeMap::new();
        for name in SPECS.iter().map(|spec| spec.variable()) {
            let path = dir.join(&name);
            if let Some(value) = value(&path).map_err(|cause| unreadable(&path, cause))? {
                files.insert(name, value);
            }
        }
        self.followed.extend(files.keys().cloned());
        let unfollowed = |name: &str| env(name).filter(|_| !self.followed.contains(name));
        Ok(self.flags.options(&|name| files.get(name).cloned(), &unfollowed)?)
    }
}

/// The value of a variable; `None` where there is no file.
fn value(path: &Path) -> io::Result<Option<String>> {
    match trusted::read(path, Links::Followed, MAX_FILE) {
        Err(error) if error.is_not_found() => Ok(None),
        text => String::from_utf8(text?).map(Some).map_err(|_| io::Error::other("it is not UTF-8 text")),
    }
}

/// Calls `changed` once and after every change in the directory, on a thread of its own that lives as long as the process.
///
/// # Errors
/// The system gives no thread.
pub(crate) fn watch(dir: PathBuf, mut changed: impl FnMut() + Send + 'static) -> io::Result<()> {
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
fn begin(dir: &Path) -> io::Result<Inotify> {
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
fn wait(mut inotify: Inotify) -> io::Result<()> {
    inotify.read_events_blocking(&mut [0; 4096])?;
    Ok(())
}

#[cfg(test)]
mod tests;
