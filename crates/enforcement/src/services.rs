//! Addresses of Services for pods that are judged in their own namespaces: there a packet goes to the Service still.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, RwLockReadGuard};
use std::time::Instant;

use cluster::kind::{EndpointSlices, Services};
use cluster::{Objects, Peers, Shared, Wanted};
use facts::{EndpointSlice, LabelSet, Selector, Service};
use policy::index::{LocalName, PolicyClass};
use policy::snapshot::SnapshotServices;
use policy::{
    MixedService, ServiceAddress, ServiceVerdicts, ServiceWorld, World, endpoints, service_verdicts,
};
use ruleset::Family;
use tokio::sync::watch;

use super::changes::Inbox;
use super::news::PolicyNews;
use super::point::PointError;
use super::state::{FollowStage, PolicyState, world};
use super::world::{ClusterPod, ClusterWorld};

/// What the watches of Services fill.
pub(super) struct ServiceStores {
    services: Shared<Objects<Service>>,
    slices: Shared<Objects<EndpointSlice>>,
    /// Whether they are watched.
    interest: watch::Sender<bool>,
}

/// What is made of them.
#[derive(Debug, Default)]
pub(super) struct ServiceState {
    /// Whether something has changed since they were judged.
    has_changed: bool,
    /// They are not judged again before.
    not_before: Option<Instant>,
    verdicts: ClassServices,
    /// What was told of Services of which some endpoints are allowed and some are not.
    told: BTreeSet<(Arc<PolicyClass>, MixedService)>,
}

/// What policies come to for addresses of Services, by the classes of pods that need it.
pub type ClassServices = BTreeMap<Arc<PolicyClass>, Arc<ServiceVerdicts>>;

/// Of a core, what judging Services may take: one part of so many.
const SHARE: u32 = 20;

/// A cluster with its Services.
struct ClusterServices<'a> {
    world: ClusterWorld<'a>,
    services: &'a Objects<Service>,
    slices: BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
}

// === impl ServiceStores ===

impl ServiceStores {
    /// Adds what is watched while it is needed.
    pub(super) fn new(wanted: &mut Wanted, inbox: &Arc<Inbox>) -> Self {
        let interest = watch::Sender::new(false);
        let told = inbox.clone();
        let services = wanted.kind_while::<Services>(interest.subscribe(), move |_| told.services());
        let told = inbox.clone();
        let slices = wanted.kind_while::<EndpointSlices>(interest.subscribe(), move |_| told.services());
        Self { services, slices, interest }
    }

    /// They are needed from now on.
    pub(super) fn want(&self) {
        self.interest.send_if_modified(|before| !std::mem::replace(before, true));
    }

    /// Whether they are watched and all of them were listed.
    pub(super) fn are_listed(&self) -> bool {
        self.services.read().is_listed() && self.slices.read().is_listed()
    }

    /// Services and slices, for a moment.
    pub(super) fn read(
        &self,
    ) -> (RwLockReadGuard<'_, Objects<Service>>, RwLockReadGuard<'_, Objects<EndpointSlice>>) {
        (self.services.read(), self.slices.read())
    }
}

// === impl ServiceState ===

impl ServiceState {
    /// Something has changed by which they are judged.
    pub(super) fn changed(&mut self) {
        self.has_changed = true;
    }

    /// When they are to be judged again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.has_changed)
    }
}

/// All objects of a kind.
fn named<T>(objects: &Objects<T>) -> Vec<(Box<str>, Box<str>, Arc<T>)> {
    objects.iter().map(|(namespace, name, object)| (namespace.into(), name.into(), object.clone())).collect()
}

// === impl PolicyState ===

impl PolicyState {
    /// What is known of Services; nothing where they are not watched, or not all of them are listed.
    pub(super) fn known_services(&self) -> Option<SnapshotServices> {
        let stores = &self.sources.services;
        if !*stores.interest.borrow() {
            return None;
        }
        let (services, slices) = (stores.services.read(), stores.slices.read());
        if !services.is_listed() || !slices.is_listed() {
            return None;
        }
        Some(SnapshotServices { services: named(&services), slices: named(&slices) })
    }

    /// Judges Services anew where that is needed and something has changed.
    ///
    /// # Errors
    /// A pod's rules cannot be made what they are to be.
    pub(super) fn judge_services(&mut self) -> Result<(), PointError> {
        let is_early = self.services.not_before.is_some_and(|time| Instant::now() < time);
        if !self.services.has_changed || is_early {
            return Ok(());
        }
        let mut pods: BTreeMap<Arc<PolicyClass>, LocalName> = BTreeMap::new();
        if matches!(self.stage, FollowStage::Follows | FollowStage::Remembers) {
            for (name, facts, classes) in self.index.pods() {
                if let Some(class) =
                    classes.egress.as_ref().filter(|_| self.points.is_inside(name, facts.tunnel))
                {
                    pods.entry(class.clone()).or_insert_with(|| name.clone());
                }
            }
        }
        if self.stage == FollowStage::Remembers {
            return self.judge_remembered_services(&pods);
        }
        let sources = self.sources.clone();
        let stores = &sources.services;
        let is_needed = !pods.is_empty() || self.has_tenants();
        stores.interest.send_if_modified(|before| std::mem::replace(before, is_needed) != is_needed);
        let (services, slices) = (stores.services.read(), stores.slices.read());
        let is_listed = services.is_listed() && slices.is_listed();
        if !is_listed && !pods.is_empty() {
            // What comes of them wakes this up.
            return Ok(());
        }
        let begun = Instant::now();
        let verdicts = self.verdicts(&pods, &sources.peers.read(), (&services, &slices));
        drop((services, slices));
        self.services.has_changed = false;
        self.services.not_before = Some(Instant::now() + begun.elapsed() * SHARE);
        self.tell_mixed(&pods, &verdicts);
        if verdicts == self.services.verdicts {
            return Ok(());
        }
        self.points.services(&verdicts, &self.index)?;
        self.services.verdicts = verdicts;
        Ok(())
    }

    /// The same by what an earlier agent knew of Services. Where it knew none, pods that need them stay isolated.
    fn judge_remembered_services(
        &mut self,
        pods: &BTreeMap<Arc<PolicyClass>, LocalName>,
    ) -> Result<(), PointError> {
        self.services.has_changed = false;
        let world = self.remembered.as_ref().and_then(|remembered| remembered.service_world());
        let Some(world) = world else { return Ok(()) };
        let judged = |class: &Arc<PolicyClass>| Arc::new(service_verdicts(world, &self.index, class));
        let verdicts: ClassServices = pods.keys().map(|class| (class.clone(), judged(class))).collect();
        if verdicts != self.services.verdicts {
            self.points.services(&verdicts, &self.index)?;
            self.services.verdicts = verdicts;
        }
        Ok(())
    }

    fn verdicts(
        &self,
        pods: &BTreeMap<Arc<PolicyClass>, LocalName>,
        peers: &Peers,
        (services, slices): (&Objects<Service>, &Objects<EndpointSlice>),
    ) -> ClassServices {
        let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
        for (namespace, _, slice) in slices.iter().filter(|_| !pods.is_empty()) {
            by_service.entry((namespace, &slice.service)).or_default().push(slice);
        }
        let world = world(peers, &self.local, &self.namespaces);
        let world = ClusterServices { world, services, slices: by_service };
        let judged = |class: &Arc<PolicyClass>| Arc::new(service_verdicts(&world, &self.index, class));
        pods.keys().map(|class| (class.clone(), judged(class))).collect()
    }

    /// Tells of each Service and class once for as long as it is so.
    fn tell_mixed(&mut self, pods: &BTreeMap<Arc<PolicyClass>, LocalName>, verdicts: &ClassServices) {
        let mut mixed = BTreeSet::new();
        for (class, verdicts) in verdicts {
            for service in &verdicts.mixed {
                let one = (class.clone(), service.clone());
                if let Some(pod) = pods.get(class).filter(|_| !self.services.told.contains(&one)) {
                    self.points.tell(PolicyNews::Mixed(pod, service));
                }
                mixed.insert(one);
            }
        }
        self.services.told = mixed;
    }
}

// === impl ClusterServices ===

impl World for ClusterServices<'_> {
    type Pod<'w>
        = ClusterPod<'w>
    where
        Self: 'w;

    fn pod_at(&self, address: IpAddr) -> Option<ClusterPod<'_>> {
        self.world.pod_at(address)
    }

    fn is_own_node(&self, pod: &ClusterPod<'_>, address: IpAddr) -> bool {
        self.world.is_own_node(pod, address)
    }

    fn namespace_labels(&self, namespace: &str) -> Option<&LabelSet> {
        self.world.namespace_labels(namespace)
    }

    fn pods_in<'w>(&'w self, namespace: &str, labels: &Selector) -> impl Iterator<Item = ClusterPod<'w>> {
        self.world.pods_in(namespace, labels)
    }

    fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.world.namespaces()
    }
}

impl ServiceWorld for ClusterServices<'_> {
    fn service_addresses(&self) -> impl Iterator<Item = ServiceAddress<'_>> {
        self.services.iter().flat_map(move |(namespace, name, service)| {
            let slices = self.slices.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
            let ports =
                service.addresses.iter().flat_map(|one| service.ports.iter().map(move |port| (*one, port)));
            ports.map(move |(address, port)| {
                let endpoints = endpoints(&slices.iter().copied(), port, Family::of_address(address));
                let (protocol, port) = (port.protocol, port.number);
                ServiceAddress { namespace, name, address, protocol, port, endpoints }
            })
        })
    }
}
