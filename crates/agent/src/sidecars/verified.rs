//! Sidecar pods as the verifier sees them.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use ::verification::{DataPlaneMode, UnverifiableReason, VerificationState};
use capture::Expected;
use facts::{Facts, PodRef};
use kernel::Change;
use netns::NetnsId;

use super::Sidecars;
use super::pods::{NotLocated, PodSandbox, SandboxPlace, SandboxRules, SidecarPod};
use super::repair::RepairMode;
use super::rules::{Loading, RulesFailure, origin};
use crate::backends::Backends;
use crate::verification::{
    Comparison, ExpectedPod, FoundBy, Later, RepairFailure, RepairResult, VerificationTarget, VerifiedMode,
};

/// What decides which records of pods are stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SweptFor {
    /// Namespaces of pods that are captured.
    namespaces: HashSet<NetnsId>,
    /// Uids of the node's pods, as their runtime has them.
    pods: HashSet<String>,
}

impl VerifiedMode for Sidecars {
    fn expected(&self) -> Vec<ExpectedPod> {
        let by = self.expected_by();
        let all = self.all_facts();
        let captured = all.iter().filter(|facts| !facts.pod.is_terminal()).filter_map(|facts| {
            let expected = self.pods.expected(facts, &by)?;
            match *expected {
                Expected::Captured(_) | Expected::Unusable(_) => Some((facts, expected)),
                // It is on its way out.
                Expected::Outside(_) if self.drains_now(facts) => Some((facts, expected)),
                Expected::Outside(_) => None,
            }
        });
        captured.map(|(facts, expected)| self.expected_pod(facts, &expected)).collect()
    }

    fn backends(&self) -> Arc<Backends> {
        self.backends.clone()
    }

    fn is_at_work(&self, uid: &str) -> bool {
        self.slots.is_changing(uid)
    }

    fn compared(&self, pod: &PodRef, comparison: &Comparison) {
        match comparison {
            Comparison::Moved => self.looks.push(pod.clone()),
            Comparison::Equal
            | Comparison::Differs(_)
            | Comparison::Superseded
            | Comparison::Failed { .. } => {}
        }
    }

    fn repair<'a>(&'a self, pod: &'a PodRef) -> Later<'a, Result<RepairResult, RepairFailure>> {
        Box::pin(self.put_right(pod))
    }

    fn round(self: Arc<Self>) -> Later<'static, ()> {
        Box::pin(async move {
            self.look_again().await;
            self.sweep_records().await;
            self.count_left().await;
        })
    }
}

impl Sidecars {
    fn drains_now(&self, facts: &Facts) -> bool {
        let sandbox = facts.pod.uid().and_then(|uid| self.pods.sandbox(uid));
        sandbox.is_some_and(|sandbox| sandbox.rules == SandboxRules::Draining)
    }

    fn expected_pod(&self, facts: &Facts, expected: &Expected) -> ExpectedPod {
        let pod = facts.pod.pod_ref();
        let known = self.pods.of(&pod);
        let born = facts.pod.start_time().and_then(cluster::time::seconds);
        let born = born.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        let target = match (&known.place, expected) {
            (SandboxPlace::At(sandbox), _) if sandbox.rules == SandboxRules::Draining => {
                Err(VerificationState::Draining)
            }
            (SandboxPlace::At(sandbox), _) => Ok(target(sandbox, facts)),
            // The plugin refuses its ADD, so that it has no sandbox.
            (_, Expected::Unusable(_)) => {
                Err(VerificationState::Unverifiable(UnverifiableReason::NoNamespace))
            }
            _ => Err(known.state(born).unwrap_or(VerificationState::Starting)),
        };
        ExpectedPod { pod, mode: DataPlaneMode::Sidecar, born, trouble: None, target }
    }

    /// Puts right what differs of rules that were there. Those that never were come by the mode of repair only.
    async fn put_right(&self, pod: &PodRef) -> Result<RepairResult, RepairFailure> {
        let facts = self.parts.cluster.index().facts(&pod.namespace, &pod.name);
        let facts = facts.filter(|facts| facts.pod.uid() == Some(&pod.uid) && !facts.pod.is_terminal());
        let (Some(facts), Some(sandbox)) = (facts, self.pods.sandbox(&pod.uid)) else {
            return Ok(RepairResult::Left);
        };
        if sandbox.rules == SandboxRules::Never {
            if self.parts.repair.mode == RepairMode::Repair {
                self.looks.push(pod.clone());
            }
            return Ok(RepairResult::Left);
        }
        let known = self.pods.of(pod);
        let failed = |unknown: NotLocated| RepairFailure {
            state: Some(VerificationState::Unverifiable(unknown.reason)),
            text: unknown.text,
        };
        let (netns, roots) = self.locate_pod(&known, &facts.pod).await.map_err(failed)?;
        if *netns != *sandbox.netns {
            // A new sandbox is a new pod.
            self.looks.push(pod.clone());
            return Ok(RepairResult::Left);
        }
        let origin = origin(&facts.pod, &sandbox.netns);
        let loading = Loading { pod: pod.clone(), origin, sandbox, runs: true, replaces: None };
        let loaded = self.load(loading, &roots).await.map_err(|failure| match &failure {
            RulesFailure::Kernel(_) | RulesFailure::NoListener(_) => {
                RepairFailure { state: None, text: failure.to_string() }
            }
            _ => failed(NotLocated::of(&failure, &facts.pod)),
        })?;
        loaded.warnings.iter().for_each(|text| self.parts.log.warn(text, &[("pod", pod)]));
        self.backends.log_warnings(&self.parts.log);
        let applied = loaded.applied;
        let changed = applied.rules != Change::None || applied.moved || applied.routing > 0;
        Ok(if changed { RepairResult::PutRight } else { RepairResult::WasRight })
    }

    /// Looks again for the namespaces that are not known, and for those that are not the pods' any more, in one look through the processes.
    pub(super) async fn look_again(&self) {
        let all = self.pods.all();
        let is_lost = |pod: &&SidecarPod| match &pod.place {
            SandboxPlace::At(sandbox) => !crate::finder::is_still(&sandbox.netns),
            SandboxPlace::Due | SandboxPlace::Unknown(_) => true,
        };
        let lost: Vec<&SidecarPod> = all.iter().filter(is_lost).collect();
        if lost.is_empty() {
            return;
        }
        let Ok(roots) = self.roots() else { return };
        let wanted = {
            let (noted, index) = (self.noted_addresses(), self.parts.cluster.index());
            let of = |pod: &&SidecarPod| index.pod(&pod.key.namespace, &pod.key.name).cloned();
            lost.iter().filter_map(of).map(|pod| self.wanted_netns(&pod, &noted)).collect()
        };
        let Ok(found) = self.finder.find_all(&roots, wanted).await else { return };
        for pod in lost {
            match (&pod.place, found.contains_key(&pod.key.uid)) {
                (SandboxPlace::At(_), _) | (_, true) => self.looks.push(pod.key.clone()),
                _ => {}
            }
        }
        self.finder.keep(found).await;
    }

    /// Forgets what was loaded into the namespaces of pods that are gone.
    async fn sweep_records(&self) {
        if !self.parts.cluster.state().synced {
            return;
        }
        let run_dir = self.parts.run_dir.clone();
        let namespaces = self.pods.all().into_iter().filter_map(|pod| match pod.place {
            SandboxPlace::At(sandbox) => Some(sandbox.netns.id()),
            SandboxPlace::Due | SandboxPlace::Unknown(_) => None,
        });
        let pods = self.parts.cluster.index().pods().map(|pod| pod.runtime_uid().to_owned()).collect();
        let now = SweptFor { namespaces: namespaces.collect(), pods };
        if self.swept_for().as_ref() == Some(&now) {
            return;
        }
        let (known, of) = (now.namespaces.clone(), now.clone());
        let sweep = move || {
            // The others are of ambient mode.
            let stays = |head: &applied::RecordHead| !head.has_inputs || of.pods.contains(&head.origin.uid);
            applied::keep_namespaces(&run_dir, || Some(known), stays)
        };
        match tokio::task::spawn_blocking(sweep).await {
            // Pods may have come while the records were listed; their records are swept with what changes next.
            Ok(Ok(_)) => *self.swept_for() = Some(now),
            Ok(Err(error)) => self.parts.log.warn(&error, &[]),
            Err(error) => self.parts.log.error(&error, &[]),
        }
    }

    fn swept_for(&self) -> MutexGuard<'_, Option<SweptFor>> {
        self.swept_for.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All pods of the node with the labels of their namespaces.
    pub(super) fn all_facts(&self) -> Vec<Facts> {
        let index = self.parts.cluster.index();
        index.pods().filter_map(|pod| index.facts(pod.namespace(), pod.name())).collect()
    }
}

fn target(sandbox: &PodSandbox, facts: &Facts) -> VerificationTarget {
    let settings = &sandbox.inputs.settings;
    VerificationTarget {
        netns: sandbox.netns.clone(),
        found: FoundBy::Process,
        plan: sandbox.plan.clone(),
        addresses: facts.pod.ips(),
        listeners: vec![settings.proxy_port, settings.capture_port],
        proxy_started: facts.pod.proxy_runs(),
        acknowledged: true,
    }
}
