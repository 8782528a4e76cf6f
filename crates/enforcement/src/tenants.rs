//! Tenants on this node: which there are, the sections that they come to, and which namespaces they have.
//!
//! A tenant is a policy of the index (`policy::tenancy`). What it says goes by Services, nodes and grants, so that its section is made anew when one of
//! these changes; what has not changed by that costs nothing further. Which tenant a namespace has is a label of the namespace.

mod around;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use cluster::kind::{NetworkTenants, NodesByAddress, TenantGrants};
use cluster::{ObjectSelection, Objects, Peers, Shared, Wanted};
use facts::object::METADATA_NAME;
use facts::tenant::GrantTarget;
use facts::{Namespace, NetworkTenant, NodeAddresses, TenantGrant};
use policy::tenancy::{NamespaceClaim, TENANT_LABEL, TenantMembership, tenant_name, tenant_section};
use policy::{PolicyName, PolicyTerms};
use tokio::sync::watch;

use super::changes::Inbox;
use super::news::PolicyNews;
use super::state::{PolicyState, world};
pub use report::{ReachedService, TenantOverview, TenantReport, TenantStanding};

/// Of a core, what making sections anew may take because of Services, nodes and pods: one part of so many.
const SHARE: u32 = 20;

/// What the watches of tenants fill.
pub(super) struct TenantStores {
    pub(super) tenants: Shared<Objects<NetworkTenant>>,
    pub(super) grants: Shared<Objects<TenantGrant>>,
    pub(super) nodes: Shared<Objects<NodeAddresses>>,
    /// Whether nodes are watched.
    interest: watch::Sender<bool>,
}

/// What is made of them.
#[derive(Debug, Default)]
pub(super) struct TenantState {
    pub(super) membership: TenantMembership,
    /// What tenants claim, of those that were asked for since the membership changed: a selector is compared with all namespaces.
    claims: BTreeMap<Box<str>, Arc<[NamespaceClaim]>>,
    /// Tenants that have changed and that nothing was made of yet.
    waiting: BTreeSet<Box<str>>,
    /// Whether sections are to be made anew, at once or in their time.
    is_stale: Option<Urgency>,
    not_before: Option<Instant>,
    /// Whether sections go by which pods there are, beside the sets.
    goes_by_pods: bool,
    /// The tenants that sections were made of, with the generation of each.
    pub(super) made: BTreeMap<Box<str>, u64>,
    /// Whether that was told.
    is_told: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    InTime,
    AtOnce,
}

/// What has changed for tenants.
#[derive(Debug, Default)]
pub(super) struct TenantChanges {
    /// Tenants.
    pub(super) tenants: BTreeSet<Box<str>>,
    /// Whether grants have changed.
    pub(super) grants: bool,
    /// Whether nodes, Services or their endpoints have.
    pub(super) around: bool,
    /// Whether pods have.
    pub(super) pods: bool,
}

// === impl TenantStores ===

impl TenantStores {
    /// Adds what is watched.
    pub(super) fn new(wanted: &mut Wanted, inbox: &Arc<Inbox>) -> Self {
        let interest = watch::Sender::new(false);
        let told = inbox.clone();
        let tenants = wanted.kind::<NetworkTenants>(ObjectSelection::all(), move |deltas| {
            told.tenants(deltas.into_iter().map(|delta| delta.key.name));
        });
        let told = inbox.clone();
        let grants = wanted.kind::<TenantGrants>(ObjectSelection::all(), move |_| told.grants());
        let told = inbox.clone();
        let nodes = wanted.kind_while::<NodesByAddress>(interest.subscribe(), move |_| told.nodes());
        Self { tenants, grants, nodes, interest }
    }

    /// Whether there are tenants.
    pub(super) fn has_some(&self) -> bool {
        !self.tenants.read().is_empty()
    }

    /// Nodes are watched while there are tenants.
    pub(super) fn want(&self, has_some: bool) {
        self.interest.send_if_modified(|before| std::mem::replace(before, has_some) != has_some);
    }

    /// Whether all tenants and grants were listed.
    pub(super) fn is_listed(&self) -> bool {
        self.tenants.read().is_listed() && self.grants.read().is_listed()
    }
}

// === impl TenantState ===

impl TenantState {
    /// When sections are to be made anew.
    pub(super) fn due(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.is_stale.is_some())
    }

    /// A namespace with the label that names its tenant, which nothing else may have. One that is named by a tenant is its from before its object is
    /// known.
    pub(super) fn labelled(&self, name: &str, known: Option<Arc<Namespace>>) -> Option<Arc<Namespace>> {
        let Some(tenant) = self.membership.owner(name) else {
            let is_forged = |known: &Arc<Namespace>| known.labels.get(TENANT_LABEL).is_some();
            return known.map(|known| if is_forged(&known) { Arc::default() } else { known });
        };
        let own = || [(METADATA_NAME, name), (TENANT_LABEL, tenant)].into_iter().collect();
        Some(Arc::new(Namespace { labels: self.membership.labels(name).unwrap_or_else(own) }))
    }

    /// What became of each claim of a tenant.
    pub(super) fn claims(&mut self, tenant: &str) -> Arc<[NamespaceClaim]> {
        let Self { membership, claims, .. } = self;
        let find = || membership.claims(tenant).into();
        claims
            .get(tenant)
            .cloned()
            .unwrap_or_else(|| claims.entry(tenant.into()).or_insert_with(find).clone())
    }

    fn stales(&mut self, urgency: Urgency) {
        self.is_stale = self.is_stale.max(Some(urgency));
    }

    fn is_due(&self) -> bool {
        let in_time = || self.not_before.is_none_or(|time| Instant::now() >= time);
        match self.is_stale {
            None => false,
            Some(Urgency::AtOnce) => true,
            Some(Urgency::InTime) => in_time(),
        }
    }
}

// === impl PolicyState ===

impl PolicyState {
    /// Whether there is a tenant.
    pub(super) fn has_tenants(&self) -> bool {
        self.sources.tenants.as_ref().is_some_and(TenantStores::has_some)
    }

    /// Whether everything was listed that tenants go by. What of it is watched only while there are some is asked for by this.
    pub(super) fn are_tenants_listed(&self) -> bool {
        let Some(stores) = &self.sources.tenants else { return true };
        let has_some = stores.has_some();
        stores.want(has_some);
        if has_some {
            self.sources.services.want();
        }
        stores.is_listed()
            && (!has_some || (stores.nodes.read().is_listed() && self.sources.services.are_listed()))
    }

    /// Reads all tenants, of which nothing was known.
    pub(super) fn begin_tenants(&mut self) {
        self.tenants = TenantState::default();
        let sources = self.sources.clone();
        let Some(stores) = &sources.tenants else { return };
        let (index, membership) = (sources.cluster.index(), &mut self.tenants.membership);
        for (name, namespace) in index.namespaces() {
            membership.namespace(name, Some(namespace.labels.clone()));
        }
        for (_, name, tenant) in stores.tenants.read().iter() {
            membership.tenant(name, Some(tenant));
        }
    }

    /// All namespaces that are known, or that a tenant has, with their labels.
    pub(super) fn labelled_namespaces(&self) -> BTreeMap<Box<str>, Arc<Namespace>> {
        let index = self.sources.cluster.index();
        let known = index.namespaces().map(|(name, namespace)| (name, Some(namespace.clone())));
        let owned = self.tenants.membership.owners().map(|(name, _)| (name, None));
        // What is known comes last, and counts.
        let all: BTreeMap<&str, Option<Arc<Namespace>>> = owned.chain(known).collect();
        let labelled = |(name, known): (&str, _)| Some((name.into(), self.tenants.labelled(name, known)?));
        all.into_iter().filter_map(labelled).collect()
    }

    /// Follows what has changed of tenants and namespaces. A namespace that goes from one tenant to another does so in one step: what both say is known
    /// before.
    pub(super) fn follow_tenants(&mut self, changes: TenantChanges, mut namespaces: BTreeSet<Box<str>>) {
        let sources = self.sources.clone();
        let Some(stores) = &sources.tenants else { return self.move_namespaces(namespaces) };
        for name in &namespaces {
            let labels = sources.cluster.index().namespace(name).map(|namespace| namespace.labels.clone());
            self.tenants.claims.clear();
            if self.tenants.membership.namespace(name, labels) {
                self.tenants.stales(Urgency::AtOnce);
            }
        }
        self.note_changes(changes);
        let mut gone = Vec::new();
        if self.are_tenants_listed() {
            for name in std::mem::take(&mut self.tenants.waiting) {
                let tenant = stores.tenants.read().get("", &name).cloned();
                if tenant.is_none() {
                    gone.push(name.clone());
                }
                self.tenants.claims.clear();
                namespaces.extend(self.tenants.membership.tenant(&name, tenant.as_deref()));
            }
            if self.tenants.is_due() {
                self.make_sections();
            }
        }
        self.move_namespaces(namespaces);
        for name in gone {
            self.tenants.made.remove(&name);
            self.put_section(&tenant_name(&name), None);
        }
    }

    fn note_changes(&mut self, TenantChanges { tenants, grants, around, pods }: TenantChanges) {
        let state = &mut self.tenants;
        if !tenants.is_empty() || grants {
            state.stales(Urgency::AtOnce);
        }
        if around || (pods && state.goes_by_pods) {
            state.stales(Urgency::InTime);
        }
        state.waiting.extend(tenants);
    }

    fn make_sections(&mut self) {
        let begun = Instant::now();
        let sections = self.sections(&self.sources.peers.read());
        for (name, terms) in sections {
            self.put_section(&name, terms);
        }
        self.note_made(begun);
    }

    /// Sections were made of everything that is known.
    pub(super) fn note_made(&mut self, begun: Instant) {
        let sources = self.sources.clone();
        let Some(stores) = &sources.tenants else { return };
        let (tenants, grants) = (stores.tenants.read(), stores.grants.read());
        let by_pods = |target: &GrantTarget| matches!(target, GrantTarget::Service(_) | GrantTarget::Pod(_));
        let state = &mut self.tenants;
        state.goes_by_pods = grants.iter().any(|(_, _, grant)| grant.to.iter().any(by_pods));
        state.made = tenants.iter().map(|(_, name, tenant)| (name.into(), tenant.generation)).collect();
        (state.is_stale, state.is_told) = (None, false);
        state.not_before = Some(Instant::now() + begun.elapsed() * SHARE);
    }

    /// The sections of all tenants; nothing for one that judges nothing.
    pub(super) fn sections(&self, peers: &Peers) -> Vec<(PolicyName, Option<PolicyTerms>)> {
        let Some(stores) = &self.sources.tenants else { return Vec::new() };
        let (tenants, grants) = (stores.tenants.read(), stores.grants.read());
        if tenants.is_empty() {
            return Vec::new();
        }
        let around = self.surroundings(stores);
        let world = world(peers, &self.local, &self.namespaces);
        let mut consents: BTreeMap<&str, Vec<&TenantGrant>> = BTreeMap::new();
        for (namespace, tenant) in self.tenants.membership.owners() {
            consents.entry(tenant).or_default().extend(grants.in_namespace(namespace).map(|(_, one)| &**one));
        }
        let section = |(_, name, tenant): (&str, &str, &Arc<NetworkTenant>)| {
            let grants = consents.get(name).map(Vec::as_slice).unwrap_or_default();
            (tenant_name(name), tenant_section(tenant, grants, &around, &world))
        };
        tenants.iter().map(section).collect()
    }

    fn put_section(&mut self, name: &PolicyName, terms: Option<PolicyTerms>) {
        let peers = self.sources.peers.read();
        let world = world(&peers, &self.local, &self.namespaces);
        let effects = self.index.policy(&world, name, terms);
        drop(peers);
        self.apply(&effects);
    }

    fn move_namespaces(&mut self, names: BTreeSet<Box<str>>) {
        for name in names {
            let known = self.sources.cluster.index().namespace(&name).cloned();
            self.namespaces.set(&name, self.tenants.labelled(&name, known));
            let peers = self.sources.peers.read();
            let world = world(&peers, &self.local, &self.namespaces);
            let effects = self.index.namespace(&world, &name);
            drop(peers);
            self.apply(&effects);
        }
    }

    /// Tells what is in force of tenants, once for each change.
    pub(super) fn tell_tenants(&mut self) {
        if self.sources.tenants.is_none() || self.tenants.is_told {
            return;
        }
        self.tenants.is_told = true;
        self.points.tell(PolicyNews::Tenants(&self.tenant_standings()));
    }
}
