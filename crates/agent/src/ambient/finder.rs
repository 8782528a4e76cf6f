//! Namespaces of running pods, found for many at once: one look through the processes of the node costs milliseconds, so whoever waits for
//! one gets what the last one found.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netns::Netns;
use netns::find::{MissingNetns, SearchRoots, WantedPod};
use tokio::sync::Mutex;

use super::Ambient;
use super::failure::AmbientFailure;

/// How long it holds that a pod was not found.
const FRESH: Duration = Duration::from_secs(1);

/// What the last look found and nobody has asked for yet.
#[derive(Default)]
pub(crate) struct Finder {
    last: Mutex<Last>,
}

/// The addresses by which a namespace is reached.
pub(super) fn addresses(inside: &netns::Inside) -> Result<Vec<IpAddr>, String> {
    kernel::route::link_addresses(inside).map_err(|error| fault::chain(&error))
}

#[derive(Default)]
struct Last {
    found: HashMap<String, Netns>,
    missing: HashMap<String, MissingNetns>,
    at: Option<Instant>,
}

impl Finder {
    /// The namespace of a pod.
    pub(crate) async fn find(&self, ambient: &Ambient, pod: WantedPod) -> Result<Netns, AmbientFailure> {
        let uid = &*pod.uid.clone();
        let mut last = self.last.lock().await;
        if let Some(netns) = last.found.remove(uid) {
            return Ok(netns);
        }
        let fresh = last.at.is_some_and(|at| at.elapsed() < FRESH);
        if let Some(missing) = last.missing.get(uid).filter(|_| fresh) {
            return Err(AmbientFailure::NotFound(missing.clone()));
        }
        let mut wanted = ambient.without_netns();
        wanted.retain(|other| other.uid != uid);
        wanted.push(pod);
        *last = self.look(ambient, wanted).await?;
        match last.found.remove(uid) {
            Some(netns) => Ok(netns),
            None => Err(AmbientFailure::NotFound(
                last.missing.get(uid).cloned().unwrap_or(MissingNetns::NoProcess),
            )),
        }
    }

    /// The namespaces of all of these, as far as they are there.
    pub(crate) async fn find_all(
        &self,
        ambient: &Ambient,
        wanted: Vec<WantedPod>,
    ) -> Result<HashMap<String, Netns>, AmbientFailure> {
        let mut last = self.last.lock().await;
        *last = self.look(ambient, wanted).await?;
        Ok(std::mem::take(&mut last.found))
    }

    /// Closes what was found and not asked for.
    pub(crate) async fn forget(&self) {
        self.last.lock().await.found.clear();
    }

    async fn look(&self, ambient: &Ambient, wanted: Vec<WantedPod>) -> Result<Last, AmbientFailure> {
        let scan = SearchRoots { proc_root: ambient.config.proc_root(), host: ambient.host()?.id() };
        let found = tokio::task::spawn_blocking(move || scan.scan(&wanted, &addresses)).await?;
        Ok(Last { found: found.namespaces, missing: found.missing, at: Some(Instant::now()) })
    }
}
