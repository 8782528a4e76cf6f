//! Which point enforces the policies of which pod.

use policy::index::{LocalName, PolicyEffect, PolicyIndex, TunnelJudge};
use telemetry::Scope;

use super::PolicyListener;
use super::config::PointChoice;
use super::news::PolicyNews;
use super::point::{EnforcementPoint, PointError, PointLook, PolicyPoint};
use super::services::ClassServices;

/// Both points. Sets and classes are kept at both, a pod's rules at its own.
pub(super) struct Points {
    choice: PointChoice,
    node: Box<dyn PolicyPoint>,
    pod: Box<dyn PolicyPoint>,
    told: PolicyListener,
    log: Scope,
}

impl Points {
    pub(super) fn new(
        choice: PointChoice,
        node: Box<dyn PolicyPoint>,
        pod: Box<dyn PolicyPoint>,
        told: PolicyListener,
        log: Scope,
    ) -> Self {
        Self { choice, node, pod, told, log }
    }

    /// Who hears how enforcing goes.
    pub(super) fn tell(&self, news: PolicyNews<'_>) {
        (self.told)(news);
    }

    /// Where the policies of pods are enforced that are not known.
    pub(super) fn usual(&self) -> EnforcementPoint {
        match self.choice {
            PointChoice::Auto | PointChoice::Node => EnforcementPoint::Node,
            PointChoice::Pod => EnforcementPoint::Pod,
        }
    }

    /// Where the policies of a pod are enforced.
    pub(super) fn of(&self, _pod: &LocalName) -> EnforcementPoint {
        self.usual()
    }

    /// Whether something of a pod is judged in its own namespace.
    pub(super) fn is_inside(&self, pod: &LocalName, tunnel: TunnelJudge) -> bool {
        self.of(pod) == EnforcementPoint::Pod || tunnel != TunnelJudge::Port
    }

    /// See [`PolicyPoint::services`].
    pub(super) fn services(
        &mut self,
        services: &ClassServices,
        index: &PolicyIndex,
    ) -> Result<(), PointError> {
        self.pod.services(services, index)
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
                (self.told)(PolicyNews::Repaired(at, look));
            }
        }
        Ok(())
    }

    /// See [`PolicyPoint::apply`]. Whether all of it was done; what was not is in the log.
    pub(super) fn apply(&mut self, effects: &[PolicyEffect], index: &PolicyIndex) -> bool {
        let of_node = |effect: &&PolicyEffect| match effect {
            PolicyEffect::PodChanges { pod, .. } | PolicyEffect::PodGoes(pod) => {
                self.of(pod) == EnforcementPoint::Node
            }
            _ => true,
        };
        let of_node: Vec<PolicyEffect> = effects.iter().filter(of_node).cloned().collect();
        let choice = self.choice;
        let is_of_pod = move |_: &LocalName| choice == PointChoice::Pod;
        let of_node = match of_node.is_empty() {
            true => Ok(()),
            false => self.node.apply(&of_node, index, &|pod| !is_of_pod(pod)),
        };
        // What is inside tunnels is judged in pods that are the node's else.
        let of_pod = self.pod.apply(effects, index, &is_of_pod);
        let mut is_done = true;
        for error in [of_node, of_pod].into_iter().filter_map(Result::err) {
            let text = "a change of policies was not carried out; everything is compared and put right next";
            self.log.warn(text, &[("error", &fault::chain(&error))]);
            is_done = false;
        }
        is_done
    }
}
