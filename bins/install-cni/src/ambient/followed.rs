//! Options that a ConfigMap changes while the agent runs.

use std::sync::{Arc, PoisonError, RwLock};

use facts::{Facts, Object};

use super::desired::{Desired, Rules};

/// The value of an option as it is now. A decision takes it once, so that no decision mixes two of them.
#[derive(Debug)]
pub(crate) struct Followed<T>(RwLock<Arc<T>>);

// === impl Followed ===

impl<T> Followed<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// For one decision.
    pub(crate) fn now(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, value: Arc<T>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl<T: PartialEq> Followed<T> {
    /// Takes the value of another; whether it differs.
    pub(crate) fn follow(&self, other: &Self) -> bool {
        let value = other.now();
        let differs = *self.now() != *value;
        if differs {
            self.set(value);
        }
        differs
    }
}

impl<T> Clone for Followed<T> {
    /// The clone goes its own way.
    fn clone(&self) -> Self {
        Self(RwLock::new(self.now()))
    }
}

impl Followed<Rules> {
    /// As [`Rules::desired`].
    pub(crate) fn desired(&self, facts: &Facts) -> Desired {
        self.now().desired(facts)
    }

    /// As [`Rules::is_ztunnel`].
    pub(crate) fn is_ztunnel(&self, pod: &Object) -> bool {
        self.now().is_ztunnel(pod)
    }
}
