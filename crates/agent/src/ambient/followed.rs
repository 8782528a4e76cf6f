//! Options that a ConfigMap changes while the agent runs.

use std::sync::{Arc, PoisonError, RwLock};

use capture::ambient::ProbeSender;
use facts::{Facts, Object};
use rundir::AmbientOptions;

use super::Ambient;
use super::desired::{Desired, DesiredRules};

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

impl Ambient {
    /// The options by which pods get their rules now, for people who ask what those are.
    pub(crate) fn options_in_force(&self) -> Option<AmbientOptions> {
        let host = self.node.host.get().filter(|_| !self.config.is_off)?;
        let node = self.config.node.now();
        Some(AmbientOptions {
            backend: host.backend().to_string(),
            dns_capture: node.dns_capture,
            ipv6: node.ipv6,
            probe_v4: node.probe_v4,
            probe_v6: node.probe_v6,
            probe_uid: match host.sender() {
                ProbeSender::AnySocket => None,
                ProbeSender::Uid(uid) => Some(uid),
            },
            system_namespace: self.config.rules.now().enrolment.ztunnel_namespace.clone(),
        })
    }
}

impl Followed<DesiredRules> {
    /// As [`DesiredRules::desired`].
    pub(crate) fn desired(&self, facts: &Facts) -> Desired {
        self.now().desired(facts)
    }

    /// As [`DesiredRules::is_ztunnel`].
    pub(crate) fn is_ztunnel(&self, pod: &Object) -> bool {
        self.now().is_ztunnel(pod)
    }
}
