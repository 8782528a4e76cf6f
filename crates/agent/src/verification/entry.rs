//! A sandbox that is verified, and what was seen of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::verification::{Culprit, Drifted, Haste, Permit, Relapses, UnverifiableReason, VerificationState};
use facts::PodRef;
use kernel::Difference;
use ruleset::Backend;

use super::census::is_without_rules;
use super::look::SharedSockets;
use super::{MAX_DIFFERENCES, VerificationTarget, VerifiedMode};

/// After an event it is waited for so much quiet, so that a program that changes much is looked at once, and at most for so long.
const QUIET: Duration = Duration::from_millis(50);
const STORM: Duration = Duration::from_millis(500);
/// A pod on which work is under way is looked at again after the first of these times, then after twice as long each time up to the other. The first is
/// short, since nobody hears of changes in a new pod before it is looked at.
const AT_WORK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// How often something is done during one look without knowing what has changed: for a tenth of a second and more.
const MEANWHILE: usize = 50;

/// Bytes of a difference in words that are kept.
const LONGEST_DIFFERENCE: usize = 1024;

/// After so long it is asked again whether somebody listens where nobody did.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// A sandbox that is verified. Times are since the verifier's start.
pub(super) struct VerifiedSandbox {
    pub(super) pod: PodRef,
    pub(super) mode: Arc<dyn VerifiedMode>,
    pub(super) target: VerificationTarget,
    pub(super) kept: SharedSockets,
    /// The namespace is watched: sockets are kept there.
    pub(super) watched: bool,
    /// Somebody looks at it or repairs it.
    pub(super) busy: bool,
    /// When its turn comes.
    pub(super) tick: Duration,
    /// Since when something was noticed, and when last.
    noticed: Option<(Duration, Duration)>,
    /// When a repair that waits may be tried.
    pub(super) retry: Option<Duration>,
    /// When a full comparison last found nothing.
    pub(super) full: Option<Duration>,
    /// Who committed last.
    pub(super) writer: Option<Culprit>,
    relapses: BTreeMap<Drifted, Relapses>,
    /// Of what is done before it is quiet.
    pub(super) haste: Haste,
    pub(super) meanwhile: Meanwhile,
    /// The next pause while work is under way.
    work_pause: Duration,
    pub(super) known: Known,
}

/// What is done at once during a look, without knowing what has changed.
#[derive(Debug, Default)]
pub(super) struct Meanwhile {
    /// One is about to be done.
    pub(super) waits: bool,
    done: usize,
}

/// What people may know of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) seen: LastLook,
    /// When it was last seen to be as planned, by both clocks.
    pub(super) equal: Option<(Duration, SystemTime)>,
    /// Since when it differs.
    pub(super) drifted: Option<Duration>,
    pub(super) drift: Vec<Drifted>,
    pub(super) differences: Vec<String>,
    pub(super) is_without_rules: bool,
    pub(super) culprit: Option<Culprit>,
    pub(super) problem: Option<String>,
    /// Nothing where it was not asked.
    pub(super) missing_listeners: Option<Vec<u16>>,
    pub(super) conflicts: usize,
}

/// What the last look came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastLook {
    #[default]
    Nothing,
    Equal,
    Differs {
        contended: bool,
    },
    Failed(UnverifiableReason),
}

/// What is done about a drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DriftStep {
    /// It is repaired now; `is_new`: it was not seen before.
    Repair { is_new: bool },
    /// It is left; `is_new`: that was not so before.
    Leave { is_new: bool },
    /// The repair waits; `is_new`: it did not before. `spent`: there were too many.
    Wait { is_new: bool, spent: bool },
}

// === impl VerifiedSandbox ===

impl VerifiedSandbox {
    pub(super) fn new(
        pod: PodRef,
        mode: Arc<dyn VerifiedMode>,
        target: VerificationTarget,
        tick: Duration,
        watched: bool,
    ) -> Self {
        Self {
            pod,
            mode,
            target,
            kept: SharedSockets::default(),
            watched,
            busy: false,
            tick,
            noticed: None,
            retry: None,
            full: None,
            writer: None,
            relapses: BTreeMap::new(),
            haste: Haste::default(),
            meanwhile: Meanwhile::default(),
            work_pause: AT_WORK.0,
            known: Known::default(),
        }
    }

    /// When it is looked at next.
    pub(super) fn due(&self) -> Duration {
        let noticed = self.noticed.map(|(first, last)| (last + QUIET).min(first + STORM));
        [noticed, self.retry].into_iter().flatten().fold(self.tick, Duration::min)
    }

    /// Somebody else changed something there, or may have.
    pub(super) fn notice(&mut self, now: Duration) {
        let first = self.noticed.map_or(now, |(first, _)| first);
        self.noticed = Some((first, now));
    }

    /// Whether transactions of ours are told from those of others: programs that we start, for iptables, commit as others do.
    pub(super) fn tells_ours(&self) -> bool {
        self.target.plan.backend == Backend::Nftables && !self.known.drift.contains(&Drifted::OtherBackend)
    }

    /// It is not looked at while work is under way.
    pub(super) fn put_off_for_work(&mut self, now: Duration) {
        self.put_off(now + self.work_pause);
        self.work_pause = longer(self.work_pause);
    }

    /// Something was told while the sockets are used; whether something is to be done in a moment.
    pub(super) fn acts_meanwhile(&mut self) -> bool {
        let acts = !self.meanwhile.waits && self.meanwhile.done < MEANWHILE;
        if acts {
            self.meanwhile = Meanwhile { waits: true, done: self.meanwhile.done + 1 };
        }
        acts
    }

    /// Changes are not heard of, and are to be.
    pub(super) fn is_deaf(&self) -> bool {
        self.watched && self.kept.try_lock().is_ok_and(|kept| kept.is_none())
    }

    /// No work is under way any more; whether it is looked at earlier therefore.
    pub(super) fn work_ended(&mut self, now: Duration) -> bool {
        let was_put_off = self.work_pause != AT_WORK.0;
        if was_put_off {
            (self.tick, self.work_pause) = (now, AT_WORK.0);
        }
        was_put_off
    }

    /// It is not looked at before then.
    pub(super) fn put_off(&mut self, until: Duration) {
        self.tick = self.tick.max(until);
        self.retry = self.retry.map(|retry| retry.max(until));
        self.noticed = self.noticed.map(|_| (until, until));
    }

    /// So it should be from now on.
    pub(super) fn retarget(&mut self, target: VerificationTarget, now: Duration) {
        let is_other_plan = !Arc::ptr_eq(&self.target.plan, &target.plan) && self.target.plan != target.plan;
        // It was found anew where it had been seen last.
        let is_found_again = self.known.seen == LastLook::Failed(UnverifiableReason::WrongNamespace)
            && self.target.netns.path() != target.netns.path();
        if is_other_plan || is_found_again {
            self.notice(now);
        }
        self.target = target;
    }

    /// Whether something was noticed since the last look, which begins now.
    pub(super) fn take_noticed(&mut self) -> bool {
        self.noticed.take().is_some()
    }

    /// Whether something was noticed since the last look.
    pub(super) fn is_noticed(&self) -> bool {
        self.noticed.is_some()
    }

    /// Whether it has to be looked who listens there: that was not asked yet, or nobody did a while ago.
    pub(super) fn wants_listeners(&self, now: Duration) -> bool {
        let asked = self.known.missing_listeners.as_ref();
        let is_old = self.full.is_none_or(|full| now >= full + ASK_AGAIN);
        let target = &self.target;
        target.proxy_started
            && !target.listeners.is_empty()
            && asked.is_none_or(|missing| !missing.is_empty() && is_old)
    }

    /// It is as planned.
    pub(super) fn is_equal(&mut self, now: Duration) {
        self.relapses.values_mut().for_each(Relapses::settled);
        let known = &mut self.known;
        (known.seen, known.equal) = (LastLook::Equal, Some((now, SystemTime::now())));
        (known.drifted, known.problem) = (None, None);
        known.drift.clear();
        known.differences.clear();
        (self.retry, self.writer) = (None, None);
    }

    /// Nobody can tell; whether that is new.
    pub(super) fn is_failed(&mut self, reason: UnverifiableReason, text: String) -> bool {
        let is_new = self.known.seen != LastLook::Failed(reason);
        (self.known.seen, self.known.problem) = (LastLook::Failed(reason), Some(text));
        is_new
    }

    /// It differs like this.
    pub(super) fn is_drifted(
        &mut self,
        now: Duration,
        differences: &[Difference],
        repairs: bool,
    ) -> DriftStep {
        let drift: BTreeSet<Drifted> = differences.iter().map(kind).collect();
        let before = std::mem::replace(&mut self.known.drift, drift.iter().copied().collect());
        let was = self.known.seen;
        if matches!(was, LastLook::Failed(_)) {
            self.known.problem = None;
        }
        self.known.differences = differences.iter().take(MAX_DIFFERENCES).map(in_words).collect();
        self.known.is_without_rules = is_without_rules(differences, &self.target.plan);
        self.known.drifted.get_or_insert(now);
        let writer = self.writer.take().or_else(|| {
            let was_known = before == self.known.drift;
            was_known.then(|| self.known.culprit.clone()).flatten()
        });
        self.known.culprit = Some(writer.unwrap_or_else(|| self.unseen(&drift)));
        let is_new = !matches!(was, LastLook::Differs { .. }) || before != self.known.drift;
        if !repairs {
            self.known.seen = LastLook::Differs { contended: false };
            return DriftStep::Leave { is_new };
        }
        let mut step = DriftStep::Repair { is_new };
        self.retry = None;
        for kind in drift {
            let (at, spent) = match self.relapses.entry(kind).or_default().drifted(now) {
                Permit::Now => continue,
                Permit::At(at) => (at, false),
                Permit::Spent(at) => (at, true),
            };
            self.retry = Some(self.retry.map_or(at, |before| before.max(at)));
            step = DriftStep::Wait { is_new: was != LastLook::Differs { contended: true }, spent };
        }
        self.known.seen = LastLook::Differs { contended: !matches!(step, DriftStep::Repair { .. }) };
        step
    }

    /// A repair was tried.
    pub(super) fn is_repaired(&mut self, now: Duration) {
        for kind in self.known.drift.clone() {
            self.relapses.entry(kind).or_default().repaired(now);
        }
    }

    /// Who may have done it where the kernel has told of nobody.
    fn unseen(&self, drift: &BTreeSet<Drifted>) -> Culprit {
        let is_legacy = self.target.plan.backend == ruleset::Backend::Iptables;
        if self.watched && is_legacy && drift.contains(&Drifted::Rules) {
            Culprit::unseen()
        } else {
            Culprit::unknown()
        }
    }

    /// What state the pod is in by that. A confirmation older than `fresh_for` says nothing any more.
    pub(super) fn state(
        &self,
        now: Duration,
        fresh_for: Duration,
        target: &VerificationTarget,
    ) -> VerificationState {
        let known = &self.known;
        let is_fresh = known.equal.is_some_and(|(at, _)| now.saturating_sub(at) <= fresh_for);
        match known.seen {
            LastLook::Nothing => VerificationState::Starting,
            LastLook::Differs { contended: true } => VerificationState::Contended,
            LastLook::Differs { contended: false } => VerificationState::Drifted,
            LastLook::Failed(reason) => VerificationState::Unverifiable(reason),
            LastLook::Equal if !is_fresh => VerificationState::Unverifiable(UnverifiableReason::Kernel),
            LastLook::Equal if known.conflicts > 0 => {
                VerificationState::Unverifiable(UnverifiableReason::Conflict)
            }
            LastLook::Equal if !target.acknowledged => VerificationState::Unacknowledged,
            LastLook::Equal => VerificationState::Verified,
        }
    }
}

/// A difference in words. A rule of somebody else's may be as long as the kernel takes one.
fn in_words(difference: &Difference) -> String {
    let mut text = difference.to_string();
    text.truncate(text.floor_char_boundary(LONGEST_DIFFERENCE));
    text
}

/// Which kind of drift a difference is.
fn kind(difference: &Difference) -> Drifted {
    match difference {
        Difference::DifferentSet { .. } | Difference::DifferentIpset { .. } => Drifted::Set,
        Difference::MissingRouting { .. } => Drifted::Routing,
        Difference::OtherBackend { .. } => Drifted::OtherBackend,
        _ => Drifted::Rules,
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(AT_WORK.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_somebody_writes_into_a_rule_little_of_it_is_kept() {
        let rule = "ä".repeat(40_000);
        let difference = Difference::UnexpectedRule { table: "t".into(), chain: "c".into(), rule };
        let text = in_words(&difference);
        assert!((LONGEST_DIFFERENCE - 1..=LONGEST_DIFFERENCE).contains(&text.len()), "{}", text.len());
        let short = Difference::MissingTable { table: "t".into() };
        assert_eq!(in_words(&short), short.to_string());
    }

    #[test]
    fn a_pod_at_work_is_asked_for_less_and_less() {
        let pauses: Vec<u128> = std::iter::successors(Some(AT_WORK.0), |pause| Some(longer(*pause)))
            .take(8)
            .map(|pause| pause.as_millis())
            .collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 200, 200]);
    }
}
