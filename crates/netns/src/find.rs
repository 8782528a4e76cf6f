//! Network namespaces of pods that run already, found through the processes of the node.
//!
//! A process's cgroup says which pod it belongs to; its namespace counts only if it has an address of that pod, so that a process that has
//! entered another pod's namespace leads nowhere. A process of the pod can make a namespace and give it any address, so the user namespace
//! that owns it must be the one in which the runtime makes the pod's; and where two namespaces still could be the pod's, neither is taken.

mod cgroup;
mod process;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::sys::{UserNs, UserNsId};
use crate::{Inside, Netns, NetnsId};
use process::{Process, Processes};

/// Whose namespace is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPod {
    /// The pod's uid, as the API server has it.
    pub uid: String,
    /// What kubelet calls the pod in the names of its cgroups, where that is not the uid: the hash of a static pod's manifest.
    pub cgroup: Option<String>,
    /// Its addresses. Without any, no namespace can be told to be its.
    pub ips: Vec<IpAddr>,
    /// The pod has a user namespace of its own (`spec.hostUsers: false`), which owns its network namespace.
    pub own_users: bool,
    /// Whatever sandbox it runs in uses the network stack of its namespace: so says whoever runs the node.
    pub kernel_network: bool,
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct SearchRoots {
    /// The node's procfs, such as `/host/proc`.
    pub proc_root: PathBuf,
    /// The node's own namespace, which is no pod's.
    pub host: NetnsId,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// An open namespace for each pod that has one, by uid.
    pub namespaces: HashMap<String, Netns>,
    /// Why the others have no namespace.
    pub missing: HashMap<String, MissingNetns>,
}

/// Why no namespace is known to be a pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MissingNetns {
    /// No process of the pod was seen.
    NoProcess,
    /// The pod's processes are in the node's namespace.
    HostNetwork,
    /// The API server does not say which addresses it has.
    NoAddress,
    /// There is a namespace, and none of the pod's addresses is in it.
    OtherAddress,
    /// There is a namespace with the pod's address, and one of the pod's processes made it, not the runtime.
    OtherOwner,
    /// There is more than one namespace that could be the pod's: each, and a process in it.
    Several(Vec<(NetnsId, PathBuf)>),
    /// The addresses are inside of a sandbox.
    Sandbox(&'static str),
    /// The system did not let us look.
    Failed(String),
}

/// The addresses of a namespace other than those of `lo`, from whoever can list them: an address that only `lo` reaches identifies no pod.
pub type Addresses<'a> = &'a (dyn Fn(&Inside) -> Result<Vec<IpAddr>, String> + Sync);

/// A namespace that was named for a pod and is not its.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotThePods {
    /// It is the node's.
    #[error("it is the network namespace of the node and not of a pod")]
    Host,
    /// It has other addresses.
    #[error(
        "it has none of the pod's addresses ({wanted}) but {found}; it is another pod's, or its network is not set up yet"
    )]
    OtherAddress {
        /// The pod's.
        wanted: String,
        /// Those that it has.
        found: String,
    },
    /// It has no address at all, and no source says which it should have.
    #[error("neither it nor the runtime has an address for the pod")]
    NoAddress,
    /// It could not be looked at.
    #[error("look at its addresses: {0}")]
    Unknown(String),
}

/// Whether a namespace that was named for a pod is the pod's: not the node's, and with one of its addresses. Without any address to compare
/// with, it must have one that can be reached.
///
/// # Errors
/// It is not, as far as can be told.
pub fn belongs_to(
    netns: &Netns,
    host: NetnsId,
    ips: &[IpAddr],
    addresses: Addresses<'_>,
) -> Result<(), NotThePods> {
    if netns.id() == host {
        return Err(NotThePods::Host);
    }
    let found = match netns.enter(addresses) {
        Ok(found) => found.map_err(NotThePods::Unknown)?,
        Err(error) => return Err(NotThePods::Unknown(fault::chain(&error))),
    };
    let found: Vec<IpAddr> = found.iter().map(IpAddr::to_canonical).collect();
    if ips.is_empty() {
        let usable = |ip: &IpAddr| match ip {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        };
        return if found.iter().any(usable) { Ok(()) } else { Err(NotThePods::NoAddress) };
    }
    if ips.iter().any(|ip| found.contains(&ip.to_canonical())) {
        return Ok(());
    }
    let text = |ips: &[IpAddr]| match ips {
        [] => "none".to_owned(),
        ips => ips.iter().take(8).map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    Err(NotThePods::OtherAddress { wanted: text(ips), found: text(&found) })
}

/// Where a process of the node runs, as far as procfs shows it: what is absent is hidden, or the process is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessPlace {
    /// Its program, as its own mounts have it.
    pub executable: Option<PathBuf>,
    /// What kubelet calls its pod: the uid, or the hash of a static pod's manifest.
    pub pod: Option<String>,
    /// The id of its container.
    pub container: Option<String>,
    /// Its network namespace.
    pub netns: Option<NetnsId>,
}

/// Looks where a process runs, by its number in the procfs that is at `proc_root`.
#[must_use]
pub fn place(proc_root: &std::path::Path, pid: u32) -> ProcessPlace {
    let process = Process::numbered(proc_root, pid);
    let cgroup = process.cgroup().unwrap_or_default();
    ProcessPlace {
        executable: process.executable(),
        pod: cgroup::pod_name(&cgroup),
        container: cgroup::container(&cgroup).map(str::to_owned),
        netns: process.namespace().ok(),
    }
}

/// What is known of a wanted pod while the processes are gone through.
struct Candidate<'a> {
    pod: &'a WantedPod,
    /// The first namespace that could be the pod's.
    netns: Option<Netns>,
    /// All of them, each with a process in it.
    claims: BTreeMap<NetnsId, PathBuf>,
    /// The best reason so far, should there be none.
    missing: MissingNetns,
    /// Namespaces that are not its own, and why: a pod may have thousands of processes in one.
    rejected: HashMap<NetnsId, MissingNetns>,
}

/// What is the same for all processes of a scan.
struct Search<'a> {
    scan: &'a SearchRoots,
    /// The user namespace of the node.
    users: Option<UserNsId>,
    addresses: Addresses<'a>,
    /// Namespaces that are somebody's: their other processes need not be looked at.
    accepted: HashSet<NetnsId>,
}

// === impl SearchRoots ===

impl SearchRoots {
    /// Goes through the processes once. At most one descriptor for each wanted pod is open, and two more for a moment.
    #[must_use]
    pub fn scan(&self, wanted: &[WantedPod], addresses: Addresses<'_>) -> Found {
        let mut found = Found::default();
        let processes = match Processes::of(&self.proc_root) {
            Ok(processes) => processes,
            Err(error) => {
                let missing = MissingNetns::Failed(format!("read {}: {error}", self.proc_root.display()));
                let all = wanted.iter().map(|pod| (pod.uid.clone(), missing.clone()));
                return Found { missing: all.collect(), ..found };
            }
        };
        let mut candidates: Vec<Candidate<'_>> = wanted.iter().map(Candidate::new).collect();
        // Two pods may have the same name in cgroups: whoever writes a pod writes annotations. Addresses tell which it is.
        let mut by_cgroup: HashMap<&str, Vec<usize>> = HashMap::new();
        for (number, pod) in wanted.iter().enumerate() {
            for name in std::iter::once(&pod.uid).chain(&pod.cgroup) {
                by_cgroup.entry(name).or_default().push(number);
            }
        }
        let users = process::node_users(&self.proc_root);
        let mut search = Search { scan: self, users, addresses, accepted: HashSet::new() };
        for process in processes {
            let namespace = process.namespace();
            if namespace.as_ref().is_ok_and(|id| search.accepted.contains(id)) {
                continue;
            }
            let Some(name) = process.cgroup().and_then(|text| cgroup::pod_name(&text)) else { continue };
            for number in by_cgroup.get(name.as_str()).into_iter().flatten() {
                let candidate = &mut candidates[*number];
                if !candidate.pod.ips.is_empty()
                    && let Err(missing) = search.consider(&process, &namespace, candidate)
                {
                    candidate.note_missing(missing);
                }
            }
        }
        for candidate in candidates {
            let uid = candidate.pod.uid.clone();
            match candidate.end() {
                Ok(netns) => drop(found.namespaces.insert(uid, netns)),
                Err(missing) => drop(found.missing.insert(uid, missing)),
            }
        }
        found
    }
}

// === impl Search ===

impl Search<'_> {
    /// Adds the process's namespace to the pod's candidates, if it could be the pod's. Adds nothing if the process ends meanwhile.
    fn consider(
        &mut self,
        process: &Process,
        namespace: &io::Result<NetnsId>,
        candidate: &mut Candidate<'_>,
    ) -> Result<(), MissingNetns> {
        let path = process.namespace_path();
        let id = match namespace {
            Ok(id) => *id,
            Err(error) if process::is_gone(error) => return Ok(()),
            Err(error) => {
                let text = format!("look at {}: {error}; it takes the capability SYS_PTRACE", path.display());
                return Err(MissingNetns::Failed(text));
            }
        };
        let kernel_network = candidate.pod.kernel_network;
        let sandbox = || process.sandbox().filter(|_| !kernel_network);
        let or_sandbox = |missing| sandbox().map_or(missing, MissingNetns::Sandbox);
        // Programs of the runtime may be in the pod's cgroup and the node's namespace: CRI-O's conmon, Kata's shim.
        if id == self.scan.host {
            return Err(or_sandbox(MissingNetns::HostNetwork));
        }
        if candidate.claims.contains_key(&id) {
            return Ok(());
        }
        if let Some(missing) = candidate.rejected.get(&id) {
            return Err(or_sandbox(missing.clone()));
        }
        let netns = match Netns::open(&path) {
            Ok(netns) => netns,
            Err(_) if process.namespace().is_err() => return Ok(()),
            Err(error) => return Err(MissingNetns::Failed(fault::chain(&error))),
        };
        // The number may have gone to another process meanwhile.
        if netns.id() != id {
            return Ok(());
        }
        let missing = match belongs_to(&netns, self.scan.host, &candidate.pod.ips, self.addresses) {
            Ok(()) if !kernel_network && process.is_bridged_to_vm() => MissingNetns::Sandbox(process::KATA),
            Ok(()) => match self.is_made_for(candidate.pod, &netns) {
                Ok(true) => {
                    self.accepted.insert(id);
                    candidate.claims.insert(id, path);
                    candidate.netns.get_or_insert(netns);
                    return Ok(());
                }
                Ok(false) => MissingNetns::OtherOwner,
                Err(error) => {
                    let text = format!("look at the owner of {}: {error}", path.display());
                    return Err(MissingNetns::Failed(text));
                }
            },
            Err(NotThePods::Unknown(error)) => return Err(MissingNetns::Failed(error)),
            Err(_) => MissingNetns::OtherAddress,
        };
        candidate.rejected.insert(id, missing.clone());
        Err(or_sandbox(missing))
    }

    /// Whether the user namespace that owns the network namespace is the one in which a runtime makes the pod's: the node's, or for a pod with
    /// a user namespace of its own one that was made in the node's. A process of such a pod can only make others below that.
    fn is_made_for(&self, pod: &WantedPod, netns: &Netns) -> Result<bool, Errno> {
        let owner = UserNs::owner_of(netns)?;
        if Some(owner.id()) == self.users || !pod.own_users {
            return Ok(Some(owner.id()) == self.users);
        }
        match owner.parent() {
            Ok(parent) => Ok(Some(parent.id()) == self.users),
            Err(Errno::PERM) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

// === impl Candidate ===

impl<'a> Candidate<'a> {
    fn new(pod: &'a WantedPod) -> Self {
        let missing = if pod.ips.is_empty() { MissingNetns::NoAddress } else { MissingNetns::NoProcess };
        let (claims, rejected) = (BTreeMap::new(), HashMap::new());
        Self { pod, netns: None, claims, missing, rejected }
    }

    fn end(self) -> Result<Netns, MissingNetns> {
        match self.netns {
            Some(_) if self.claims.len() > 1 => Err(MissingNetns::Several(self.claims.into_iter().collect())),
            Some(netns) => Ok(netns),
            None => Err(self.missing),
        }
    }

    /// Keeps the reason that says more: processes of one pod give different ones, and come in any order.
    fn note_missing(&mut self, missing: MissingNetns) {
        if missing.weight() > self.missing.weight() {
            self.missing = missing;
        }
    }
}

// === impl MissingNetns ===

impl MissingNetns {
    fn weight(&self) -> u8 {
        match self {
            Self::NoProcess => 0,
            Self::HostNetwork => 1,
            Self::OtherAddress => 2,
            Self::OtherOwner => 3,
            Self::Failed(_) => 4,
            Self::Sandbox(_) => 5,
            // Then nothing else is looked for, or everything was found.
            Self::NoAddress | Self::Several(_) => 6,
        }
    }
}

impl fmt::Display for MissingNetns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProcess => f.write_str("no process of it is seen on this node"),
            Self::HostNetwork => f.write_str("its processes are in the network namespace of the node"),
            Self::NoAddress => f.write_str("the API server does not say which address it has"),
            Self::OtherAddress => f.write_str("the namespace of its processes has none of its addresses"),
            Self::OtherOwner => f.write_str(
                "the namespace with its address was made by one of its processes and not by the runtime (it belongs to another user \
                 namespace), and the runtime's is not seen; restart the pod",
            ),
            Self::Several(claims) => {
                let text = |(id, path): &(NetnsId, PathBuf)| format!("{id} at {}", path.display());
                let claims: Vec<String> = claims.iter().take(4).map(text).collect();
                write!(
                    f,
                    "{} namespaces have its address, and which of them the runtime made is unknown ({}); end the processes in the others",
                    claims.len(),
                    claims.join(", ")
                )
            }
            Self::Sandbox(name) => write!(
                f,
                "it runs in a {name} sandbox, whose traffic does not pass the rules of a namespace; label the pod \
                 istio.io/dataplane-mode=none to run it outside of the mesh"
            ),
            Self::Failed(error) => f.write_str(error),
        }
    }
}
