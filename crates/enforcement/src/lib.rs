//! NetworkPolicies, enforced on this node.
//!
//! Watches fill stores and tell what changed (`changes.rs`). One task acts upon that (`state.rs`): the cluster as policies see it (`world.rs`) and the
//! index of the crate `policy` give effects, and these go to the points where policies are enforced (`point.rs`, `points.rs`). Plugins ask the same
//! task for pods that are about to start. Until all lists are complete nothing is opened or closed: what an earlier agent left in the kernel stays.

mod changes;
mod config;
mod denials;
mod entry;
mod meter;
mod news;
mod pod_book;
mod point;
mod points;
mod requests;
mod services;
mod sight;
mod state;
mod tenants;
mod tunnels;
mod usage;
mod waking;
mod world;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::kind::NetworkPolicies;
use cluster::news::ObjectKey;
use cluster::{Cluster, ObjectSelection, Objects, Peers, Shared, Wanted};
use facts::{NetworkPolicy, PodRef};
use policy::PolicyFlow;
use policy::index::LocalName;
use policy::snapshot::PolicySnapshot;
use rundir::denials::DenialRecord;
use telemetry::Scope;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

pub use self::usage::UsageOverview;
use changes::Inbox;
pub use config::{PointChoice, PolicyConfig, Unprepared};
pub use denials::{CountedDenials, DenialBatch, DenialBook, DenialEvent, DenialEvents, DeniedPacket};
pub use entry::{EntryMaker, EntryPoint, HostOpener};
pub use meter::{MemberNews, MeterError, UsageMeter};
pub use news::{PolicyCounts, PolicyNews, PolicyStanding};
pub use pod_book::{PodBook, PodJob, SetContent, SetJob};
pub use point::{EnforcementPoint, PointCharge, PointError, PointLook, PolicyPoint};
use points::Points;
use requests::{PolicyRequest, PolicyTurn, TunnelRequest};
pub use services::ClassServices;
use services::ServiceStores;
pub use sight::{AttachedPod, NodeSight, UnseenReason};
pub use state::{
    KeptPolicies, KnownPoint, KnownPolicies, NotPrepared, PodNetwork, PodToPrepare, PolicyMemory, PreparedPod,
};
use state::{PolicySources, PolicyState};
use tenants::TenantStores;
pub use tenants::{ReachedService, TenantOverview, TenantReport, TenantStanding};
pub use tunnels::TunnelEntry;
pub use waking::Waker;
use world::LocalPods;
pub use world::StartedPod;

/// Pause before the next try after a failure; each one is twice as long.
const RETRY: fault::Backoff = fault::Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
/// How long lists may take before it is begun with what an earlier agent knew. A plugin that asks does not wait for that.
const LISTING_TIME: Duration = Duration::from_secs(3);
/// How often it is looked for pods that a plugin announced and that never came to be.
const SWEEP: Duration = Duration::from_secs(60);
/// How often what kernels have is compared with what they were given.
const VERIFICATION: Duration = Duration::from_secs(30);
/// The least between two looks at what others have committed: who commits all the time is not to keep this task from its work.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// How long a pod that starts waits until its namespace is known.
const NAMESPACE_LIMIT: Duration = Duration::from_millis(500);
/// Plugins that wait to be heard.
const MAX_REQUESTS: usize = 256;

/// The stores of policies and of all pods, asked for before the watches begin.
pub struct PolicyWatches {
    policies: Shared<Objects<NetworkPolicy>>,
    peers: Shared<Peers>,
    interest: watch::Sender<bool>,
    services: ServiceStores,
    /// Absent where tenants are not enforced.
    tenants: Option<TenantStores>,
    mesh_namespaces: Vec<Box<str>>,
    inbox: Arc<Inbox>,
}

/// What enforcing needs of the agent.
pub struct PolicyParts {
    /// The options.
    pub config: PolicyConfig,
    /// This node's name.
    pub node: String,
    /// Whether pods come from manifests.
    pub manifests: bool,
    /// Namespaces, and which pods there are.
    pub cluster: Cluster,
    /// The pods whose addresses plugins left for an agent that starts, those that started last first.
    pub started: StartedPods,
    /// What an earlier agent kept, with which this one begins while nothing is listed.
    pub memory: PolicyMemory,
    /// The pods that have been in ambient mode; nothing while that is not known. Until then nothing is opened or closed.
    pub tunnels: TunnelledPods,
    /// Makes what enforces policies in the node's network namespace. It is asked again after a panic.
    pub node_point: PointMaker,
    /// The same in those of pods.
    pub pod_point: PointMaker,
    /// What stands where packets of pods enter the node.
    pub entry: EntryMaker,
    /// Points tell by it that somebody has committed rules where theirs are.
    pub disturbed: Arc<Notify>,
    /// Is told how it goes. It must not wait.
    pub told: PolicyListener,
    /// Where lines go.
    pub log: Scope,
}

/// Looks what plugins left.
pub type StartedPods = Arc<dyn Fn() -> Vec<StartedPod> + Send + Sync>;
/// Says which pods are in ambient mode, where the tunnel is judged inside.
pub type TunnelledPods = Arc<dyn Fn() -> Option<Vec<PodRef>> + Send + Sync>;

/// Hears how enforcing goes.
pub type PolicyListener = Arc<dyn Fn(PolicyNews<'_>) + Send + Sync>;

/// Makes a point.
pub type PointMaker = Box<dyn Fn() -> Box<dyn PolicyPoint> + Send + Sync>;

/// Enforces the policies of this node's pods. Clones ask the same task.
#[derive(Clone)]
pub struct Policies {
    parts: Arc<PolicyParts>,
    sources: Arc<PolicySources>,
    requests: mpsc::Sender<PolicyRequest>,
    turns: Arc<watch::Sender<u64>>,
    standing: Arc<Mutex<PolicyStanding>>,
    untested: Arc<watch::Sender<std::collections::BTreeSet<LocalName>>>,
    /// Taken by the task.
    asked: Arc<Mutex<Option<mpsc::Receiver<PolicyRequest>>>>,
}

// === impl PolicyWatches ===

impl PolicyWatches {
    /// Adds what is watched; tenants only where these are enforced. The mesh's control plane may be in `mesh_namespaces`.
    pub fn new(wanted: &mut Wanted, config: &PolicyConfig, mesh_namespaces: Vec<Box<str>>) -> Self {
        let inbox = Arc::new(Inbox::default());
        let interest = watch::Sender::new(false);
        let told = inbox.clone();
        let policies = wanted.kind::<NetworkPolicies>(ObjectSelection::all(), move |deltas| {
            told.policies(deltas.into_iter().map(|delta| delta.key));
        });
        let told = inbox.clone();
        let peers = wanted.peers(interest.subscribe(), move |effects| told.pods(effects));
        let services = ServiceStores::new(wanted, &inbox);
        let tenants = config.enforces_tenants.then(|| TenantStores::new(wanted, &inbox));
        Self { policies, peers, interest, services, tenants, mesh_namespaces, inbox }
    }
}

// === impl Policies ===

impl Policies {
    /// Nothing happens before [`Self::live`].
    pub fn new(parts: PolicyParts, watches: PolicyWatches) -> Self {
        let PolicyWatches { policies, peers, interest, services, tenants, mesh_namespaces, inbox } = watches;
        let (cluster, tunnels) = (parts.cluster.clone(), parts.tunnels.clone());
        let sources = PolicySources {
            policies,
            peers,
            cluster,
            interest,
            inbox,
            tunnels,
            services,
            tenants,
            mesh_namespaces,
        };
        let (sender, requests) = mpsc::channel(MAX_REQUESTS);
        let asked = Arc::new(Mutex::new(Some(requests)));
        let (parts, sources, turns) = (Arc::new(parts), Arc::new(sources), Arc::default());
        let standing = Arc::new(Mutex::new(PolicyStanding::NotListed));
        Self { parts, sources, requests: sender, turns, standing, untested: Arc::default(), asked }
    }

    /// A pod is about to start. When this is answered its rules are in force, and its neighbours on this node know its addresses.
    ///
    /// # Errors
    /// That is not so.
    pub async fn prepare(&self, starting: PodToPrepare) -> Result<PreparedPod, NotPrepared> {
        if self.sources.tenants.as_ref().is_some_and(tenants::TenantStores::has_some) {
            self.await_namespace(&starting.pod.namespace).await;
        }
        let (answer, answered) = oneshot::channel();
        let asked = self.requests.send(PolicyRequest::Prepare(starting, answer)).await;
        asked.map_err(|_| NotPrepared::Ended)?;
        answered.await.map_err(|_| NotPrepared::Ended)?
    }

    /// Waits for a namespace that is not known yet: the watch of a pod may be ahead of that of its namespace, and which tenant has it decides.
    async fn await_namespace(&self, name: &str) {
        let is_known = || self.sources.cluster.index().namespace(name).is_some();
        let mut turns = self.turns();
        let known = async { while !is_known() && turns.changed().await.is_ok() {} };
        // What is not known then is told by the task.
        let _ = tokio::time::timeout(NAMESPACE_LIMIT, known).await;
    }

    /// What the objects of tenants come to; nothing before all lists are complete, or where tenants are not enforced.
    pub async fn tenants(&self) -> Option<TenantOverview> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(PolicyRequest::Tenants(answer)).await.ok()?;
        answered.await.ok()?
    }

    /// Whose traffic is to be counted, and how; nothing before all lists are complete, or where tenants are not enforced.
    pub async fn usage(&self) -> Option<UsageOverview> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(PolicyRequest::Usage(answer)).await.ok()?;
        answered.await.ok()?
    }

    /// The addresses of a pod are released. Another one may have them as soon as this is done.
    pub async fn released(&self, pod: PodRef) {
        let (answer, answered) = oneshot::channel();
        // There is nobody to tell any more.
        let _ = self.requests.send(PolicyRequest::Release(pod, answer)).await;
        let _ = answered.await;
    }

    /// A pod comes into ambient mode, or is in it. [`Self::tunnel_judged`] says when its connections may be led to ztunnel.
    pub async fn enter_tunnel(&self, pod: PodRef, entry: TunnelEntry) {
        self.tell_tunnel(TunnelRequest::Enter(pod, entry)).await;
    }

    /// Answers when rules judge what is inside the tunnel of a pod, if they are to.
    pub async fn tunnel_judged(&self, pod: PodRef) {
        let (answer, answered) = oneshot::channel();
        self.tell_tunnel(TunnelRequest::Await(pod, answer)).await;
        let _ = answered.await;
    }

    /// A pod leaves ambient mode. When this is done the node has closed its tunnel.
    pub async fn leave_tunnel(&self, pod: PodRef) {
        let (answer, answered) = oneshot::channel();
        self.tell_tunnel(TunnelRequest::Leave(pod, answer)).await;
        let _ = answered.await;
    }

    /// A pod has the rules that judge its tunnel.
    pub fn tunnel_loaded(&self, pod: &LocalName) {
        self.sources.inbox.tunnel(ObjectKey::new(&*pod.namespace, &*pod.name));
    }

    async fn tell_tunnel(&self, request: TunnelRequest) {
        // Where the task has ended nothing is enforced any more.
        let _ = self.requests.send(PolicyRequest::Tunnel(request)).await;
    }

    /// What is known now, for the disk, without the own node's addresses; nothing before all lists are complete.
    pub async fn snapshot(&self) -> Option<PolicySnapshot> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(PolicyRequest::Snapshot(answer)).await.ok()?;
        answered.await.ok()?
    }

    /// The records of what rules have logged, for [`DenialBook::take`]. Nothing when the task has ended.
    pub async fn denied(&self, batch: DenialBatch) -> Option<(DenialBatch, Vec<DenialRecord>)> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(PolicyRequest::Denied(batch, answer)).await.ok()?;
        answered.await.ok()
    }

    /// What is known now, for people, with so many pods at most; nothing before all lists are complete.
    pub async fn known(&self, most: usize) -> Option<KnownPolicies> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(PolicyRequest::Known(most, answer)).await.ok()?;
        answered.await.ok()?
    }

    /// How enforcing stood after the last turn.
    pub fn standing(&self) -> PolicyStanding {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which of these connections policies deny by now, in their order; `node` are the own node's addresses.
    pub async fn judge(&self, flows: Vec<PolicyFlow>, node: Arc<[IpAddr]>) -> Vec<bool> {
        let (answer, answered) = oneshot::channel();
        // There is nobody to ask any more.
        let _ = self.requests.send(PolicyRequest::Judge(flows, node, answer)).await;
        answered.await.unwrap_or_default()
    }

    /// Another number after each turn, in which something may have changed. It ends with the task.
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    /// Labels of namespaces have changed.
    pub fn namespaces_changed(&self, names: Vec<Box<str>>) {
        self.sources.inbox.namespaces(names);
    }

    /// All objects of a watch were listed for the first time.
    pub fn listed(&self) {
        self.sources.inbox.wake();
    }

    fn state(&self) -> PolicyState {
        let PolicyParts {
            config,
            node,
            manifests,
            started,
            memory,
            node_point,
            pod_point,
            entry,
            told,
            log,
            ..
        } = &*self.parts;
        let points =
            Points::new(config.point, [node_point(), pod_point()], entry(), told.clone(), log.clone());
        let memories = (started.clone(), memory.clone());
        PolicyState::new(self.sources.clone(), memories, LocalPods::new(node, *manifests), points)
    }

    /// Enforces them until it is aborted. To be called once.
    pub async fn live(self) {
        let Some(mut asked) = self.asked.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        let mut state = self.state();
        let (mut failures, mut retry) = (0, None::<Instant>);
        let (listed_by, mut has_waited) = (Instant::now() + LISTING_TIME, false);
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut verification = tokio::time::interval(VERIFICATION);
        verification.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        let disturbed = self.parts.disturbed.clone();
        loop {
            let mut turn = PolicyTurn::default();
            let due = state.due().map(Instant::from_std);
            let calm = async || {
                sleep_until(looked + BETWEEN_LOOKS).await;
                disturbed.notified().await;
            };
            tokio::select! {
                () = self.sources.inbox.told() => {}
                Some(one) = asked.recv() => turn.request = Some(one),
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                () = sleep_until(listed_by), if !has_waited => turn.remembers = true,
                _ = sweep.tick() => turn.sweeps = true,
                _ = verification.tick() => turn.look = Some(PointLook::Everything),
                () = calm() => turn.look = Some(PointLook::Disturbed),
            }
            has_waited |= turn.remembers;
            if turn.look.is_some() {
                looked = Instant::now();
            }
            // Who writes snapshots would ask without end, and denials change nothing.
            let is_question = turn.is_question();
            let work = tokio::task::spawn_blocking(move || {
                let done = state.act(turn);
                (state, done)
            });
            let done;
            (state, done) = match work.await {
                Ok(done) => done,
                // All that it knew is read anew; the kernel has what it had.
                Err(error) => {
                    has_waited = false;
                    (self.state(), Err(PointError::new(error)))
                }
            };
            failures = if done.is_ok() { 0 } else { failures + 1 };
            retry = done.is_err().then(|| Instant::now() + RETRY.pause(failures));
            self.tell(&state, done);
            state.tell_untested(&self.untested);
            if !is_question {
                self.turns.send_modify(|number| *number += 1);
            }
        }
    }

    fn tell(&self, state: &PolicyState, done: Result<(), PointError>) {
        let PolicyParts { told, log, .. } = &*self.parts;
        let standing = match done {
            Ok(()) => {
                let standing = state.standing();
                if standing != PolicyStanding::NotListed {
                    log.settled(&[]);
                }
                standing
            }
            Err(error) => {
                let (text, error) = (
                    "the kernel does not have all that policies come to; it is tried again",
                    fault::chain(&error),
                );
                log.warn(text, &[("error", &error)]);
                PolicyStanding::Failing(error)
            }
        };
        told(PolicyNews::Standing(&standing));
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }
}
