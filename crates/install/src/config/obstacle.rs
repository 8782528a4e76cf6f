//! Why pods start without the plugin although it is where it was meant to be.

use std::path::{Path, PathBuf};

use super::Problem;

/// What keeps runtimes from calling the plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// A file that this agent does not change comes first.
    #[error("pods start without the plugin: {0}")]
    PassedOver(String),
    /// Another network comes first.
    #[error(
        "container runtimes use {first}, which sorts before {path}: pods start without the plugin; set CNI_CONF_NAME to the first one, or leave it empty",
        first = first.display(), path = path.display()
    )]
    Preempted {
        /// The one that is used.
        first: PathBuf,
        /// The one that the plugin is in.
        path: PathBuf,
    },
    /// Runtimes do not look for the configured name.
    #[error("no container runtime loads {path} by its name: pods start without the plugin; set CNI_CONF_NAME to a name that ends in .conflist, or leave it empty", path = .0.display())]
    NotLoaded(PathBuf),
    /// Nothing in the list makes an interface.
    #[error("{path} calls no plugin that gives pods an address, so that they do not start; restore the network's own configuration", path = .0.display())]
    NoAddress(PathBuf),
}

/// The file that runtimes use, or may use, instead of `used`: `loaded` are those that all of them load, by their listed names.
pub(crate) fn before(used: Option<&Path>, loaded: &[PathBuf], problems: &[Problem]) -> Option<Obstacle> {
    let is_before = |path: &&Path| used.is_none_or(|used| path.file_name() < used.file_name());
    let passed = problems.iter().filter(|problem| problem.may_be_used() && is_before(&problem.path()));
    let passed = passed.min_by_key(|problem| problem.path().file_name().map(ToOwned::to_owned));
    let first = used.and_then(|used| {
        let first = loaded.iter().find(|path| is_before(&path.as_path()))?;
        Some((first, used))
    });
    match (passed, first) {
        (Some(problem), Some((first, _))) if problem.path().file_name() <= first.file_name() => {
            Some(Obstacle::PassedOver(problem.to_string()))
        }
        (_, Some((first, used))) => Some(Obstacle::Preempted { first: first.clone(), path: used.to_owned() }),
        (Some(problem), None) => Some(Obstacle::PassedOver(problem.to_string())),
        (None, None) => None,
    }
}
