//! How the backend is to work, said before its first call.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use ruleset::Ruleset;

use super::program::{Search, Variant};
use super::supervisor::Supervisor;
use super::{Iptables, TIMEOUT};

impl Default for Iptables {
    fn default() -> Self {
        Self::new()
    }
}

impl Iptables {
    /// Takes the variant that the namespace uses, else the nft one, with programs from PATH and the usual directories. Nothing is
    /// looked at before the first call.
    #[must_use]
    pub fn new() -> Self {
        Self {
            forced: None,
            search: Search::from_environment(),
            timeout: TIMEOUT,
            supervisor: None,
            run_dir: None,
            node: false,
            before: Vec::new(),
            warnings: Mutex::default(),
        }
    }

    /// Takes this variant and no other.
    #[must_use]
    pub fn forced(variant: Variant) -> Self {
        Self { forced: Some(variant), ..Self::new() }
    }

    /// Looks for the programs in these directories only.
    #[must_use]
    pub fn searching(self, directories: Vec<PathBuf>) -> Self {
        Self { search: Search(directories), ..self }
    }

    /// Gives each program this long before it is killed, instead of 30 s.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Lets a supervisor do what takes more than one run, so that it is finished or taken back even if this process is killed.
    #[must_use]
    pub fn supervised(self, supervisor: Supervisor) -> Self {
        Self { supervisor: Some(supervisor), ..self }
    }

    /// Lets changes of one namespace take turns, by the locks in this run directory. Without it, two at the same time may take back what the
    /// other has done.
    #[must_use]
    pub fn locking(self, run_dir: &Path) -> Self {
        Self { run_dir: Some(run_dir.to_owned()), ..self }
    }

    /// For the node's own namespace, where others change rules at the same time: legacy programs take the node's lock, because they
    /// write whole tables, and would undo what another does meanwhile.
    #[must_use]
    pub fn on_the_node(self) -> Self {
        Self { node: true, ..self }
    }

    /// Takes these layers' rules in built-in chains for ours, too: layers that a setup of others takes the place of. Chains of ours are known by
    /// their names, and jumps by where they go; of every other rule only the layers say whose it is.
    #[must_use]
    pub fn replacing(self, before: Vec<Ruleset>) -> Self {
        Self { before, ..self }
    }
}
