//! What watches have told and nobody has acted upon yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cluster::news::ObjectKey;
use cluster::peers::Effect;
use tokio::sync::Notify;

/// Takes what watches tell, on their task. What is told again before it is acted upon is acted upon once.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    told: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Whether changes of pods are collected: until everything was read once, none is needed.
    follows: bool,
    changes: Changes,
}

/// Objects that are other than before.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Policies, by namespace and name.
    pub(super) policies: BTreeSet<ObjectKey>,
    /// Namespaces.
    pub(super) namespaces: BTreeSet<Box<str>>,
    /// Pods, with all addresses that each had or has.
    pub(super) pods: BTreeMap<ObjectKey, Vec<IpAddr>>,
    /// Whether Services or their endpoints have changed.
    pub(super) services: bool,
    /// Tenants, by name.
    pub(super) tenants: BTreeSet<Box<str>>,
    /// Whether grants have changed.
    pub(super) grants: bool,
    /// Whether addresses of nodes have changed.
    pub(super) nodes: bool,
    /// Pods that have the rules which judge their tunnels.
    pub(super) tunnels: BTreeSet<ObjectKey>,
    /// When the first of them was told.
    pub(super) since: Option<Instant>,
}

// === impl Inbox ===

impl Inbox {
    /// Policies have changed.
    pub(super) fn policies(&self, keys: impl IntoIterator<Item = ObjectKey>) {
        self.tell(|state| state.changes.policies.extend(keys));
    }

    /// Namespaces have changed.
    pub(super) fn namespaces(&self, names: Vec<Box<str>>) {
        self.tell(|state| state.changes.namespaces.extend(names));
    }

    /// Pods have changed.
    pub(super) fn pods(&self, effects: Vec<Effect>) {
        self.tell(|state| {
            for effect in effects.into_iter().filter(|_| state.follows) {
                let Effect { key, before, after } = effect;
                let addresses = state.changes.pods.entry(key).or_default();
                for peer in before.iter().chain(&after) {
                    addresses.extend(&peer.addresses);
                }
            }
        });
    }

    /// Services or their endpoints have changed.
    pub(super) fn services(&self) {
        self.tell(|state| state.changes.services = true);
    }

    /// Tenants have changed.
    pub(super) fn tenants(&self, names: impl IntoIterator<Item = Box<str>>) {
        self.tell(|state| state.changes.tenants.extend(names));
    }

    /// Grants have changed.
    pub(super) fn grants(&self) {
        self.tell(|state| state.changes.grants = true);
    }

    /// Addresses of nodes have changed.
    pub(super) fn nodes(&self) {
        self.tell(|state| state.changes.nodes = true);
    }

    /// A pod has the rules that judge its tunnel.
    pub(super) fn tunnel(&self, pod: ObjectKey) {
        self.tell(|state| state.changes.tunnels.extend([pod]));
    }

    /// Something else is to be looked at.
    pub(super) fn wake(&self) {
        self.told.notify_one();
    }

    /// Waits until something is told.
    pub(super) async fn told(&self) {
        self.told.notified().await;
    }

    /// Whether changes of pods are collected from now on. Everything is read anew after this, so what was told before is forgotten.
    pub(super) fn follow(&self, follows: bool) {
        *self.state() = State { follows, changes: Changes::default() };
    }

    /// What was told since this was asked last.
    pub(super) fn take(&self) -> Changes {
        std::mem::take(&mut self.state().changes)
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.changes.since.get_or_insert_with(Instant::now);
        drop(state);
        self.wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
