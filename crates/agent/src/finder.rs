//! Namespaces of running pods, found for many at once: one look through the processes of the node costs milliseconds, so whoever waits for
//! one gets what the last one found.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use facts::Object;
use netns::Netns;
use netns::find::{MissingNetns, SearchRoots, WantedPod};
use tokio::sync::Mutex;
use tokio::task::JoinError;

/// How long it holds that a pod was not found.
const FRESH: Duration = Duration::from_secs(1);

/// What the last look found and nobody has asked for yet.
#[derive(Default)]
pub(crate) struct Finder {
    last: Mutex<Last>,
}

/// Why there is no namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindFailure {
    /// None that is the pod's.
    #[error("{0}")]
    Missing(MissingNetns),
    /// A thread of ours is gone.
    #[error("the look through the processes panicked; this is a defect, please report it: {0}")]
    Panicked(#[from] JoinError),
}

/// The addresses by which a namespace is reached.
pub(crate) fn addresses(inside: &netns::Inside) -> Result<Vec<IpAddr>, String> {
    kernel::route::link_addresses(inside).map_err(|error| fault::chain(&error))
}

/// How a pod's namespace is found. `kernel_network` are runtime classes that use the kernel's network stack.
pub(crate) fn wanted_netns(pod: &Object, kernel_network: &[String]) -> WantedPod {
    let class = pod.runtime_class().unwrap_or_default();
    WantedPod {
        uid: pod.uid().unwrap_or_default().to_owned(),
        cgroup: pod.static_hash().map(str::to_owned),
        ips: pod.ips(),
        own_users: pod.has_own_users(),
        kernel_network: kernel_network.iter().any(|fine| fine == class),
    }
}

/// Whether the process by which a namespace was found is in it still.
pub(crate) fn is_still(netns: &Netns) -> bool {
    Netns::open(netns.path()).is_ok_and(|there| there == *netns)
}

#[derive(Default)]
struct Last {
    found: HashMap<String, Netns>,
    missing: HashMap<String, MissingNetns>,
    at: Option<Instant>,
}

impl Finder {
    /// The namespace of a pod. `others` are pods whose namespaces will be asked for next.
    ///
    /// # Errors
    /// There is none, as far as can be told.
    pub(crate) async fn find(
        &self,
        roots: &SearchRoots,
        pod: WantedPod,
        others: impl FnOnce() -> Vec<WantedPod>,
    ) -> Result<Netns, FindFailure> {
        let uid = &*pod.uid.clone();
        let mut last = self.last.lock().await;
        if let Some(netns) = last.found.remove(uid) {
            return Ok(netns);
        }
        let fresh = last.at.is_some_and(|at| at.elapsed() < FRESH);
        if let Some(missing) = last.missing.get(uid).filter(|_| fresh) {
            return Err(FindFailure::Missing(missing.clone()));
        }
        let mut wanted = others();
        wanted.retain(|other| other.uid != uid);
        wanted.push(pod);
        *last = look(roots, wanted).await?;
        match last.found.remove(uid) {
            Some(netns) => Ok(netns),
            None => {
                let missing = last.missing.get(uid).cloned().unwrap_or(MissingNetns::NoProcess);
                Err(FindFailure::Missing(missing))
            }
        }
    }

    /// The namespaces of all of these, as far as they are there.
    ///
    /// # Errors
    /// A thread of ours is gone.
    pub(crate) async fn find_all(
        &self,
        roots: &SearchRoots,
        wanted: Vec<WantedPod>,
    ) -> Result<HashMap<String, Netns>, JoinError> {
        let mut last = self.last.lock().await;
        *last = look(roots, wanted).await?;
        Ok(std::mem::take(&mut last.found))
    }

    /// Gives back what was found, for those who ask for it one by one.
    pub(crate) async fn keep(&self, found: HashMap<String, Netns>) {
        self.last.lock().await.found.extend(found);
    }

    /// Closes what was found and not asked for.
    pub(crate) async fn forget(&self) {
        self.last.lock().await.found.clear();
    }
}

async fn look(roots: &SearchRoots, wanted: Vec<WantedPod>) -> Result<Last, JoinError> {
    let roots = roots.clone();
    let found = tokio::task::spawn_blocking(move || roots.scan(&wanted, &addresses)).await?;
    Ok(Last { found: found.namespaces, missing: found.missing, at: Some(Instant::now()) })
}
