//! A pod of the book.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use facts::networkpolicy::Isolation;
use policy::compile::{CompiledPod, KeptSet};
use policy::index::{PeerMember, PeerSet, PodClasses, TunnelJudge};

#[derive(Debug, Default)]
pub(super) struct BookedPod {
    /// Of each pod another one, also where they have the same name.
    pub(super) number: u64,
    pub(super) classes: PodClasses,
    pub(super) scope: PodScope,
    /// The directions in which policies isolate it.
    pub(super) isolation: Isolation,
    /// The rules that it is to have.
    pub(super) rules: Option<Arc<CompiledPod>>,
    /// What it has; nothing where that has to be looked at.
    pub(super) loaded: Option<Option<Arc<CompiledPod>>>,
    /// What it had when that was known last.
    pub(super) last: Option<Arc<CompiledPod>>,
    /// Whether a job is under way after which that is known.
    pub(super) is_at_work: bool,
    /// Sets that its rules have begun to look into since they were loaded last. Whatever its namespace has of them was kept for other rules, and no longer.
    pub(super) fresh: BTreeSet<String>,
    /// Members that came or went since they were loaded last, and whether they are there.
    pub(super) pending: BTreeMap<Arc<PeerSet>, BTreeMap<PeerMember, bool>>,
    /// The same of sets of addresses of Services, by their names.
    pub(super) pending_services: BTreeMap<String, BTreeMap<PeerMember, bool>>,
    pub(super) services: ServicesWait,
}

/// What of a pod's connections is judged in its own namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PodScope {
    /// All of them.
    pub(super) all: bool,
    /// What is inside the tunnel of ambient mode.
    pub(super) tunnel: bool,
}

/// Whether rules wait until the lists of Services are complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ServicesWait {
    /// They did not have to.
    #[default]
    Not,
    /// They do.
    Waits,
    /// They have waited long enough and are loaded without.
    Over,
}

// === impl BookedPod ===

impl BookedPod {
    /// What it has is to be looked at, also where a job is under way: that may be in another namespace, or before whatever is to be looked at.
    pub(super) fn is_unknown(&mut self) {
        (self.loaded, self.is_at_work) = (None, false);
    }

    /// It is to have rules that it is not known to have.
    pub(super) fn waits(&self) -> bool {
        match (&self.rules, &self.loaded) {
            (Some(rules), Some(Some(loaded))) => !Arc::ptr_eq(rules, loaded),
            (rules, _) => rules.is_some(),
        }
    }

    /// It is to have nothing.
    pub(super) fn is_let_go(&mut self) {
        (self.classes, self.scope, self.rules) = (PodClasses::default(), PodScope::default(), None);
    }

    pub(super) fn loses_patience(&mut self) {
        if self.services == ServicesWait::Waits {
            self.services = ServicesWait::Over;
        }
    }

    /// Says what it is to have. Whether that is something else than before.
    pub(super) fn set(
        &mut self,
        classes: &PodClasses,
        scope: PodScope,
        rules: Option<Arc<CompiledPod>>,
    ) -> bool {
        let is_other = self.rules != rules || self.scope != scope || self.loaded.is_none();
        let before: BTreeSet<&str> = self.rules.iter().flat_map(set_names).collect();
        let fresh = rules.iter().flat_map(set_names).filter(|name| !before.contains(name));
        self.fresh.extend(fresh.map(str::to_owned));
        (self.classes, self.scope, self.rules) = (classes.clone(), scope, rules);
        is_other
    }

    /// Whether its rules look into a set.
    pub(super) fn looks_into(&self, set: &Arc<PeerSet>) -> bool {
        self.rules.iter().flat_map(|rules| &rules.kept).any(|(_, _, its): &KeptSet| its == set)
    }

    /// What it has of a set is not to be gone by. Whether its rules look into it.
    pub(super) fn writes_anew(&mut self, set: &Arc<PeerSet>) -> bool {
        let kept = self.rules.iter().flat_map(|rules| &rules.kept);
        let names: Vec<String> =
            kept.filter(|(_, _, its)| its == set).map(|(name, ..)| name.clone()).collect();
        self.fresh.extend(names.iter().cloned());
        !names.is_empty()
    }
}

/// The names of the sets whose content is not part of the rules.
fn set_names(rules: &Arc<CompiledPod>) -> impl Iterator<Item = &str> {
    let kept = rules.kept.iter().map(|(name, ..)| &**name);
    kept.chain(rules.services.iter().map(|set| &*set.name))
}

// === impl PodScope ===

impl PodScope {
    pub(super) fn of(all: bool, tunnel: TunnelJudge) -> Self {
        Self { all, tunnel: tunnel != TunnelJudge::Port }
    }
}
