//! What a plugin tells of a pod that starts, and what it hears.

use std::net::IpAddr;

use super::{FollowStage, PolicyState};
use crate::world::key_of;
use facts::networkpolicy::Isolation;
use facts::{LabelSet, PodRef};
use policy::index::PodClasses;

use super::PodNetwork;
use crate::point::{EnforcementPoint, PointError};

/// A pod as a plugin tells it before it starts.
#[derive(Debug, Clone)]
pub struct PodToPrepare {
    /// Which.
    pub pod: PodRef,
    /// Its labels.
    pub labels: LabelSet,
    /// Its addresses in the cluster's network.
    pub addresses: Vec<IpAddr>,
    /// Its network, where the plugin handed it over.
    pub network: Option<PodNetwork>,
}

/// What was done for a pod before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedPod {
    /// The policies that select it.
    pub classes: PodClasses,
    /// The directions in which they isolate it.
    pub isolation: Isolation,
    /// Where they are enforced.
    pub point: EnforcementPoint,
}

/// Why a pod is not prepared.
#[derive(Debug, thiserror::Error)]
pub enum NotPrepared {
    /// At the start.
    #[error("the policies of the cluster are not listed yet")]
    NotListed,
    /// There are tenants, and it is not known whose the pod's namespace is.
    #[error("namespace {0:?} is not known yet, and so not which tenant has it")]
    Namespace(Box<str>),
    /// The kernel did not take its rules.
    #[error("load the rules of its policies: {0}")]
    Point(#[from] PointError),
    /// The task that does it is gone.
    #[error("policies are not enforced any more; the agent ends")]
    Ended,
}

// === impl PolicyState ===

impl PolicyState {
    /// The addresses of a pod are released: the next one may have them.
    pub(in super::super) fn release(&mut self, pod: &PodRef) {
        let touched = self.local.release(pod, &self.sources.peers.read());
        match self.stage {
            FollowStage::Follows => self.pod(&key_of(pod), &touched),
            FollowStage::Remembers => self.end_remembered(pod),
            FollowStage::Lists | FollowStage::Idle => {}
        }
    }
}
