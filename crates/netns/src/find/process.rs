//! A process of the node as procfs shows it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::NetnsId;
use crate::sys::UserNsId;

/// No file of procfs that is read here is longer than some hundred bytes, but for odd cgroups.
const MAX_FILE: u64 = 64 << 10;

/// Sandboxes as people know them.
pub(super) const GVISOR: &str = "gVisor";
pub(super) const KATA: &str = "Kata Containers";

/// How processes begin that run a pod's containers behind a network stack of their own: `comm`, of which the kernel keeps 15 bytes
/// (`TASK_COMM_LEN`), and the file name of the program as it was called, where `comm` does not say enough.
const SANDBOXES: &[(&str, &str, &str)] = &[
    ("runsc", "", GVISOR),
    // gVisor executes itself anew through /proc/self/exe.
    ("exe", "runsc", GVISOR),
    ("qemu-", "", KATA),
    ("cloud-hyperviso", "", KATA),
    ("firecracker", "", KATA),
    ("stratovirt", "", KATA),
    ("containerd-shim", "containerd-shim-kata", KATA),
];

/// The processes of a node, sorted by their number as text.
pub(super) struct Processes(std::vec::IntoIter<PathBuf>);

/// One of them; it may be gone by now.
pub(super) struct Process(PathBuf);

// === impl Processes ===

impl Processes {
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(root)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
                all.push(path);
            }
        }
        all.sort_unstable();
        Ok(Self(all.into_iter()))
    }
}

impl Iterator for Processes {
    type Item = Process;

    fn next(&mut self) -> Option<Process> {
        self.0.next().map(Process)
    }
}

// === impl Process ===

impl Process {
    /// By its number; whether it is there is seen by looking.
    pub(super) fn numbered(root: &Path, pid: u32) -> Self {
        Self(root.join(pid.to_string()))
    }

    /// Its program, where it is not hidden.
    pub(super) fn executable(&self) -> Option<PathBuf> {
        std::fs::read_link(self.0.join("exe")).ok()
    }

    pub(super) fn namespace_path(&self) -> PathBuf {
        self.0.join("ns/net")
    }

    /// Which network namespace it is in.
    pub(super) fn namespace(&self) -> io::Result<NetnsId> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(self.namespace_path())?;
        Ok(NetnsId { dev: metadata.dev(), ino: metadata.ino() })
    }

    pub(super) fn cgroup(&self) -> Option<String> {
        self.read("cgroup")
    }

    /// Which sandbox it is the process of.
    pub(super) fn sandbox(&self) -> Option<&'static str> {
        let comm = self.read("comm")?;
        let (_, called, sandbox) = SANDBOXES.iter().find(|(name, ..)| comm.starts_with(name))?;
        let is_called = || {
            let cmdline = self.read("cmdline")?;
            let program = cmdline.split('\0').next()?.rsplit('/').next()?.to_owned();
            Some(program.starts_with(called))
        };
        (called.is_empty() || is_called() == Some(true)).then_some(*sandbox)
    }

    /// Whether the namespace's traffic is passed on to a virtual machine by traffic control, below the rules and with the pod's address still
    /// on the outer interface: Kata Containers' `tcfilter`, which is its default, and its device `tap<number>_kata`. KubeVirt's machines have
    /// no such device, and the rules are in force for them. Who can make one can remove rules too, so no pod leaves the mesh by it.
    pub(super) fn is_bridged_to_vm(&self) -> bool {
        let names = self.read("net/dev").unwrap_or_default();
        names.lines().filter_map(|line| line.split_once(':')).any(|(name, _)| {
            let number = name.trim().strip_prefix("tap").and_then(|rest| rest.strip_suffix("_kata"));
            number
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        })
    }

    fn read(&self, name: &str) -> Option<String> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(self.0.join(name)).ok()?;
        file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The node's user namespace: that of its first process, or this process's where that cannot be looked at.
pub(super) fn node_users(root: &Path) -> Option<UserNsId> {
    use std::os::unix::fs::MetadataExt;
    let of = |path: &Path| std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    of(&root.join("1/ns/user")).or_else(|| of(Path::new("/proc/self/ns/user")))
}

/// Whether the process ended: its directory is gone (`ENOENT`), or was opened before (`ESRCH`).
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}
