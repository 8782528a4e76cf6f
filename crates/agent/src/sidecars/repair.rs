//! Pods that started without the plugin are found by the kernel, or by their validation container, and get their rules while they run, or what else is
//! chosen for them.
//!
//! Each pod that should be captured is looked for whenever it changes, until its namespace is found; a pod in whose namespace there are no rules of ours
//! is uncaptured. What is done about it in the API is done as for other starts without capture ([`super::executor`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::verification::UnverifiableReason;
use capture::{Expected, Outside, Settings};
use cluster::Queue;
use facts::broken::BrokenRules;
use facts::fields::FieldSelector;
use facts::{Facts, Object, PodRef, Selector};
use fault::{Backoff, Fault, Retry};
use intent::live::CaptureWish;
use kernel::Change;
use netns::find::SearchRoots;
use tokio::task::JoinError;

use super::Sidecars;
use super::executor::MarkFailure;
use super::pods::{NotLocated, SandboxPlace, SandboxRules};
use super::record::{Start, StartEvidence};
use super::rules::{Loading, RulesFailure, origin};
use crate::pods::Reconcile;

/// On how many pods it is worked at once.
const PLACES: usize = 4;
/// Pauses between the tries: what is not seen may be there a moment later.
pub(super) const LOOK_PAUSES: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
/// How often a pod is tried until it changes.
const TRIES: u32 = 5;

/// What is done about a pod that runs without capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum RepairMode {
    /// Nothing but what is told of every start without capture.
    #[default]
    None,
    /// It gets its rules.
    Repair,
    /// It is deleted, so that its controller starts another one.
    Delete,
    /// It is labelled.
    Label,
}

/// What shows that a pod runs without capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum RepairTrigger {
    /// Its network namespace has no rules of ours, or its validation container fails.
    #[default]
    Kernel,
    /// Its validation container fails, as in the original.
    Crash,
}

/// The options of repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepairOptions {
    pub(crate) mode: RepairMode,
    pub(crate) trigger: RepairTrigger,
    pub(crate) broken: BrokenRules,
    /// Which pods it is for.
    pub(crate) labels: Selector,
    pub(crate) fields: FieldSelector,
}

/// Work on the namespaces of sidecar pods.
pub(super) struct Repairs {
    pub(super) sidecars: Arc<Sidecars>,
}

/// What was seen of a pod's capture in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaptureSeen {
    /// It has rules of ours, or had them.
    Captured,
    /// It is not looked at yet, or its rules are about to come.
    Pending,
    /// Nothing, or that it has none.
    Unknown,
}

/// Why nothing could be done about a pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRepaired {
    /// It is not found.
    #[error("get netns: {}", .0.text)]
    Netns(NotLocated),
    /// It is not found yet, which is nothing to tell.
    #[error("get netns: {}", .0.text)]
    Unseen(NotLocated),
    /// It is not looked at, or not programmed.
    #[error("{0}")]
    Rules(#[from] RulesFailure),
    /// An annotation cannot be used.
    #[error("setup redirect: {0}")]
    Settings(String),
    /// Changed settings are not applied: those of before are in force.
    #[error("apply the pod's changed annotations: {0}")]
    Change(RulesFailure),
    /// The API server did not take it.
    #[error("{0}")]
    Mark(#[from] MarkFailure),
    /// It was tried often enough until the pod changes.
    #[error("{0}; tried {TRIES} times, and again when the pod changes")]
    Last(Box<Self>),
}

// === impl NotRepaired ===

impl NotRepaired {
    /// Whether it is only too early.
    fn waits(&self) -> bool {
        matches!(self, Self::Unseen(_) | Self::Rules(RulesFailure::NoListener(_)))
    }
}

impl Fault for NotRepaired {
    fn retry(&self) -> Retry {
        match self {
            Self::Last(_) | Self::Rules(RulesFailure::NoListener(_)) => Retry::OnChange,
            Self::Netns(_)
            | Self::Unseen(_)
            | Self::Rules(_)
            | Self::Settings(_)
            | Self::Change(_)
            | Self::Mark(_) => Retry::Backoff,
        }
    }
}

// === impl Repairs ===

impl Reconcile for Repairs {
    type Failure = NotRepaired;

    #[allow(clippy::misnamed_getters, reason = "the other queue is that of the API")]
    fn queue(&self) -> &Queue<PodRef> {
        &self.sidecars.looks
    }

    fn places(&self) -> usize {
        PLACES
    }

    fn resized(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    async fn reconcile(&self, pod: &PodRef, attempt: u32) -> Result<(), NotRepaired> {
        let seen = self.sidecars.see(pod).await;
        seen.map_err(|failure| if attempt < TRIES { failure } else { NotRepaired::Last(failure.into()) })
    }

    fn succeeded(&self, pod: &PodRef) {
        self.sidecars.pods.give_up(&pod.uid, false);
        self.sidecars.looked(pod);
    }

    async fn failed(&self, pod: &PodRef, failure: &NotRepaired, _attempt: u32) {
        self.sidecars.not_repaired(pod, failure).await;
    }

    fn panicked(&self, error: JoinError) {
        let text = "the work in a pod's namespace panicked; this is a defect, please report it";
        self.sidecars.parts.log.error(text, &[("error", &error)]);
    }
}

impl Sidecars {
    /// What was seen of a pod's capture.
    pub(super) fn capture_seen(&self, pod: &PodRef) -> CaptureSeen {
        let facts = self.parts.cluster.index().facts(&pod.namespace, &pod.name);
        let Some(facts) = facts.filter(|facts| facts.pod.uid() == Some(&pod.uid)) else {
            return CaptureSeen::Unknown;
        };
        let expected = self.pods.expected(&facts, &self.expected_by());
        if facts.pod.is_terminal() || !matches!(expected.as_deref(), Some(Expected::Captured(_))) {
            return CaptureSeen::Unknown;
        }
        let known = self.pods.of(pod);
        match &known.place {
            SandboxPlace::Due => CaptureSeen::Pending,
            SandboxPlace::Unknown(_) => CaptureSeen::Unknown,
            SandboxPlace::At(sandbox) if sandbox.rules != SandboxRules::Never => CaptureSeen::Captured,
            SandboxPlace::At(_) if self.repairs_by_kernel(&facts.pod) && !known.gave_up => {
                CaptureSeen::Pending
            }
            SandboxPlace::At(_) => CaptureSeen::Unknown,
        }
    }

    fn forget(&self, uid: &str) {
        self.pods.forget(uid);
        self.drains.stop(uid);
        self.live.settled(uid);
    }

    /// Looks at a pod, and does about it what is to be done.
    async fn see(&self, pod: &PodRef) -> Result<(), NotRepaired> {
        let facts = self.parts.cluster.index().facts(&pod.namespace, &pod.name);
        let Some(facts) = facts.filter(|facts| facts.pod.uid() == Some(&pod.uid)) else {
            self.forget(&pod.uid);
            return Ok(());
        };
        if facts.pod.is_terminal() {
            self.forget(&pod.uid);
            let is_lost = self.options().broken.is_lost(&facts.pod) && self.selects(&facts.pod);
            if is_lost && self.options().mode == RepairMode::Repair {
                self.mark(pod, &facts.pod, StartEvidence::Lost).await?;
            }
            return Ok(());
        }
        match self.pods.expected(&facts, &self.expected_by()).as_deref() {
            Some(Expected::Captured(settings)) => {
                self.see_expected(pod, &facts, settings).await?;
                self.follow_change(pod, &facts, CaptureWish::Captured(settings)).await
            }
            Some(Expected::Unusable(error)) if self.acts_on_crash(&facts.pod) => match self.options().mode {
                RepairMode::Repair => Err(NotRepaired::Settings(error.to_string())),
                _ => Ok(self.mark(pod, &facts.pod, StartEvidence::Seen).await?),
            },
            Some(Expected::Unusable(error)) => {
                self.follow_change(pod, &facts, CaptureWish::Invalid(error.to_string())).await
            }
            Some(Expected::Outside(Outside::Skip(skip))) => self.follow_skip(pod, &facts, skip).await,
            _ => {
                self.pods.forget(&pod.uid);
                Ok(())
            }
        }
    }

    /// Notes where a pod is, for the verifier too.
    fn place(&self, pod: &PodRef, place: SandboxPlace) {
        self.pods.set(pod, place);
        self.parts.verifier.changed();
    }

    async fn see_expected(
        &self,
        pod: &PodRef,
        facts: &Facts,
        settings: &Settings,
    ) -> Result<(), NotRepaired> {
        let object = &*facts.pod;
        let known = self.pods.of(pod);
        let is_broken = self.acts_on_crash(object);
        let mode = self.options().mode;
        let (netns, roots) = match self.locate_pod(&known, object).await {
            Ok(located) => located,
            Err(unknown) => {
                self.place(pod, SandboxPlace::Unknown(unknown.clone()));
                let may_come = unknown.reason == UnverifiableReason::NoNamespace;
                return match mode {
                    _ if !is_broken && may_come => Err(NotRepaired::Unseen(unknown)),
                    _ if !is_broken => Ok(()),
                    RepairMode::Repair => Err(NotRepaired::Netns(unknown)),
                    _ => Ok(self.mark(pod, object, StartEvidence::Seen).await?),
                };
            }
        };
        if known.has_had_rules_in(&netns) && !is_broken {
            return Ok(());
        }
        let looked = match self.look(object, netns, &roots, settings).await {
            Ok(looked) => looked,
            Err(failure) => {
                self.place(pod, SandboxPlace::Unknown(NotLocated::of(&failure, object)));
                let acts = is_broken && mode == RepairMode::Repair;
                return if acts { Err(failure.into()) } else { Ok(()) };
            }
        };
        let sandbox = known.knowing(looked.sandbox);
        self.place(pod, SandboxPlace::At(sandbox.clone()));
        let lacks = !looked.has_rules && sandbox.rules == SandboxRules::Never;
        let by_kernel = lacks && self.options().trigger == RepairTrigger::Kernel && self.selects(object);
        if lacks && self.older.is_before_agent(object) && self.count_without_plugin(pod) {
            let text = "a pod runs WITHOUT CAPTURE: its sandbox is older than the first agent of this start of the machine";
            self.parts.log.warn(text, &[("pod", pod)]);
        }
        if !is_broken && !lacks {
            self.records.forget(pod, &StartEvidence::Seen);
        }
        match mode {
            _ if !by_kernel && !is_broken => Ok(()),
            RepairMode::None => Ok(()),
            RepairMode::Repair => {
                let runs = object.is_running();
                let origin = origin(object, &sandbox.netns);
                let loading = Loading { pod: pod.clone(), origin, sandbox, runs, replaces: None };
                self.repair_start(object, loading, &roots).await
            }
            RepairMode::Delete | RepairMode::Label => Ok(self.mark(pod, object, StartEvidence::Seen).await?),
        }
    }

    /// Loads the rules of a pod that started without them, or whose validation fails.
    async fn repair_start(
        &self,
        object: &Object,
        loading: Loading,
        roots: &SearchRoots,
    ) -> Result<(), NotRepaired> {
        let (pod, netns) = (loading.pod.clone(), loading.sandbox.netns.clone());
        let before = loading.sandbox.rules;
        let loaded = self.load(loading, roots).await?;
        loaded.warnings.iter().for_each(|text| self.parts.log.warn(text, &[("pod", &pod)]));
        self.backends.log_warnings(&self.parts.log);
        let changed = loaded.applied.rules != Change::None || loaded.applied.moved;
        if changed {
            let plan = Arc::new(loaded.plan);
            self.pods.change(&pod.uid, &netns, |sandbox| {
                (sandbox.plan, sandbox.rules) = (plan, SandboxRules::Repaired(now()));
            });
            self.parts.log.info(
                "a pod that started without its rules has them now",
                &[("pod", &pod), ("netns", &netns.path().display()), ("backend", &loaded.applied.backend)],
            );
            self.parts.metrics.repaired_pod("repair", "success");
            self.tell_that_kubelet_waits(&pod, object);
            return Ok(());
        }
        self.suspect(&pod, object, before);
        Ok(())
    }

    /// A pod was looked at: what waited for that goes on.
    fn looked(&self, pod: &PodRef) {
        let waits = |start: &Start| start.evidence.is_hearsay() && !start.have.settled;
        if self.records.starts(pod).iter().any(waits) {
            self.queue.push(pod.clone());
        }
    }

    async fn not_repaired(&self, pod: &PodRef, failure: &NotRepaired) {
        let cause = if let NotRepaired::Last(cause) = failure { cause } else { failure };
        if cause.waits() {
            self.parts.log.debug(failure, &[("pod", pod)]);
        } else {
            self.parts.log.error(failure, &[("pod", pod)]);
        }
        match cause {
            NotRepaired::Change(_) => self.parts.metrics.live_update("failed"),
            NotRepaired::Mark(failure) => self.tell_unmarked(pod, failure).await,
            _ if cause.waits() => {}
            _ => self.parts.metrics.repaired_pod("repair", "fail"),
        }
        if failure.retry() == Retry::OnChange {
            self.pods.give_up(&pod.uid, true);
            self.records.forget(pod, &StartEvidence::Seen);
            self.looked(pod);
        }
    }

    /// Whether the pod's validation fails, and that counts here.
    pub(super) fn acts_on_crash(&self, pod: &Object) -> bool {
        self.options().mode != RepairMode::None && self.options().broken.is_broken(pod) && self.selects(pod)
    }

    pub(super) fn options(&self) -> &RepairOptions {
        &self.parts.repair
    }

    /// Whether a pod without rules gets them.
    fn repairs_by_kernel(&self, pod: &Object) -> bool {
        let options = self.options();
        options.mode == RepairMode::Repair && options.trigger == RepairTrigger::Kernel && self.selects(pod)
    }

    /// Whether repair is for this pod.
    fn selects(&self, pod: &Object) -> bool {
        let RepairOptions { labels, fields, .. } = self.options();
        !pod.host_network()
            && !pod.is_deleting()
            && labels.selects(|key| pod.label(key))
            && fields.selects(pod)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
