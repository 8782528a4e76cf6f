//! What is known of each pod, and its read side.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ::verification::{Agenda, Ledger, UnverifiableReason, VerificationState};
use cluster::Cluster;
use facts::PodRef;
use kernel::watch::EventSupport;
use netns::NetnsId;
use telemetry::Scope;
use tokio::sync::Notify;

use super::config::VerifyConfig;
use super::entry::{Known, VerifiedSandbox};
use super::policy::VerifyPolicy;
use super::told::ToldDrifts;
use super::watch::NetnsWatch;
use super::{ExpectedPod, PodVerification, RepairFailure, RepairResult, VerifiedMode};
use crate::conflicts::Conflicts;
use crate::events::Events;
use crate::health::Health;
use crate::slots::Slots;
use metrics::Metrics;

/// How long a pod may have no sandbox before that counts as one that is not found.
const STARTING: Duration = Duration::from_secs(60);

/// What it needs of the agent.
pub(crate) struct VerifierParts {
    pub(crate) config: VerifyConfig,
    /// The node's procfs.
    pub(crate) proc_root: PathBuf,
    /// Finds out what this kernel tells of changes.
    pub(crate) probe: fn() -> Result<EventSupport, kernel::Error>,
    pub(crate) conflicts: Arc<Conflicts>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) cluster: Cluster,
    pub(crate) events: Arc<Events>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Scope,
}

/// Verifies the pods of all modes.
pub(crate) struct PodVerifier {
    pub(super) parts: VerifierParts,
    pub(super) policy: VerifyPolicy,
    /// Times are since then.
    start: Instant,
    modes: OnceLock<Vec<Arc<dyn VerifiedMode>>>,
    pub(super) watch: OnceLock<NetnsWatch>,
    pub(super) told: Arc<ToldDrifts>,
    sandboxes: Mutex<Sandboxes>,
    /// The pods, or what is expected of them, may have changed.
    pub(super) changed: Notify,
    /// Something is due at another time than before.
    pub(super) hurried: Notify,
    /// A pod was looked at.
    pub(super) looked: Notify,
    /// Other options are in force.
    pub(super) followed: Notify,
    /// The kernel did not let a look into some pod's namespace, and it is not known yet that it lets all now.
    pub(super) may_be_denied: AtomicBool,
}

/// All that are verified. Each has a number, by which the kernel tells of it.
#[derive(Default)]
pub(super) struct Sandboxes {
    pub(super) entries: BTreeMap<u64, VerifiedSandbox>,
    pub(super) agenda: Agenda<u64>,
    /// A pod has another sandbox when kubelet has made it anew.
    pub(super) numbers: HashMap<(String, NetnsId), u64>,
    pub(super) last: u64,
    /// Since when pods start that have no sandbox yet, by uid.
    pub(super) starting: HashMap<String, Duration>,
}

// === impl PodVerifier ===

impl PodVerifier {
    pub(crate) fn new(parts: VerifierParts) -> Arc<Self> {
        Arc::new(Self {
            policy: VerifyPolicy::new(parts.config.clone()),
            parts,
            start: Instant::now(),
            modes: OnceLock::new(),
            watch: OnceLock::new(),
            told: Arc::default(),
            sandboxes: Mutex::default(),
            changed: Notify::new(),
            hurried: Notify::new(),
            looked: Notify::new(),
            followed: Notify::new(),
            may_be_denied: AtomicBool::new(false),
        })
    }

    /// The modes whose pods are verified. Until this is said there are none.
    pub(crate) fn verify(&self, modes: Vec<Arc<dyn VerifiedMode>>) {
        let _ = self.modes.set(modes);
        self.changed.notify_one();
    }

    /// Every pod that should be captured, each once, with what is known of it now.
    pub(crate) fn pods(&self) -> Vec<PodVerification> {
        let expected = self.expected();
        let sandboxes = self.sandboxes();
        let now = self.now();
        expected.into_iter().map(|(_, pod)| self.verification(&sandboxes, now, pod)).collect()
    }

    /// How many pods are expected, verified and not, by such a snapshot.
    pub(crate) fn ledger(pods: &[PodVerification]) -> Ledger {
        pods.iter().map(|pod| (pod.mode, pod.state)).collect()
    }

    /// Compares a pod's namespace now, in full. Gives what is known of the pod then; nothing where it is not one that should be captured.
    pub(crate) async fn check_now(&self, uid: &str) -> Option<PodVerification> {
        self.check_those(|entry| entry.pod.uid == uid).await;
        self.pods().into_iter().find(|pod| pod.pod.uid == uid)
    }

    /// Compares all pods' namespaces now, in full.
    pub(crate) async fn check_all_now(&self) {
        self.check_those(|_| true).await;
    }

    /// Has these looked at, and waits for that as long as somebody may who asks.
    async fn check_those(&self, is_meant: impl Fn(&VerifiedSandbox) -> bool) {
        let asked = self.now();
        let numbers: Vec<u64> = {
            let mut sandboxes = self.sandboxes();
            let meant = sandboxes.entries.iter().filter(|(_, entry)| is_meant(entry));
            let numbers: Vec<u64> = meant.map(|(number, _)| *number).collect();
            for number in &numbers {
                sandboxes.change(*number, |entry| entry.notice(asked));
            }
            numbers
        };
        let is_answered = || {
            let sandboxes = self.sandboxes();
            let mut meant = numbers.iter().filter_map(|number| sandboxes.entries.get(number));
            meant.all(|entry| !entry.busy && !entry.is_noticed())
        };
        self.hurried.notify_one();
        while !is_answered() && self.now() < asked + PATIENCE {
            let _ = tokio::time::timeout(Duration::from_millis(100), self.looked.notified()).await;
        }
    }

    /// The pods, or what is expected of them, may have changed.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    /// Nobody works on a pod any more. One in which changes are not heard of yet is looked at now.
    pub(crate) fn work_ended(&self, uid: &str) {
        let now = self.now();
        let mut sandboxes = self.sandboxes();
        let of_pod = sandboxes.numbers.iter().filter(|((of, _), _)| of == uid);
        let numbers: Vec<u64> = of_pod.map(|(_, number)| *number).collect();
        let hurried = numbers
            .into_iter()
            .filter(|number| sandboxes.change(*number, |entry| entry.work_ended(now)).unwrap_or(false));
        if hurried.count() > 0 {
            self.hurried.notify_one();
        }
    }

    /// Goes by other options from now on.
    pub(crate) fn follow(&self, new: &VerifyConfig) {
        let now = self.now();
        if !self.policy.follow(new, now) {
            return;
        }
        self.parts.log.info("changed options of verification are in force", &[]);
        self.parts.metrics.capture_enabled(new.captures);
        let schedule = self.policy.schedule();
        {
            let mut sandboxes = self.sandboxes();
            let numbers: Vec<u64> = sandboxes.entries.keys().copied().collect();
            for number in numbers {
                sandboxes.change(number, |entry| {
                    entry.tick = schedule.next(&entry.pod.uid, now);
                    // What was left may be put right from now on.
                    if entry.known.drifted.is_some() {
                        entry.notice(now);
                    }
                });
            }
        }
        self.changed.notify_one();
        self.followed.notify_one();
        self.hurried.notify_one();
    }

    /// Time between two looks at a pod.
    pub(crate) fn interval(&self) -> Duration {
        self.policy.schedule().interval()
    }

    /// Conflicts with rules of others, in pods and on the node.
    pub(crate) fn known_conflicts(&self) -> &Arc<Conflicts> {
        &self.parts.conflicts
    }

    /// Writes Events about conflicts, until the task is aborted.
    pub(crate) fn tell_conflicts(&self) -> impl Future<Output = ()> + Send + use<> {
        self.parts.conflicts.clone().live()
    }

    /// Has its mode put right what differs in a pod's namespace, once and now, whatever waits. Nothing where it is not a pod that should be captured.
    pub(crate) async fn restore(&self, pod: &PodRef) -> Option<Result<RepairResult, RepairFailure>> {
        let expected = self.expected();
        let (mode, _) = expected.into_iter().find(|(_, expected)| expected.pod.uid == pod.uid)?;
        Some(mode.repair(pod).await)
    }

    /// So many conflicts of severity error are known in a pod's namespace.
    pub(crate) fn conflicts(&self, uid: &str, errors: usize) {
        for entry in self.sandboxes().entries.values_mut().filter(|entry| entry.pod.uid == uid) {
            entry.known.conflicts = errors;
        }
    }

    /// Time since the start.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// When a time since the start is.
    pub(super) fn at(&self, time: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.start + time)
    }

    pub(super) fn modes(&self) -> impl Iterator<Item = &Arc<dyn VerifiedMode>> {
        self.modes.get().into_iter().flatten()
    }

    pub(super) fn expected(&self) -> Vec<(Arc<dyn VerifiedMode>, ExpectedPod)> {
        let of = |mode: &Arc<dyn VerifiedMode>| {
            let mode = mode.clone();
            mode.expected().into_iter().map(move |pod| (mode.clone(), pod))
        };
        self.modes().flat_map(of).collect()
    }

    pub(super) fn sandboxes(&self) -> MutexGuard<'_, Sandboxes> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn verification(&self, sandboxes: &Sandboxes, now: Duration, expected: ExpectedPod) -> PodVerification {
        let ExpectedPod { pod, mode, born, trouble, target } = expected;
        let mut known = Known::default();
        let (state, target) = match target {
            Ok(target) => {
                let entry = sandboxes.get(&pod.uid, target.netns.id());
                let state = entry.map_or(VerificationState::Starting, |entry| {
                    known = entry.known.clone();
                    entry.state(now, self.policy.fresh_for(now), &target)
                });
                (state, Some(target))
            }
            Err(VerificationState::Starting) => {
                let age = born.and_then(|born| born.elapsed().ok());
                let waits = sandboxes.starting.get(&pod.uid).map(|since| now.saturating_sub(*since));
                let is_late = age.max(waits).is_some_and(|age| age > STARTING);
                let late = VerificationState::Unverifiable(UnverifiableReason::NoNamespace);
                (if is_late { late } else { VerificationState::Starting }, None)
            }
            Err(state) => (state, None),
        };
        PodVerification {
            pod,
            mode,
            state,
            last_verified: known.equal.map(|(_, at)| at),
            drift: known.drift,
            differences: known.differences,
            is_without_rules: known.is_without_rules,
            culprit: known.culprit,
            problem: known.problem.or(trouble),
            missing_listeners: known.missing_listeners,
            conflicts: known.conflicts,
            netns: target.as_ref().map(|target| target.netns.clone()),
            plan: target.map(|target| target.plan),
        }
    }
}

/// How long somebody who asks for a look waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

// === impl Sandboxes ===

impl Sandboxes {
    pub(super) fn get(&self, uid: &str, netns: NetnsId) -> Option<&VerifiedSandbox> {
        self.entries.get(self.numbers.get(&(uid.to_owned(), netns))?)
    }

    /// Takes up a sandbox.
    pub(super) fn insert(&mut self, entry: VerifiedSandbox) {
        self.last += 1;
        self.numbers.insert((entry.pod.uid.clone(), entry.target.netns.id()), self.last);
        self.agenda.set(self.last, entry.due());
        self.entries.insert(self.last, entry);
    }

    /// Lets go of all others; gives them.
    pub(super) fn retain(&mut self, stay: &HashSet<(String, NetnsId)>) -> Vec<VerifiedSandbox> {
        let gone: Vec<u64> =
            self.numbers.extract_if(|sandbox, _| !stay.contains(sandbox)).map(|(_, number)| number).collect();
        gone.iter().for_each(|number| self.agenda.remove(*number));
        gone.iter().filter_map(|number| self.entries.remove(number)).collect()
    }

    /// Changes what is known of a sandbox, if it is verified still, and with it when it is due.
    pub(super) fn change<T>(
        &mut self,
        number: u64,
        change: impl FnOnce(&mut VerifiedSandbox) -> T,
    ) -> Option<T> {
        let entry = self.entries.get_mut(&number)?;
        let changed = change(entry);
        if entry.busy {
            // At the end of that it is due again.
            self.agenda.remove(number);
        } else {
            self.agenda.set(number, entry.due());
        }
        Some(changed)
    }
}
