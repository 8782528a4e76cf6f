//! Network namespaces of pods that run already, found through the processes of the node (AA-70 to AA-75).
//!
//! A process's cgroup says which pod it belongs to; its namespace counts only if it has an address of that pod, so that a process that has
//! entered another pod's namespace leads nowhere.

mod cgroup;
mod process;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::{Inside, Netns, NetnsId};
use process::{Process, Processes};

/// Whose namespace is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The pod's uid, as the API server has it.
    pub uid: String,
    /// Its addresses. Without any, no namespace can be told to be its.
    pub ips: Vec<IpAddr>,
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct Scan {
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
    /// Why there is none for the others.
    pub missing: HashMap<String, Missing>,
}

/// Why no namespace is known to be a pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// No process of the pod was seen. A static pod's processes do not carry its uid (AA-75).
    NoProcess,
    /// The pod's processes are in the node's namespace.
    HostNetwork,
    /// The API server does not say which addresses it has.
    NoAddress,
    /// There is a namespace, and none of the pod's addresses is in it.
    OtherAddress,
    /// The addresses are inside of a sandbox.
    Sandbox(&'static str),
    /// The system did not let us look.
    Failed(String),
}

/// The addresses of a namespace, from whoever can list them.
pub type Addresses<'a> = &'a (dyn Fn(&Inside) -> Result<Vec<IpAddr>, String> + Sync);

/// A namespace that was named for a pod and is not its.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotThePods {
    /// It is the node's.
    #[error("it is the network namespace of the node, which is no pod's")]
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
    /// It has no address at all, and nobody says which it should have.
    #[error("neither it nor the runtime has an address for the pod")]
    NoAddress,
    /// It could not be looked at.
    #[error("look at its addresses: {0}")]
    Unknown(String),
}

/// The sandbox that a runtime class stands for, by the names that its makers give it.
#[must_use]
pub fn sandbox_of_class(class: &str) -> Option<&'static str> {
    let class = class.to_ascii_lowercase();
    let of = |part: &str| class.split(['-', '_', '.']).any(|word| word == part);
    if of("gvisor") || of("runsc") {
        Some(process::GVISOR)
    } else if of("kata") {
        Some(process::KATA)
    } else {
        None
    }
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
        Err(error) => return Err(NotThePods::Unknown(chain(&error))),
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

/// What is known of a wanted pod while the processes are gone through.
struct Candidate<'a> {
    ips: &'a [IpAddr],
    /// The namespace that counts so far, and when its process started.
    best: Option<(Netns, u64)>,
    /// The best reason so far, should there be none.
    missing: Missing,
    /// Namespaces that are not its own: a pod may have thousands of processes in one.
    rejected: HashSet<NetnsId>,
}

// === impl Scan ===

impl Scan {
    /// Goes through the processes once. At most one descriptor for each wanted pod is open, and one more for a moment.
    #[must_use]
    pub fn scan(&self, wanted: &[Wanted], addresses: Addresses<'_>) -> Found {
        let mut found = Found::default();
        let mut candidates: HashMap<&str, Candidate<'_>> = HashMap::new();
        for pod in wanted {
            let missing = if pod.ips.is_empty() { Missing::NoAddress } else { Missing::NoProcess };
            let rejected = HashSet::new();
            candidates.insert(&pod.uid, Candidate { ips: &pod.ips, best: None, missing, rejected });
        }
        let processes = match Processes::of(&self.proc_root) {
            Ok(processes) => processes,
            Err(error) => {
                let missing = Missing::Failed(format!("read {}: {error}", self.proc_root.display()));
                let all = wanted.iter().map(|pod| (pod.uid.clone(), missing.clone()));
                return Found { missing: all.collect(), ..found };
            }
        };
        // Namespaces that are somebody's: their other processes need not be looked at.
        let mut accepted: HashSet<NetnsId> = HashSet::new();
        for process in processes {
            self.consider(&process, &mut candidates, &mut accepted, addresses);
        }
        for (uid, candidate) in candidates {
            match candidate.best {
                Some((netns, _)) => drop(found.namespaces.insert(uid.to_owned(), netns)),
                None => drop(found.missing.insert(uid.to_owned(), candidate.missing)),
            }
        }
        found
    }

    /// AA-71.
    fn consider(
        &self,
        process: &Process,
        candidates: &mut HashMap<&str, Candidate<'_>>,
        accepted: &mut HashSet<NetnsId>,
        addresses: Addresses<'_>,
    ) {
        let namespace = process.namespace();
        if namespace.as_ref().is_ok_and(|id| accepted.contains(id)) {
            return;
        }
        let Some(uid) = process.cgroup().and_then(|text| cgroup::pod_uid(&text)) else { return };
        let Some(candidate) = candidates.get_mut(uid.as_str()) else { return };
        if candidate.ips.is_empty() {
            return;
        }
        match self.claim(process, namespace, candidate, addresses) {
            Ok(Some((netns, started))) => {
                accepted.insert(netns.id());
                // On equal times the later one counts (AA-72).
                if candidate.best.as_ref().is_none_or(|(_, before)| started <= *before) {
                    candidate.best = Some((netns, started));
                }
            }
            Ok(None) => {}
            Err(missing) => candidate.miss(missing),
        }
    }

    /// The process's namespace, if it is the pod's, and when the process started; nothing if it ends meanwhile.
    fn claim(
        &self,
        process: &Process,
        namespace: io::Result<NetnsId>,
        candidate: &mut Candidate<'_>,
        addresses: Addresses<'_>,
    ) -> Result<Option<(Netns, u64)>, Missing> {
        let id = match namespace {
            Ok(id) => id,
            Err(error) if process::is_gone(&error) => return Ok(None),
            Err(error) => {
                let path = process.namespace_path();
                let text = format!("look at {}: {error}; it takes the capability SYS_PTRACE", path.display());
                return Err(Missing::Failed(text));
            }
        };
        let or_sandbox = |missing| process.sandbox().map_or(missing, Missing::Sandbox);
        // Programs of the runtime may be in the pod's cgroup and the node's namespace: CRI-O's conmon, Kata's shim.
        if id == self.host {
            return Err(or_sandbox(Missing::HostNetwork));
        }
        if candidate.rejected.contains(&id) {
            return Err(or_sandbox(Missing::OtherAddress));
        }
        let Some(started) = process.started() else { return Ok(None) };
        let netns = match Netns::open(process.namespace_path()) {
            Ok(netns) => netns,
            Err(_) if process.namespace().is_err() => return Ok(None),
            Err(error) => return Err(Missing::Failed(chain(&error))),
        };
        // The number may have gone to another process meanwhile.
        if netns.id() != id {
            return Ok(None);
        }
        let missing = match belongs_to(&netns, self.host, candidate.ips, addresses) {
            Ok(()) if !process.is_bridged_to_vm() => return Ok(Some((netns, started))),
            Ok(()) => Missing::Sandbox(process::KATA),
            Err(NotThePods::Unknown(error)) => return Err(Missing::Failed(error)),
            Err(_) => or_sandbox(Missing::OtherAddress),
        };
        candidate.rejected.insert(id);
        Err(missing)
    }
}

// === impl Candidate ===

impl Candidate<'_> {
    /// Keeps the reason that says more: processes of one pod give different ones, and come in any order.
    fn miss(&mut self, missing: Missing) {
        if missing.weight() > self.missing.weight() {
            self.missing = missing;
        }
    }
}

// === impl Missing ===

impl Missing {
    fn weight(&self) -> u8 {
        match self {
            Self::NoProcess => 0,
            Self::HostNetwork => 1,
            Self::OtherAddress => 2,
            Self::Failed(_) => 3,
            Self::Sandbox(_) => 4,
            // Then nothing else is looked for.
            Self::NoAddress => 5,
        }
    }
}

/// An error and what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProcess => f.write_str(
                "no process of it is seen on this node (of a static pod none carries its uid, and it is found when its runtime announces it)",
            ),
            Self::HostNetwork => f.write_str("its processes are in the network namespace of the node"),
            Self::NoAddress => f.write_str("the API server does not say which address it has"),
            Self::OtherAddress => f.write_str("the namespace of its processes has none of its addresses"),
            Self::Sandbox(name) => write!(
                f,
                "it runs in a {name} sandbox, whose traffic does not pass the rules of a namespace; label the pod \
                 istio.io/dataplane-mode=none to run it outside of the mesh"
            ),
            Self::Failed(error) => f.write_str(error),
        }
    }
}
