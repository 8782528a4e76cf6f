//! The policies that select a pod.

use std::sync::Arc;

use crate::meaning::Meaning;
use crate::terms::{PolicyName, PolicyTerms, TrafficDirection};
use crate::world::PolicyWorld;

/// The policies that select pods in one direction. Pods that the same policies select share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyClass {
    /// In which direction.
    pub direction: TrafficDirection,
    /// The policies, in the order in which they are judged; never none.
    pub policies: Box<[PolicyName]>,
}

/// The classes of a pod; nothing in a direction in which no policy selects it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodClasses {
    /// Of what it may reach.
    pub egress: Option<Arc<PolicyClass>>,
    /// Of who may reach it.
    pub ingress: Option<Arc<PolicyClass>>,
}

/// The classes of a pod in a small cluster, where each policy is looked at.
pub fn classes_in<W: PolicyWorld>(world: &W, pod: &W::Pod<'_>) -> PodClasses {
    let mut selecting: Vec<&PolicyTerms> =
        world.policies().filter(|policy| world.selects(&policy.subjects, pod)).collect();
    selecting.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    PodClasses::of(&selecting)
}

// === impl PolicyClass ===

impl PolicyClass {
    /// For names in the kernel. The classes of one pod never have the same.
    pub(crate) fn hash(&self) -> u64 {
        let mut meaning = Meaning::of(3);
        self.policies.iter().for_each(|policy| meaning.policy(policy));
        (meaning.hash() & !1) | u64::from(self.direction == TrafficDirection::Ingress)
    }
}

// === impl PodClasses ===

impl PodClasses {
    /// From the policies that select a pod, in order.
    pub(super) fn of(selecting: &[&PolicyTerms]) -> Self {
        let class = |direction| {
            let applying = selecting.iter().filter(|terms| terms.direction(direction).applies);
            let policies: Box<[PolicyName]> = applying.map(|terms| terms.name.clone()).collect();
            (!policies.is_empty()).then(|| Arc::new(PolicyClass { direction, policies }))
        };
        Self { egress: class(TrafficDirection::Egress), ingress: class(TrafficDirection::Ingress) }
    }

    /// The one of a direction.
    pub fn of_direction(&self, direction: TrafficDirection) -> Option<&Arc<PolicyClass>> {
        match direction {
            TrafficDirection::Egress => self.egress.as_ref(),
            TrafficDirection::Ingress => self.ingress.as_ref(),
        }
    }

    /// Those that it has.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<PolicyClass>> {
        self.egress.iter().chain(&self.ingress)
    }
}
