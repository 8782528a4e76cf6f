//! Files that the plugin is not put into.

use std::path::{Path, PathBuf};

use cni::conflist::ConflistError;
use cni::libcni::LoadError;

use super::scan::MAX_FILES;
use crate::file::{FileError, MAX_BYTES};

/// A file that looks like a configuration by its name, and is passed over.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A runtime would pass it over too.
    #[error("{path} is no valid network configuration: {cause}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The first thing that is wrong.
        cause: LoadError,
    },
    /// Which plugins are called depends on the runtime.
    #[error("{path} is not changed because container runtimes differ about it: {difference}", path = path.display())]
    Differs {
        /// The file.
        path: PathBuf,
        /// What each release of `libcni` makes of it, and what to do.
        difference: String,
        /// The folder of its further plugins; it need not exist.
        folder: Option<PathBuf>,
    },
    /// Upstream leaves such files alone, and so do we.
    #[error("{path} is a network that runtimes load, and files of this extension are not changed; rename it to .conf", path = .0.display())]
    Json(PathBuf),
    /// Its original could not be found again by its name.
    #[error("{path} is a network that runtimes load, and its name is no UTF-8 text, so that it is not changed; rename it", path = .0.display())]
    OddName(PathBuf),
    /// A runtime loads it, and would not load what would be written.
    #[error("the plugin cannot be put into {path}: {cause}", path = path.display())]
    Unmergeable {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: ConflistError,
    },
    /// The list could not be read again.
    #[error("the plugin cannot be put into {path}: the list would be larger than {MAX_BYTES} bytes; remove what is not needed", path = .0.display())]
    TooLong(PathBuf),
    /// As a list it would sort behind a file that it sorts before now.
    #[error("{path} cannot become a list: runtimes would use {other} instead, which would then sort before it; rename one of them", path = path.display(), other = other.display())]
    Overtaken {
        /// The file.
        path: PathBuf,
        /// The other one.
        other: PathBuf,
    },
    /// A link to nowhere, as far as this process sees.
    #[error("{path} is a symbolic link to a file that does not exist here", path = path.display())]
    Dangling {
        /// The file.
        path: PathBuf,
        /// Whether it points out of the directory: the host may have the file.
        is_outside: bool,
    },
    /// What is behind it may be on another mount, or not be a configuration at all.
    #[error("{path} is a symbolic link out of its directory, and its target is not changed; make it a file", path = .0.display())]
    LinkOutside(PathBuf),
    /// It would have to become a `.conflist`, and the link would point to nothing.
    #[error("{path} is a symbolic link to a single network and cannot become a list; make it a file, or a .conflist", path = path.display())]
    LinkToSingle {
        /// The file.
        path: PathBuf,
        /// Whether a runtime loads what it points to.
        is_loaded: bool,
    },
    /// Our own file of another mode.
    #[error("{path} holds only this plugin, as in the standalone mode, so there is no network to extend", path = .0.display())]
    Standalone(PathBuf),
    /// A bound that keeps time and memory small.
    #[error("directory {path} has more than {MAX_FILES} network configurations; the last ones are not looked at", path = .0.display())]
    TooMany(PathBuf),
}

impl Problem {
    /// Whether a runtime loads the file, or it cannot be told that no runtime does.
    pub(super) fn may_be_used(&self) -> bool {
        match self {
            Self::File(FileError::NotRegular { .. }) | Self::Invalid { .. } | Self::TooMany(_) => false,
            Self::Dangling { is_outside: flag, .. } | Self::LinkToSingle { is_loaded: flag, .. } => *flag,
            Self::File(_)
            | Self::Differs { .. }
            | Self::Json(_)
            | Self::OddName(_)
            | Self::Unmergeable { .. }
            | Self::TooLong(_)
            | Self::Overtaken { .. }
            | Self::LinkOutside(_)
            | Self::Standalone(_) => true,
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::File(error) => error.path(),
            Self::Invalid { path, .. }
            | Self::Differs { path, .. }
            | Self::Json(path)
            | Self::OddName(path)
            | Self::Unmergeable { path, .. }
            | Self::TooLong(path)
            | Self::Overtaken { path, .. }
            | Self::Dangling { path, .. }
            | Self::LinkOutside(path)
            | Self::LinkToSingle { path, .. }
            | Self::Standalone(path)
            | Self::TooMany(path) => path,
        }
    }
}
