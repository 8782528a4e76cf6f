//! The cluster as policies see it: all pods by their watch, those of this node whose addresses a plugin told first, and namespaces.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use cluster::Peers;
use cluster::news::{ObjectKey, Uid};
use cluster::peers::PeerView;
use facts::labels::Operator;
use facts::networkpolicy::PolicyProtocol;
use facts::peer::{NamedPort, Phase};
use facts::{LabelSet, Namespace, Peer, PodRef, Selector};
use policy::{PolicyPod, World};

/// The cluster at one moment.
pub(super) struct ClusterWorld<'a> {
    /// By their watch.
    pub(super) peers: &'a Peers,
    /// By plugins.
    pub(super) local: &'a LocalPods,
    /// All namespaces.
    pub(super) namespaces: &'a LabelledNamespaces,
    /// The own node's addresses; rules in a kernel do not need them here.
    pub(super) node_addresses: &'a [IpAddr],
}

/// A live pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClusterPod<'a>(PeerView<'a>);

/// What is known of pods of this node before, or against, their watch.
#[derive(Debug)]
pub(super) struct LocalPods {
    /// This node.
    node: Box<str>,
    /// Pods that name no node are of this one: manifests.
    takes_unplaced: bool,
    /// Pods whose addresses a plugin told, until their watch tells the same.
    prepared: Peers,
    /// Pods whose addresses were released, until their watch tells the same.
    released: BTreeMap<ObjectKey, Uid>,
}

/// A pod as a plugin told an earlier agent of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedPod {
    /// Which.
    pub pod: PodRef,
    /// Its addresses in the cluster's network.
    pub addresses: Vec<IpAddr>,
}

/// Namespaces by their labels.
#[derive(Debug, Default)]
pub(super) struct LabelledNamespaces {
    known: HashMap<Box<str>, Arc<Namespace>>,
    /// By the key of each label.
    by_label: HashMap<Box<str>, NamesByValue>,
}

/// Names of namespaces by the value of a label.
type NamesByValue = HashMap<Box<str>, BTreeSet<Box<str>>>;

// === impl ClusterWorld ===

impl<'a> ClusterWorld<'a> {
    /// This node's name.
    pub(super) fn node(&self) -> &'a str {
        &self.local.node
    }

    /// A pod, if it is live.
    pub(super) fn pod(&self, key: &ObjectKey) -> Option<ClusterPod<'a>> {
        let prepared = self.local.prepared.get(&key.namespace, &key.name);
        let watched = || self.peers.get(&key.namespace, &key.name).filter(|view| self.counts(view));
        prepared.or_else(watched).map(ClusterPod)
    }

    /// All live pods of this node.
    pub(super) fn local_pods(&self) -> impl Iterator<Item = ClusterPod<'a>> {
        let watched = self.peers.iter().filter(|view| self.local.is_local(view) && self.counts(view));
        watched.chain(self.local.prepared.iter()).map(ClusterPod)
    }

    /// All live pods of other nodes.
    pub(super) fn other_pods(&self) -> impl Iterator<Item = ClusterPod<'a>> {
        let watched = self.peers.iter().filter(|view| !self.local.is_local(view) && self.counts(view));
        watched.map(ClusterPod)
    }

    /// Whether a pod runs on this node.
    pub(super) fn is_local(&self, pod: &ClusterPod<'_>) -> bool {
        self.local.is_local(&pod.0)
    }

    /// Whether a pod that its watch knows is live, as far as plugins say nothing newer.
    fn counts(&self, view: &PeerView<'_>) -> bool {
        view.is_live() && !self.local.knows_better(view)
    }
}

impl World for ClusterWorld<'_> {
    type Pod<'w>
        = ClusterPod<'w>
    where
        Self: 'w;

    fn pod_at(&self, address: IpAddr) -> Option<ClusterPod<'_>> {
        let watched = self.peers.claims(address).filter(|view| self.counts(view));
        let claims = watched.chain(self.local.prepared.claims(address));
        claims.max_by_key(PeerView::right).map(ClusterPod)
    }

    fn is_own_node(&self, pod: &ClusterPod<'_>, address: IpAddr) -> bool {
        self.is_local(pod) && self.node_addresses.contains(&address)
    }

    fn namespace_labels(&self, namespace: &str) -> Option<&LabelSet> {
        self.namespaces.known.get(namespace).map(|namespace| &namespace.labels)
    }

    fn pods_in<'w>(&'w self, namespace: &str, labels: &Selector) -> impl Iterator<Item = ClusterPod<'w>> {
        let watched = self.peers.select(namespace, labels).filter(|view| self.counts(view));
        let prepared = self.local.prepared.select(namespace, labels);
        let found: Vec<ClusterPod<'w>> = watched.chain(prepared).map(ClusterPod).collect();
        found.into_iter()
    }

    fn namespaces(&self) -> impl Iterator<Item = &str> {
        let all: BTreeSet<&str> = self.peers.namespaces().chain(self.local.prepared.namespaces()).collect();
        all.into_iter()
    }

    fn namespaces_with(&self, labels: &Selector) -> Vec<&str> {
        self.namespaces.select(labels)
    }
}

// === impl ClusterPod ===

impl ClusterPod<'_> {
    /// Which pod it is.
    pub(super) fn key(&self) -> ObjectKey {
        ObjectKey::new(self.0.namespace(), self.0.name())
    }

    /// The node that it runs on.
    pub(super) fn node(&self) -> &str {
        self.0.node()
    }

    /// Whether containers of it run.
    pub(super) fn runs(&self) -> bool {
        self.0.phase() == Phase::Running
    }

    /// All that is kept of it.
    pub(super) fn to_peer(self) -> Peer {
        self.0.to_peer()
    }

    /// Its labels by themselves.
    pub(super) fn label_set(&self) -> LabelSet {
        self.0.labels().collect()
    }
}

impl PolicyPod for ClusterPod<'_> {
    fn namespace(&self) -> &str {
        self.0.namespace()
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.0.label(key)
    }

    fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.labels()
    }

    fn addresses(&self) -> &[IpAddr] {
        self.0.addresses()
    }

    fn ports(&self, name: &str, protocol: PolicyProtocol) -> impl Iterator<Item = u16> {
        let named = move |(of, its, _): &(&str, PolicyProtocol, u16)| *of == name && *its == protocol;
        self.0.ports().filter(named).map(|(.., number)| number)
    }
}

// === impl LocalPods ===

impl LocalPods {
    pub(super) fn new(node: &str, takes_unplaced: bool) -> Self {
        Self { node: node.into(), takes_unplaced, prepared: Peers::default(), released: BTreeMap::new() }
    }

    /// This node's name.
    pub(super) fn own_node(&self) -> &str {
        &self.node
    }

    /// The pods whose addresses plugins told and no watch has told yet.
    pub(super) fn prepared(&self) -> impl Iterator<Item = (PodRef, LabelSet, Vec<IpAddr>)> {
        self.prepared.iter().map(|view| {
            let pod = PodRef::named(view.namespace(), view.name());
            (pod, view.labels().collect(), view.addresses().to_vec())
        })
    }

    /// Whether a pod runs on this node.
    fn is_local(&self, view: &PeerView<'_>) -> bool {
        *view.node() == *self.node || (self.takes_unplaced && view.node().is_empty())
    }

    /// A plugin tells the addresses of a pod that starts. Gives all addresses that it had or has.
    pub(super) fn prepare(
        &mut self,
        pod: &PodRef,
        labels: LabelSet,
        addresses: &[IpAddr],
        peers: &Peers,
    ) -> Vec<IpAddr> {
        let (key, uid) = (key_of(pod), Uid::new(&pod.uid));
        self.released.remove(&key);
        let watched = peers.get(&key.namespace, &key.name);
        let same = watched.filter(|view| !view.uid().differs(uid));
        let port = |(name, protocol, number): (&str, _, _)| NamedPort { name: name.into(), protocol, number };
        let facts = Peer {
            labels,
            addresses: addresses.into(),
            ports: same.map(|view| view.ports().map(port).collect()).unwrap_or_default(),
            phase: Phase::Pending,
            // Whoever else is said to have its addresses had them before.
            created: u64::MAX,
            node: self.node.clone(),
            ..Peer::default()
        };
        let mut touched: Vec<IpAddr> = watched.map(|view| view.addresses().to_vec()).unwrap_or_default();
        touched.extend(addresses);
        let before = self.prepared.apply(key, uid, facts).and_then(|effect| effect.before);
        touched.extend(before.iter().flat_map(|before| before.addresses.iter()));
        touched
    }

    /// A plugin told an earlier agent of a pod. Until its watch tells its addresses these are all that is known of them, and without any the pod
    /// would be taken for one that nobody isolates. Where the watch knows some it knows better: what a plugin left may be old.
    pub(super) fn started(&mut self, started: &StartedPod, peers: &Peers) {
        let StartedPod { pod, addresses } = started;
        let (key, uid) = (key_of(pod), Uid::new(&pod.uid));
        let Some(view) = peers.get(&key.namespace, &key.name) else { return };
        let is_same = self.is_local(&view) && !view.uid().differs(uid) && !view.phase().is_terminal();
        if is_same && view.addresses().is_empty() && self.prepared.get(&key.namespace, &key.name).is_none() {
            self.prepare(pod, view.labels().collect(), addresses, peers);
        }
    }

    /// A plugin has released the addresses of a pod. Gives them.
    pub(super) fn release(&mut self, pod: &PodRef, peers: &Peers) -> Vec<IpAddr> {
        let (key, uid) = (key_of(pod), Uid::new(&pod.uid));
        let prepared = self.prepared.delete(key.clone(), uid).and_then(|effect| effect.before);
        let mut touched: Vec<IpAddr> = prepared.iter().flat_map(|peer| peer.addresses.to_vec()).collect();
        if let Some(view) = peers.get(&key.namespace, &key.name).filter(|view| !view.uid().differs(uid)) {
            touched.extend(view.addresses());
            self.released.insert(key, view.uid());
        }
        touched
    }

    /// The watch has told something else of a pod: what a plugin told is forgotten where the watch says the same by now. Gives the addresses that
    /// are not by a plugin any more.
    pub(super) fn watched(&mut self, key: &ObjectKey, peers: &Peers) -> Vec<IpAddr> {
        let view = peers.get(&key.namespace, &key.name);
        let is_same = |uid: Uid| view.is_some_and(|view| !view.uid().differs(uid));
        if self.released.get(key).is_some_and(|uid| !is_same(*uid)) {
            self.released.remove(key);
        }
        let (Some(prepared), Some(view)) = (self.prepared.get(&key.namespace, &key.name), view) else {
            return Vec::new();
        };
        let uid = prepared.uid();
        let (is_other, before) = (view.uid().differs(uid), prepared.to_peer());
        // One that is being deleted may still be told of when its successor starts.
        let has_followed = is_other && view.is_live() && !view.is_deleting();
        let has_all = before.addresses.iter().all(|address| view.addresses().contains(address));
        if has_followed || (!is_other && (has_all || view.phase().is_terminal())) {
            self.prepared.delete(key.clone(), uid);
        } else if !is_other {
            // All else is the watch's to tell.
            let (addresses, created) = (before.addresses.clone(), before.created);
            self.prepared.apply(key.clone(), uid, Peer { addresses, created, ..view.to_peer() });
        }
        before.addresses.into()
    }

    /// Forgets pods that never came to be; `exists` says which have. Gives those that are gone, with their addresses.
    pub(super) fn retain(
        &mut self,
        mut exists: impl FnMut(&ObjectKey) -> bool,
    ) -> Vec<(ObjectKey, Vec<IpAddr>)> {
        let all = self.prepared.iter().map(|view| (ClusterPod(view).key(), view.addresses().to_vec()));
        let gone: Vec<(ObjectKey, Vec<IpAddr>)> = all.filter(|(key, _)| !exists(key)).collect();
        gone.iter().for_each(|(key, _)| drop(self.prepared.delete(key.clone(), Uid::default())));
        gone
    }

    /// Whether a plugin has told something newer of a pod than its watch.
    fn knows_better(&self, view: &PeerView<'_>) -> bool {
        // Nearly always: nothing.
        if self.prepared.is_empty() && self.released.is_empty() {
            return false;
        }
        let key = ObjectKey::new(view.namespace(), view.name());
        let is_released = self.released.get(&key).is_some_and(|uid| !view.uid().differs(*uid));
        is_released || self.prepared.get(&key.namespace, &key.name).is_some()
    }
}

/// Namespace and name.
pub(super) fn key_of(pod: &PodRef) -> ObjectKey {
    ObjectKey::new(&*pod.namespace, &*pod.name)
}

// === impl LabelledNamespaces ===

impl LabelledNamespaces {
    /// Whether a namespace is known.
    pub(super) fn has(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// What a namespace is now; nothing if its object is gone.
    pub(super) fn set(&mut self, name: &str, now: Option<Arc<Namespace>>) {
        if let Some(before) = self.known.remove(name) {
            for (key, value) in before.labels.iter() {
                let Some(of_key) = self.by_label.get_mut(key) else { continue };
                if let Some(names) = of_key.get_mut(value) {
                    names.remove(name);
                    if names.is_empty() {
                        of_key.remove(value);
                    }
                }
                if of_key.is_empty() {
                    self.by_label.remove(key);
                }
            }
        }
        let Some(now) = now else { return };
        for (key, value) in now.labels.iter() {
            self.by_label.entry(key.into()).or_default().entry(value.into()).or_default().insert(name.into());
        }
        self.known.insert(name.into(), now);
    }

    /// The namespaces that a selector selects. Where it requires a label's value, only those are looked at that have it.
    fn select(&self, labels: &Selector) -> Vec<&str> {
        let needed = labels.requirements().iter().find_map(|one| match &one.operator {
            Operator::In(values) => Some((&one.key, values)),
            _ => None,
        });
        let is_meant = |name: &&str| {
            self.known.get(*name).is_some_and(|namespace| labels.selects(|key| namespace.labels.get(key)))
        };
        match needed {
            Some((key, values)) => {
                let of_key = self.by_label.get(key);
                let names = values.iter().filter_map(|value| of_key?.get(value)).flatten();
                names.map(|name| &**name).filter(is_meant).collect()
            }
            None => self.known.keys().map(|name| &**name).filter(is_meant).collect(),
        }
    }
}
