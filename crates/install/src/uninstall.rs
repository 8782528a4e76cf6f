//! The node without the plugin.

use std::ffi::OsString;
use std::fmt;
use std::fs::FileType;
use std::path::{Path, PathBuf};

use leftover::{Mark, Results};

use crate::binaries::PLUGIN;
use crate::config::{self, ConfigError, EntryRemoval, Ours};
use crate::error::Error;
use crate::file::{self, FileError};
use crate::kubeconfig::KubeconfigError;
use crate::options::{
    InstallMode, InstallOptions, OWNED_NAME, ProgramAtEnd, STANDALONE_END, STANDALONE_NAME,
};
use rundir::KUBECONFIG;

/// What was done, and what could not be: one failure does not keep the rest from being done.
#[derive(Debug, Default)]
pub struct UninstallReport {
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
    /// The plugin's program stays for the DELs of pods from before.
    Kept(PathBuf, Kept),
}

/// Why the plugin's program stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// So many results that libcni keeps name it. It goes with the last of them.
    Named(usize),
    /// What libcni keeps cannot be seen.
    Unknown,
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
            Self::Kept(path, why) => write!(f, "kept {}: {why}", path.display()),
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(count) => write!(
                f,
                "{count} pods were added with it, and runtimes may delete them with the configuration of their ADD; it is \
                 removed after the last of them, or at once by cnictl uninstall --purge"
            ),
            Self::Unknown => f.write_str(
                "the results that libcni keeps cannot be seen, and runtimes may delete pods with the configuration of their ADD; \
                 it is removed after the last of them if the node can tell, or at once by cnictl uninstall --purge",
            ),
        }
    }
}

impl From<EntryRemoval> for Done {
    fn from(taken: EntryRemoval) -> Self {
        match taken {
            EntryRemoval::Restored(path) => Self::Restored(path),
            EntryRemoval::EntryRemoved(path) => Self::EntryRemoved(path),
            EntryRemoval::Deleted(path) => Self::Deleted(path),
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
/// upstream goes too. Other programs that were copied stay; name them in `leftovers` if they are to go.
pub fn uninstall(options: &InstallOptions, leftovers: &[PathBuf]) -> UninstallReport {
    UninstallReport::of(options, leftovers, Act::Do)
}

/// What [`uninstall`] would do now. Nothing is changed; the errors are those of reading.
pub fn plan_uninstall(options: &InstallOptions, leftovers: &[PathBuf]) -> UninstallReport {
    UninstallReport::of(options, leftovers, Act::Tell)
}

impl UninstallReport {
    fn of(options: &InstallOptions, leftovers: &[PathBuf], act: Act) -> Self {
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
            match end_program(&program, &options.program_at_end, act) {
                Ok(done) => report.done.extend(done),
                Err(cause) => report.errors.push(Error::Binaries(cause.into())),
            }
        }
        for path in leftovers {
            report.deleted(path, delete_tree(path, act), Error::Leftover);
        }
        report
    }

    fn configurations(&mut self, options: &InstallOptions, act: Act) {
        let names = match file::names(&options.net_dir) {
            Ok(names) => names,
            Err(cause) => return self.errors.push(Error::Config(cause.into())),
        };
        let before = self.errors.len();
        for name in &names {
            let is_configured = options.conf_name.as_deref().is_some_and(|configured| name == configured);
            if is_configured || config::form_of(name).is_some() {
                self.configuration(options, &options.net_dir.join(name), act);
            }
        }
        let is_other = |name: &&OsString| {
            config::form_of(name).is_none() && !config::is_original(name) && !file::is_temp(name)
        };
        for path in names.iter().filter(is_other).map(|name| options.net_dir.join(name)) {
            let take_out = match act {
                Act::Do => config::take_out_of_renamed,
                Act::Tell => config::plan_take_out_of_renamed,
            };
            // What cannot be read there is nothing of ours.
            if let Ok(taken) = take_out(&path) {
                self.done.extend(taken.map(Done::from));
            }
        }
        // An original is all that is left of a configuration that could not be restored.
        if self.errors.len() == before && act == Act::Do {
            let errors =
                config::remove_originals(&options.net_dir).into_iter().chain(config::sweep(&options.net_dir));
            self.errors.extend(errors.map(|cause| Error::Config(cause.into())));
        }
    }

    fn configuration(&mut self, options: &InstallOptions, path: &Path, act: Act) {
        // what cannot be followed was not written through
        let Ok(path) = config::follow(path) else { return };
        let take_out = match act {
            Act::Do => config::take_out,
            Act::Tell => config::plan_take_out,
        };
        let ours = ours(options, &path);
        match take_out(&path, ours) {
            Ok(taken) => self.done.extend(taken.map(Done::from)),
            Err(ConfigError::File(FileError::TooLarge { .. })) if ours == Ours::Whole => {
                self.deleted(&path, delete(&path, act), |cause| Error::Config(cause.into()));
            }
            // nothing that we wrote
            Err(ConfigError::File(FileError::TooLarge { .. } | FileError::NotRegular { .. })) => {}
            Err(error) => self.errors.push(Error::Config(error)),
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

/// Whose a file is. Without the agent its options are not known: then the name tells, unless the file has an original, which only
/// another component's has.
fn ours(options: &InstallOptions, path: &Path) -> Ours {
    let configured = options.conf_name.as_deref();
    let is_made = match &options.mode {
        InstallMode::Owned { file_name } if path.ends_with(file_name) => true,
        InstallMode::Standalone if path.ends_with(configured.unwrap_or(STANDALONE_NAME)) => true,
        InstallMode::Owned { .. } | InstallMode::Chained | InstallMode::Standalone => {
            let is_copy = path.ends_with(OWNED_NAME) && configured != Some(OWNED_NAME);
            // Any other single network with the plugin in it has become a list, with another extension.
            let is_alone = path.to_string_lossy().ends_with(STANDALONE_END);
            (is_copy || is_alone) && !config::has_original(path)
        }
    };
    if is_made { Ours::Whole } else { Ours::Entry }
}

/// Ends the plugin's program, or leaves it to the last DEL that needs it.
fn end_program(program: &Path, end: &ProgramAtEnd, act: Act) -> Result<Option<Done>, FileError> {
    let failed = |cause| FileError::io("remove", program, cause);
    let mark = Mark::of(program);
    let is_file = kind(program)?.is_some_and(|kind| !kind.is_dir());
    let ProgramAtEnd::StaysWhileNamed { cache, on_node, sees_node } = end else {
        return delete_program(program, &mark, act);
    };
    if !is_file {
        return delete_program(program, &mark, act);
    }
    if act == Act::Do {
        // First the mark: a DEL that ends between the look at the results and the mark would leave the program for ever.
        mark.set(on_node).map_err(failed)?;
    }
    let results = match leftover::look(cache, PLUGIN) {
        Results::Absent if *sees_node => Results::Naming(0),
        results => results,
    };
    match results {
        Results::Naming(0) => delete_program(program, &mark, act),
        Results::Naming(count) => Ok(Some(Done::Kept(program.to_owned(), Kept::Named(count)))),
        Results::Absent | Results::Unknown => Ok(Some(Done::Kept(program.to_owned(), Kept::Unknown))),
    }
}

fn delete_program(program: &Path, mark: &Mark, act: Act) -> Result<Option<Done>, FileError> {
    let failed = |cause| FileError::io("remove", program, cause);
    let was_there = match act {
        Act::Do => leftover::remove_now(mark).map_err(failed)?,
        Act::Tell => kind(program)?.is_some() || mark.is_set(),
    };
    if was_there && act == Act::Do {
        file::sync_directory(program)?;
    }
    Ok(was_there.then(|| Done::Deleted(program.to_owned())))
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
