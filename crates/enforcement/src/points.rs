//! Which point enforces the policies of which pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::index::{LocalName, PolicyEffect, PolicyIndex, TunnelJudge};
use telemetry::Scope;

use super::PolicyListener;
use super::config::PointChoice;
use super::entry::EntryPoint;
use super::news::PolicyNews;
use super::point::{EnforcementPoint, PointCharge, PointError, PointLook, PolicyPoint};
use super::services::ClassServices;
use super::sight::{AttachedPod, NodeSight, UnseenReason};

/// Both points. Sets and classes are kept at both. The node's has the rules of all pods, those too that it was not seen to see: what comes by there
/// all the same is judged. A pod has rules of its own where the node does not see it, and keeps what it has until that was tested.
pub(super) struct Points {
    choice: PointChoice,
    node: Box<dyn PolicyPoint>,
    pod: Box<dyn PolicyPoint>,
    entry: EntryPoint,
    /// What tests came to, of pods that there are.
    sights: BTreeMap<LocalName, NodeSight>,
    /// Pods whose packets are to be tested, for the first time or again.
    untested: BTreeSet<LocalName>,
    told: PolicyListener,
    log: Scope,
}

/// Whether it is known which tenant has a pod's namespace.
type KnowsTenant<'a> = &'a dyn Fn(&LocalName) -> bool;

impl Points {
    pub(super) fn new(
        choice: PointChoice,
        [node, pod]: [Box<dyn PolicyPoint>; 2],
        entry: EntryPoint,
        told: PolicyListener,
        log: Scope,
    ) -> Self {
        let (sights, untested) = (BTreeMap::new(), BTreeSet::new());
        Self { choice, node, pod, entry, sights, untested, told, log }
    }

    /// Who hears how enforcing goes.
    pub(super) fn tell(&self, news: PolicyNews<'_>) {
        (self.told)(news);
    }

    /// Where the policies of a pod are enforced.
    pub(super) fn of(&self, pod: &LocalName) -> EnforcementPoint {
        match is_in_pod(self.choice, self.sights.get(pod)) {
            true => EnforcementPoint::Pod,
            false => EnforcementPoint::Node,
        }
    }

    /// Why the node does not see a pod's packets, if that is where its policies are enforced for.
    pub(super) fn unseen(&self) -> impl Iterator<Item = (&LocalName, &UnseenReason)> {
        self.sights.iter().filter_map(|(pod, sight)| match sight {
            NodeSight::Unseen(reason) => Some((pod, reason)),
            NodeSight::Seen => None,
        })
    }

    /// The same of one pod.
    pub(super) fn unseen_reason(&self, pod: &LocalName) -> Option<&UnseenReason> {
        match self.sights.get(pod)? {
            NodeSight::Unseen(reason) => Some(reason),
            NodeSight::Seen => None,
        }
    }

    /// Pods that are to be handed to [`Self::look`].
    pub(super) fn untested(&self) -> &BTreeSet<LocalName> {
        &self.untested
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

    /// Pods that were not looked at yet are to be tested.
    fn find_untested(&mut self, index: &PolicyIndex) {
        if self.choice != PointChoice::Pod {
            let known: BTreeSet<&LocalName> = index.pods().map(|(pod, ..)| pod).collect();
            self.sights.retain(|pod, _| known.contains(pod));
            let is_new = |pod: &&LocalName| !self.sights.contains_key(*pod);
            self.untested = known.into_iter().filter(is_new).cloned().collect();
        }
    }

    /// Whether rules of the node are about its pods.
    fn at_node(&self) -> PointCharge {
        if self.choice == PointChoice::Pod { PointCharge::Others } else { PointCharge::Its }
    }

    /// See [`PolicyPoint::resume`].
    pub(super) fn resume(
        &mut self,
        index: &PolicyIndex,
        addresses: &BTreeSet<IpAddr>,
        knows: KnowsTenant<'_>,
    ) -> Result<(), PointError> {
        self.find_untested(index);
        let at_node = self.at_node();
        self.node.resume(index, &|_| at_node, addresses, PointLook::Everything)?;
        let (choice, sights) = (self.choice, &self.sights);
        let charges = |pod: &LocalName| known_charge(knows, choice, sights.get(pod), pod, index);
        self.pod.resume(index, &charges, addresses, PointLook::Everything).map(drop)
    }

    /// See [`PolicyPoint::adopt`].
    pub(super) fn adopt(&mut self, index: &PolicyIndex, knows: KnowsTenant<'_>) -> Result<(), PointError> {
        self.find_untested(index);
        let at_node = self.at_node();
        self.node.adopt(index, &|_| at_node)?;
        // The node's point may have removed all of the owner's tables.
        self.entry.distrust();
        if index.pods().next().is_none() {
            self.entry.clear()?;
        }
        let (choice, sights) = (self.choice, &self.sights);
        self.pod.adopt(index, &|pod| known_charge(knows, choice, sights.get(pod), pod, index))
    }

    /// Whether it is known where the policies of a pod are enforced.
    pub(super) fn is_settled(&self, pod: &LocalName, index: &PolicyIndex) -> bool {
        charge(self.choice, self.sights.get(pod), pod, index) != PointCharge::Unsettled
    }

    /// See [`PolicyPoint::end_guard`].
    pub(super) fn end_guard(&mut self, pod: &LocalName) {
        self.pod.end_guard(pod);
    }

    /// Tests whether the node sees a pod, and enforces its policies where that says. Where not all of the node's rules are in force (`in_force`), a pod that
    /// it sees keeps what it has, and is tested again.
    pub(super) fn look(
        &mut self,
        at: &AttachedPod,
        index: &PolicyIndex,
        in_force: bool,
    ) -> Result<(), PointError> {
        self.pod.attached(at);
        if self.choice == PointChoice::Pod {
            return Ok(());
        }
        let sight = self.entry.look(at);
        if sight == NodeSight::Seen && !in_force {
            self.untested.insert(at.pod.clone());
            return Ok(());
        }
        self.untested.remove(&at.pod);
        let before = self.sights.insert(at.pod.clone(), sight.clone());
        let is_news = before.as_ref() != Some(&sight);
        if self.choice == PointChoice::Node || !(is_news || at.is_starting) {
            return Ok(());
        }
        let had_rules = matches!(before, Some(NodeSight::Unseen(_)));
        match (&sight, before.filter(|_| is_news)) {
            (NodeSight::Unseen(reason), _) if is_news => self.log.warn(
                "the node's rules do not see a pod's packets: its policies are enforced in its own namespace",
                &[("pod", &name_of(&at.pod)), ("reason", reason)],
            ),
            (NodeSight::Seen, Some(_)) => self.log.info(
                "the node's rules see a pod's packets by now: its policies are enforced there",
                &[("pod", &name_of(&at.pod))],
            ),
            (NodeSight::Unseen(_), _) | (NodeSight::Seen, None) => {}
        }
        // A starting pod has nothing of ours but a guard, which its plugin ends, unless rules judge its tunnel. A plugin asks again once it has guarded a
        // pod that the node does not see: the guard has the place of the pod's rules then.
        let has_tunnel = is_isolated(&at.pod, index)
            && index.facts_of(&at.pod).is_some_and(|facts| facts.tunnel != TunnelJudge::Port);
        if sight == NodeSight::Seen && at.is_starting && !had_rules && !has_tunnel {
            return Ok(());
        }
        self.pod.settle(at, sight != NodeSight::Seen, index)
    }

    /// See [`PolicyPoint::verify`]; `kept` are the addresses for [`PolicyPoint::resume`] where that is how it began. Whether something had to be
    /// repaired at one of the points.
    pub(super) fn verify(
        &mut self,
        index: &PolicyIndex,
        look: PointLook,
        kept: Option<&BTreeSet<IpAddr>>,
    ) -> Result<bool, PointError> {
        let at_node = self.at_node();
        let has_repaired = match (kept, look) {
            (None, _) => self.node.verify(index, look)?,
            // What was flushed or deleted whole is found without a look at members of sets.
            (Some(_), PointLook::Disturbed) => {
                self.node.resume(index, &|_| at_node, &BTreeSet::new(), look)?
            }
            (Some(addresses), PointLook::Everything) => {
                self.node.resume(index, &|_| at_node, addresses, look)?
            }
        };
        let of_node = self.entry.verify(look, self.untested.is_empty())? || has_repaired;
        let done =
            [(EnforcementPoint::Node, of_node), (EnforcementPoint::Pod, self.pod.verify(index, look)?)];
        for (at, _) in done.iter().filter(|(_, has_repaired)| *has_repaired) {
            let text = "rules of policies were not as they should be, and are again; something else on this node changes them";
            self.log.warn(text, &[("point", &at.name())]);
            self.tell(PolicyNews::Repaired(*at, look));
        }
        self.untested.extend(self.entry.moved()?);
        if look == PointLook::Everything {
            let unseen: Vec<LocalName> = self.unseen().map(|(pod, _)| pod.clone()).collect();
            self.untested.extend(unseen);
            self.untested.extend(self.entry.hidden_by_now()?);
        }
        Ok(done.iter().any(|(_, has_repaired)| *has_repaired))
    }

    /// See [`PolicyPoint::apply`]. Whether all of it was done; what was not is in the log. `kept` as in [`Self::verify`].
    pub(super) fn apply(
        &mut self,
        effects: &[PolicyEffect],
        index: &PolicyIndex,
        kept: Option<&BTreeSet<IpAddr>>,
        knows: KnowsTenant<'_>,
    ) -> bool {
        let mut is_done = true;
        for effect in effects {
            match effect {
                PolicyEffect::PodChanges { pod, .. }
                    if self.choice != PointChoice::Pod && !self.sights.contains_key(pod) =>
                {
                    self.untested.insert(pod.clone());
                }
                PolicyEffect::PodGoes(pod) => is_done &= self.forget(pod),
                _ => {}
            }
        }
        let at_node = self.choice != PointChoice::Pod;
        let of_node = effects.iter().filter(|effect| at_node || !is_of_pod(effect));
        let of_node: Vec<PolicyEffect> = of_node.cloned().collect();
        let (choice, sights) = (self.choice, &self.sights);
        let of_nodes_pods = self.at_node();
        let of_node = match (of_node.is_empty(), kept) {
            (true, None) => Ok(()),
            (false, None) => self.node.apply(&of_node, index, &|_| of_nodes_pods),
            (_, Some(addresses)) => {
                self.node.resume(index, &|_| of_nodes_pods, addresses, PointLook::Everything).map(drop)
            }
        };
        // What is inside tunnels is judged in pods that are the node's else.
        let charges = |pod: &LocalName| known_charge(knows, choice, sights.get(pod), pod, index);
        let of_pod = self.pod.apply(effects, index, &charges);
        for error in [of_node, of_pod].into_iter().filter_map(Result::err) {
            self.log.warn(NOT_DONE, &[("error", &fault::chain(&error))]);
            is_done = false;
        }
        is_done
    }

    fn forget(&mut self, pod: &LocalName) -> bool {
        self.sights.remove(pod);
        self.untested.remove(pod);
        let forgotten = self.entry.forget(pod);
        if let Err(error) = &forgotten {
            self.log.warn(NOT_DONE, &[("error", &fault::chain(error))]);
        }
        forgotten.is_ok()
    }
}

const NOT_DONE: &str = "a change of policies was not carried out; everything is compared and put right next";

/// Whether the policies of a pod are enforced in its own namespace.
fn is_in_pod(choice: PointChoice, sight: Option<&NodeSight>) -> bool {
    match choice {
        PointChoice::Pod => true,
        PointChoice::Auto => matches!(sight, Some(NodeSight::Unseen(_))),
        PointChoice::Node => false,
    }
}

/// What of a pod is enforced in its own namespace.
fn charge(
    choice: PointChoice,
    sight: Option<&NodeSight>,
    pod: &LocalName,
    index: &PolicyIndex,
) -> PointCharge {
    match (choice, sight) {
        (choice, sight) if is_in_pod(choice, sight) => PointCharge::Its,
        (PointChoice::Auto, None) if is_isolated(pod, index) => PointCharge::Unsettled,
        _ => PointCharge::Others,
    }
}

/// The same, where any tenant may have the pod's namespace: what is there stays until that is known.
fn known_charge(
    knows: KnowsTenant<'_>,
    choice: PointChoice,
    sight: Option<&NodeSight>,
    pod: &LocalName,
    index: &PolicyIndex,
) -> PointCharge {
    if knows(pod) { charge(choice, sight, pod, index) } else { PointCharge::Unsettled }
}

fn is_isolated(pod: &LocalName, index: &PolicyIndex) -> bool {
    index.classes_of(pod).is_some_and(|classes| classes.iter().next().is_some())
}

fn is_of_pod(effect: &PolicyEffect) -> bool {
    matches!(effect, PolicyEffect::PodChanges { .. } | PolicyEffect::PodGoes(_))
}

fn name_of(pod: &LocalName) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}
