//! Which point enforces the policies of which pod.

use policy::index::{LocalName, PolicyEffect, PolicyIndex};
use telemetry::Scope;

use super::config::PointChoice;
use super::point::{EnforcementPoint, PointError, PointLook, PolicyPoint};

/// Both points. Sets and classes are kept at both, a pod's rules at its own.
pub(super) struct Points {
    choice: PointChoice,
    node: Box<dyn PolicyPoint>,
    pod: Box<dyn PolicyPoint>,
    log: Scope,
}

impl Points {
    pub(super) fn new(
        choice: PointChoice,
        node: Box<dyn PolicyPoint>,
        pod: Box<dyn PolicyPoint>,
        log: Scope,
    ) -> Self {
        Self { choice, node, pod, log }
    }

    /// Where the policies of a pod are enforced.
    pub(super) fn of(&self, _pod: &LocalName) -> EnforcementPoint {
        match self.choice {
            PointChoice::Auto | PointChoice::Node => EnforcementPoint::Node,
            PointChoice::Pod => EnforcementPoint::Pod,
        }
    }

    /// See [`PolicyPoint::adopt`].
    pub(super) fn adopt(&mut self, index: &PolicyIndex) -> Result<(), PointError> {
        let choice = self.choice;
        let node = choice != PointChoice::Pod;
        self.node.adopt(index, &|_| node)?;
        self.pod.adopt(index, &|_| !node)
    }

    /// See [`PolicyPoint::verify`].
    pub(super) fn verify(&mut self, index: &PolicyIndex, look: PointLook) -> Result<(), PointError> {
        for (at, point) in [(EnforcementPoint::Node, &mut self.node), (EnforcementPoint::Pod, &mut self.pod)]
        {
            if point.verify(index, look)? {
                let text = "rules of policies were not as they should be, and are again; something else on this node changes them";
                self.log.warn(text, &[("point", &at.name())]);
            }
        }
        Ok(())
    }

    /// See [`PolicyPoint::apply`]. Whether all of it was done; what was not is in the log.
    pub(super) fn apply(&mut self, effects: &[PolicyEffect], index: &PolicyIndex) -> bool {
        let of = |at: EnforcementPoint| -> Vec<PolicyEffect> {
            let is_its = |effect: &&PolicyEffect| match effect {
                PolicyEffect::PodChanges { pod, .. } | PolicyEffect::PodGoes(pod) => self.of(pod) == at,
                _ => true,
            };
            effects.iter().filter(is_its).cloned().collect()
        };
        let (of_node, of_pod) = (of(EnforcementPoint::Node), of(EnforcementPoint::Pod));
        let mut is_done = true;
        for (point, effects) in [(&mut self.node, of_node), (&mut self.pod, of_pod)] {
            if effects.is_empty() {
                continue;
            }
            if let Err(error) = point.apply(&effects, index) {
                let text =
                    "a change of policies was not carried out; everything is compared and put right next";
                self.log.warn(text, &[("error", &fault::chain(&error))]);
                is_done = false;
            }
        }
        is_done
    }
}
