//! One error type for all sources: what was asked, where, why it failed, what to do.

use std::path::PathBuf;
use std::time::Duration;

/// A question to a source that was not answered.
///
/// The text is complete in itself: operation, object, place, cause and advice. There is no `source()` to append.
#[derive(Debug, thiserror::Error)]
#[error("{operation} from {origin}: {cause}{}; {}", self.effort(), cause.advice())]
pub struct Error {
    /// What was attempted, such as `get pod shop/web-0`.
    pub operation: String,
    /// Which source, with the place of its configuration.
    pub origin: String,
    /// Why it failed.
    pub cause: Cause,
    /// How often it was tried.
    pub tries: u32,
    /// How long all tries took.
    pub elapsed: Duration,
}

/// Whether a later try of the same question may succeed without anybody changing the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// No.
    Never,
    /// Yes, after a growing pause.
    Backoff,
}

/// Why a source did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The pod's name or namespace could not be one, so nothing was asked.
    #[error("{0:?} is not a Kubernetes name")]
    InvalidName(String),
    /// The object that was found is another incarnation of the pod.
    #[error("stale object: the runtime starts the pod with uid {wanted}, the object has uid {found}")]
    Stale {
        /// What the runtime said.
        wanted: String,
        /// What the source has.
        found: String,
    },
    /// A file or directory cannot be read.
    #[error("read {path}: {reason}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The operating system's words, or the limit that was exceeded.
        reason: String,
    },
    /// No manifest describes the pod.
    #[error("none of {files} manifest files in {dir} describes it", dir = dir.display())]
    NotInManifests {
        /// The directory searched.
        dir: PathBuf,
        /// How many files were looked at.
        files: usize,
    },
    /// No valid manifest describes the pod, and this one, which may be the one, is broken.
    #[error("no valid manifest describes it, and {path} is broken at line {line}, column {column}: {reason}{}", others(.more), path = path.display())]
    BrokenManifest {
        /// The first broken file.
        path: PathBuf,
        /// Line, from 1; 0 when unknown.
        line: u64,
        /// Column, from 1; 0 when unknown.
        column: u64,
        /// The parser's words.
        reason: String,
        /// How many other files are broken as well.
        more: usize,
    },
}

fn others(more: &usize) -> String {
    if *more == 0 { String::new() } else { format!(" (and {more} more broken)") }
}

impl Cause {
    /// Whether trying again may help.
    pub fn retry(&self) -> Retry {
        match self {
            Cause::Stale { .. } => Retry::Backoff,
            _ => Retry::Never,
        }
    }

    /// What the reader of the message can do.
    fn advice(&self) -> &'static str {
        match self {
            Cause::InvalidName(_) => "check K8S_POD_NAMESPACE and K8S_POD_NAME in CNI_ARGS",
            Cause::Stale { .. } => {
                "the pod was replaced under the same name; the runtime's next attempt will see the new one"
            }
            Cause::Unreadable { .. } => "check that the path exists and that the plugin may read it",
            Cause::NotInManifests { .. } => {
                "add a manifest of kind Pod with this name and namespace, best as <namespace>_<name>.yaml"
            }
            Cause::BrokenManifest { .. } => "correct or remove the file",
        }
    }
}

// === impl Error ===

impl Error {
    pub(crate) fn new(operation: impl Into<String>, origin: impl Into<String>, cause: Cause) -> Self {
        Self { operation: operation.into(), origin: origin.into(), cause, tries: 1, elapsed: Duration::ZERO }
    }

    /// Whether trying again may help.
    pub fn retry(&self) -> Retry {
        self.cause.retry()
    }

    fn effort(&self) -> String {
        if self.tries < 2 {
            return String::new();
        }
        format!(" (gave up after {} tries in {:.1} s)", self.tries, self.elapsed.as_secs_f64())
    }
}
