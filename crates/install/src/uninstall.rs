//! The node without the plugin.

use std::fmt;
use std::fs::FileType;
use std::path::{Path, PathBuf};

use cni::conflist::Form;

use crate::binaries::PLUGIN;
use crate::config::{self, ConfigError, Taken};
use crate::error::Error;
use crate::file::{self, FileError};
use crate::kubeconfig::{KUBECONFIG, KubeconfigError};
use crate::options::{Mode, OWNED_NAME, Options};

/// What was done, and what could not be: one failure does not keep the rest from being done.
#[derive(Debug, Default)]
pub struct Report {
    /// In order.
    pub done: Vec<Done>,
    /// In order.
    pub errors: Vec<Error>,
}

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// A configuration is what it was before, to the byte, with mode and owner.
    Restored(PathBuf),
    /// A configuration that others have changed since is without our entry.
    EntryRemoved(PathBuf),
    /// A file or a directory is gone.
    Deleted(PathBuf),
}

/// Whether anything is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Do,
    Tell,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restored(path) => write!(f, "restored {}", path.display()),
            Self::EntryRemoved(path) => write!(f, "took the plugin out of {}", path.display()),
            Self::Deleted(path) => write!(f, "deleted {}", path.display()),
        }
    }
}

impl From<Taken> for Done {
    fn from(taken: Taken) -> Self {
        match taken {
            Taken::Restored(path) => Self::Restored(path),
            Taken::EntryRemoved(path) => Self::EntryRemoved(path),
            Taken::Deleted(path) => Self::Deleted(path),
        }
    }
}

/// Takes the plugin off the node: out of every configuration, then the kubeconfig, the plugin's program, and `leftovers`, which are
/// files and directories of the agent's own.
///
/// Where a configuration cannot be rid of the plugin, everything else stays: a runtime that finds it named there and not in its directory
/// starts no pod at all.
///
/// It looks only at what is there, so it works without an agent, after a kill, and when the options have changed. What was installed by
/// upstream goes too. Other programs that were copied stay (I-47); name them in `leftovers` if they are to go.
pub fn uninstall(options: &Options, leftovers: &[PathBuf]) -> Report {
    Report::of(options, leftovers, Act::Do)
}

/// What [`uninstall`] would do now. Nothing is changed; the errors are those of reading.
pub fn plan_uninstall(options: &Options, leftovers: &[PathBuf]) -> Report {
    Report::of(options, leftovers, Act::Tell)
}

impl Report {
    fn of(options: &Options, leftovers: &[PathBuf], act: Act) -> Self {
        let mut report = Self::default();
        report.configurations(options, act);
        if !report.errors.is_empty() {
            return report;
        }
        let kubeconfig = options.run_dir.join(KUBECONFIG);
        report.deleted(&kubeconfig, delete(&kubeconfig, act), |cause| {
            Error::Kubeconfig(KubeconfigError::File(cause))
        });
        for program in options.bin_targets.iter().map(|target| target.join(PLUGIN)) {
            report.deleted(&program, delete(&program, act), |cause| Error::Binaries(cause.into()));
        }
        for path in leftovers {
            report.deleted(path, delete_tree(path, act), Error::Leftover);
        }
        report
    }

    fn configurations(&mut self, options: &Options, act: Act) {
        let names = match file::names(&options.net_dir) {
            Ok(names) => names,
            Err(cause) => return self.errors.push(Error::Config(cause.into())),
        };
        let before = self.errors.len();
        for name in names {
            let path = options.net_dir.join(&name);
            let is_configured = options.conf_name.as_deref().is_some_and(|configured| name == configured);
            if !is_configured && name.to_str().and_then(Form::of).is_none() {
                continue;
            }
            // what cannot be followed was not written through
            let Ok(path) = config::follow(&path) else { continue };
            let take_out = match act {
                Act::Do => config::take_out,
                Act::Tell => config::plan_take_out,
            };
            match take_out(&path, is_own(options, &path)) {
                Ok(taken) => self.done.extend(taken.map(Done::from)),
                // nothing that we wrote
                Err(ConfigError::File(FileError::TooLarge { .. } | FileError::NotRegular { .. })) => {}
                Err(error) => self.errors.push(Error::Config(error)),
            }
        }
        // An original is all that is left of a configuration that could not be restored.
        if self.errors.len() == before && act == Act::Do {
            let errors =
                config::remove_originals(&options.net_dir).into_iter().chain(config::sweep(&options.net_dir));
            self.errors.extend(errors.map(|cause| Error::Config(cause.into())));
        }
    }

    fn deleted(
        &mut self,
        path: &Path,
        was_there: Result<bool, FileError>,
        error: impl FnOnce(FileError) -> Error,
    ) {
        match was_there {
            Ok(true) => self.done.push(Done::Deleted(path.to_owned())),
            Ok(false) => {}
            Err(cause) => self.errors.push(error(cause)),
        }
    }
}

/// Whether a list is a copy that we made. Without the agent its options are not known: then the default name tells, unless the file
/// has an original, which only another component's has.
fn is_own(options: &Options, path: &Path) -> bool {
    match &options.mode {
        Mode::Owned { file_name } => path.ends_with(file_name),
        Mode::Chained | Mode::Standalone => {
            path.ends_with(OWNED_NAME)
                && options.conf_name.as_deref() != Some(OWNED_NAME)
                && !config::has_original(path)
        }
    }
}

/// False if there was no such file.
fn delete(path: &Path, act: Act) -> Result<bool, FileError> {
    match act {
        Act::Do => file::remove(path),
        Act::Tell => Ok(kind(path)?.is_some()),
    }
}

fn delete_tree(path: &Path, act: Act) -> Result<bool, FileError> {
    if act == Act::Do && kind(path)?.is_some_and(|kind| kind.is_dir()) {
        std::fs::remove_dir_all(path).map_err(|cause| FileError::io("remove", path, cause))?;
        return Ok(true);
    }
    delete(path, act)
}

/// `None` if there is nothing.
fn kind(path: &Path) -> Result<Option<FileType>, FileError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.file_type())),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(FileError::io("remove", path, cause)),
    }
}
