//! Where pods' network namespaces are: by what plugin and agent left in the run directory, by the mounts of runtimes, by the pods' processes.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use applied::sandbox;
use facts::{Facts, PodRef};
use kernel::route;
use netns::find::{MissingNetns, SearchRoots, WantedPod, belongs_to};
use netns::{Host, Inside, Netns, NetnsId};
use rundir::AMBIENT_DIR;
use serde::Deserialize;
use trusted::Links;

use super::parallel::in_parallel;

/// The node's processes in the agent's container.
const MOUNTED_PROC: &str = "/host/proc";
/// Where runtimes mount the namespaces of pods; in the agent's container, then on the node.
const MOUNTS: [&str; 3] = ["/host/var/run/netns", "/host/run/netns", "/run/netns"];
/// The most namespaces that are mounted there and looked at.
const MAX_MOUNTS: usize = 16 << 10;
/// The most records of the agent, and the largest, as the agent reads them.
const MAX_RECORDS: usize = 16 << 10;
const MAX_RECORD: usize = 64 << 10;

/// A pod's network namespace, and how it was found.
#[derive(Debug)]
pub(crate) struct LocatedNetns {
    pub(crate) netns: Arc<Netns>,
    pub(crate) how: String,
}

/// What is known of the namespace of a pod before it is looked for.
#[derive(Debug, Default, Clone)]
pub(super) struct Hint {
    pub(super) addresses: Vec<IpAddr>,
    /// Paths, and who named them.
    paths: Vec<(PathBuf, &'static str)>,
    /// Numbers of namespaces, and where they were kept.
    ids: Vec<(u64, &'static str)>,
}

/// The part of the agent's record of an ambient pod that says where it is.
#[derive(Debug, Deserialize)]
struct AmbientRecord {
    #[serde(default)]
    netns: Option<AmbientPlace>,
    #[serde(default)]
    ips: Vec<IpAddr>,
    uid: String,
}

#[derive(Debug, Deserialize)]
struct AmbientPlace {
    path: PathBuf,
    ino: u64,
}

/// Finds namespaces.
pub(super) struct Locator {
    hints: HashMap<PodRef, Hint>,
    proc_root: PathBuf,
    host: NetnsId,
    /// Namespaces that runtimes have mounted, by their number.
    mounts: HashMap<u64, PathBuf>,
}

/// The node's processes, as this program sees them.
pub(crate) fn proc_root() -> PathBuf {
    let mounted = Path::new(MOUNTED_PROC);
    if mounted.join("1").exists() { mounted.to_owned() } else { PathBuf::from("/proc") }
}

impl Hint {
    /// A pod that the agent knows.
    pub(super) fn of_report(report: &rundir::pods::PodReport) -> Self {
        let ids = report.inode.map(|inode| (inode, "the agent")).into_iter().collect();
        Self { addresses: report.addresses.clone(), paths: Vec::new(), ids }
    }

    fn add(&mut self, other: Self) {
        let known: HashSet<IpAddr> = self.addresses.iter().copied().collect();
        self.addresses.extend(other.addresses.into_iter().filter(|ip| !known.contains(ip)));
        self.paths.extend(other.paths);
        self.ids.extend(other.ids);
    }
}

impl Locator {
    /// Reads what is known of the namespaces of these pods.
    ///
    /// # Errors
    /// The node's own namespace cannot be told.
    pub(super) fn new(run_dir: &Path, proc_root: PathBuf) -> Result<Self, netns::Error> {
        let of_node = proc_root.join("1/ns/net");
        let host = if proc_root == Path::new("/proc") { Host::current() } else { Host::open(of_node) }?;
        let mut locator = Self { hints: HashMap::new(), proc_root, host: host.id(), mounts: mounts() };
        locator.read_records(run_dir);
        Ok(locator)
    }

    /// Adds what somebody else knows of a pod.
    pub(super) fn learn(&mut self, pod: &PodRef, hint: Hint) {
        self.hints.entry(key(pod)).or_default().add(hint);
    }

    /// The addresses of a pod, as far as they are known.
    pub(super) fn addresses(&self, facts: &Facts) -> Vec<IpAddr> {
        self.hint(facts).addresses
    }

    /// Finds the namespaces of pods; those that nothing names by one walk through the node's processes.
    pub(super) fn locate(
        &self,
        pods: &[&Facts],
        kernel_classes: &[String],
    ) -> Vec<Result<LocatedNetns, MissingNetns>> {
        let mut found: Vec<Option<LocatedNetns>> =
            in_parallel(pods.iter(), None, &|facts: &&Facts| self.named(&self.hint(facts)));
        let wanted: Vec<WantedPod> = pods
            .iter()
            .zip(&found)
            .filter(|(facts, place)| place.is_none() && !facts.pod.host_network())
            .map(|(facts, _)| self.wanted(facts, kernel_classes))
            .collect();
        let mut scan = if wanted.is_empty() {
            netns::find::Found::default()
        } else {
            SearchRoots { proc_root: self.proc_root.clone(), host: self.host }.scan(&wanted, &addresses)
        };
        let place = |(facts, named): (&&Facts, &mut Option<LocatedNetns>)| {
            if let Some(place) = named.take() {
                return Ok(place);
            }
            let uid = facts.pod.uid().unwrap_or_default();
            if let Some(netns) = scan.namespaces.remove(uid) {
                let how = format!("processes of the pod in {}", self.proc_root.display());
                return Ok(LocatedNetns { netns: Arc::new(netns), how });
            }
            let missing =
                if facts.pod.host_network() { MissingNetns::HostNetwork } else { MissingNetns::NoProcess };
            Err(scan.missing.remove(uid).unwrap_or(missing))
        };
        pods.iter().zip(&mut found).map(place).collect()
    }

    fn hint(&self, facts: &Facts) -> Hint {
        let pod = facts.pod.pod_ref();
        let mut hint = Hint { addresses: facts.pod.ips(), ..Hint::default() };
        // Records of another incarnation have another uid; those without any are compared by their addresses.
        for known in [key(&pod), PodRef::named(&*pod.namespace, &*pod.name)] {
            if let Some(more) = self.hints.get(&known) {
                hint.add(more.clone());
            }
        }
        hint
    }

    /// The namespace that a record names, if it is still that one.
    fn named(&self, hint: &Hint) -> Option<LocatedNetns> {
        let mounted =
            hint.ids.iter().filter_map(|(inode, who)| Some((self.mounts.get(inode)?.clone(), *who)));
        for (path, who) in hint.paths.iter().cloned().chain(mounted) {
            let Ok(netns) = Netns::open(&path) else { continue };
            let is_known = hint.ids.is_empty() || hint.ids.iter().any(|(inode, _)| *inode == netns.id().ino);
            let is_its = || belongs_to(&netns, self.host, &hint.addresses, &addresses).is_ok();
            if is_known && netns.id() != self.host && is_its() {
                let how = format!("{} by {who}", path.display());
                return Some(LocatedNetns { netns: Arc::new(netns), how });
            }
        }
        None
    }

    fn wanted(&self, facts: &Facts, kernel_classes: &[String]) -> WantedPod {
        let pod = &facts.pod;
        let kernel_network =
            pod.runtime_class().is_some_and(|class| kernel_classes.iter().any(|one| one == class));
        WantedPod {
            uid: pod.uid().unwrap_or_default().to_owned(),
            cgroup: pod.static_hash().map(str::to_owned),
            ips: self.hint(facts).addresses,
            own_users: pod.has_own_users(),
            kernel_network,
        }
    }

    /// What the plugin wrote when it programmed a pod, and the agent when it took one into the mesh. What cannot be read is no hint.
    fn read_records(&mut self, run_dir: &Path) {
        let mut attachments = applied::attachments(run_dir).unwrap_or_default();
        // Of two sandboxes the newer is the pod's.
        attachments.sort_by_key(|record| std::cmp::Reverse(record.written));
        for record in attachments {
            let origin = record.origin;
            let ids = vec![(origin.netns.ino, "the plugin's record")];
            let pod = named(&origin.pod, &origin.uid);
            self.learn(&pod, Hint { addresses: origin.addresses, paths: Vec::new(), ids });
        }
        for sandbox in sandbox::all(run_dir).unwrap_or_default() {
            let origin = sandbox.origin;
            let ids = vec![(origin.netns.ino, "the runtime's call")];
            let paths = vec![(sandbox.path, "the runtime")];
            self.learn(&named(&origin.pod, &origin.uid), Hint { addresses: origin.addresses, paths, ids });
        }
        let files = rundir::json_files(&run_dir.join(AMBIENT_DIR), MAX_RECORDS).unwrap_or_default();
        for path in files {
            let text = trusted::read(&path, Links::Refused, MAX_RECORD);
            let Some(record) = text.ok().and_then(|text| serde_json::from_slice::<AmbientRecord>(&text).ok())
            else {
                continue;
            };
            let (paths, ids) = match record.netns {
                Some(place) => {
                    (vec![(place.path, "the agent's record")], vec![(place.ino, "the agent's record")])
                }
                None => Default::default(),
            };
            let pod = PodRef { uid: record.uid, ..PodRef::default() };
            self.learn(&pod, Hint { addresses: record.ips, paths, ids });
        }
    }
}

/// A pod by its uid, which nothing else has; without one by its names.
fn key(pod: &PodRef) -> PodRef {
    match pod.known_uid() {
        Some(uid) => PodRef { uid: uid.to_owned(), ..PodRef::default() },
        None => pod.clone(),
    }
}

fn named(pod: &str, uid: &str) -> PodRef {
    let (namespace, name) = pod.split_once('/').unwrap_or(("", pod));
    PodRef { uid: uid.to_owned(), ..PodRef::named(namespace, name) }
}

/// The addresses by which a namespace is reached.
pub(crate) fn addresses(inside: &Inside) -> Result<Vec<IpAddr>, String> {
    route::link_addresses(inside).map_err(|error| fault::chain(&error))
}

fn mounts() -> HashMap<u64, PathBuf> {
    let entries = MOUNTS.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let of = |path: PathBuf| Some((std::fs::metadata(&path).ok()?.ino(), path));
    entries.take(MAX_MOUNTS).filter_map(|entry| of(entry.path())).collect()
}
