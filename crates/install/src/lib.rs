//! The plugin on a node: binaries, kubeconfig, CNI configuration; placed, watched, restored.
//!
//! ```text
//! Options ─► Installer::run:  look ─► differs? ─► write ─► watch ─► look ─► ready ─► wait for a change ─┐
//!                              ▲                                                                          │
//!                              └──────────────────────────── throttle ◄──────────────────────────────┘
//! ```
//!
//! Everything is compared first and written only where it differs, so that a cycle can be repeated at any time. Every file is
//! written aside, synced and renamed: a reader sees the old or the new one. What belongs to other components is never lost:
//! the original of a configuration is kept beside it, and goes back when the plugin is taken off the node.
//!
//! The crate is synchronous: [`Installer::run`] has a thread of its own, and a [`Handle`] to wake it. What happens is told to an
//! [`Observer`]; nothing ends the loop but [`Handle::stop`].
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | what is installed where |
//! | [`event`] | what the observer is told |
//! | [`installer`] | the loop |
//! | `binaries`, `kubeconfig`, `config` | one phase each: look, and write what differs |
//! | `file` | bounded reads, replacing files |
//! | `watch`, `throttle` | waiting |
//! | [`uninstall`](mod@uninstall), [`inspect`](mod@inspect) | for the operator; they need no agent |

mod binaries;
mod config;
mod error;
pub mod event;
mod file;
pub mod inspect;
pub mod installer;
mod kubeconfig;
pub mod options;
mod throttle;
pub mod uninstall;
mod watch;

pub use binaries::{BinaryError, PLUGIN};
pub use config::{ConfigError, Obstacle, Problem, WaitReason};
pub use error::Error;
pub use event::{InstallEvent, Observer};
pub use file::FileError;
pub use inspect::{Installed, inspect};
pub use installer::{Handle, Installer};
pub use kubeconfig::KubeconfigError;
pub use options::{InstallMode, InstallOptions, KubeconfigOptions, OptionsError, ProgramAtEnd};
pub use uninstall::{Done, Kept, UninstallReport, plan_uninstall, uninstall};
