//! Ambient mode: pods are taken into the mesh and out of it while they run.
//!
//! Three things lead to work on a pod: the plugin announces it ([`socket`]), the API server says something new of it or its namespace
//! ([`work`]), or what the kernel holds is compared with what it should ([`verify`]). All of them come to what is wanted of the pod, for which
//! [`intent::steps`] plans acts, and [`executor`] carries them out, one at a time for each pod. [`members`] is what is known of the pods that have something of ours; ztunnels get their snapshot from it. [`record`]
//! is the part of it that the next agent finds on disk.

mod census;
pub(crate) mod config;
mod desired;
mod drain;
mod ending;
mod enrol;
mod event;
mod evidence;
mod executor;
mod failpoint;
mod failure;
mod followed;
mod given_up;
mod holder;
mod host;
mod host_watch;
mod in_kernel;
mod leave;
mod leftovers;
mod live;
mod locate;
mod members;
mod outside;
mod pod_rules;
mod ports;
mod record;
mod sandbox;
mod socket;
mod takeover;
mod tally;
mod tell;
mod tracking;
mod translating;
mod troubles;
mod tunnelled;
mod verified;
mod verify;
mod waiting;
mod work;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use cluster::{Cluster, Queue, Writer};
use facts::PodRef;
use ruleset::Ruleset;
use telemetry::Scope;
use tokio::sync::{Notify, RwLock};
use tokio::task::JoinSet;
use zds::{Listener, Ztunnels};

use crate::backends::Backends;
use crate::drains::Drains;
use crate::events::Events;
use crate::finder::Finder;
use crate::health::{Health, HealthPart};
use crate::kept_facts::KeptFacts;
use crate::live::LiveNews;
use crate::pods;
use crate::policy::PolicyTunnels;
use crate::rights::{CAPABILITIES, is_denied, lacks_capabilities};
use crate::slots::Slots;
use crate::verification::PodVerifier;
pub(crate) use config::AmbientConfig;
use evidence::Evidence;
use host::HostSide;
pub(crate) use host::open_host;
use host_watch::HostWriters;
use members::MeshMembers;
use metrics::Metrics;
use record::Records;
pub(crate) use socket::{EventSocket, MODE};
use tell::Telling;
use verified::Plans;

/// How long to wait before another try at the node's namespace or the socket.
const RETRY: Duration = Duration::from_secs(2);
/// What all of its parts share.
pub(crate) struct Ambient {
    config: Arc<AmbientConfig>,
    log: Scope,
    metrics: Arc<Metrics>,
    cluster: Cluster,
    /// Pods are manifests: nobody says of a running one where it is, but the plugin.
    manifests: bool,
    writer: Option<Writer>,
    pods: Pods,
    node: Node,
    kept: Kept,
    telling: Telling,
    life: Life,
}

/// The pods, and the work on them.
struct Pods {
    members: Arc<MeshMembers>,
    queue: Arc<Queue<PodRef>>,
    ztunnels: Ztunnels,
    /// What is under way in pods' namespaces.
    slots: Arc<Slots>,
    /// Pods that drain.
    drains: Drains,
    plans: Plans,
    /// Looks whether their rules are as planned.
    verifier: Arc<PodVerifier>,
    /// Policies that judge what is inside their tunnels, where there are such.
    policies: OnceLock<PolicyTunnels>,
}

/// The node's own namespace, and what programs rules in it and in the pods'.
struct Node {
    host: OnceLock<HostSide>,
    backends: Arc<Backends>,
    /// The kernel did not let this agent prepare the node's namespace when it tried last.
    is_denied: AtomicBool,
    /// Who else has changed rules there since they were last looked at.
    writers: Mutex<HostWriters>,
    /// Finds the namespaces of its pods.
    finder: Finder,
    /// Held for reading by work in the node's namespace, which goes on when the task that wanted it is aborted.
    under_way: Arc<RwLock<()>>,
}

/// What is on disk.
struct Kept {
    /// For the next agent.
    records: Arc<Records>,
    /// For the plugin's CHECK.
    evidence: Arc<Evidence>,
    /// Where both are.
    run_dir: PathBuf,
    /// Facts of pods, of this agent and an earlier one.
    facts: Arc<KeptFacts>,
}

/// What happens once in this process's life.
#[derive(Default)]
struct Life {
    /// When somebody asked first which pods are in the mesh.
    began: OnceLock<Instant>,
    /// The pods are listed.
    synced: Notify,
    /// It is known which pods an earlier agent had in the mesh.
    known_before: OnceLock<()>,
    /// The pods of an earlier agent are known.
    taken_over: OnceLock<()>,
    /// How many of them were looked at by turns.
    looked: AtomicUsize,
    /// When it was last looked whose open connections are spared still.
    tracking_looked: Mutex<Option<Instant>>,
    /// Since when everything is being removed.
    ending: OnceLock<Instant>,
    /// Nobody is to work on pods any more, and nobody does.
    stop: Notify,
    stopped: Notify,
}

/// What it needs of the agent.
pub(crate) struct AmbientParts {
    pub(crate) config: AmbientConfig,
    pub(crate) log: Scope,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    pub(crate) cluster: Cluster,
    /// Whether pods are manifests.
    pub(crate) manifests: bool,
    pub(crate) writer: Option<Writer>,
    pub(crate) events: Arc<Events>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) backends: Arc<Backends>,
    pub(crate) verifier: Arc<PodVerifier>,
    /// Where records are kept.
    pub(crate) run_dir: PathBuf,
    /// Whose rules of ours stand beside those of ambient mode.
    pub(crate) beside: Vec<Ruleset>,
    pub(crate) facts: Arc<KeptFacts>,
}

// === impl Ambient ===

impl Ambient {
    pub(crate) fn new(parts: AmbientParts) -> Arc<Self> {
        let AmbientParts {
            config,
            log,
            metrics,
            health,
            cluster,
            manifests,
            writer,
            events,
            slots,
            backends,
            verifier,
            run_dir,
            beside,
            facts,
        } = parts;
        let members = Arc::new(MeshMembers::default());
        let (told, counted) = (log.clone(), metrics.clone());
        let ztunnels = Ztunnels::new(members.clone(), move |event| ztunnel_event(&told, &counted, &event));
        let kept = Kept {
            records: Arc::new(Records::new(&run_dir)),
            evidence: Arc::new(Evidence::new(&run_dir, beside)),
            run_dir,
            facts,
        };
        let live =
            LiveNews::new(log.clone(), events.clone(), metrics.clone(), &capture::ambient::CAPTURE_KEYS);
        let telling = Telling::new(&config, health, events, live);
        let ambient = Arc::new(Self {
            config: Arc::new(config),
            log,
            metrics,
            cluster,
            manifests,
            writer,
            pods: Pods {
                members,
                queue: Arc::default(),
                ztunnels,
                slots,
                drains: Drains::default(),
                plans: Plans::default(),
                verifier,
                policies: OnceLock::new(),
            },
            node: Node {
                host: OnceLock::new(),
                is_denied: AtomicBool::new(false),
                backends,
                writers: Mutex::default(),
                finder: Finder::default(),
                under_way: Arc::default(),
            },
            kept,
            telling,
            life: Life::default(),
        });
        ambient.answer_members_and_metrics();
        ambient
    }

    /// Members say who is unsettled, and pods are counted whenever metrics are read.
    fn answer_members_and_metrics(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.pods.members.on_unsettled(move |key| {
            if let Some(ambient) = weak.upgrade() {
                ambient.changed(std::slice::from_ref(key));
            }
        });
        let verifier = self.pods.verifier.clone();
        self.pods.members.on_change(move || verifier.changed());
        let verifier = self.pods.verifier.clone();
        self.pods.members.on_turn_end(move |uid| verifier.work_ended(uid));
        self.tell_overdue();
        let weak = Arc::downgrade(self);
        self.metrics.before_reading(move || {
            if let Some(ambient) = weak.upgrade() {
                ambient.count();
            }
        });
    }

    /// How many ztunnels are connected.
    pub(crate) fn ztunnels(&self) -> usize {
        self.pods.ztunnels.connected()
    }

    /// The pods and namespaces have been listed once.
    pub(crate) fn synced(&self) {
        self.count_listed();
        self.life.synced.notify_one();
    }

    /// These pods, or what concerns them, have changed.
    pub(crate) fn changed(&self, pods: &[PodRef]) {
        // Before the pods of an earlier agent are known as such, nothing may be done about any: `live` asks for all of them.
        if self.telling.health.is_ready(HealthPart::Ambient) {
            pods.iter().for_each(|pod| self.pods.queue.push(pod.clone()));
        }
    }

    /// Stage by stage, until the task is aborted.
    pub(crate) async fn live(self: Arc<Self>) {
        if self.config.is_off {
            return self.let_go().await;
        }
        self.prepare_host().await;
        let listener = self.bind().await;
        self.telling.health.pending(HealthPart::Ambient, &"the pods of this node are not known yet");
        let listed = self.kept.facts.are_listed_in_time().await;
        if !listed {
            self.kept.facts.remember().await;
        }
        self.take_over().await;
        let _ = self.life.taken_over.set(());
        if !self.config.rules.now().captures() {
            self.tell_capture();
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(pods::work(self.clone()));
        tasks.spawn(self.clone().tell_waiting());
        tasks.spawn(self.clone().watch_host());
        tasks.spawn(self.clone().begin(listed));
        let work = async {
            self.life.stop.notified().await;
            tasks.shutdown().await;
            self.life.stopped.notify_one();
        };
        tokio::join!(listener.serve(self.pods.ztunnels.clone()), work);
    }

    /// Asks for work on all pods, as soon as they are listed.
    async fn begin(self: Arc<Self>, listed: bool) {
        if !listed {
            self.telling.health.pending(
                HealthPart::Ambient,
                &"the API server has not listed the pods of this node; those of an earlier agent are taken over from its records",
            );
            self.life.synced.notified().await;
            self.sweep_records().await;
            // Addresses of pods that went while no agent looked.
            self.verify_host().await;
        }
        self.telling.health.ready(HealthPart::Ambient);
        self.push_all();
    }

    /// Whether the API server, or the directory of manifests, has said which pods there are. Until then nothing is removed for want of a pod.
    fn is_listed(&self) -> bool {
        self.cluster.state().synced
    }

    /// Goes by changed options from now on.
    pub(crate) fn follow(&self, new: &AmbientConfig) {
        if self.config.is_off {
            return;
        }
        let before = self.config.rules.now();
        let rules = self.config.rules.follow(&new.rules);
        if before.captures() != new.rules.now().captures() {
            self.tell_capture();
        }
        if self.config.node.follow(&new.node) {
            self.log.info("changed options of ambient mode are in force for new sandboxes of pods", &[]);
            if let Some(Err(error)) = self.node.host.get().map(HostSide::follow_options) {
                self.log.error(&error, &[]);
            }
        }
        if rules {
            self.log.info("the enablement selectors have changed", &[]);
            if self.telling.health.is_ready(HealthPart::Ambient) {
                self.push_all();
            }
        }
    }

    async fn prepare_host(&self) {
        loop {
            let (config, backends, log) = (self.config.clone(), self.node.backends.clone(), self.log.clone());
            let prepared =
                tokio::task::spawn_blocking(move || HostSide::prepare(config, backends, log)).await;
            let error: String = match prepared {
                Ok(Ok(host)) => {
                    let labels: [telemetry::Label<'_>; 1] = [("backend", &host.backend())];
                    self.log.info("the node's network namespace is ready for host probes", &labels);
                    let _ = self.node.host.set(host);
                    return;
                }
                Ok(Err(error)) if is_denied(&error) || lacks_capabilities() => {
                    self.node.is_denied.store(true, Ordering::Relaxed);
                    format!("{error}; give the agent's container {CAPABILITIES}, as the chart does")
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            self.log.error(&error, &[]);
            self.telling.health.pending(HealthPart::Ambient, &error);
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn bind(&self) -> Listener {
        loop {
            match Listener::bind(&self.config.ztunnel_address) {
                Ok(listener) => return listener,
                Err(error) => {
                    self.log.error(&error, &[]);
                    self.telling.health.pending(HealthPart::Ambient, &error);
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// What a ztunnel does becomes log lines and metrics.
fn ztunnel_event(log: &Scope, metrics: &Metrics, event: &zds::ZtunnelEvent) {
    metrics.ztunnel(event);
    if event.is_warning() {
        log.warn(event, &[]);
    } else if event.is_detail() {
        log.debug(event, &[]);
    } else {
        log.info(event, &[]);
    }
}
