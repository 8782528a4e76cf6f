//! The namespaces of a node and the processes in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::{eventually, until};

const SCRIPT: &str = include_str!("node.sh");
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Process 1 of a node and everything below it.
#[derive(Debug)]
pub(crate) struct Machine {
    unshare: Child,
    init: u32,
}

impl Machine {
    /// Makes the namespaces and starts containerd with the configuration found in `dir`.
    ///
    /// # Errors
    /// When not root, or `unshare` (util-linux) is missing.
    pub(crate) fn boot(dir: &Path) -> Result<Self> {
        let script = dir.join("node.sh");
        fs::write(&script, SCRIPT)?;
        let log = fs::File::create(dir.join("node.log"))?;
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh".as_ref(), script.as_os_str(), dir.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("run unshare: install the package util-linux")?;
        let (mut init, pid) = (None, unshare.id());
        let begun = || {
            init = only_child(pid);
            init.is_some() || !matches!(unshare.try_wait(), Ok(None))
        };
        let _ = until("process 1 of the node", START_LIMIT, begun, || "there is none");
        let Some(init) = init else {
            unshare.kill().ok();
            unshare.wait().ok();
            let log = fs::read_to_string(dir.join("node.log")).unwrap_or_default();
            bail!("make a node's namespaces (run as root): {}", log.trim());
        };
        Ok(Self { unshare, init })
    }

    /// Whether process 1 still runs.
    pub(crate) fn is_up(&mut self) -> bool {
        matches!(self.unshare.try_wait(), Ok(None))
    }

    /// Process 1 as the host numbers it.
    pub(crate) fn init(&self) -> u32 {
        self.init
    }

    /// A path inside the node, as the host can open it.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// A program to be run in the node's namespaces. With `netns`, a namespace file that the host can open, it runs in that
    /// network namespace instead of the node's.
    pub(crate) fn command(&self, netns: Option<&Path>, program: &str) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.init.to_string(), "--mount", "--pid", "--uts", "--ipc"]);
        match netns {
            Some(path) => nsenter.arg(format!("--net={}", path.display())),
            None => nsenter.arg("--net"),
        };
        nsenter.args(["--", program]);
        nsenter
    }

    /// Ends all processes of the node; returns when the kernel has let go of all its namespaces.
    pub(crate) fn halt(&mut self) {
        drop(self.unshare.stdin.take());
        if until("the node ends", STOP_LIMIT, || !self.is_up(), || "it goes on").is_err() {
            Command::new("kill").args(["-KILL", &self.init.to_string()]).status().ok();
            self.unshare.wait().ok();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.halt();
    }
}

/// The process that another one has started, as the host numbers both.
pub(crate) fn only_child(pid: u32) -> Option<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Removes the cgroups below `parent` (a name directly under each hierarchy's root), deepest first.
///
/// # Errors
/// When a group is still busy after some seconds.
pub(crate) fn remove_cgroups(parent: &str) -> Result<()> {
    let remove = || Ok(cgroup_dirs(parent).into_iter().try_for_each(|dir| remove_tree(&dir))?);
    eventually("cgroups are removed", STOP_LIMIT, remove)
}

/// Where a cgroup of this name exists: in each hierarchy of version 1, and in the one of version 2.
pub(crate) fn cgroup_dirs(parent: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
    std::iter::once(root.to_owned())
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join(parent))
        .filter(|dir| dir.is_dir())
        .collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}
