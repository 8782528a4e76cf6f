//! Policies in pods' own network namespaces: what [`PodBook`] wants of a pod is loaded where its processes are, and compared at intervals.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cluster::{Cluster, Queue};
use enforcement::{PodBook, PodJob, PointError, PointLook, PolicyPoint, SetContent};
use facts::PodRef;
use fault::{Fault, Retry};
use kernel::sets::Sets;
use kernel::{Change, Choice, Kernel};
use netns::find::SearchRoots;
use netns::{Inside, Netns};
use policy::compile::CompiledPod;
use policy::index::{LocalName, PolicyEffect, PolicyIndex};
use ruleset::{Backend, Plan, Ruleset, SetDelta};
use telemetry::Scope;
use tokio::task::JoinError;

use crate::backends::Backends;
use crate::finder::{self, FindFailure, Finder, wanted_netns};
use crate::pods::{self, Reconcile};
use crate::slots::{Slots, Task, UnfinishedAct};

/// On how many pods it is worked at once.
const PLACES: usize = 4;

/// What is needed of the agent.
pub(crate) struct PodPointParts {
    pub(crate) cluster: Cluster,
    pub(crate) slots: Arc<Slots>,
    pub(crate) backends: Arc<Backends>,
    /// How rules are loaded.
    pub(crate) choice: Choice,
    /// Most elements of the sets of a pod.
    pub(crate) most_elements: usize,
    /// Runtime classes that use the kernel's network stack.
    pub(crate) kernel_network_runtime_classes: Vec<String>,
    /// The node's procfs.
    pub(crate) proc_root: PathBuf,
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
}

/// The point as policies see it: what is done is done by [`PodPointKeeper`], a moment later.
pub(crate) struct PodPolicyPoint {
    keeper: Arc<PodPointKeeper>,
    /// Whether pods were looked at that may have rules of an earlier agent.
    has_looked: bool,
}

/// Why a pod does not have the rules of its policies.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodPointFailure {
    /// Its node's processes cannot be seen.
    #[error("open the node's network namespace: {0}")]
    Host(netns::Error),
    /// It is not there, or cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// It is not found.
    #[error(transparent)]
    Find(#[from] FindFailure),
    /// It is another pod's by now.
    #[error("{0}")]
    Foreign(#[from] netns::find::NotThePods),
    /// Not in time.
    #[error(transparent)]
    Unfinished(#[from] UnfinishedAct),
    /// Its rules.
    #[error(transparent)]
    Rules(#[from] kernel::Error),
    /// Its rules are left.
    #[error(transparent)]
    Left(#[from] kernel::Incomplete),
    /// Its sets.
    #[error(transparent)]
    Sets(#[from] kernel::sets::Error),
    /// It needs more than it may have.
    #[error(
        "its policies need {found} elements in its sets and POLICY_POD_POINT_MAX is {most}; it has none of them"
    )]
    TooMany {
        /// So many.
        found: usize,
        /// The option.
        most: usize,
    },
}

impl Fault for PodPointFailure {
    fn retry(&self) -> Retry {
        if matches!(self, Self::TooMany { .. }) { Retry::OnChange } else { Retry::Backoff }
    }
}

// === impl PodPolicyPoint ===

impl PodPolicyPoint {
    pub(crate) fn new(keeper: Arc<PodPointKeeper>) -> Self {
        Self { keeper, has_looked: false }
    }
}

impl PolicyPoint for PodPolicyPoint {
    fn adopt(&mut self, index: &PolicyIndex, pods: &dyn Fn(&LocalName) -> bool) -> Result<(), PointError> {
        let node = self.keeper.node_addresses().map_err(PointError::new)?;
        let mut book = self.keeper.book();
        if !std::mem::replace(&mut self.has_looked, true) {
            for pod in self.keeper.parts.cluster.index().pods().filter(|pod| !pod.host_network()) {
                book.look_at(LocalName { namespace: pod.namespace().into(), name: pod.name().into() });
            }
        }
        let touched = book.adopt(index, node, pods);
        drop(book);
        touched.iter().for_each(|name| self.keeper.queue.push(pod_of(name)));
        Ok(())
    }

    fn apply(&mut self, effects: &[PolicyEffect], index: &PolicyIndex) -> Result<(), PointError> {
        let touched = self.keeper.book().apply(effects, index);
        touched.iter().for_each(|name| self.keeper.queue.push(pod_of(name)));
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
        let book = Mutex::new(PodBook::new(backend));
        Arc::new(Self {
            parts,
            book,
            queue: Queue::new(),
            finder: Finder::default(),
            places: Mutex::default(),
        })
    }

    /// Works until it is aborted.
    pub(crate) async fn live(self: Arc<Self>) {
        pods::work(self).await;
    }

    fn book(&self) -> MutexGuard<'_, PodBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<LocalName, Arc<Netns>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(&self) -> Result<Netns, netns::Error> {
        Netns::open(self.parts.proc_root.join("1/ns/net"))
    }

    fn node_addresses(&self) -> Result<Vec<std::net::IpAddr>, PodPointFailure> {
        let host = self.host().map_err(PodPointFailure::Host)?;
        let listed = host.enter(kernel::route::link_addresses).map_err(PodPointFailure::Host)?;
        Ok(listed.map_err(kernel::Error::from)?)
    }

    /// The namespace of a pod; nothing where it has none to be worked on.
    async fn locate(
        &self,
        name: &LocalName,
        pod: &facts::Object,
    ) -> Result<(Arc<Netns>, SearchRoots), PodPointFailure> {
        let host = self.host().map_err(PodPointFailure::Host)?;
        let roots = SearchRoots { proc_root: self.parts.proc_root.clone(), host: host.id() };
        let known = self.places().get(name).cloned();
        if let Some(netns) = known.filter(|netns| finder::is_still(netns)) {
            return Ok((netns, roots));
        }
        let wanted = wanted_netns(pod, &self.parts.kernel_network_runtime_classes);
        let found = Arc::new(self.finder.find(&roots, wanted, Vec::new).await?);
        self.places().insert(name.clone(), found.clone());
        Ok((found, roots))
    }

    async fn work_on(&self, name: &LocalName) -> Result<(), PodPointFailure> {
        let pod = self.parts.cluster.index().pod(&name.namespace, &name.name).cloned();
        let Some(pod) = pod.filter(|pod| !pod.is_terminal()) else {
            self.places().remove(name);
            return Ok(());
        };
        let Some(job) = self.book().job(name) else { return Ok(()) };
        let found = self.locate(name, &pod).await;
        let (netns, roots) = match found {
            Ok(found) => found,
            // Nothing runs there, so there is nothing to remove.
            Err(PodPointFailure::Find(FindFailure::Missing(_))) if job.rules.is_none() => {
                self.book().done(name, &job);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Some(found) = too_many(&job, self.parts.most_elements) {
            return Err(PodPointFailure::TooMany { found, most: self.parts.most_elements });
        }
        let (backends, backend, addresses) = (self.parts.backends.clone(), self.book().backend(), pod.ips());
        let doing = job.clone();
        let load = move || -> Result<Change, PodPointFailure> {
            netns::find::belongs_to(&netns, roots.host, &addresses, &finder::addresses)?;
            netns.enter(|inside| load(inside, backends.kernel(), backend, &doing))?
        };
        let change = self.parts.slots.run(&pod.pod_ref(), Task::Program, load).await??;
        self.parts.backends.log_warnings(&self.parts.log);
        self.book().done(name, &job);
        let key = pod.pod_ref();
        if job.is_whole && change == Change::Replaced {
            self.parts.log.info(
                "the rules of a pod's policies differed from what is wanted; they are put right",
                &[("pod", &key)],
            );
        }
        Ok(())
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
        self.work_on(&LocalName { namespace: (*pod.namespace).into(), name: (*pod.name).into() }).await
    }

    fn succeeded(&self, pod: &PodRef) {
        self.parts.log.settled(&[("pod", pod)]);
    }

    async fn failed(&self, pod: &PodRef, failure: &PodPointFailure, _: u32) {
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

/// Whether the node's kernel lacks what rules in nf_tables need.
fn lacks_nftables(proc_root: &Path) -> bool {
    let host = Netns::open(proc_root.join("1/ns/net")).ok();
    let support = host.and_then(|host| host.enter(kernel::nft::probe).ok()?.ok());
    support.is_some_and(|support| !support.tables)
}

/// How many elements a job writes as a whole, if that is too many.
fn too_many(job: &PodJob, most: usize) -> Option<usize> {
    let whole = job.sets.iter().filter_map(|set| match &set.content {
        SetContent::Whole(all) => Some(all.len()),
        SetContent::Changes(_) => None,
    });
    Some(whole.sum()).filter(|found| *found > most)
}

/// Does a job: what is new comes into the sets, then the rules change in one transaction, then what is not wanted any more leaves the sets.
fn load(
    inside: &Inside,
    kernel: Kernel<'_>,
    backend: Backend,
    job: &PodJob,
) -> Result<Change, PodPointFailure> {
    let Some(compiled) = &job.rules else { return unload(inside, kernel, backend, job) };
    let setup = |rules: &Ruleset| {
        let plan = |backend| Plan::of_layer(backend, rules.clone());
        kernel.apply(inside, Choice::Only(backend), plan).map(|applied| applied.rules)
    };
    let mut sets = Sets::open(inside, backend, &compiled.rules)?;
    sets.prepare()?;
    let is_other = job.before.as_ref().is_none_or(|before| before.rules != compiled.rules);
    let mut change = Change::None;
    if backend == Backend::Nftables && is_other {
        // The rules before with the sets of both: a packet that both allow meets no empty set.
        let first = job
            .before
            .as_ref()
            .map_or_else(|| compiled.rules.clone(), |before| with_sets_of(before, compiled));
        change = setup(&first)?;
    }
    let (mut gains, mut loses) = (Vec::new(), Vec::new());
    for set in &job.sets {
        let delta = match &set.content {
            SetContent::Changes(delta) => delta.clone(),
            SetContent::Whole(all) => SetDelta::between(&sets.list(&set.name)?, all),
        };
        let (mut more, mut less) = (SetDelta::default(), SetDelta::default());
        delta.added().for_each(|element| more.add(element));
        delta.removed().for_each(|key| less.remove(key));
        gains.push((set.name.as_str(), more));
        loses.push((set.name.as_str(), less));
    }
    let mut count = change_sets(&mut sets, &gains)?;
    if is_other {
        let last = setup(&compiled.rules)?;
        change = if change == Change::None { last } else { change };
        if let Some(before) = &job.before {
            Sets::open(inside, backend, &sets_beside(before, compiled))?.destroy()?;
        }
    }
    count += change_sets(&mut sets, &loses)?;
    let has_repaired = job.is_whole && job.before.is_none() && change == Change::None && count > 0;
    Ok(if has_repaired { Change::Replaced } else { change })
}

/// How many elements are other than before.
fn change_sets(sets: &mut Sets, changes: &[(&str, SetDelta)]) -> Result<usize, PodPointFailure> {
    let changes: Vec<(&str, &SetDelta)> =
        changes.iter().filter(|(_, delta)| !delta.is_empty()).map(|(name, delta)| (*name, delta)).collect();
    if changes.is_empty() {
        return Ok(0);
    }
    Ok(sets.change(&changes)?.count())
}

fn unload(
    inside: &Inside,
    kernel: Kernel<'_>,
    backend: Backend,
    job: &PodJob,
) -> Result<Change, PodPointFailure> {
    // In iptables a rule of ours is known by a chain of ours that it leads to, or by the plan.
    let rules = job.before.as_ref().map_or_else(policy::guard::no_rules, |before| before.rules.clone());
    let plan = Plan::of_layer(backend, rules);
    let change = kernel.cleanup(inside, &plan)?;
    if let Some(before) = &job.before {
        Sets::open(inside, backend, &before.rules)?.destroy()?;
    }
    Ok(change)
}

/// The rules before, with the sets of those that follow beside their own.
fn with_sets_of(before: &CompiledPod, next: &CompiledPod) -> Ruleset {
    let mut rules = before.rules.clone();
    for table in &mut rules.tables {
        let more =
            next.rules.tables.iter().filter(|other| other.kind == table.kind).flat_map(|other| &other.sets);
        let more: Vec<_> =
            more.filter(|set| table.sets.iter().all(|own| own.name != set.name)).cloned().collect();
        table.sets.extend(more);
    }
    rules
}

/// The rules before, with those of their sets that the ones that follow do not have.
fn sets_beside(before: &CompiledPod, next: &CompiledPod) -> Ruleset {
    let mut rules = before.rules.clone();
    let has = |name: &str| next.rules.tables.iter().flat_map(|table| &table.sets).any(|set| set.name == name);
    rules.tables.iter_mut().for_each(|table| table.sets.retain(|set| !has(&set.name)));
    rules
}

fn pod_of(name: &LocalName) -> PodRef {
    PodRef::named(&*name.namespace, &*name.name)
}
