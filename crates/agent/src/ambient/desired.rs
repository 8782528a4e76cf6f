//! What a pod should be, from what the API server says of it: pure.

use capture::decide::{Enrolment, Exclusions, Membership};
pub(crate) use facts::object::REDIRECTION;
use facts::{Facts, Object};
use intent::RedirectionMark;

/// What the annotation with this value says of us; nothing where it is of others: their older agents opted pods out with other values.
pub(crate) fn mark_of(value: &str) -> Option<RedirectionMark> {
    [RedirectionMark::Enabled, RedirectionMark::Pending].into_iter().find(|mark| value_of(*mark) == value)
}

/// The annotation's value.
pub(crate) fn value_of(mark: RedirectionMark) -> &'static str {
    match mark {
        RedirectionMark::Enabled => "enabled",
        RedirectionMark::Pending => "pending",
    }
}

/// Whether the annotation with this value says that something of ours is in the pod.
pub(crate) fn claims(value: &str) -> bool {
    mark_of(value).is_some()
}

/// Where a pod belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Desired {
    /// Into the mesh.
    In,
    /// Out of it, for this reason.
    Out(String),
    /// It has ended: its namespace goes with it.
    Ended,
    /// It cannot be told yet.
    Unknown,
}

/// What decides besides the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredRules {
    pub(crate) scope: Exclusions,
    pub(crate) enrolment: Enrolment,
}

// === impl DesiredRules ===

impl DesiredRules {
    /// Where a pod belongs that is in the mesh already, or would be but for the kill switch.
    pub(crate) fn desired(&self, facts: &Facts) -> Desired {
        self.desired_now(facts, true)
    }

    /// Where the pod belongs. `in_mesh`: rules of ours are in force for it.
    pub(crate) fn desired_now(&self, facts: &Facts, in_mesh: bool) -> Desired {
        if facts.pod.is_terminal() {
            return Desired::Ended;
        }
        match self.membership(facts, in_mesh) {
            Membership::In => Desired::In,
            Membership::Unknown(_) => Desired::Unknown,
            Membership::Out(skip) => Desired::Out(skip.text()),
        }
    }

    /// Whether the pod is of ambient mode, ended or not.
    pub(crate) fn membership(&self, facts: &Facts, in_mesh: bool) -> Membership {
        facts.membership(&self.scope, &self.enrolment, in_mesh)
    }

    /// Whether pods are taken into the mesh at all.
    pub(crate) fn captures(&self) -> bool {
        !self.scope.capture_disabled
    }

    /// Whether the pod is one of ztunnel's.
    pub(crate) fn is_ztunnel(&self, pod: &Object) -> bool {
        self.enrolment.is_ztunnel(pod.namespace(), &|key| pod.label(key))
    }
}

#[cfg(test)]
mod tests;
