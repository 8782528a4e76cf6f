//! Turns what watches and plugins tell into effects, and gives these to where policies are enforced.

mod guarded;
mod known;
mod looks;
mod prepared;
mod remembered;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use cluster::news::ObjectKey;
use cluster::{Cluster, Objects, Peers, Shared};
use facts::NetworkPolicy;
use facts::networkpolicy::Isolation;
use policy::index::{LocalFacts, LocalName, PolicyClass, PolicyEffect, PolicyIndex, TunnelJudge};
use policy::{PolicyName, PolicyPod as _, PolicyTerms, Section};
use tokio::sync::watch;

use super::changes::{Changes, Inbox};
use super::denials::LoggedClasses;
use super::news::PolicyNews;
use super::point::{EnforcementPoint, PointError};
use super::points::Points;
use super::services::{ServiceState, ServiceStores};
use super::tenants::{TenantChanges, TenantState, TenantStores};
use super::tunnels::Tunnels;
use super::world::{ClusterPod, ClusterWorld, LabelledNamespaces, LocalPods, key_of};
use super::{StartedPods, TunnelledPods};
pub use looks::PodNetwork;

pub use known::{KnownPoint, KnownPolicies};
pub use prepared::{NotPrepared, PodToPrepare, PreparedPod};
pub(super) use remembered::Remembered;
use remembered::knowing;
pub use remembered::{KeptPolicies, PolicyMemory};

/// What the watches fill.
pub(super) struct PolicySources {
    pub(super) policies: Shared<Objects<NetworkPolicy>>,
    pub(super) peers: Shared<Peers>,
    pub(super) cluster: Cluster,
    /// Whether all pods of the cluster are watched.
    pub(super) interest: watch::Sender<bool>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) tunnels: TunnelledPods,
    pub(super) services: ServiceStores,
    /// Absent where tenants are not enforced.
    pub(super) tenants: Option<TenantStores>,
    /// Where the mesh's control plane may be.
    pub(super) mesh_namespaces: Vec<Box<str>>,
}

/// What is known of policies, and what of it a kernel has.
pub(super) struct PolicyState {
    pub(super) sources: Arc<PolicySources>,
    pub(super) namespaces: LabelledNamespaces,
    pub(super) local: LocalPods,
    pub(super) tunnels: Tunnels,
    pub(super) services: ServiceState,
    pub(super) tenants: TenantState,
    pub(super) index: PolicyIndex,
    pub(super) points: Points,
    /// What plugins told earlier agents.
    started: StartedPods,
    /// What an earlier agent kept.
    memory: PolicyMemory,
    /// Whether it was asked for that.
    has_remembered: bool,
    /// What is known by that, while nothing is listed.
    pub(super) remembered: Option<Box<Remembered>>,
    pub(super) stage: FollowStage,
    /// Whether a point has to adopt the index.
    behind: bool,
    /// When all is looked at once more, after a repair.
    look_again: Option<Instant>,
    /// Whether it was not known of some pods which tenant has their namespaces when a point did so last.
    has_unknown: bool,
    /// What rules log is known by.
    logged: LoggedClasses,
    /// Policies with entries that do not count: their generations, and how many entries.
    refused: BTreeMap<ObjectKey, (u64, usize)>,
    /// Pods whose addresses a plugin told and that nobody else knows, as it was when this was looked at last.
    unknown: BTreeSet<ObjectKey>,
    /// Pods whose plugins have guarded them, and ask no more.
    guarded: BTreeSet<LocalName>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FollowStage {
    /// Not all lists are complete: nothing is opened or closed.
    Lists,
    /// The same, and it is gone on with what an earlier agent knew.
    Remembers,
    /// There are no policies, and pods of the cluster are not watched.
    Idle,
    /// Each change is followed.
    Follows,
}

// === impl PolicyState ===

impl PolicyState {
    pub(super) fn new(
        sources: Arc<PolicySources>,
        (started, memory): (StartedPods, PolicyMemory),
        local: LocalPods,
        points: Points,
    ) -> Self {
        sources.inbox.follow(false);
        Self {
            sources,
            namespaces: LabelledNamespaces::default(),
            local,
            tunnels: Tunnels::default(),
            services: ServiceState::default(),
            tenants: TenantState::default(),
            index: PolicyIndex::default(),
            points,
            started,
            memory,
            has_remembered: false,
            remembered: None,
            stage: FollowStage::Lists,
            behind: true,
            look_again: None,
            has_unknown: false,
            logged: LoggedClasses::default(),
            refused: BTreeMap::new(),
            unknown: BTreeSet::new(),
            guarded: BTreeSet::new(),
        }
    }

    /// Acts upon what was told since the last time.
    ///
    /// # Errors
    /// A kernel did not take all of it; the next call tries again.
    pub(super) fn turn(&mut self) -> Result<(), PointError> {
        if !self.are_lists_complete() {
            return self.keep_remembered();
        }
        let has_none = self.has_none();
        match (self.stage, has_none) {
            (FollowStage::Follows, _) => self.follow(),
            (_, true) => self.idle(),
            (_, false) => self.begin(),
        }
        if has_none && self.stage == FollowStage::Follows {
            self.idle();
        }
        self.catch_up()?;
        self.tell_tenants();
        self.judge_services()
    }

    /// Whether there is neither a policy nor a tenant.
    pub(super) fn has_none(&self) -> bool {
        self.sources.policies.read().is_empty() && !self.has_tenants()
    }

    /// When there is something to do although nothing is told.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.services.due(), self.tenants.due(), self.look_again].into_iter().flatten().min()
    }

    /// A pod is about to start: when this is done its rules are in force, and its neighbours on this node know its addresses.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn prepare(&mut self, starting: &PodToPrepare) -> Result<PreparedPod, NotPrepared> {
        let PodToPrepare { pod, labels, addresses, network } = starting;
        let touched = self.local.prepare(pod, labels.clone(), addresses, &self.sources.peers.read());
        let key = key_of(pod);
        self.remember();
        let may_judge = self.may_judge(&key);
        match self.stage {
            FollowStage::Lists => return Err(NotPrepared::NotListed),
            FollowStage::Remembers => self.start_remembered(pod, labels.clone(), addresses),
            FollowStage::Idle => {}
            FollowStage::Follows => {
                if may_judge.is_ok() {
                    self.tunnels.start(&key);
                }
                self.pod(&key, &touched);
            }
        }
        self.catch_up()?;
        // Its neighbours know its addresses by now, and not whose an earlier pod's were, whatever becomes of it.
        may_judge?;
        let name = name_of(&key);
        self.look_at_starting(&name, addresses, network.as_ref())?;
        let classes = self.index.classes_of(&name).cloned().unwrap_or_default();
        let point = match self.points.of(&name) {
            EnforcementPoint::Node if self.tunnels.judge(&key) != TunnelJudge::Port => EnforcementPoint::Both,
            point => point,
        };
        let guards =
            |class: &Option<Arc<PolicyClass>>| class.as_ref().is_some_and(|class| self.index.guards(class));
        let isolation = Isolation { ingress: guards(&classes.ingress), egress: guards(&classes.egress) };
        Ok(PreparedPod { classes, isolation, point })
    }

    /// Forgets pods that never came to be: nobody has known them twice in a row. And classes that are gone as long.
    pub(super) fn sweep(&mut self) {
        self.logged.sweep(&self.index);
        let cluster = self.sources.cluster.clone();
        self.tunnels.retain(|key| cluster.index().pod(&key.namespace, &key.name).is_some());
        let (before, mut unknown) = (std::mem::take(&mut self.unknown), BTreeSet::new());
        let gone = self.local.retain(|key| {
            let exists = cluster.index().pod(&key.namespace, &key.name).is_some();
            exists || {
                unknown.insert(key.clone());
                !before.contains(key)
            }
        });
        self.unknown = unknown;
        self.sweep_guarded();
        if self.stage == FollowStage::Follows {
            gone.iter().for_each(|(key, addresses)| self.pod(key, addresses));
        }
    }

    /// Whether all that decides was listed. Pods of the cluster are asked for where there are policies.
    fn are_lists_complete(&mut self) -> bool {
        if self.stage == FollowStage::Follows {
            return true;
        }
        if !self.tunnels.are_known()
            && let Some(pods) = (self.sources.tunnels)()
        {
            self.tunnels.know(pods.iter().map(key_of));
        }
        let PolicySources { policies, peers, cluster, interest, .. } = &*self.sources;
        let is_listed = policies.read().is_listed() && self.are_tenants_listed();
        if !is_listed || !cluster.state().synced || !self.tunnels.are_known() {
            return false;
        }
        let has_none = self.has_none();
        interest.send_if_modified(|before| std::mem::replace(before, !has_none) == has_none);
        has_none || peers.read().is_listed()
    }

    /// There is no policy: nothing is isolated.
    fn idle(&mut self) {
        self.behind |= self.stage != FollowStage::Idle;
        self.stage = FollowStage::Idle;
        self.remembered = None;
        self.index = PolicyIndex::default();
        self.tenants = TenantState::default();
        self.services.changed();
        self.sources.inbox.follow(false);
        self.sources.interest.send_replace(false);
    }

    /// Reads everything, of which nothing was known.
    fn begin(&mut self) {
        self.sources.inbox.follow(true);
        self.begin_tenants();
        self.namespaces = LabelledNamespaces::default();
        for (name, namespace) in self.labelled_namespaces() {
            self.namespaces.set(&name, Some(namespace));
        }
        let begun = Instant::now();
        let (peers, policies) = (self.sources.peers.read(), self.sources.policies.read());
        for started in (self.started)() {
            self.local.started(&started, &peers);
        }
        let world = world(&peers, &self.local, &self.namespaces);
        let mut index = PolicyIndex::default();
        for (namespace, name, policy) in policies.iter() {
            index.policy(&world, &policy_name(namespace, name), Some(PolicyTerms::from(&**policy)));
        }
        for (name, terms) in self.sections(&peers) {
            index.policy(&world, &name, terms);
        }
        for pod in world.local_pods() {
            index.local_pod(&world, &name_of(&pod.key()), Some(local_facts(&pod, &self.tunnels)));
        }
        self.index = index;
        self.remembered = None;
        self.logged.note_all(&self.index);
        self.services.changed();
        self.stage = FollowStage::Follows;
        self.behind = true;
        let keys: Vec<ObjectKey> =
            policies.iter().map(|(namespace, name, _)| ObjectKey::new(namespace, name)).collect();
        drop((peers, policies));
        self.note_made(begun);
        keys.iter().for_each(|key| self.note_refused(key));
    }

    /// Acts upon what changed.
    fn follow(&mut self) {
        let Changes { policies, namespaces, pods, tunnels, services, tenants, grants, nodes, since } =
            self.sources.inbox.take();
        let of_tenants = TenantChanges { tenants, grants, around: services || nodes, pods: !pods.is_empty() };
        if services || !pods.is_empty() || !namespaces.is_empty() {
            self.services.changed();
        }
        for key in tunnels {
            if self.tunnels.loaded(&key) {
                self.pod(&key, &[]);
            }
        }
        for (key, mut addresses) in pods {
            addresses.extend(self.local.watched(&key, &self.sources.peers.read()));
            self.pod(&key, &addresses);
        }
        for key in policies {
            self.policy(&key);
        }
        // What is in the namespaces of their pods was left as it was.
        self.behind |= self.has_unknown && !namespaces.is_empty();
        self.follow_tenants(of_tenants, namespaces);
        if let Some(since) = since.filter(|_| !self.behind) {
            self.points.tell(PolicyNews::InKernel(since.elapsed()));
        }
    }

    /// A pod is other than before; `addresses` are all that it had or has.
    pub(super) fn pod(&mut self, key: &ObjectKey, addresses: &[IpAddr]) {
        // Of one that may not be judged yet nothing is done now: all is adopted when its namespace comes.
        self.has_unknown |= self.may_judge(key).is_err();
        let (name, peers) = (name_of(key), self.sources.peers.read());
        let world = world(&peers, &self.local, &self.namespaces);
        let pod = world.pod(key).filter(|pod| world.is_local(pod));
        match &pod {
            Some(pod) if pod.runs() => drop(self.tunnels.start(key)),
            // One that a plugin has announced and nobody else knows comes next.
            None if self.tunnels.judge(key) != TunnelJudge::Port => self.tunnels.leave(key),
            _ => {}
        }
        let facts = pod.as_ref().map(|pod| local_facts(pod, &self.tunnels));
        let mut effects = self.index.local_pod(&world, &name, facts);
        effects.extend(self.index.pod(&world, addresses));
        // Of a pod that no policy selects nothing is loaded.
        let has_none = self.index.classes_of(&name).is_some_and(|classes| classes.iter().next().is_none());
        if has_none && self.tunnels.loaded(key) {
            let facts = pod.as_ref().map(|pod| local_facts(pod, &self.tunnels));
            effects.extend(self.index.local_pod(&world, &name, facts));
        }
        let created = peers.get(&key.namespace, &key.name).map(|view| view.created());
        drop(peers);
        self.apply(&effects);
        self.tell_peer(created, &effects);
        self.tunnels.answer(key);
    }

    fn policy(&mut self, key: &ObjectKey) {
        let (peers, policies) = (self.sources.peers.read(), self.sources.policies.read());
        let terms = policies.get(&key.namespace, &key.name).map(|policy| PolicyTerms::from(&**policy));
        let world = world(&peers, &self.local, &self.namespaces);
        let effects = self.index.policy(&world, &policy_name(&key.namespace, &key.name), terms);
        drop((peers, policies));
        self.apply(&effects);
        self.note_refused(key);
    }

    pub(super) fn apply(&mut self, effects: &[PolicyEffect]) {
        self.logged.note(effects);
        if !effects.is_empty() {
            self.services.changed();
        }
        // Who is behind adopts everything, and that with it.
        if !effects.is_empty() && !self.behind {
            let knows = knowing(self.has_tenants(), None, &self.namespaces);
            self.behind = !self.points.apply(effects, &self.index, None, &knows);
            self.tell_narrowed(effects);
        }
    }

    fn catch_up(&mut self) -> Result<(), PointError> {
        if self.behind {
            let remembered = self.remembered.as_deref();
            let knows = knowing(self.has_tenants(), remembered, &self.namespaces);
            self.has_unknown = self.index.pods().any(|(pod, ..)| !knows(pod));
            match remembered {
                Some(remembered) => self.points.resume(&self.index, remembered.addresses(), &knows)?,
                None => self.points.adopt(&self.index, &knows)?,
            }
            self.behind = false;
            self.count();
            self.tell_all_narrowed();
        }
        Ok(())
    }
}

pub(super) fn world<'a>(
    peers: &'a Peers,
    local: &'a LocalPods,
    namespaces: &'a LabelledNamespaces,
) -> ClusterWorld<'a> {
    ClusterWorld { peers, local, namespaces, node_addresses: &[] }
}

fn local_facts(pod: &ClusterPod<'_>, tunnels: &Tunnels) -> LocalFacts {
    LocalFacts {
        labels: pod.label_set(),
        addresses: pod.addresses().into(),
        tunnel: tunnels.judge(&pod.key()),
    }
}

fn name_of(key: &ObjectKey) -> LocalName {
    LocalName { namespace: key.namespace.clone(), name: key.name.clone() }
}

fn policy_name(namespace: &str, name: &str) -> PolicyName {
    PolicyName { section: Section::NetworkPolicy, namespace: namespace.into(), name: name.into() }
}
