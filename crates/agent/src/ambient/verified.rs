//! Ambient mode as one whose pods are verified.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::verification::{DataPlaneMode, UnverifiableReason, VerificationState};
use capture::ambient::{HBONE_PORT, INBOUND_PORT, NodeOptions, OUTBOUND_PORT, PodOptions};
use capture::decide::Refusal;
use facts::{Facts, PodRef};
use intent::{Look, Ztunnel};
use kernel::Change;
use kernel::watch::Fingerprint;
use netns::Inside;
use ruleset::{Backend, Plan};

use super::Ambient;
use super::desired::Desired;
use super::evidence::{RecordSubject, ShadowsOf};
use super::failure::{AmbientFailure, reason};
use super::members::{Member, MemberState};
use super::translating::pod_plan;
use crate::backends::Backends;
use crate::verification::{
    ActAtOnce, Comparison, ExpectedPod, FoundBy, Later, RepairFailure, RepairResult, VerificationTarget,
    VerifiedMode,
};

/// Where ztunnel listens in a pod's namespace.
const LISTENERS: [u16; 3] = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT];
/// Plans that are kept, so that pods with the same options have the same one.
const PLANS: usize = 64;

/// Plans by what they are made of.
#[derive(Debug, Default)]
pub(super) struct Plans {
    known: Mutex<Vec<KnownPlan>>,
    /// This kernel cannot capture in two steps.
    pub(super) one_step: Arc<AtomicBool>,
}

#[derive(Debug)]
struct KnownPlan {
    node: Arc<NodeOptions>,
    pod: PodOptions,
    backend: Backend,
    translates: bool,
    plan: Arc<Plan>,
}

// === impl Plans ===

impl Plans {
    fn of(&self, node: &Arc<NodeOptions>, member: &Member, backend: Backend) -> Arc<Plan> {
        let (pod, translates) = (&member.options, member.translates);
        let mut plans = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = plans.iter().find(|known| {
            known.backend == backend
                && known.pod == *pod
                && known.translates == translates
                && (Arc::ptr_eq(&known.node, node) || known.node == *node)
        });
        if let Some(known) = known {
            return known.plan.clone();
        }
        let plan = Arc::new(pod_plan(node, pod, backend, translates));
        if plans.len() >= PLANS {
            plans.remove(0);
        }
        let (node, pod) = (node.clone(), pod.clone());
        plans.push(KnownPlan { node, pod, backend, translates, plan: plan.clone() });
        plan
    }
}

impl VerifiedMode for Ambient {
    fn expected(&self) -> Vec<ExpectedPod> {
        if self.config.is_off || !self.config.rules.now().captures() {
            return Vec::new();
        }
        let index = self.cluster.index();
        let facts = index.pods().filter_map(|pod| index.facts(pod.namespace(), pod.name()));
        facts.filter_map(|facts| self.expected_pod(&facts)).collect()
    }

    fn backends(&self) -> Arc<Backends> {
        self.node.backends.clone()
    }

    fn is_at_work(&self, uid: &str) -> bool {
        self.pods.members.is_taken(uid)
    }

    fn is_superseded(&self, pod: &PodRef, inside: &Inside) -> bool {
        let member = self.pods.members.get(&pod.uid);
        member.is_some_and(|member| {
            let is_there = member.netns.as_ref().is_some_and(|netns| netns.id() == inside.id());
            is_there && member.is_verified() && self.begins_or_ends_to_translate(inside, &member)
        })
    }

    fn at_once(&self, pod: &PodRef) -> Option<ActAtOnce> {
        let member = self.pods.members.get(&pod.uid).filter(Member::is_verified)?;
        self.give_way(&member)
    }

    fn inspect(&self, pod: &PodRef, inside: &Inside, plan: &Arc<Plan>, rules: Option<&Fingerprint>) {
        let Some(member) = self.pods.members.get(&pod.uid) else { return };
        // Of a pod that leaves meanwhile nothing is kept.
        let is_there = member.netns.as_ref().is_some_and(|netns| netns.id() == inside.id());
        if !is_there || !member.is_verified() {
            return;
        }
        let of = ShadowsOf { rules, plan, subject: RecordSubject::of(&member) };
        if !member.translates && !member.translates_now && self.kept.evidence.is_known(inside.id(), &of) {
            return;
        }
        let is_as_known = self.look_for_translations(inside, &member);
        if self.pods.members.is_taken(&pod.uid) {
            return;
        }
        let (kernel, change) = (self.node.backends.kernel(), Change::None);
        let seen = self.kept.evidence.take(inside, kernel, (plan, change), &of.subject);
        self.tell_seen(&member, &seen);
        if is_as_known && seen.warnings.is_empty() {
            self.kept.evidence.note(inside.id(), of);
        }
    }

    fn compared(&self, pod: &PodRef, comparison: &Comparison) {
        self.node.backends.log_warnings(&self.log);
        let Some(member) = self.pods.members.get(&pod.uid).filter(Member::is_verified) else { return };
        match comparison {
            // Whoever works on it knows more of it by now.
            Comparison::Equal if self.is_at_work(&pod.uid) => {}
            Comparison::Equal => {
                if let Some(before) = self.pods.members.see_as_planned(&pod.uid) {
                    self.looked(pod, true, before.have.look() == Some(Look::Due));
                }
            }
            // The process by which it was found has ended: the pod is looked for by its others.
            Comparison::Moved if member.found_by() == FoundBy::Process => {
                self.changed(std::slice::from_ref(pod));
            }
            Comparison::Moved => self.miss_sandbox(&member),
            Comparison::Differs(_) | Comparison::Superseded | Comparison::Failed { .. } => {}
        }
    }

    fn repair<'a>(&'a self, pod: &'a PodRef) -> Later<'a, Result<RepairResult, RepairFailure>> {
        Box::pin(async move {
            match self.put_right_now(&pod.uid).await {
                Ok(Some(true)) => Ok(RepairResult::PutRight),
                Ok(Some(false)) => Ok(RepairResult::WasRight),
                Ok(None) => Ok(RepairResult::Left),
                Err(failure) => {
                    let wrong = matches!(failure, AmbientFailure::NotFound(_));
                    let state =
                        wrong.then_some(VerificationState::Unverifiable(UnverifiableReason::WrongNamespace));
                    Err(RepairFailure { state, text: fault::message(&failure) })
                }
            }
        })
    }

    fn retargeted(&self, pod: &PodRef) -> Option<VerificationTarget> {
        let facts = self.cluster.index().facts(&pod.namespace, &pod.name)?;
        self.expected_pod(&facts).filter(|expected| expected.pod.uid == pod.uid)?.target.ok()
    }

    fn round(self: Arc<Self>) -> Later<'static, ()> {
        Box::pin(async move {
            if !self.is_at_rest() {
                return;
            }
            self.push_left_by_process();
            self.look_again().await;
            self.restore_tracking_where_it_can_be().await;
            self.verify_host().await;
            if self.is_listed()
                && let Some(error) = self.kept.evidence.sweep(&self.pods.members)
            {
                self.log.warn(&error, &[]);
            }
            self.metrics.shadowed(self.kept.evidence.shadowed());
            let members = self.pods.members.all().into_iter();
            let left =
                members.filter(|member| !self.config.rules.now().captures() && member.have.is_captured());
            self.metrics.left_as_they_are(DataPlaneMode::Ambient, left.count());
            self.node.finder.forget().await;
        })
    }
}

impl Ambient {
    /// Whether the pods of an earlier agent are known, and nothing is being removed yet.
    pub(super) fn is_at_rest(&self) -> bool {
        self.life.taken_over.get().is_some() && self.life.ending.get().is_none()
    }

    fn expected_pod(&self, facts: &Facts) -> Option<ExpectedPod> {
        let pod = facts.pod.pod_ref();
        let member = self.pods.members.get(&pod.uid);
        let target = match self.config.rules.desired(facts) {
            Desired::In => self.target(facts, member.as_ref()),
            // It has left, and what it had open goes on.
            Desired::Out(_) if member?.state == MemberState::Draining => Err(VerificationState::Draining),
            _ => return None,
        };
        let is_in = target.as_ref().is_ok_and(|target| target.acknowledged);
        let trouble = if is_in { None } else { self.telling.troubles.text(&pod.uid) };
        Some(ExpectedPod { pod, mode: DataPlaneMode::Ambient, born: None, trouble, target })
    }

    fn target(
        &self,
        facts: &Facts,
        member: Option<&Member>,
    ) -> Result<VerificationTarget, VerificationState> {
        let refused = self.refuse(facts, &facts.pod.ips());
        if let Err(AmbientFailure::Refused(refusal)) = refused {
            return Err(VerificationState::Unverifiable(match refusal {
                Refusal::Sandboxed { .. } => UnverifiableReason::Sandbox,
                _ => UnverifiableReason::NoAddress,
            }));
        }
        let Some(member) = member else { return Err(self.without_rules(facts)) };
        if member.announced {
            return Err(VerificationState::Starting);
        }
        let (Some(netns), true, Ok(host)) = (&member.netns, member.is_verified(), self.host()) else {
            return Err(self.without_rules(facts));
        };
        Ok(VerificationTarget {
            netns: netns.clone(),
            found: member.found_by(),
            plan: self.pods.plans.of(&self.node_options(member), member, host.backend()),
            addresses: member.ips().to_vec(),
            listeners: LISTENERS.to_vec(),
            proxy_started: member.have.ztunnel == Ztunnel::Taken,
            // The one that has taken it may be gone, and the next one not have heard of it yet.
            acknowledged: member.have.ztunnel == Ztunnel::Taken && self.pods.ztunnels.have(&member.key.uid),
        })
    }

    /// The state of a pod that has no rules that could be looked at.
    fn without_rules(&self, facts: &Facts) -> VerificationState {
        if self.host().is_err() && self.node.is_denied.load(Ordering::Relaxed) {
            return VerificationState::Unverifiable(UnverifiableReason::Permission);
        }
        let uid = facts.pod.uid().unwrap_or_default();
        match self.telling.troubles.reason(uid) {
            Some(reason::WRONG_NAMESPACE) if facts.pod.has_own_users() => {
                VerificationState::Unverifiable(UnverifiableReason::UserNamespace)
            }
            Some(reason::WRONG_NAMESPACE) => {
                VerificationState::Unverifiable(UnverifiableReason::WrongNamespace)
            }
            Some(reason::SANDBOX) => VerificationState::Unverifiable(UnverifiableReason::Sandbox),
            Some(reason::IPV6 | reason::NO_UID) => {
                VerificationState::Unverifiable(UnverifiableReason::NoAddress)
            }
            Some(reason::OVERDUE) => VerificationState::Unverifiable(UnverifiableReason::Kernel),
            Some(reason::NO_NAMESPACE) if facts.pod.static_hash().is_some() => {
                VerificationState::Unverifiable(UnverifiableReason::StaticPod)
            }
            Some(reason::NO_NAMESPACE) => VerificationState::Unverifiable(UnverifiableReason::NoNamespace),
            // It waits for its turn, for ztunnel, or for the next try.
            Some(reason::RULES | reason::PROBES) => VerificationState::Drifted,
            Some(reason::ZTUNNEL) => VerificationState::Unacknowledged,
            _ if facts.pod.is_running() && facts.pod.ips().is_empty() => {
                VerificationState::Unverifiable(UnverifiableReason::NoAddress)
            }
            _ => VerificationState::Starting,
        }
    }
}
