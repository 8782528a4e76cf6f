//! The last known facts of pods on disk: in the run directory, and in the state directory, which a restart of the machine leaves.

use std::path::PathBuf;
use std::time::Duration;

use cluster::{Cluster, Store, StoreEvent};
use telemetry::Scope;

use crate::boot::BootJournal;
use crate::config::{AgentConfig, PodsOrigin};

/// How long the API server has to list the pods before those of an earlier agent count by what that one kept of them.
const LISTING_TIME: Duration = Duration::from_secs(2);

/// Keeps them, and has those of an earlier agent.
#[derive(Debug)]
pub(crate) struct KeptFacts {
    /// The newer ones last.
    dirs: [PathBuf; 2],
    /// Pods are manifests: their directory is where plugins look themselves.
    manifests: bool,
    /// Which start of the machine they are of.
    pub(crate) boot: BootJournal,
    cluster: Cluster,
    log: Scope,
}

impl KeptFacts {
    pub(crate) fn new(config: &AgentConfig, cluster: Cluster, log: Scope) -> Self {
        let dirs = [config.state_dir.clone(), config.run_dir.clone()];
        let manifests = matches!(config.pods, PodsOrigin::Manifests { .. });
        let boot = BootJournal::new(&config.state_dir);
        Self { dirs, manifests, boot, cluster, log }
    }

    /// Begins to keep them. Without that the agent works all the same.
    pub(crate) fn keep(&self) -> Vec<Store> {
        if self.manifests {
            return Vec::new();
        }
        let start = |dir: &PathBuf| {
            let log = self.log.clone();
            let told = move |event| match event {
                StoreEvent::Failed(error) => {
                    log.error("last known facts are not written", &[("error", &error)]);
                }
                StoreEvent::Restored => log.info("last known facts are written again", &[]),
            };
            let store = Store::start(dir, self.cluster.clone(), told);
            store.inspect_err(|error| self.log.error(error, &[])).ok()
        };
        self.dirs.iter().filter_map(start).collect()
    }

    /// Waits until the pods are listed, or until it is time to go by what an earlier agent knew of them; whether they are listed.
    pub(crate) async fn are_listed_in_time(&self) -> bool {
        let listed = async {
            while !self.cluster.state().synced {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LISTING_TIME, listed).await.is_ok()
    }

    /// What an earlier agent knew of the pods counts until the API server has listed them. Those of an earlier start of the machine do not run.
    pub(crate) async fn remember(&self) {
        if !self.boot.has_facts() {
            let text = "the API server has not listed the pods, and the machine has started again since an agent knew them: none is known";
            return self.log.warn(text, &[]);
        }
        let (dirs, cluster) = (self.dirs.clone(), self.cluster.clone());
        let read = move || dirs.map(|dir| cluster::store::remember(&dir, &cluster));
        let read = match tokio::task::spawn_blocking(read).await {
            Ok(read) => read,
            Err(error) => return self.log.error(&error, &[]),
        };
        read.iter().flat_map(|(_, errors)| errors).for_each(|error| self.log.warn(error, &[]));
        let pods = self.cluster.index().pods().count();
        let text =
            "the API server has not listed the pods; the facts that an earlier agent kept are used meanwhile";
        self.log.warn(text, &[("pods", &pods)]);
    }
}
