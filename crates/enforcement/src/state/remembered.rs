//! What an earlier agent knew, while the API server lists nothing: an agent begins with it. What the kernel has stays as it is, since that may be newer;
//! what it lacks is made, and pods that start are judged by it. When everything is listed, only what differs is written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use cluster::news::{ObjectKey, Uid};
use facts::peer::Phase;
use facts::{LabelSet, Peer, PodRef};
use policy::index::{LocalFacts, LocalName, PeerMember, PeerSet, PolicyEffect, PolicyIndex};
use policy::snapshot::{PolicySnapshot, SnapshotServices};
use policy::{PlainPod, PlainWorld, Section, World as _};

use super::{FollowStage, NotPrepared, PolicyState, name_of};
use crate::news::PolicyStanding;
use crate::point::PointError;
use crate::tunnels::Tunnels;
use crate::world::{LabelledNamespaces, StartedPod, key_of};

/// What an earlier agent kept of policies.
#[derive(Debug)]
pub struct KeptPolicies {
    /// What it knew.
    pub snapshot: PolicySnapshot,
    /// When it knew that.
    pub as_of: SystemTime,
}

/// Reads what an earlier agent kept; nothing where that cannot be used.
pub type PolicyMemory = Arc<dyn Fn() -> Option<KeptPolicies> + Send + Sync>;

/// A cluster as an earlier agent knew it, with the pods of this node that have started since.
pub(in super::super) struct Remembered {
    /// Policies, namespaces and pods of this node.
    world: PlainWorld,
    node: Box<str>,
    snapshot: PolicySnapshot,
    as_of: SystemTime,
    /// Pods that have started since.
    started: BTreeMap<ObjectKey, Uid>,
    /// Addresses of pods that have started or ended since.
    addresses: BTreeSet<IpAddr>,
}

// === impl Remembered ===

impl Remembered {
    fn new(kept: KeptPolicies, node: &str) -> Self {
        let KeptPolicies { mut snapshot, as_of } = kept;
        let mut world = PlainWorld::default();
        for (name, labels) in &snapshot.namespaces {
            world.put_namespace(name, facts::Namespace { labels: labels.clone() });
        }
        std::mem::take(&mut snapshot.pods).into_iter().for_each(|pod| world.put_pod(pod));
        if let Some(SnapshotServices { services, slices }) = &snapshot.services {
            for (namespace, name, service) in services {
                world.put_service(namespace, name, (**service).clone());
            }
            for (namespace, name, slice) in slices {
                world.put_slice(namespace, name, (**slice).clone());
            }
        }
        let (started, addresses) = (BTreeMap::new(), BTreeSet::new());
        Self { world, node: node.into(), snapshot, as_of, started, addresses }
    }

    /// The cluster; nothing where no Services are known.
    pub(in super::super) fn service_world(&self) -> Option<&PlainWorld> {
        self.snapshot.services.as_ref().map(|_| &self.world)
    }

    pub(super) fn has_tenants(&self) -> bool {
        self.snapshot.policies.iter().any(|policy| policy.name.section == Section::Tenant)
    }

    pub(super) fn knows_namespace(&self, namespace: &str) -> bool {
        self.world.namespace_labels(namespace).is_some()
    }

    /// Addresses of pods that have started or ended since: of these the kernel may know something else.
    pub(super) fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.addresses
    }

    pub(super) fn as_of(&self) -> SystemTime {
        self.as_of
    }

    fn index(&self, tunnels: &Tunnels) -> PolicyIndex {
        let mut index = PolicyIndex::default();
        for policy in &self.snapshot.policies {
            index.policy(&self.world, &policy.name, Some((**policy).clone()));
        }
        for pod in self.world.live_on(&self.node) {
            let key = ObjectKey::new(&*pod.namespace, &*pod.name);
            index.local_pod(&self.world, &name_of(&key), Some(local_facts(pod, tunnels)));
        }
        index
    }

    /// The members that sets had, of addresses of which nothing newer is known.
    fn sets(&self) -> impl Iterator<Item = (&PeerSet, impl Iterator<Item = PeerMember>)> {
        self.snapshot.sets.iter().map(|(set, members)| {
            let is_as_before = |member: &&PeerMember| {
                let address = &member.address;
                !self.addresses.contains(address) && self.world.pod_at(*address).is_none()
            };
            (set, members.iter().filter(is_as_before).copied())
        })
    }

    /// A pod of this node starts with these addresses: whoever had them before does not have them any more. Gives the pods that have changed.
    fn start(&mut self, pod: &PodRef, labels: LabelSet, addresses: &[IpAddr]) -> Vec<ObjectKey> {
        let key = key_of(pod);
        let before = self.world.pod(&key.namespace, &key.name).map(|pod| pod.facts.clone());
        self.addresses.extend(before.iter().flat_map(|before| before.addresses.iter().copied()));
        self.addresses.extend(addresses);
        let has_them = |other: &&PlainPod| {
            let is_other = (&other.namespace, &other.name) != (&key.namespace, &key.name);
            is_other && other.facts.addresses.iter().any(|one| addresses.contains(one))
        };
        let others: Vec<PlainPod> = self.world.live_pods().filter(has_them).cloned().collect();
        let mut changed = vec![key.clone()];
        for mut other in others {
            changed.push(ObjectKey::new(&*other.namespace, &*other.name));
            let left = other.facts.addresses.iter().filter(|one| !addresses.contains(one));
            other.facts.addresses = left.copied().collect();
            self.world.put_pod(other);
        }
        let facts = Peer {
            labels,
            addresses: addresses.into(),
            // What its predecessor of the same name called them, until its watch tells.
            ports: before.map(|before| before.ports).unwrap_or_default(),
            phase: Phase::Pending,
            created: u64::MAX,
            node: self.node.clone(),
            ..Peer::default()
        };
        self.started.insert(key.clone(), Uid::new(&pod.uid));
        let (namespace, name) = (key.namespace, key.name);
        self.world.put_pod(PlainPod { namespace, name, is_enrolled: false, facts });
        changed
    }

    /// The addresses of a pod are released. Whether it is known, and not a successor of the same name.
    fn end(&mut self, pod: &PodRef) -> bool {
        let key = key_of(pod);
        let is_successor = self.started.get(&key).is_some_and(|uid| uid.differs(Uid::new(&pod.uid)));
        let Some(known) = self.world.pod(&key.namespace, &key.name).filter(|_| !is_successor) else {
            return false;
        };
        self.addresses.extend(known.facts.addresses.iter().copied());
        self.world.remove_pod(&key.namespace, &key.name);
        self.started.remove(&key);
        true
    }
}

// === impl PolicyState ===

impl PolicyState {
    /// How it stands where nothing has failed.
    pub(in super::super) fn standing(&self) -> PolicyStanding {
        match (self.stage, &self.remembered) {
            (FollowStage::Lists, _) => PolicyStanding::NotListed,
            // Of what there is now not everything is listed that it speaks of.
            (FollowStage::Idle, _) if !self.has_none() => PolicyStanding::NotListed,
            (_, Some(remembered)) => PolicyStanding::Remembered(remembered.as_of()),
            _ => PolicyStanding::InForce,
        }
    }

    /// Whether enough is known to judge a pod that starts.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn may_judge(&self, key: &ObjectKey) -> Result<(), NotPrepared> {
        let knows = knowing(self.has_tenants(), self.remembered.as_deref(), &self.namespaces);
        match self.stage {
            // The first of them is there, and not all that it speaks of.
            FollowStage::Idle if !self.has_none() => Err(NotPrepared::NotListed),
            FollowStage::Follows | FollowStage::Remembers if !knows(&name_of(key)) => {
                Err(NotPrepared::Namespace(key.namespace.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Begins with what an earlier agent knew, if it kept that and nothing is listed. It is asked for once.
    pub(in super::super) fn remember(&mut self) {
        if self.stage != FollowStage::Lists || std::mem::replace(&mut self.has_remembered, true) {
            return;
        }
        let Some(mut kept) = (self.memory)() else { return };
        // An earlier agent enforced tenants, and this one does not.
        if self.sources.tenants.is_none() {
            kept.snapshot.policies.retain(|policy| policy.name.section != Section::Tenant);
        }
        let mut remembered = Remembered::new(kept, self.local.own_node());
        for (pod, labels, addresses) in self.local.prepared() {
            remembered.start(&pod, labels, &addresses);
        }
        self.index = remembered.index(&self.tunnels);
        for (set, members) in remembered.sets() {
            self.index.remember(set, members);
        }
        self.logged.note_all(&self.index);
        self.remembered = Some(Box::new(remembered));
        self.stage = FollowStage::Remembers;
        self.behind = true;
        self.services.changed();
        self.take_started();
    }

    /// Lists have taken their time: begins with what an earlier agent knew, and with the pods of which there are facts by now.
    pub(in super::super) fn remember_late(&mut self) {
        // What was listed meanwhile counts. A failure shows in the turn that follows.
        let _ = self.turn();
        self.remember();
        self.take_started();
    }

    /// Takes the pods of which plugins told an earlier agent after it had kept the rest, or that started while there was none, as far as the agent has facts
    /// of them by now.
    pub(in super::super) fn take_started(&mut self) {
        if self.stage != FollowStage::Remembers {
            return;
        }
        let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
        // Those that started last come first: of an address that several have had it is the last one's.
        for StartedPod { pod, addresses } in (self.started)() {
            let is_old = addresses.iter().any(|address| taken.contains(address));
            taken.extend(&addresses);
            let known = self.remembered.as_ref().and_then(|it| it.world.pod(&pod.namespace, &pod.name));
            let is_as_before = known.is_some_and(|known| *known.facts.addresses == *addresses);
            if is_old || is_as_before || addresses.is_empty() {
                continue;
            }
            if let Some(labels) = self.labels_of(&pod) {
                self.start_remembered(&pod, labels, &addresses);
            }
        }
    }

    /// The labels of a pod of this node as the agent knows them, if it has not ended.
    fn labels_of(&self, pod: &PodRef) -> Option<LabelSet> {
        let index = self.sources.cluster.index();
        let object = index.pod(&pod.namespace, &pod.name)?;
        if object.is_terminal() || object.host_network() {
            return None;
        }
        let labels = object.metadata.as_ref()?.labels.as_ref();
        let is_it = pod.uid.is_empty() || object.uid().is_none_or(|uid| *uid == *pod.uid);
        is_it.then(|| labels.map(LabelSet::from).unwrap_or_default())
    }

    /// A pod starts that a plugin tells of.
    pub(super) fn start_remembered(&mut self, pod: &PodRef, labels: LabelSet, addresses: &[IpAddr]) {
        let Some(mut remembered) = self.remembered.take() else { return };
        let changed = remembered.start(pod, labels, addresses);
        self.remembered = Some(remembered);
        self.change_remembered(&changed);
    }

    /// The addresses of a pod are released.
    pub(super) fn end_remembered(&mut self, pod: &PodRef) {
        if self.remembered.as_mut().is_some_and(|remembered| remembered.end(pod)) {
            self.change_remembered(&[key_of(pod)]);
        }
    }

    fn change_remembered(&mut self, changed: &[ObjectKey]) {
        let Some(remembered) = self.remembered.take() else { return };
        let mut effects: Vec<PolicyEffect> = Vec::new();
        for key in changed {
            let pod = remembered.world.pod(&key.namespace, &key.name);
            let pod = pod.filter(|pod| !pod.facts.addresses.is_empty());
            let facts = pod.map(|pod| local_facts(pod, &self.tunnels));
            effects.extend(self.index.local_pod(&remembered.world, &name_of(key), facts));
        }
        let addresses: Vec<IpAddr> = remembered.addresses.iter().copied().collect();
        effects.extend(self.index.pod(&remembered.world, &addresses));
        // Sets that are new have those that other nodes' pods had.
        for (set, members) in remembered.sets() {
            let known: BTreeSet<PeerMember> = self.index.members(set).collect();
            let more: Vec<PeerMember> = members.filter(|member| !known.contains(member)).collect();
            if let Some(shared) = self.index.set(set).filter(|_| !more.is_empty()).cloned() {
                self.index.remember(set, more.iter().copied());
                effects.push(PolicyEffect::SetGains(shared, more));
            }
        }
        self.logged.note(&effects);
        self.services.changed();
        if !self.behind && !effects.is_empty() {
            let knows = knowing(false, Some(&remembered), &self.namespaces);
            self.behind = !self.points.apply(&effects, &self.index, Some(&remembered.addresses), &knows);
        }
        self.remembered = Some(remembered);
    }

    /// Puts what is remembered into force.
    ///
    /// # Errors
    /// A kernel did not take all of it.
    pub(super) fn keep_remembered(&mut self) -> Result<(), PointError> {
        if self.stage != FollowStage::Remembers {
            return Ok(());
        }
        self.catch_up()?;
        self.judge_services()
    }

    /// What is remembered, for the disk.
    pub(super) fn remembered_snapshot(&self) -> Option<PolicySnapshot> {
        let Remembered { world, node, snapshot, .. } = &**self.remembered.as_ref()?;
        let namespaces = snapshot.namespaces.clone();
        let of_index = PolicySnapshot::of(&self.index, Vec::new(), namespaces, snapshot.seen.clone());
        let pods = world.live_on(node).filter(|pod| !pod.facts.addresses.is_empty()).cloned().collect();
        Some(PolicySnapshot { pods, services: snapshot.services.clone(), ..of_index })
    }
}

/// Says of a pod whether it is known which tenant has its namespace, if there is one. `has_tenants`: where nothing is remembered.
pub(super) fn knowing<'a>(
    has_tenants: bool,
    remembered: Option<&'a Remembered>,
    namespaces: &'a LabelledNamespaces,
) -> impl Fn(&LocalName) -> bool + 'a {
    let has_tenants = remembered.map_or(has_tenants, Remembered::has_tenants);
    move |pod| {
        !has_tenants
            || remembered.map_or_else(
                || namespaces.has(&pod.namespace),
                |remembered| remembered.knows_namespace(&pod.namespace),
            )
    }
}

fn local_facts(pod: &PlainPod, tunnels: &Tunnels) -> LocalFacts {
    let key = ObjectKey::new(&*pod.namespace, &*pod.name);
    let PlainPod { facts, .. } = pod;
    LocalFacts {
        labels: facts.labels.clone(),
        addresses: facts.addresses.clone(),
        tunnel: tunnels.judge(&key),
    }
}
