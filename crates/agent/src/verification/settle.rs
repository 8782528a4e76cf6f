//! A look at one sandbox, and what comes of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::verification::{Culprit, DriftAction, Drifted, Layer, UnverifiableReason, VerificationState};
use facts::PodRef;
use kernel::watch::{Fingerprint, KeptSockets};
use netns::Inside;
use telemetry::Scope;

use super::entry::DriftStep;
use super::look::{LookResult, ModeLook, compare};
use super::verifier::PodVerifier;
use super::{Comparison, RepairFailure, RepairResult, VerifiedMode};
use crate::conflicts::ConflictLook;
use crate::health::{Notice, count_and_names};
use crate::rights::CAPABILITIES;
use crate::slots::Task;

/// `reason` of the Events about a pod whose rules differ, and were put right.
const RESTORED: &str = "CaptureRestored";
/// The same where they are left so, or cannot be put right.
const DRIFT: &str = "CaptureDrift";
/// The same where somebody undoes it again and again.
const CONTENDED: &str = "CaptureContended";
/// The same where nobody can tell.
const UNVERIFIABLE: &str = "CaptureUnverifiable";
/// Differences that a line of the log names.
const NAMED: usize = 3;
/// Characters of each of them.
const LONGEST: usize = 200;

/// What a drift is told of.
struct Drift {
    pod: PodRef,
    mode: Arc<dyn VerifiedMode>,
    kinds: Vec<Drifted>,
    /// The same as text.
    what: String,
    differences: String,
    culprit: Culprit,
    since: Duration,
}

impl PodVerifier {
    /// Looks at a sandbox, puts right what differs, and looks whether it is right then.
    pub(super) async fn look(self: Arc<Self>, number: u64, layer: Layer) {
        for (layer, task) in [(layer, Task::Verify), (Layer::Full, Task::Confirm)] {
            let Some(found) = self.compare(number, layer, task).await else { break };
            if !self.settle(number, found.comparison).await {
                break;
            }
        }
        self.sandboxes().change(number, |entry| entry.busy = false);
        // What was told while the sockets were used for the comparison.
        self.take_events(number);
        self.looked.notify_waiters();
        self.hurried.notify_one();
        self.tell_permission();
    }

    async fn compare(self: &Arc<Self>, number: u64, layer: Layer, task: Task) -> Option<LookResult> {
        let (pod, mode, target, kept, watched, writer) = {
            let sandboxes = self.sandboxes();
            let entry = sandboxes.entries.get(&number)?;
            let (target, kept) = (entry.target.clone(), entry.kept.clone());
            let writer = entry.writer.as_ref().map(ToString::to_string);
            (entry.pod.clone(), entry.mode.clone(), target, kept, entry.watched, writer)
        };
        let (backends, of) = (mode.backends(), pod.clone());
        let verifier = self.clone();
        let began = Instant::now();
        let (conflicts, errors) = (self.parts.conflicts.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = errors.clone();
        let look = move || {
            let kernel = backends.kernel();
            let inspect = |inside: &Inside, rules: Option<&Fingerprint>| {
                mode.inspect(&of, inside, &target.plan, rules);
                let may_change = !mode.is_at_work(&of.uid);
                let look = ConflictLook {
                    pod: Some(&of),
                    inside,
                    rules: rules.cloned(),
                    kernel,
                    plan: &target.plan,
                    probed: &[],
                    writer: writer.clone(),
                    may_change,
                };
                counted.store(conflicts.look(&look)?, Ordering::Relaxed);
                Ok(())
            };
            let is_superseded = |inside: &Inside| mode.is_superseded(&of, inside);
            let is_superseded: &(dyn Fn(&Inside) -> bool + Sync) = &is_superseded;
            let is_superseded = (layer == Layer::Event).then_some(is_superseded);
            let opened =
                |inside: &Inside, kept: &KeptSockets| verifier.opened(number, (&*mode, &of), inside, kept);
            let mode_look = ModeLook { opened: &opened, is_superseded, inspect: &inspect };
            compare(kernel, &target, &kept, watched, &mode_look)
        };
        let found = self.parts.slots.run(&pod, task, look).await;
        let found = found.unwrap_or_else(|error| LookResult {
            comparison: Comparison::Failed { reason: UnverifiableReason::Kernel, text: fault::chain(&error) },
            missing_listeners: None,
        });
        let result = match &found.comparison {
            Comparison::Equal => Some("equal"),
            Comparison::Differs(_) | Comparison::Moved => Some("drift"),
            // Nothing was compared.
            Comparison::Superseded => None,
            Comparison::Failed { .. } => Some("error"),
        };
        if let Some(result) = result {
            self.parts.metrics.verified(layer, result, began.elapsed());
        }
        self.conflicts(&pod.uid, errors.load(Ordering::Relaxed));
        self.sandboxes().change(number, |entry| {
            if found.missing_listeners.is_some() {
                entry.known.missing_listeners.clone_from(&found.missing_listeners);
            }
        });
        Some(found)
    }

    /// What was told during a repair is the repair, and what it is not the comparison after it shows. Who else committed meanwhile is noted where that
    /// can be told.
    fn skip_events(&self, number: u64) {
        let mut sandboxes = self.sandboxes();
        sandboxes.change(number, |entry| {
            // One that fails is opened anew for the comparison.
            let noticed = entry.kept.try_lock().ok().and_then(|mut kept| kept.as_mut()?.take_events().ok());
            if let Some(noticed) = noticed
                && entry.tells_ours()
            {
                self.note_writer(entry, &noticed.commits);
            }
        });
    }

    /// Takes what a comparison found; whether it is to be compared again, since something was put right.
    async fn settle(&self, number: u64, comparison: Comparison) -> bool {
        let now = self.now();
        let Some((pod, mode)) = self.of(number) else { return false };
        let step = match &comparison {
            Comparison::Equal => {
                self.sandboxes().change(number, |entry| {
                    entry.is_equal(now);
                    entry.full = Some(now);
                });
                mode.compared(&pod, &comparison);
                self.parts.log.settled(&[("pod", &pod)]);
                return false;
            }
            Comparison::Moved => {
                let reason = UnverifiableReason::WrongNamespace;
                let text = "its path does not lead to the pod's network namespace any more".to_owned();
                self.sandboxes().change(number, |entry| entry.is_failed(reason, text));
                mode.compared(&pod, &comparison);
                self.changed.notify_one();
                return false;
            }
            Comparison::Superseded => {
                self.sandboxes().change(number, |entry| entry.notice(now));
                return false;
            }
            Comparison::Failed { reason, text } => {
                let failed = self.sandboxes().change(number, |entry| entry.is_failed(*reason, text.clone()));
                if *reason == UnverifiableReason::Permission {
                    self.may_be_denied.store(true, Ordering::Relaxed);
                }
                mode.compared(&pod, &comparison);
                if failed == Some(true) {
                    self.tell_unverifiable(&pod, *reason, text);
                }
                return false;
            }
            Comparison::Differs(differences) => {
                let repairs = self.policy.leaves().is_none();
                self.sandboxes().change(number, |entry| entry.is_drifted(now, differences, repairs))
            }
        };
        let Some((step, drift)) = step.zip(self.drift(number)) else { return false };
        mode.compared(&pod, &comparison);
        match step {
            DriftStep::Repair { is_new } => self.repair(number, &drift, is_new).await,
            DriftStep::Leave { is_new } => {
                if is_new {
                    let why = self.policy.leaves().unwrap_or("it was to be left a moment ago");
                    self.left(&drift, why);
                    self.tell(&drift, DRIFT, format!("{} They are left so: {why}.", drift.text()));
                }
                false
            }
            DriftStep::Wait { is_new, spent } => {
                if is_new {
                    self.contended(&drift, spent);
                }
                false
            }
        }
    }

    /// `is_new`: it was not seen before.
    async fn repair(&self, number: u64, drift: &Drift, is_new: bool) -> bool {
        let repaired = drift.mode.repair(&drift.pod).await;
        self.skip_events(number);
        let now = self.now();
        if let Some(target) = drift.mode.retargeted(&drift.pod) {
            self.sandboxes().change(number, |entry| {
                if entry.target.netns.id() == target.netns.id() {
                    entry.retarget(target, now);
                }
            });
        }
        match repaired {
            Ok(RepairResult::WasRight) => true,
            Ok(RepairResult::PutRight) => {
                self.sandboxes().change(number, |entry| entry.is_repaired(now));
                self.count(drift, DriftAction::Repaired);
                self.parts.metrics.drift_repaired_within(now.saturating_sub(drift.since));
                self.restored(drift);
                true
            }
            Ok(RepairResult::Left) => {
                // The mode tells people of pods that it leaves, such as those that started without rules.
                if is_new {
                    self.left(drift, "the pod's rules are to stay as they are for now");
                }
                false
            }
            Err(RepairFailure { state, text }) => {
                self.sandboxes().change(number, |entry| {
                    entry.is_repaired(now);
                    entry.known.problem = Some(text.clone());
                    if let Some(VerificationState::Unverifiable(reason)) = state {
                        entry.is_failed(reason, text.clone());
                    }
                });
                self.count(drift, DriftAction::Failed);
                drift.log(&self.parts.log, "the rules of a pod differ and cannot be put right", &text);
                self.tell(drift, DRIFT, text);
                false
            }
        }
    }

    fn restored(&self, drift: &Drift) {
        let text = "the rules of a pod differed and are put right";
        self.parts.log.warn(text, &drift.labels());
        let text = format!("{} They are put right.", drift.text());
        self.tell(drift, RESTORED, text);
    }

    fn left(&self, drift: &Drift, why: &str) {
        self.count(drift, DriftAction::Left);
        drift.log(&self.parts.log, "the rules of a pod differ and are left so", why);
    }

    fn contended(&self, drift: &Drift, spent: bool) {
        self.count(drift, DriftAction::BackedOff);
        let why = match spent {
            true => "they were put right twenty times within an hour, and are left so until that is over",
            false => {
                "somebody undoes it when they are put right; that waits longer each time, up to a minute"
            }
        };
        drift.log(&self.parts.log, "the rules of a pod differ again", why);
        let conflict = self.parts.conflicts.worst_in(&drift.pod.uid);
        let conflict = conflict.map(|words| format!(" Conflict suspected: {words}")).unwrap_or_default();
        let advice = "End what changes them, or take CAP_NET_ADMIN from it.";
        self.tell(drift, CONTENDED, format!("{} Again: {why}. {advice}{conflict}", drift.text()));
    }

    pub(super) fn tell_unverifiable(&self, pod: &PodRef, reason: UnverifiableReason, text: &str) {
        let label = reason.label();
        let what = "the rules of a pod cannot be verified";
        self.parts.log.error(what, &[("pod", pod), ("reason", &label), ("error", &text)]);
        let text = format!("It cannot be verified that the pod is captured: {text}");
        self.tell_once(pod, UNVERIFIABLE, label, text);
    }

    /// The pod's rules are as planned, and it is not captured as they mean.
    pub(crate) fn tell_suspected(&self, pod: &PodRef, text: String) {
        self.tell_once(pod, DRIFT, "suspected", text);
    }

    fn tell(&self, drift: &Drift, reason: &'static str, text: String) {
        self.tell_once(&drift.pod, reason, drift.culprit.label(), text);
    }

    /// Writes an Event, once in an hour for each `what`. No look waits for the API server, and what it does not take is news again.
    fn tell_once(&self, pod: &PodRef, reason: &'static str, what: &'static str, text: String) {
        if !self.told.is_news(&pod.uid, reason, what, self.now()) {
            return;
        }
        let (events, told, pod) = (self.parts.events.clone(), self.told.clone(), pod.clone());
        tokio::spawn(async move {
            let is_done = match reason {
                RESTORED => events.tell(&pod, reason, &text).await,
                _ => events.warn(&pod, reason, &text).await,
            };
            if !is_done {
                told.unsay(&pod.uid, reason, what);
            }
        });
    }

    /// Says in `/readyz?verbose` that the kernel does not let this agent look.
    fn tell_permission(&self) {
        // Another pod's look may end meanwhile.
        if !self.may_be_denied.swap(false, Ordering::Relaxed) {
            return;
        }
        let denied: BTreeSet<String> = {
            let sandboxes = self.sandboxes();
            let denied = super::entry::LastLook::Failed(UnverifiableReason::Permission);
            let denied = sandboxes.entries.values().filter(|entry| entry.known.seen == denied);
            denied.map(|entry| entry.pod.to_string()).collect()
        };
        if denied.is_empty() {
            self.parts.health.settled(Notice::Permission);
            return;
        }
        self.may_be_denied.store(true, Ordering::Relaxed);
        let names = count_and_names(&denied.into_iter().collect::<Vec<_>>());
        let text = format!(
            "the kernel does not let this agent look into the network namespaces of pods: {names}; give the agent's container {CAPABILITIES}, as the chart does"
        );
        self.parts.health.notice(Notice::Permission, &text);
    }

    fn count(&self, drift: &Drift, outcome: DriftAction) {
        drift.kinds.iter().for_each(|what| self.parts.metrics.drift(*what, outcome, 1));
    }

    fn of(&self, number: u64) -> Option<(PodRef, Arc<dyn VerifiedMode>)> {
        let sandboxes = self.sandboxes();
        sandboxes.entries.get(&number).map(|entry| (entry.pod.clone(), entry.mode.clone()))
    }

    fn drift(&self, number: u64) -> Option<Drift> {
        let sandboxes = self.sandboxes();
        let entry = sandboxes.entries.get(&number)?;
        let known = &entry.known;
        let more = known.differences.len().saturating_sub(NAMED);
        let short = |text: &String| text.chars().take(LONGEST).collect::<String>();
        let mut differences = known.differences.iter().take(NAMED).map(short).collect::<Vec<_>>().join("; ");
        if more > 0 {
            differences.push_str(&format!(" and {more} more"));
        }
        Some(Drift {
            pod: entry.pod.clone(),
            mode: entry.mode.clone(),
            kinds: known.drift.clone(),
            what: known.drift.iter().map(|kind| kind.label()).collect::<Vec<_>>().join(","),
            differences,
            culprit: known.culprit.clone().unwrap_or_default(),
            since: known.drifted.unwrap_or_default(),
        })
    }
}

// === impl Drift ===

impl Drift {
    fn labels(&self) -> [telemetry::Label<'_>; 4] {
        let Self { pod, what, culprit, differences, .. } = self;
        [("pod", pod), ("what", what), ("culprit", culprit), ("differences", differences)]
    }

    fn log(&self, log: &Scope, text: &str, why: &str) {
        let [pod, what, culprit, differences] = self.labels();
        log.warn(text, &[pod, what, culprit, differences, ("why", &why)]);
    }

    /// As the beginning of an Event.
    fn text(&self) -> String {
        let Self { culprit, differences, .. } = self;
        let severity = if culprit.in_the_pod { "Security: a process of the pod changed them. " } else { "" };
        format!(
            "{severity}The pod's rules differ from the planned ones, changed by {culprit}: {differences}."
        )
    }
}
