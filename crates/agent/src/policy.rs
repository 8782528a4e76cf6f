//! What the enforcement of policies needs of this agent.

use std::sync::Arc;

use enforcement::{PointError, PolicyPoint, PolicyStanding};
use policy::index::{LocalName, PolicyEffect, PolicyIndex};

use crate::health::{Health, HealthPart};

/// Stands where a point is not built yet.
pub(crate) struct Unenforced;

/// Keeps readiness as enforcing stands. What was in force once stays in the kernel, so that nothing is unready for a failure later.
pub(crate) fn standing(health: Arc<Health>) -> Box<dyn Fn(&PolicyStanding) + Send + Sync> {
    Box::new(move |standing| match standing {
        PolicyStanding::InForce => health.ready(HealthPart::Policies),
        _ if health.is_ready(HealthPart::Policies) => {}
        PolicyStanding::NotListed => {
            health.pending(HealthPart::Policies, &"not everything that policies go by is listed yet");
        }
        PolicyStanding::Failing(error) => health.pending(HealthPart::Policies, error),
    })
}

impl PolicyPoint for Unenforced {
    fn adopt(&mut self, _: &PolicyIndex, _: &dyn Fn(&LocalName) -> bool) -> Result<(), PointError> {
        Ok(())
    }

    fn apply(&mut self, _: &[PolicyEffect], _: &PolicyIndex) -> Result<(), PointError> {
        Ok(())
    }
}
