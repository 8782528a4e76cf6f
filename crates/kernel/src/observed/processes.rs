//! The processes of pods, by the network namespaces that they are in.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use conflicts::{ObservedListener, ObservedProcess, PlannedProxy};
use netns::NetnsId;

use super::ObservedSubject;
use super::sockets::Listening;

/// Processes of a namespace that are kept, and descriptors of each that are looked at to find the one that has a socket.
const MOST: usize = 256;
const MOST_DESCRIPTORS: usize = 4 << 10;
/// `CAP_NET_ADMIN` of linux/capability.h.
const NET_ADMIN: u64 = 1 << 12;

/// The processes of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodProcesses {
    processes: Vec<ObservedProcess>,
    /// A control group of one of them, as `/proc/PID/cgroup` of version 2 names it.
    pub(super) control_group: Option<PathBuf>,
}

/// The processes of all namespaces but that of the calling thread's process: some microseconds for each process of the node.
///
/// # Errors
/// `/proc` cannot be read.
pub fn scan_processes(proc_root: &Path) -> std::io::Result<HashMap<NetnsId, PodProcesses>> {
    let mut found: HashMap<NetnsId, PodProcesses> = HashMap::new();
    let own = netns_of(&proc_root.join("self")).or_else(|| netns_of(Path::new("/proc/self")));
    for entry in std::fs::read_dir(proc_root)? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let dir = entry.path();
        // A process may end at any time.
        let Some(netns) = netns_of(&dir).filter(|netns| Some(*netns) != own) else { continue };
        let of = found.entry(netns).or_default();
        if of.processes.len() < MOST {
            let group = control_group(&dir);
            of.processes.extend(process(&dir, pid, group.as_deref()));
            of.control_group = of.control_group.take().or(group);
        }
    }
    Ok(found)
}

fn netns_of(dir: &Path) -> Option<NetnsId> {
    let metadata = std::fs::metadata(dir.join("ns/net")).ok()?;
    Some(NetnsId { dev: metadata.dev(), ino: metadata.ino() })
}

fn process(dir: &Path, pid: u32, group: Option<&Path>) -> Option<ObservedProcess> {
    let status = std::fs::read_to_string(dir.join("status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    // Real, effective, saved and of the file system.
    let effective = |name: &str| field(name).split_ascii_whitespace().nth(1).and_then(|id| id.parse().ok());
    let capabilities = u64::from_str_radix(field("CapEff:").trim(), 16).unwrap_or(0);
    Some(ObservedProcess {
        pid,
        uid: effective("Uid:")?,
        gid: effective("Gid:")?,
        container: group.and_then(container),
        command: field("Name:").trim().to_owned(),
        proxy: false,
        net_admin: capabilities & NET_ADMIN != 0,
    })
}

/// The path in the hierarchy of version 2, else that of the first controller.
fn control_group(dir: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(dir.join("cgroup")).ok()?;
    let paths = || text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let unified = text.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| *path != "/");
    unified.or_else(|| paths().next()).map(PathBuf::from)
}

/// The container's id, from the last part of the path: `cri-containerd-<id>.scope`, `crio-<id>.scope` or `<id>`.
fn container(group: &Path) -> Option<String> {
    let name = group.file_name()?.to_str()?;
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.rsplit('-').next()?;
    (id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

impl PodProcesses {
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(|process| process.pid)
    }

    /// All of them. A sidecar's container is known by what runs in it as the proxy's user or group, or listens on a port of the proxy.
    pub(super) fn observed(
        &self,
        listeners: &[ObservedListener],
        proxy: &PlannedProxy,
    ) -> Vec<ObservedProcess> {
        let mut processes = self.processes.clone();
        let listens = |process: &ObservedProcess| listeners.iter().any(|of| of.pid == Some(process.pid));
        let is_proxy = |process: &ObservedProcess| {
            let runs = matches!(&*process.command, "envoy" | "pilot-agent");
            proxy.is_owner(process.uid, process.gid) && (runs || listens(process))
        };
        let containers: Vec<Option<String>> =
            processes.iter().filter(|of| is_proxy(of)).map(|process| process.container.clone()).collect();
        for process in &mut processes {
            let beside = process.container.is_some() && containers.contains(&process.container);
            process.proxy = beside || is_proxy(process);
        }
        processes
    }

    /// Finds the processes that have sockets on ports of the proxy; others are not asked about.
    pub(super) fn attribute(
        &self,
        listening: Vec<Listening>,
        proxy: &PlannedProxy,
        subject: &ObservedSubject<'_>,
    ) -> Vec<ObservedListener> {
        let mut listeners: Vec<ObservedListener> = Vec::new();
        for socket in listening {
            let outside = subject.proxy_mark.is_some_and(|(mark, mask)| socket.mark & mask == mark);
            let asked = proxy.ports.contains(&socket.port) && !outside;
            let owner = asked.then(|| self.owner(socket.inode, subject.proc_root)).flatten();
            let listener = ObservedListener {
                port: socket.port,
                uid: socket.uid,
                pid: owner.map(|process| process.pid),
                container: owner.and_then(|process| process.container.clone()),
            };
            if !listeners.contains(&listener) {
                listeners.push(listener);
            }
        }
        listeners
    }

    fn owner(&self, inode: u32, proc_root: &Path) -> Option<&ObservedProcess> {
        let wanted = format!("socket:[{inode}]");
        self.processes.iter().find(|process| {
            let Ok(entries) = std::fs::read_dir(proc_root.join(format!("{}/fd", process.pid))) else {
                return false;
            };
            let is_it = |entry: &std::fs::DirEntry| {
                std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
            };
            entries.flatten().take(MOST_DESCRIPTORS).any(|entry| is_it(&entry))
        })
    }
}
