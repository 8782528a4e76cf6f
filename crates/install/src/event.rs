//! What an installer tells.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::config::{Obstacle, Problem, WaitReason};
use crate::error::Error;
use crate::file::FileError;

/// Is told of everything that happens, on the installer's thread.
pub trait Observer: Send {
    /// Something happened.
    fn event(&mut self, event: &InstallEvent<'_>);
}

/// Something that happened. Its text is one line for a log.
#[derive(Debug)]
#[non_exhaustive]
pub enum InstallEvent<'a> {
    /// Everything is in its place and watched: counts as SUCCESS.
    Ready {
        /// The configuration with our entry.
        config: &'a Path,
    },
    /// Readiness is over, at least until everything was looked at again.
    NotReady {
        /// Why, for people.
        reason: &'a str,
    },
    /// A phase failed and will be tried again. What was there before is still there.
    Failed {
        /// The phase and the reason.
        error: &'a Error,
        /// The next try, if nothing changes before.
        retry_in: Duration,
    },
    /// There is no configuration yet that the plugin could be put into.
    Waiting {
        /// What for.
        waiting: &'a WaitReason,
    },
    /// A program was copied.
    BinaryCopied {
        /// Its place.
        path: &'a Path,
    },
    /// The kubeconfig was written.
    KubeconfigWritten {
        /// Its place.
        path: &'a Path,
    },
    /// The plugin was put into a configuration.
    ConfigWritten {
        /// The file.
        path: &'a Path,
        /// Whether the plugin was in what runtimes had there before. Where it was not, pods have started without it.
        was_in: bool,
    },
    /// The plugin was taken out of a configuration that is not the primary one any more.
    ConfigReleased {
        /// The file.
        path: &'a Path,
    },
    /// Another component has written over the configuration.
    Overwritten {
        /// Who, as far as it can be told: a short word.
        component: &'a str,
        /// The file.
        path: &'a Path,
    },
    /// Runtimes do not call the plugin where it is. Told once, until it changes.
    Unused {
        /// Why not.
        obstacle: &'a Obstacle,
    },
    /// The configuration had to be written many times in a row.
    Throttled {
        /// The file.
        path: &'a Path,
        /// How many times.
        hits: u32,
    },
    /// A file was passed over. Told once, until it changes.
    Skipped {
        /// Why.
        problem: &'a Problem,
    },
    /// A file that a killed process left cannot be removed.
    NotSwept {
        /// Why.
        error: &'a FileError,
    },
}

impl InstallEvent<'_> {
    /// Whether somebody should look at it.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::Failed { .. }
            | Self::Overwritten { .. }
            | Self::Unused { .. }
            | Self::Throttled { .. }
            | Self::Skipped { .. }
            | Self::NotSwept { .. } => true,
            Self::Ready { .. }
            | Self::NotReady { .. }
            | Self::Waiting { .. }
            | Self::BinaryCopied { .. }
            | Self::KubeconfigWritten { .. }
            | Self::ConfigWritten { .. }
            | Self::ConfigReleased { .. } => false,
        }
    }
}

impl fmt::Display for InstallEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { config } => write!(f, "installed: the plugin is in {}", config.display()),
            Self::NotReady { reason } => write!(f, "not ready: {reason}"),
            Self::Failed { error, retry_in } => {
                write!(f, "{error} (next try in {:.1} s)", retry_in.as_secs_f64())
            }
            Self::Waiting { waiting } => waiting.fmt(f),
            Self::BinaryCopied { path } => write!(f, "copied {}", path.display()),
            Self::KubeconfigWritten { path } => write!(f, "wrote kubeconfig {}", path.display()),
            Self::ConfigWritten { path, .. } => write!(f, "wrote CNI config file {}", path.display()),
            Self::ConfigReleased { path } => {
                write!(
                    f,
                    "took the plugin out of {}, which is not the primary CNI config any more",
                    path.display()
                )
            }
            Self::Overwritten { component, path } => {
                // Who wrote is not known; the file's plugins or its name tell whose it is.
                let path = path.display();
                write!(
                    f,
                    "{path}, a file of {component} by its plugins or name, was overwritten; the plugin is put in again"
                )
            }
            Self::Unused { obstacle } => obstacle.fmt(f),
            Self::Throttled { path, hits } => {
                write!(f, "another component keeps reverting {} ({hits} times in a row)", path.display())?;
                if path.to_string_lossy().contains("cilium") {
                    f.write_str("; set cni.exclusive=false in Cilium's configuration")?;
                }
                Ok(())
            }
            Self::Skipped { problem } => write!(f, "passed over: {problem}"),
            Self::NotSwept { error } => write!(f, "a file that was left by a killed process stays: {error}"),
        }
    }
}
