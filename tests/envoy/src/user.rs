//! Users of a pod.

use anyhow::{Context as _, Result};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::bootstrap::Mode;

/// The user and group as which something runs, with no other group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl User {
    /// Root.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
    /// The pod's application.
    pub const APP: Self = Self { uid: 1000, gid: 1000 };

    /// The proxy, as Istio's injector has it run.
    ///
    /// In TPROXY it is root, with the proxy's group. That is more than a way to a capability: what user 1337 sends to its own
    /// pod's addresses is inbound traffic by the rules. In TPROXY, where the proxy keeps the client's
    /// source address, that would be every connection of the proxy to the application: each would come back to the proxy.
    /// What root sends there passes.
    #[must_use]
    pub fn proxy(mode: Mode) -> Self {
        match mode {
            Mode::Redirect => Self { uid: 1337, gid: 1337 },
            Mode::Tproxy => Self { uid: 0, gid: 1337 },
        }
    }

    /// Changes the calling thread and those that it starts, not the process.
    pub(crate) fn enter(self) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let change = || {
            set_thread_groups(&[])?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)
        };
        change().with_context(|| format!("cannot become {self} (run as root)"))
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "user {} and group {}", self.uid, self.gid)
    }
}
