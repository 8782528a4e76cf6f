//! Policies that are not enforced any more: what agents and plugins have made for them goes, on the node and in the network namespaces of pods that run.
//!
//! Whether pods may have something is known without a look at them: where policies were enforced there is the snapshot for plugins, or what these noted of
//! pods. Both go last, so that an agent that ends before all is done is followed by one that goes on.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use enforcement::UsageMeter;
use facts::PodRef;
use kernel::Change;
use netns::Netns;
use netns::find::{Found, MissingNetns, SearchRoots, WantedPod};
use policy::guard::no_rules;
use telemetry::Scope;
use tokio::task::JoinSet;

use super::pod_point::PodPointFailure;
use super::{node_point, sandbox_pod};
use crate::ambient::{AmbientConfig, open_host};
use crate::backends::Backends;
use crate::finder::{self, wanted_netns};
use crate::health::{Health, HealthPart};
use crate::kept_facts::KeptFacts;
use crate::policy_file::UNFINISHED;
use crate::rights;
use crate::slots::{Slots, Task};

/// How long until it is looked again: for a pod that kept its rules, and for one whose ADD began by the configuration of before.
const AGAIN: Duration = Duration::from_secs(10);

/// Removes what enforces policies.
pub(crate) struct PolicyLeaver {
    pub(crate) cluster: cluster::Cluster,
    pub(crate) facts: Arc<KeptFacts>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) backends: Arc<Backends>,
    pub(crate) config: AmbientConfig,
    pub(crate) kernel_network_runtime_classes: Vec<String>,
    pub(crate) run_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) health: Arc<Health>,
    /// Whether this agent enforces policies, or did until now.
    pub(crate) enforces: bool,
    /// Whether it has begun to remove what this agent enforces.
    pub(crate) has_begun: AtomicBool,
    pub(crate) log: Scope,
}

/// A namespace that may have something.
struct PolicedNetns {
    pod: PodRef,
    netns: Arc<Netns>,
    addresses: Vec<std::net::IpAddr>,
}

// === impl PolicyLeaver ===

impl PolicyLeaver {
    /// Removes what an earlier agent left that enforced policies. Ends when nothing is left.
    pub(crate) async fn live(self: Arc<Self>) {
        self.leave_node().await;
        if !self.may_be_in_pods() || self.tell_lack() {
            return;
        }
        self.facts.are_listed_in_time().await;
        let mut was_quiet = false;
        loop {
            // From here on plugins go by a configuration without policies.
            let is_installed = self.health.is_ready(HealthPart::Install);
            // Pods that are listed only now may not be among those that are looked at.
            let are_known = self.cluster.state().synced;
            let is_quiet = self.leave_pods().await && are_known && is_installed;
            if is_quiet && was_quiet {
                self.forget();
                return self.log.info("nothing of network policies is left in the pods of this node", &[]);
            }
            was_quiet = is_quiet;
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The agent goes for good; nothing of it enforces policies any more.
    pub(crate) async fn leave_all(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
        self.leave_node().await;
        if self.may_be_in_pods() && !self.tell_lack() {
            self.leave_pods().await;
        }
    }

    /// The plugin is off the node: nothing comes any more.
    pub(crate) async fn finish(&self) {
        // A turn of the enforcement that was under way when its task ended may have put the node's rules back.
        self.leave_node().await;
        if !self.may_be_in_pods() || rights::lack(&self.config.proc_root()).is_some() {
            return;
        }
        let are_known = self.cluster.state().synced;
        match self.leave_pods().await && are_known {
            true => self.forget(),
            false => {
                let text = "not all pods could be looked at, so that some may keep rules of network policies; what says that policies were enforced here \
                            stays, and the next agent goes on";
                self.log.warn(text, &[]);
            }
        }
    }

    /// Whether policies are not enforced any more, because the agent goes for good.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    fn may_be_in_pods(&self) -> bool {
        self.enforces || self.marks().iter().any(|path| path.exists())
    }

    fn marks(&self) -> [PathBuf; 2] {
        [self.state_dir.join(rundir::POLICIES_NAME), self.run_dir.join(rundir::POLICED_DIR)]
    }

    /// Whether this process may not enter pods.
    fn tell_lack(&self) -> bool {
        let lack = rights::lack(&self.config.proc_root());
        if let Some(lack) = lack {
            let text = format!(
                "network policies are not enforced any more, and their rules stay in the network namespaces of pods that run: this agent has no right to \
                 enter pods ({lack}); give it the right (verification.enabled of the chart), or delete pods that are isolated"
            );
            self.log.warn(&text, &[]);
        }
        lack.is_some()
    }

    async fn leave_node(&self) {
        let config = self.config.clone();
        let removed = tokio::task::spawn_blocking(move || node_point::remove(&config));
        let error = match removed.await {
            Ok(Ok(Change::None)) => return,
            Ok(Ok(_)) => return self.log.info("rules that enforced network policies are removed", &[]),
            Ok(Err(error)) => fault::chain(&error),
            Err(error) => error.to_string(),
        };
        let text = "rules that enforced network policies may be left; look for table istio-policy-mangle of nf_tables and chains ISTIO_NP_* of iptables";
        match self.may_be_in_pods() {
            // Without the right to look there was none to make any.
            false => self.log.debug(text, &[("error", &error)]),
            true => self.log.warn(text, &[("error", &error)]),
        }
    }

    /// Whether no pod has anything any more.
    async fn leave_pods(&self) -> bool {
        let (policed, are_found) = match self.policed().await {
            Ok(policed) => policed,
            Err(error) => {
                let text = "pods that may have rules of network policies cannot be looked for";
                self.log.warn(text, &[("error", &error)]);
                return false;
            }
        };
        let mut works = JoinSet::new();
        for PolicedNetns { pod, netns, addresses } in policed {
            let (slots, backends) = (self.slots.clone(), self.backends.clone());
            let proc_root = self.config.proc_root();
            works.spawn(async move {
                let work = move || -> Result<Change, PodPointFailure> {
                    let host = Netns::open(proc_root.join("1/ns/net")).map_err(PodPointFailure::Host)?;
                    netns::find::belongs_to(&netns, host.id(), &addresses, &finder::addresses)?;
                    netns.enter(|inside| {
                        let counted = UsageMeter::remove(inside)?;
                        let left = backends.kernel().leave(inside, &no_rules())?;
                        Ok(if left == Change::None { counted } else { left })
                    })?
                };
                let done = slots.run(&pod, Task::Clear, work).await;
                (pod, done.map_err(PodPointFailure::from).and_then(|done| done))
            });
        }
        let mut is_done = are_found;
        while let Some(done) = works.join_next().await {
            match done {
                Ok((_, Ok(Change::None))) => {}
                Ok((pod, Ok(_))) => {
                    self.log.info(
                        "rules of a pod's policies are removed, which are not enforced any more",
                        &[("pod", &pod)],
                    );
                }
                // The sandbox is another pod's by now, or on its way out.
                Ok((_, Err(PodPointFailure::Foreign(_)))) => {}
                Ok((pod, Err(error))) => {
                    is_done = false;
                    let text = "a pod keeps rules of policies that are not enforced any more";
                    self.log.warn(text, &[("pod", &pod), ("error", &fault::chain(&error))]);
                }
                Err(error) => {
                    is_done = false;
                    let text = "the removal of a pod's rules panicked; this is a defect, please report it";
                    self.log.error(text, &[("error", &error)]);
                }
            }
        }
        self.backends.log_warnings(&self.log);
        is_done
    }

    /// Each namespace once: those that plugins noted, of which no process may run yet, and those of pods that run. And whether these are all: not where
    /// the system did not let a pod be looked for.
    async fn policed(&self) -> Result<(Vec<PolicedNetns>, bool), String> {
        let (config, run_dir) = (self.config.clone(), self.run_dir.clone());
        let pods: Vec<(PodRef, WantedPod)> = {
            let index = self.cluster.index();
            let pods = index.pods().filter(|pod| !pod.host_network() && !pod.is_terminal());
            pods.map(|pod| (pod.pod_ref(), wanted_netns(pod, &self.kernel_network_runtime_classes))).collect()
        };
        let look = move || -> Result<_, String> {
            let host = open_host(&config).map_err(|error| error.to_string())?;
            let roots = SearchRoots { proc_root: config.proc_root(), host: host.id() };
            let mut found = noted(&config, &run_dir)?;
            let mut seen: HashSet<_> = found.iter().map(|one| one.netns.id()).collect();
            let wanted: Vec<WantedPod> = pods.iter().map(|(_, wanted)| wanted.clone()).collect();
            let Found { mut namespaces, mut missing } = roots.scan(&wanted, &finder::addresses);
            let mut unknown = Vec::new();
            let noted: HashSet<String> = found.iter().map(|one| one.pod.uid.clone()).collect();
            for (pod, wanted) in pods {
                if let Some(netns) = namespaces.remove(&wanted.uid).filter(|netns| seen.insert(netns.id())) {
                    found.push(PolicedNetns { pod, netns: Arc::new(netns), addresses: wanted.ips });
                } else if let Some(why) = missing.remove(&wanted.uid).filter(|_| !noted.contains(&wanted.uid))
                {
                    unknown.push((pod, why));
                }
            }
            Ok((found, unknown))
        };
        let (found, unknown) =
            tokio::task::spawn_blocking(look).await.map_err(|error| error.to_string())??;
        let mut are_all = true;
        for (pod, why) in unknown {
            // Where nothing runs, nothing is isolated.
            if matches!(why, MissingNetns::Failed(_) | MissingNetns::Several(_) | MissingNetns::OtherOwner) {
                are_all = false;
                let text =
                    "it is not known whether a pod has rules of policies that are not enforced any more";
                self.log.warn(text, &[("pod", &pod), ("reason", &why)]);
            }
        }
        Ok((found, are_all))
    }

    /// Removes what says that policies were enforced here, and a snapshot that was not finished.
    fn forget(&self) {
        let [snapshot, noted] = self.marks();
        let unfinished = snapshot.with_extension(UNFINISHED);
        let files = [&unfinished, &snapshot].map(std::fs::remove_file);
        // Where there is nothing else it was made for this.
        let _ = std::fs::remove_dir(&self.state_dir);
        for removed in files.into_iter().chain([std::fs::remove_dir_all(&noted)]) {
            match removed {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let text = "what says that policies were enforced on this node cannot be removed; the next agent looks at all pods again";
                    self.log.warn(text, &[("error", &error)]);
                }
            }
        }
    }
}

/// Namespaces that plugins noted and that are there still.
fn noted(config: &AmbientConfig, run_dir: &std::path::Path) -> Result<Vec<PolicedNetns>, String> {
    let noted = applied::policed::all(run_dir).map_err(|error| error.to_string())?;
    let there = noted.into_iter().filter_map(|sandbox| {
        let netns = Netns::open(config.on_node(&sandbox.path.to_string_lossy())).ok()?;
        let is_same = netns.id() == sandbox.origin.netns;
        let pod = sandbox_pod(&sandbox.origin).filter(|_| is_same)?;
        Some(PolicedNetns { pod, netns: Arc::new(netns), addresses: sandbox.origin.addresses })
    });
    Ok(there.collect())
}
