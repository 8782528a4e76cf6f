//! Where policies are enforced: what takes the effects of events to a kernel.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::net::IpAddr;

use policy::index::{LocalName, PolicyEffect, PolicyIndex};

use super::services::ClassServices;
use super::sight::AttachedPod;

/// Keeps what a kernel has of policies as an index says it. It is called by one thread at a time, and may take as long as the kernel does.
pub trait PolicyPoint: Send {
    /// Makes everything what the index says, whatever is there: at the start, and after a failure. What is right is left as it is; isolation
    /// comes first, then what is allowed, and what is not wanted any more goes last. An index without pods leaves nothing of ours. `pods` says whose
    /// policies are enforced here.
    ///
    /// # Errors
    /// Not all of it was done. It is tried again.
    fn adopt(
        &mut self,
        index: &PolicyIndex,
        pods: &dyn Fn(&LocalName) -> PointCharge,
    ) -> Result<(), PointError>;

    /// Carries out what an event changes, in the order of the effects. The index is as it is after the event. `pods` says whose policies are enforced
    /// here.
    ///
    /// # Errors
    /// Not all of it was done. [`Self::adopt`] follows.
    fn apply(
        &mut self,
        effects: &[PolicyEffect],
        index: &PolicyIndex,
        pods: &dyn Fn(&LocalName) -> PointCharge,
    ) -> Result<(), PointError>;

    /// Goes on with what an earlier agent left in the kernel, while nobody knows more than that agent did: what is not there is made as the index says, and
    /// so is all that is about these addresses. What was emptied counts as not there; members of sets are looked at where it is to look at everything. The
    /// index may be older than the rest of it, which stays. Whether something was made.
    ///
    /// # Errors
    /// Not all of it was done. It is tried again.
    fn resume(
        &mut self,
        index: &PolicyIndex,
        pods: &dyn Fn(&LocalName) -> PointCharge,
        _: &BTreeSet<IpAddr>,
        _: PointLook,
    ) -> Result<bool, PointError> {
        self.adopt(index, pods).map(|()| false)
    }

    /// Takes what policies come to for addresses of Services, for classes of pods that are judged where packets go to these still.
    ///
    /// # Errors
    /// Not all of it was done.
    fn services(&mut self, _: &ClassServices, _: &PolicyIndex) -> Result<(), PointError> {
        Ok(())
    }

    /// Where a pod's network is, before it is known who judges it.
    fn attached(&mut self, _: &AttachedPod) {}

    /// From now on it is known whether a pod's policies are enforced here, and what is left of an earlier time goes.
    ///
    /// # Errors
    /// As of [`Self::apply`].
    fn settle(&mut self, _: &AttachedPod, _: bool, _: &PolicyIndex) -> Result<(), PointError> {
        Ok(())
    }

    /// A pod that starts is guarded, and nobody else ends that: its rules take the guard's place, or nothing does.
    fn end_guard(&mut self, _: &LocalName) {}

    /// Looks whether the kernel has what it was given still, and puts it right. Whether it had to.
    ///
    /// # Errors
    /// It could not look, or not all of it is right. [`Self::adopt`] follows.
    fn verify(&mut self, _: &PolicyIndex, _: PointLook) -> Result<bool, PointError> {
        Ok(false)
    }
}

/// Whether a pod's policies are enforced at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointCharge {
    /// They are.
    Its,
    /// They are not: nothing of ours is left for the pod.
    Others,
    /// That is not known yet: what is there stays.
    Unsettled,
}

/// How thoroughly a point looks at what the kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointLook {
    /// At everything, from time to time.
    Everything,
    /// For what somebody else has committed just now, if anything.
    Disturbed,
}

/// A kernel did not take what policies come to.
#[derive(Debug)]
pub struct PointError(Box<dyn Error + Send + Sync>);

/// Where the policies of a pod are enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EnforcementPoint {
    /// In the node's network namespace.
    Node,
    /// In the pod's.
    Pod,
    /// In the node's, and what is inside the tunnel of ambient mode in the pod's.
    Both,
}

// === impl PointError ===

impl PointError {
    /// From what went wrong.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for PointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for PointError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

// === impl EnforcementPoint ===

impl EnforcementPoint {
    /// Its name in metrics and for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Pod => "pod",
            Self::Both => "both",
        }
    }
}
