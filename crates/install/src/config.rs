//! The CNI configuration: found, judged, written, restored.

mod component;
pub(crate) mod obstacle;
mod plan;
mod problem;
mod restore;
mod scan;
mod write;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use cni::conflist::{ConflistError, PluginEntry};

pub(crate) use component::component;
pub use obstacle::Obstacle;
pub(crate) use plan::{ConfigPlan, ConfigStep, Write, plan};
pub use problem::Problem;
pub(crate) use restore::{
    EntryRemoval, Ours, plan_take_out, plan_take_out_of_renamed, release, remove_originals, take_out,
    take_out_of_renamed,
};
pub(crate) use scan::{FileState, Scan, follow, form_of};
pub(crate) use write::write;

use crate::file::{self, FileError};
use crate::options::{InstallMode, InstallOptions, STANDALONE_NAME};

/// Behind the name of a file in the name of its original. No runtime loads it, as it is no extension of a configuration.
const ORIGINAL_SUFFIX: &str = ".istio-cni-original";

const SINGLE_END: &str = ".conf";
const LIST_END: &str = ".conflist";

/// How often taking out is begun anew because others write at the same time, before the next cycle goes on with it.
const TRIES: u32 = 5;

/// A configuration that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The configured file is no network.
    #[error("the plugin cannot be put into {path}: {cause}; correct the file, or name another one", path = path.display())]
    Merge {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: ConflistError,
    },
    /// A configured file that cannot be used.
    #[error(transparent)]
    Unusable(#[from] Problem),
    /// Two networks would become one.
    #[error(
        "{single} has to become a list with the name of {list}, which is another network; rename or remove one of them",
        single = single.display(), list = list.display()
    )]
    Twin {
        /// The single network.
        single: PathBuf,
        /// The other one.
        list: PathBuf,
    },
    /// Another writer was quicker each time.
    #[error("{path} changes all the time; another component is writing it", path = .0.display())]
    Unsteady(PathBuf),
}

/// Why there is nothing to write yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WaitReason {
    /// The network is not installed yet.
    #[error("no networks found in {dir}: waiting for a CNI plugin's configuration", dir = .0.display())]
    NoNetworks(PathBuf),
    /// There is not even the directory.
    #[error("CNI configuration directory {dir} does not exist: waiting for it; if the node's is another one, mount that (chart: cniConfDir)", dir = .0.display())]
    NoDirectory(PathBuf),
    /// There are files, and no runtime would load one.
    #[error("no valid networks found in {dir}: waiting for a CNI plugin's configuration; {problem}", dir = dir.display())]
    NoValidNetworks {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with the first file.
        problem: String,
    },
    /// The configured file, and the one with the other extension.
    #[error("CNI config file {path} does not exist: waiting for it", path = .0.display())]
    NotThere(PathBuf),
    /// Somebody is probably in the middle of writing it.
    #[error("CNI config file {path} is not complete: waiting for its writer", path = .0.display())]
    Settling(PathBuf),
}

/// What is wanted.
#[derive(Debug)]
pub(crate) struct InstallConfig<'a> {
    pub(crate) options: &'a InstallOptions,
    pub(crate) entry: &'a PluginEntry,
}

impl InstallConfig<'_> {
    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.options.net_dir.join(name)
    }

    /// The file that is ours alone, if the mode has one.
    fn own_file(&self) -> Option<PathBuf> {
        match &self.options.mode {
            InstallMode::Chained => None,
            InstallMode::Standalone => {
                Some(self.path(self.options.conf_name.as_deref().unwrap_or(STANDALONE_NAME)))
            }
            InstallMode::Owned { file_name } => Some(self.path(file_name)),
        }
    }
}

/// Where the original of a file is kept.
fn original_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ORIGINAL_SUFFIX);
    name.into()
}

/// Whether a name is of an original.
pub(crate) fn is_original(name: &OsStr) -> bool {
    base_of(name).is_some()
}

/// Whether the original of a file is kept.
pub(crate) fn has_original(path: &Path) -> bool {
    original_of(path).exists()
}

/// The name of the file whose original has this name.
fn base_of(original: &OsStr) -> Option<OsString> {
    original.to_str()?.strip_suffix(ORIGINAL_SUFFIX).filter(|base| !base.is_empty()).map(Into::into)
}

/// The same name with the other extension.
fn with_other_extension(path: &Path) -> Option<PathBuf> {
    with_end(path, SINGLE_END, LIST_END).or_else(|| with_end(path, LIST_END, SINGLE_END))
}

/// The same name with another end. Not `Path::with_extension`: for runtimes `.conf` alone is a name with an extension.
fn with_end(path: &Path, end: &str, other: &str) -> Option<PathBuf> {
    let stem = path.file_name()?.to_str()?.strip_suffix(end)?;
    Some(path.with_file_name(format!("{stem}{other}")))
}

/// The name that a file has once the plugin is in it.
fn list_of(path: &Path) -> PathBuf {
    with_end(path, SINGLE_END, LIST_END).unwrap_or_else(|| path.to_owned())
}

/// Removes what killed writers of ours left in the directory. Those that stay.
pub(crate) fn sweep(directory: &Path) -> Vec<FileError> {
    let names = match file::names(directory) {
        Ok(names) => names,
        Err(error) => return vec![error],
    };
    let temps = names.iter().filter(|name| file::is_temp(name));
    temps.filter_map(|name| file::remove(&directory.join(name)).err()).collect()
}
