//! What is known of each pod, and its read side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ::verification::{Culprit, Drifted, Ledger, Reason, State};
use facts::PodRef;
use netns::NetnsId;
use std::time::{Instant, SystemTime};
use tokio::sync::Notify;

use super::{ExpectedPod, PodVerification, Target, VerifiedMode};

/// What it needs of the agent.
pub(crate) struct VerifierParts {
    /// A comparison that is older says nothing any more.
    pub(crate) fresh_for: std::time::Duration,
}

/// Verifies the pods of all modes.
pub(crate) struct Verifier {
    parts: VerifierParts,
    modes: OnceLock<Vec<Arc<dyn VerifiedMode>>>,
    entries: Mutex<HashMap<EntryKey, Entry>>,
    /// The pods, or what is expected of them, may have changed.
    changed: Notify,
}

/// A sandbox: a pod has another one when kubelet has made it anew.
type EntryKey = (String, NetnsId);

/// What was seen of a sandbox.
#[derive(Debug, Default)]
struct Entry {
    seen: Seen,
    /// When it was last seen to be as planned, by both clocks.
    equal: Option<(Instant, SystemTime)>,
    drift: Vec<Drifted>,
    differences: Vec<String>,
    culprit: Option<Culprit>,
    problem: Option<String>,
    missing_listeners: Vec<u16>,
    conflicts: usize,
}

/// What the last look came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Seen {
    #[default]
    Nothing,
    Equal,
    Differs {
        contended: bool,
    },
    Failed(Reason),
}

// === impl Verifier ===

impl Verifier {
    pub(crate) fn new(parts: VerifierParts) -> Arc<Self> {
        Arc::new(Self { parts, modes: OnceLock::new(), entries: Mutex::default(), changed: Notify::new() })
    }

    /// The modes whose pods are verified. Until this is said there are none.
    pub(crate) fn verify(&self, modes: Vec<Arc<dyn VerifiedMode>>) {
        let _ = self.modes.set(modes);
        self.changed.notify_one();
    }

    /// Every pod that should be captured, each once, with what is known of it now.
    pub(crate) fn pods(&self) -> Vec<PodVerification> {
        let expected = self.expected();
        let entries = self.entries();
        expected.into_iter().map(|pod| self.verification(&entries, pod)).collect()
    }

    /// How many pods are expected, verified and not.
    pub(crate) fn ledger(&self) -> Ledger {
        self.pods().into_iter().map(|pod| (pod.mode, pod.state)).collect()
    }

    /// Compares a pod's namespace now, in full. Gives what is known of the pod then; nothing where it is not one that should be captured.
    pub(crate) async fn check_now(&self, uid: &str) -> Option<PodVerification> {
        self.pods().into_iter().find(|pod| pod.pod.uid == uid)
    }

    /// These pods, or what is expected of them, may have changed.
    pub(crate) fn changed(&self, _pods: &[PodRef]) {
        self.changed.notify_one();
    }

    /// So many conflicts of severity error are known in a pod's namespace.
    pub(crate) fn conflicts(&self, uid: &str, errors: usize) {
        for ((of, _), entry) in self.entries().iter_mut() {
            if of == uid {
                entry.conflicts = errors;
            }
        }
    }

    fn expected(&self) -> Vec<ExpectedPod> {
        self.modes.get().into_iter().flatten().flat_map(|mode| mode.expected()).collect()
    }

    fn verification(&self, entries: &HashMap<EntryKey, Entry>, expected: ExpectedPod) -> PodVerification {
        let ExpectedPod { pod, mode, target, .. } = expected;
        let nothing = Entry::default();
        let (state, entry, target) = match target {
            Ok(target) => {
                let entry = entries.get(&(pod.uid.clone(), target.netns.id())).unwrap_or(&nothing);
                (self.state(entry, &target), entry, Some(target))
            }
            Err(state) => (state, &nothing, None),
        };
        PodVerification {
            pod,
            mode,
            state,
            last_verified: entry.equal.map(|(_, at)| at),
            drift: entry.drift.clone(),
            differences: entry.differences.clone(),
            culprit: entry.culprit.clone(),
            problem: entry.problem.clone(),
            missing_listeners: entry.missing_listeners.clone(),
            conflicts: entry.conflicts,
            netns: target.as_ref().map(|target| target.netns.id()),
            plan: target.map(|target| target.plan),
        }
    }

    fn state(&self, entry: &Entry, target: &Target) -> State {
        let is_fresh = entry.equal.is_some_and(|(at, _)| at.elapsed() <= self.parts.fresh_for);
        match entry.seen {
            Seen::Nothing => State::Starting,
            Seen::Differs { contended: true } => State::Contended,
            Seen::Differs { contended: false } => State::Drifted,
            Seen::Failed(reason) => State::Unverifiable(reason),
            Seen::Equal if !is_fresh => State::Unverifiable(Reason::Kernel),
            Seen::Equal if entry.conflicts > 0 => State::Unverifiable(Reason::Conflict),
            Seen::Equal if !target.acknowledged => State::Unacknowledged,
            Seen::Equal => State::Verified,
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<EntryKey, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
