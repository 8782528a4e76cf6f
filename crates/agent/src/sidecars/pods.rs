//! Which pods of sidecar mode run that should be captured, where they are, and what their namespaces should hold.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ::verification::{UnverifiableReason, VerificationState};
use capture::annotations::NodeSettings;
use capture::decide::{Enrolment, Exclusions};
use capture::{Expected, PlanInputs, expected};
use facts::{Facts, Object, PodRef};
use netns::Netns;
use netns::find::MissingNetns;
use ruleset::Plan;

use super::rules::RulesFailure;

/// How long a pod may be without a sandbox before that is worth a word.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// What decides besides a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ExpectedBy {
    pub(super) scope: Exclusions,
    pub(super) enrolment: Enrolment,
    pub(super) node: NodeSettings,
}

/// A pod that runs and should be captured by its sidecar.
#[derive(Debug, Clone)]
pub(super) struct SidecarPod {
    pub(super) key: PodRef,
    /// When this agent first heard of it.
    since: Instant,
    pub(super) place: SandboxPlace,
    /// It was tried to load its rules as often as it is, without success.
    pub(super) gave_up: bool,
}

/// Where it is.
#[derive(Debug, Clone)]
pub(super) enum SandboxPlace {
    /// It is not looked for yet.
    Due,
    /// It is not found, or not to be entered.
    Unknown(NotLocated),
    /// Here.
    At(PodSandbox),
}

/// Why a pod's namespace is not looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotLocated {
    pub(super) reason: UnverifiableReason,
    /// With its cause and what to do; it does not name the pod.
    pub(super) text: String,
}

/// A sandbox of a pod, as it was looked into.
#[derive(Debug, Clone)]
pub(super) struct PodSandbox {
    pub(super) netns: Arc<Netns>,
    /// What its rules are made from.
    pub(super) inputs: Arc<PlanInputs>,
    pub(super) plan: Arc<Plan>,
    pub(super) rules: SandboxRules,
}

/// What is known of the rules in a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SandboxRules {
    /// It has never had any of ours, as far as is known.
    Never,
    /// It has them, or had them: what is wrong with them is the verifier's to see.
    Had,
    /// The agent has loaded them, at this time in seconds since 1970.
    Repaired(u64),
    /// Only those that let open connections go on.
    Draining,
}

/// All of them, by uid.
#[derive(Debug, Default)]
pub(super) struct SidecarPods {
    pods: Mutex<HashMap<String, SidecarPod>>,
    /// Decisions, which cost more than the pods change.
    decided: Mutex<HashMap<String, Decided>>,
}

#[derive(Debug)]
struct Decided {
    pod: Arc<Object>,
    namespace_labels: Option<BTreeMap<String, String>>,
    by: Arc<ExpectedBy>,
    expected: Arc<Expected>,
}

// === impl SidecarPods ===

impl SidecarPods {
    /// What a pod should have.
    pub(super) fn expected(&self, facts: &Facts, by: &Arc<ExpectedBy>) -> Option<Arc<Expected>> {
        let uid = facts.pod.uid()?;
        let mut decided = lock(&self.decided);
        if let Some(known) = decided.get(uid).filter(|known| known.is_of(facts, by)) {
            return Some(known.expected.clone());
        }
        let mut pod = Object::clone(&facts.pod).into_pod(&facts.pod.pod_ref()).ok()?;
        pod.namespace_labels.clone_from(&facts.namespace_labels);
        let expected = Arc::new(expected(&pod, &by.scope, &by.enrolment, &by.node));
        let known = Decided {
            pod: facts.pod.clone(),
            namespace_labels: facts.namespace_labels.clone(),
            by: by.clone(),
            expected: expected.clone(),
        };
        decided.insert(uid.to_owned(), known);
        Some(expected)
    }

    /// What is known of a pod, which begins now where nothing is.
    pub(super) fn of(&self, key: &PodRef) -> SidecarPod {
        let mut pods = lock(&self.pods);
        let new = || SidecarPod {
            key: key.clone(),
            since: Instant::now(),
            place: SandboxPlace::Due,
            gave_up: false,
        };
        pods.entry(key.uid.clone()).or_insert_with(new).clone()
    }

    pub(super) fn get(&self, uid: &str) -> Option<SidecarPod> {
        lock(&self.pods).get(uid).cloned()
    }

    /// The sandbox of a pod, where it is known.
    pub(super) fn sandbox(&self, uid: &str) -> Option<PodSandbox> {
        match self.get(uid)?.place {
            SandboxPlace::At(sandbox) => Some(sandbox),
            SandboxPlace::Due | SandboxPlace::Unknown(_) => None,
        }
    }

    pub(super) fn set(&self, key: &PodRef, place: SandboxPlace) {
        let mut pods = lock(&self.pods);
        if let Some(pod) = pods.get_mut(&key.uid) {
            pod.place = place;
        }
    }

    /// Notes whether it was tried in vain to load a pod's rules.
    pub(super) fn give_up(&self, uid: &str, gave_up: bool) {
        if let Some(pod) = lock(&self.pods).get_mut(uid) {
            pod.gave_up = gave_up;
        }
    }

    /// Changes what is known of a sandbox, if the pod is still in it.
    pub(super) fn change(&self, uid: &str, netns: &Netns, change: impl FnOnce(&mut PodSandbox)) {
        if let Some(SidecarPod { place: SandboxPlace::At(sandbox), .. }) = lock(&self.pods).get_mut(uid)
            && *sandbox.netns == *netns
        {
            change(sandbox);
        }
    }

    /// Forgets a pod; its descriptor is closed.
    pub(super) fn forget(&self, uid: &str) {
        lock(&self.pods).remove(uid);
        lock(&self.decided).remove(uid);
    }

    /// Forgets all but these.
    pub(super) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        lock(&self.pods).retain(|uid, _| is_there(uid));
        lock(&self.decided).retain(|uid, _| is_there(uid));
    }

    pub(super) fn all(&self) -> Vec<SidecarPod> {
        lock(&self.pods).values().cloned().collect()
    }
}

// === impl Decided ===

impl Decided {
    fn is_of(&self, facts: &Facts, by: &Arc<ExpectedBy>) -> bool {
        Arc::ptr_eq(&self.pod, &facts.pod)
            && self.namespace_labels == facts.namespace_labels
            && (Arc::ptr_eq(&self.by, by) || self.by == *by)
    }
}

// === impl SidecarPod ===

impl SidecarPod {
    /// Whether this namespace has, or had, rules of ours, as far as it was looked at.
    pub(super) fn has_had_rules_in(&self, netns: &Netns) -> bool {
        let SandboxPlace::At(sandbox) = &self.place else { return false };
        *sandbox.netns == *netns && sandbox.rules != SandboxRules::Never
    }

    /// A sandbox that was looked into, with what is known of it already.
    pub(super) fn knowing(&self, mut sandbox: PodSandbox) -> PodSandbox {
        if let SandboxPlace::At(before) = &self.place
            && *before.netns == *sandbox.netns
            && before.rules != SandboxRules::Never
        {
            sandbox.rules = before.rules;
        }
        sandbox
    }

    /// Its state while its namespace cannot be looked into. A pod has a while to get its sandbox, from when kubelet took it up, or else from when this
    /// agent first heard of it.
    pub(super) fn state(&self, born: Option<SystemTime>) -> Option<VerificationState> {
        let age = born.and_then(|born| born.elapsed().ok()).unwrap_or_else(|| self.since.elapsed());
        let is_new = age < STARTS_WITHIN;
        match &self.place {
            SandboxPlace::At(_) => None,
            SandboxPlace::Due if is_new => Some(VerificationState::Starting),
            SandboxPlace::Due => Some(VerificationState::Unverifiable(UnverifiableReason::NoNamespace)),
            SandboxPlace::Unknown(unknown) if is_new && unknown.may_start() => {
                Some(VerificationState::Starting)
            }
            SandboxPlace::Unknown(unknown) => Some(VerificationState::Unverifiable(unknown.reason)),
        }
    }
}

// === impl NotLocated ===

impl NotLocated {
    pub(super) fn new(reason: UnverifiableReason, text: &impl ToString) -> Self {
        Self { reason, text: text.to_string() }
    }

    /// Why the namespace of this pod is not found.
    pub(super) fn missing(missing: &MissingNetns, pod: &Object) -> Self {
        let reason = match missing {
            MissingNetns::NoAddress => UnverifiableReason::NoAddress,
            MissingNetns::NoProcess if pod.static_hash().is_some() => UnverifiableReason::StaticPod,
            MissingNetns::NoProcess | MissingNetns::HostNetwork => UnverifiableReason::NoNamespace,
            MissingNetns::OtherOwner if pod.has_own_users() => UnverifiableReason::UserNamespace,
            MissingNetns::OtherAddress | MissingNetns::OtherOwner | MissingNetns::Several(_) => {
                UnverifiableReason::WrongNamespace
            }
            MissingNetns::Sandbox(_) => UnverifiableReason::Sandbox,
            MissingNetns::Failed(_) if pod.has_own_users() => UnverifiableReason::UserNamespace,
            MissingNetns::Failed(_) => UnverifiableReason::Permission,
        };
        Self::new(reason, missing)
    }

    /// Why nobody can tell which rules are in the namespace of this pod.
    pub(super) fn of(failure: &RulesFailure, pod: &Object) -> Self {
        let reason = match failure {
            RulesFailure::Enter(_) if pod.has_own_users() => UnverifiableReason::UserNamespace,
            RulesFailure::Enter(_) => UnverifiableReason::Permission,
            RulesFailure::NotThePods(_) => UnverifiableReason::WrongNamespace,
            RulesFailure::NoAddress(_) => UnverifiableReason::NoAddress,
            RulesFailure::Unfinished(_)
            | RulesFailure::Left(_)
            | RulesFailure::Records(_)
            | RulesFailure::Kernel(_)
            | RulesFailure::NoListener(_) => UnverifiableReason::Kernel,
        };
        Self::new(reason, failure)
    }

    /// Whether it may be only that the pod has no sandbox yet.
    fn may_start(&self) -> bool {
        matches!(
            self.reason,
            UnverifiableReason::NoAddress | UnverifiableReason::NoNamespace | UnverifiableReason::StaticPod
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
