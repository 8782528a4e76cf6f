//! Policies in pods' own network namespaces: what [`PodBook`] wants of a pod is loaded where its processes are, and compared at intervals.

mod failure;
mod hearing;
mod load;
mod weak;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use capture::ambient::{PROBE_V4, PROBE_V6};
use cluster::{Cluster, Queue};
use enforcement::{
    AttachedPod, ClassServices, PodBook, PointCharge, PointError, PointLook, PolicyPoint, StartedPods,
};
use facts::PodRef;
use kernel::Choice;
use netns::Netns;
use policy::compile::{ClusterInterface, DenialAnswer};
use policy::index::{LocalName, PolicyEffect, PolicyIndex};
use ruleset::Backend;
use telemetry::Scope;
use tokio::sync::Notify;
use tokio::task::JoinError;

use crate::backends::Backends;
use crate::events::Events;
use crate::finder::Finder;
use crate::pods::{self, Reconcile};
use crate::slots::Slots;
pub(super) use failure::PodPointFailure;
use hearing::PodHearing;
use metrics::Metrics;

/// On how many pods it is worked at once.
const PLACES: usize = 4;
/// `reason` of an Event about a pod.
const TOO_LARGE: &str = "NetworkPolicyTooLarge";
/// How long after the agent's start a pod may have no process yet that a plugin may have guarded. Runtimes start one as soon as the ADD is over.
const FIRST_PROCESS: Duration = Duration::from_secs(60);

/// What is needed of the agent.
pub(crate) struct PodPointParts {
    pub(crate) cluster: Cluster,
    pub(crate) slots: Arc<Slots>,
    pub(crate) backends: Arc<Backends>,
    /// How rules are loaded.
    pub(crate) choice: Choice,
    /// Most elements of the sets of a pod.
    pub(crate) most_elements: usize,
    /// Which denied packets are answered.
    pub(crate) answer: DenialAnswer,
    /// Runtime classes that use the kernel's network stack.
    pub(crate) kernel_network_runtime_classes: Vec<String>,
    /// The pods that a plugin may have guarded before there was an agent.
    pub(crate) started: StartedPods,
    /// The node's procfs.
    pub(crate) proc_root: PathBuf,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Scope,
}

/// Works on pods' namespaces.
pub(crate) struct PodPointKeeper {
    parts: PodPointParts,
    book: Mutex<PodBook>,
    queue: Queue<PodRef>,
    finder: Finder,
    /// Namespaces that were found.
    places: Mutex<BTreeMap<LocalName, Arc<Netns>>>,
    /// Pods that may be guarded, and until when their first process is waited for.
    guarded: Mutex<BTreeMap<LocalName, Instant>>,
    /// Addresses in the cluster's network that plugins told, before anybody else knows them.
    attached: Mutex<BTreeMap<LocalName, Vec<IpAddr>>>,
    /// The interfaces that rules were loaded for.
    interfaces: Mutex<BTreeMap<LocalName, ClusterInterface>>,
    /// Pods that can get past their rules, as it was told, and by which capabilities.
    weak: Mutex<BTreeMap<PodRef, u64>>,
    /// Rules have come into a pod.
    more_inside: Notify,
    /// Pods that need more than they may have, as it was told.
    too_large: Mutex<BTreeSet<LocalName>>,
    /// Namespaces of pods in ambient mode, as that knows them.
    tunnelled: Mutex<BTreeMap<LocalName, Weak<Netns>>>,
    /// Where changes of others are heard.
    hearing: PodHearing,
    /// Is told of pods that have the rules which judge their tunnels.
    tunnel_loaded: OnceLock<TunnelLoaded>,
}

type TunnelLoaded = Box<dyn Fn(&LocalName) + Send + Sync>;

/// The point as policies see it: what is done is done by [`PodPointKeeper`], a moment later.
pub(crate) struct PodPolicyPoint {
    keeper: Arc<PodPointKeeper>,
    /// Pods of which it was said once what they are to have, so that what an earlier agent left there is put right.
    settled: BTreeSet<LocalName>,
    /// Whether it was asked which pods a plugin may have guarded.
    has_looked: bool,
}

// === impl PodPolicyPoint ===

impl PodPolicyPoint {
    pub(crate) fn new(keeper: Arc<PodPointKeeper>) -> Self {
        Self { keeper, settled: BTreeSet::new(), has_looked: false }
    }
}

impl PolicyPoint for PodPolicyPoint {
    fn adopt(
        &mut self,
        index: &PolicyIndex,
        pods: &dyn Fn(&LocalName) -> PointCharge,
    ) -> Result<(), PointError> {
        let node = self.keeper.node_addresses().map_err(PointError::new)?;
        let all: BTreeSet<LocalName> = {
            let cluster = self.keeper.parts.cluster.index();
            let all = cluster.pods().filter(|pod| !pod.host_network());
            let all = all.map(|pod| LocalName { namespace: pod.namespace().into(), name: pod.name().into() });
            all.filter(|name| pods(name) != PointCharge::Unsettled).collect()
        };
        if !std::mem::replace(&mut self.has_looked, true) {
            let until = Instant::now() + FIRST_PROCESS;
            let started = (self.keeper.parts.started)();
            self.keeper.guarded().extend(started.into_iter().map(|started| (name_of(&started.pod), until)));
        }
        let mut book = self.keeper.book();
        all.difference(&self.settled).for_each(|name| book.look_at(name.clone()));
        self.settled = all;
        let touched = book.adopt(index, node, pods);
        drop(book);
        self.keeper.count_waiting();
        touched.iter().for_each(|name| self.keeper.queue.push(pod_of(name)));
        Ok(())
    }

    fn apply(
        &mut self,
        effects: &[PolicyEffect],
        index: &PolicyIndex,
        pods: &dyn Fn(&LocalName) -> PointCharge,
    ) -> Result<(), PointError> {
        let touched = self.keeper.book().apply(effects, index, pods);
        // After the book: who works on such a pod asks it before anything is kept.
        for effect in effects {
            if let PolicyEffect::PodGoes(pod) = effect {
                self.settled.remove(pod);
                self.keeper.places().remove(pod);
                self.keeper.attached().remove(pod);
                self.keeper.interfaces().remove(pod);
                self.keeper.too_large().remove(pod);
                self.keeper.guarded().remove(pod);
                self.keeper.hearing.forget(pod);
            }
        }
        self.keeper.count_waiting();
        touched.iter().for_each(|name| self.keeper.queue.push(pod_of(name)));
        Ok(())
    }

    fn services(&mut self, services: &ClassServices, index: &PolicyIndex) -> Result<(), PointError> {
        let touched = self.keeper.book().set_services(services, index);
        touched.iter().for_each(|name| self.keeper.queue.push(pod_of(name)));
        Ok(())
    }

    fn end_guard(&mut self, pod: &LocalName) {
        self.keeper.guarded().insert(pod.clone(), Instant::now() + FIRST_PROCESS);
        self.keeper.book().look_at(pod.clone());
        self.keeper.queue.push(pod_of(pod));
    }

    fn attached(&mut self, at: &AttachedPod) {
        self.keeper.attached().insert(at.pod.clone(), at.addresses.clone());
    }

    fn settle(&mut self, at: &AttachedPod, is_its: bool, index: &PolicyIndex) -> Result<(), PointError> {
        self.settled.insert(at.pod.clone());
        self.keeper.places().insert(at.pod.clone(), at.netns.clone());
        self.keeper.book().settle(&at.pod, is_its, index);
        self.keeper.queue.push(pod_of(&at.pod));
        Ok(())
    }

    /// What differs is told where it is put right.
    fn verify(&mut self, _: &PolicyIndex, look: PointLook) -> Result<bool, PointError> {
        if look == PointLook::Everything {
            let all = self.keeper.book().look_at_all();
            all.iter().for_each(|name| self.keeper.queue.push(pod_of(name)));
        }
        Ok(false)
    }
}

// === impl PodPointKeeper ===

impl PodPointKeeper {
    pub(crate) fn new(parts: PodPointParts) -> Arc<Self> {
        let backend = match parts.choice {
            Choice::Only(backend) => backend,
            Choice::Auto if lacks_nftables(&parts.proc_root) => Backend::Iptables,
            Choice::Auto => Backend::Nftables,
        };
        let book = PodBook::new(backend, vec![PROBE_V4.into(), PROBE_V6.into()]);
        let book = Mutex::new(book.answering(parts.answer, kernel::nft::rejects_arriving()));
        Arc::new(Self {
            parts,
            book,
            queue: Queue::new(),
            finder: Finder::default(),
            places: Mutex::default(),
            guarded: Mutex::default(),
            attached: Mutex::default(),
            interfaces: Mutex::default(),
            too_large: Mutex::default(),
            weak: Mutex::default(),
            more_inside: Notify::new(),
            tunnelled: Mutex::default(),
            hearing: PodHearing::new(),
            tunnel_loaded: OnceLock::new(),
        })
    }

    /// `told` hears of pods that have the rules which judge their tunnels. It must not wait.
    pub(crate) fn on_tunnel_loaded(&self, told: impl Fn(&LocalName) + Send + Sync + 'static) {
        let _ = self.tunnel_loaded.set(Box::new(told));
    }

    /// Where a pod is, as ambient mode knows it. Whether that is news.
    pub(crate) fn place(&self, pod: &PodRef, netns: &Arc<Netns>) -> bool {
        let name = name_of(pod);
        let before = {
            let mut known = self.tunnelled.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, netns| netns.strong_count() > 0);
            known.insert(name.clone(), Arc::downgrade(netns))
        };
        let is_moved = before.and_then(|before| before.upgrade()).is_none_or(|before| before != *netns);
        if is_moved {
            self.book().moved(&name);
        }
        is_moved
    }

    /// Works until it is aborted.
    pub(crate) async fn live(self: Arc<Self>) {
        let events = self.start_hearing();
        tokio::join!(pods::work(self.clone()), self.clone().watch_weak(), self.hear(events));
    }

    /// Whether a pod is isolated, because its rules are not loaded yet or not known to be.
    pub(super) fn is_guarded(&self, pod: &LocalName) -> bool {
        self.book().waits(pod)
    }

    fn count_waiting(&self) {
        let waiting = self.book().waiting();
        self.parts.metrics.policy_guarded(waiting);
    }

    fn book(&self) -> MutexGuard<'_, PodBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<LocalName, Arc<Netns>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guarded(&self) -> MutexGuard<'_, BTreeMap<LocalName, Instant>> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attached(&self) -> MutexGuard<'_, BTreeMap<LocalName, Vec<IpAddr>>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interfaces(&self) -> MutexGuard<'_, BTreeMap<LocalName, ClusterInterface>> {
        self.interfaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn weak(&self) -> MutexGuard<'_, BTreeMap<PodRef, u64>> {
        self.weak.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn too_large(&self) -> MutexGuard<'_, BTreeSet<LocalName>> {
        self.too_large.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod is isolated because its policies need more than it may have.
    fn tell_too_large(&self, name: &LocalName, pod: &PodRef, found: usize) {
        self.count_waiting();
        if !self.too_large().insert(name.clone()) {
            return;
        }
        let most = self.parts.most_elements;
        let text = format!(
            "the policies of this pod need {found} addresses and ports in its network namespace, and {most} are allowed (POLICY_POD_POINT_MAX): it is \
             isolated until they need fewer, or more are allowed"
        );
        let (events, pod) = (self.parts.events.clone(), pod.clone());
        tokio::spawn(async move { events.warn(&pod, TOO_LARGE, &text).await });
    }

    fn host(&self) -> Result<Netns, netns::Error> {
        Netns::open(self.parts.proc_root.join("1/ns/net"))
    }

    fn node_addresses(&self) -> Result<Vec<IpAddr>, PodPointFailure> {
        let host = self.host().map_err(PodPointFailure::Host)?;
        let listed = host.enter(kernel::route::link_addresses).map_err(PodPointFailure::Host)?;
        Ok(listed.map_err(kernel::Error::from)?)
    }

    /// Where a pod of ambient mode is.
    fn tunnelled(&self, name: &LocalName) -> Option<Arc<Netns>> {
        self.tunnelled.lock().unwrap_or_else(PoisonError::into_inner).get(name)?.upgrade()
    }

    /// Whether a pod's namespace was told before its watch tells of it.
    fn is_placed(&self, name: &LocalName) -> bool {
        self.tunnelled(name).is_some() || self.places().contains_key(name)
    }
}

impl Reconcile for PodPointKeeper {
    type Failure = PodPointFailure;

    fn queue(&self) -> &Queue<PodRef> {
        &self.queue
    }

    fn places(&self) -> usize {
        PLACES
    }

    fn resized(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    async fn reconcile(&self, pod: &PodRef, _: u32) -> Result<(), PodPointFailure> {
        self.work_on(&name_of(pod)).await
    }

    fn succeeded(&self, pod: &PodRef) {
        self.count_waiting();
        self.parts.log.settled(&[("pod", pod)]);
    }

    async fn failed(&self, pod: &PodRef, failure: &PodPointFailure, _: u32) {
        if matches!(failure, PodPointFailure::NotYet) {
            return;
        }
        let text = "a pod does not have the rules of its policies";
        self.parts.log.warn(text, &[("pod", pod), ("error", &fault::chain(failure))]);
    }

    fn panicked(&self, error: JoinError) {
        self.parts.log.error(
            "the work on a pod's policies panicked; this is a defect, please report it",
            &[("error", &error)],
        );
    }
}

fn name_of(pod: &PodRef) -> LocalName {
    LocalName { namespace: (*pod.namespace).into(), name: (*pod.name).into() }
}

/// Whether the node's kernel lacks what rules in nf_tables need.
fn lacks_nftables(proc_root: &Path) -> bool {
    let host = Netns::open(proc_root.join("1/ns/net")).ok();
    let support = host.and_then(|host| host.enter(kernel::nft::probe).ok()?.ok());
    support.is_some_and(|support| !support.tables)
}

fn pod_of(name: &LocalName) -> PodRef {
    PodRef::named(&*name.namespace, &*name.name)
}
