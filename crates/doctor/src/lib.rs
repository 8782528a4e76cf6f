//! Looks at a node and says what is in order and what is not. The agent makes some of these looks again and again, `cnictl doctor` all of
//! them once; both get the same words.
//!
//! Nothing here writes to the node. What the kernel can do is tried in a network namespace that nobody else has, which ends with the look.
//!
//! | module | section |
//! |---|---|
//! | [`kernel_parts`] | kernel, modules |
//! | [`runtime`] | runtime |
//! | [`installation`] | installation |
//! | [`meshes`] | meshes |
//! | [`dns`], [`server`] | cluster |

pub mod dns;
pub mod installation;
pub mod kernel_parts;
pub mod meshes;
pub mod runtime;
pub mod server;
mod space;
mod token;

use std::path::PathBuf;
use std::time::Instant;

use checks::{CheckFinding, CheckResult, CheckSpec};

/// Where things of the node are, as this process sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFiles {
    /// Directory of CNI configurations.
    pub net_dir: PathBuf,
    /// Directories of the plugin's program.
    pub bin_dirs: Vec<PathBuf>,
    /// Directory of sockets, records and the kubeconfig.
    pub run_dir: PathBuf,
    /// The node's `/etc`.
    pub etc: PathBuf,
    /// The node's procfs.
    pub proc: PathBuf,
    /// The node's sysfs.
    pub sys: PathBuf,
    /// The node's `/lib/modules`.
    pub modules: PathBuf,
    /// The node's `/run`.
    pub run: PathBuf,
}

/// Makes one check, with the time that it takes.
pub fn timed(check: &CheckSpec, look: impl FnOnce() -> CheckFinding) -> CheckResult {
    let begun = Instant::now();
    let finding = look();
    finding.of(check, begun.elapsed().as_secs_f64())
}
