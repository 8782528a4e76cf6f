//! Labels and annotations of a captured pod that change while it runs. [`intent::live`] says what becomes of that.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use ::verification::DataPlaneMode;
use applied::Origin;
use capture::{Expected, Outside, PlanInputs, Reason, Settings, Skip, setting_changes};
use facts::{Facts, Object, PodRef};
use intent::live::{CaptureWish, LiveChange, LiveSidecar, LiveUpdates, Proxy, change};
use kernel::sockets::Sockets;
use netns::Inside;
use tokio::sync::OnceCell;

use super::Sidecars;
use super::pods::{ExpectedBy, PodSandbox, SandboxPlace, SandboxRules};
use super::repair::NotRepaired;
use super::rules::{Loading, RulesFailure, origin, recorded};
use crate::slots::Task;

/// The pods of which there were records of rules before this agent began, by name and uid. It hears of those that come later.
#[derive(Debug, Default)]
pub(super) struct RecordedPods(OnceCell<HashSet<(String, String)>>);

impl RecordedPods {
    fn of(origins: Vec<Origin>) -> HashSet<(String, String)> {
        origins.into_iter().map(|origin| (origin.pod, origin.uid)).collect()
    }
}

impl Sidecars {
    /// Does what is to be done about the settings of a pod that has rules of ours.
    pub(super) async fn follow_change(
        &self,
        pod: &PodRef,
        facts: &Facts,
        wish: CaptureWish<'_>,
    ) -> Result<(), NotRepaired> {
        let updates = self.parts.live_updates;
        let Some(sandbox) = self.with_rules(pod, facts).await? else { return Ok(()) };
        if matches!(wish, CaptureWish::LeftAlone(_)) {
            // It is counted.
            self.wake.notify_one();
        }
        let drains = sandbox.rules == SandboxRules::Draining;
        if let (true, CaptureWish::LeftAlone(reason)) = (drains, &wish) {
            // What has begun comes to its end, whatever the option is by now.
            return self.end_capture(pod, facts, &sandbox, reason).await;
        }
        if updates == LiveUpdates::Off {
            return Ok(());
        }
        let in_force = &sandbox.inputs.settings;
        let wanted = match &wish {
            CaptureWish::Captured(wanted) => Some(of_the_pod(wanted, in_force)),
            _ => None,
        };
        if wanted.as_ref() == Some(in_force) && !drains {
            self.live.settled(&pod.uid);
            return Ok(());
        }
        if let (true, Some(wanted)) = (drains, &wanted) {
            self.drains.stop(&pod.uid);
            return self.apply_change(pod, facts, &sandbox, wanted.clone()).await;
        }
        let reason = match &wish {
            CaptureWish::LeftAlone(reason) => reason.clone(),
            _ => String::new(),
        };
        let wish = wanted.as_ref().map_or(wish, CaptureWish::Captured);
        let (proxy, is_recorded) = self.proxy(pod, facts, &sandbox).await?;
        let in_force = match wish {
            // Rules that are ours alone as far as anybody knows are kept up, and only those that certainly are ours are taken away.
            CaptureWish::LeftAlone(_) if !is_recorded => None,
            _ => Some(in_force),
        };
        match change(&LiveSidecar { in_force, wanted: wish, proxy }, updates) {
            LiveChange::Apply => match wanted {
                Some(wanted) => self.apply_change(pod, facts, &sandbox, wanted).await,
                None => Ok(()),
            },
            LiveChange::Refuse(refused) => {
                self.live.refused(pod, &refused).await;
                Ok(())
            }
            LiveChange::Drain => self.end_capture(pod, facts, &sandbox, &reason).await,
            LiveChange::Nothing => Ok(()),
        }
    }

    /// The same for one that is not to be captured any more. The kill switch leaves rules as they are.
    pub(super) async fn follow_skip(
        &self,
        pod: &PodRef,
        facts: &Facts,
        skip: &Skip,
    ) -> Result<(), NotRepaired> {
        if skip.reason == Reason::CaptureDisabled || facts.pod.host_network() {
            self.pods.forget(&pod.uid);
            return Ok(());
        }
        self.follow_change(pod, facts, CaptureWish::LeftAlone(skip.to_string())).await
    }

    /// Whether a pod has rules of ours and is not to be captured any more. One that drains is on its way.
    pub(super) fn is_unexpected(&self, facts: &Facts, by: &Arc<ExpectedBy>) -> bool {
        let is_out = matches!(
            self.pods.expected(facts, by).as_deref(),
            Some(Expected::Outside(Outside::Skip(skip))) if skip.reason != Reason::CaptureDisabled
        );
        let rules = facts.pod.uid().and_then(|uid| self.pods.sandbox(uid)).map(|sandbox| sandbox.rules);
        is_out && matches!(rules, Some(SandboxRules::Had | SandboxRules::Repaired(_)))
    }

    /// Counts the pods that keep their rules while capture is disabled. Nobody looks at them then, so it is their records that tell.
    pub(super) async fn count_left(&self) {
        let by = self.expected_by();
        let is_left = |facts: &&Facts| {
            let expected = self.pods.expected(facts, &by);
            let skip = |expected: &Expected| matches!(expected, Expected::Outside(Outside::Skip(skip)) if skip.reason == Reason::CaptureDisabled);
            !facts.pod.is_terminal() && expected.as_deref().is_some_and(skip)
        };
        let all = self.all_facts();
        let left = all.iter().filter(is_left);
        let left: Vec<[(String, String); 2]> = left.map(|facts| record_names(&facts.pod)).collect();
        let run_dir = self.parts.run_dir.clone();
        let count = move || -> Result<usize, applied::Error> {
            if left.is_empty() {
                return Ok(0);
            }
            let recorded = RecordedPods::of(applied::origins_with_inputs(&run_dir)?);
            Ok(left.iter().filter(|names| names.iter().any(|name| recorded.contains(name))).count())
        };
        match tokio::task::spawn_blocking(count).await {
            Ok(Ok(pods)) => self.parts.metrics.left_as_they_are(DataPlaneMode::Sidecar, pods),
            Ok(Err(error)) => self.parts.log.warn(&error, &[]),
            Err(error) => self.parts.log.error(&error, &[]),
        }
    }

    /// The sandbox of a pod that has rules of ours. One that was never looked for is, where a record says that we have loaded some.
    async fn with_rules(&self, pod: &PodRef, facts: &Facts) -> Result<Option<PodSandbox>, NotRepaired> {
        let had = |sandbox: &PodSandbox| sandbox.rules != SandboxRules::Never;
        if let Some(sandbox) = self.pods.sandbox(&pod.uid) {
            return Ok(Some(sandbox).filter(had));
        }
        if self.pods.get(&pod.uid).is_none()
            && !self.is_recorded(&facts.pod).await.map_err(NotRepaired::Change)?
        {
            return Ok(None);
        }
        let known = self.pods.of(pod);
        let (netns, roots) = match self.locate_pod(&known, &facts.pod).await {
            Ok(located) => located,
            Err(unknown) if unknown.reason == ::verification::UnverifiableReason::NoNamespace => {
                return Err(NotRepaired::Unseen(unknown));
            }
            Err(_) => return Ok(None),
        };
        // Of a pod that is recorded the record says what its rules were made from.
        let none = Settings::default();
        let looked = self.look(&facts.pod, netns, &roots, &none).await.map_err(NotRepaired::Change)?;
        self.pods.set(pod, SandboxPlace::At(looked.sandbox.clone()));
        Ok(Some(looked.sandbox).filter(had))
    }

    /// Whether a record was there before this agent began.
    async fn is_recorded(&self, pod: &Object) -> Result<bool, RulesFailure> {
        let read = async || -> Result<_, RulesFailure> {
            let run_dir = self.parts.run_dir.clone();
            let read = move || applied::origins_with_inputs(&run_dir).map(RecordedPods::of);
            Ok(self.slots.run(&pod.pod_ref(), Task::Identify, read).await??)
        };
        let pods = self.recorded.0.get_or_try_init(read).await?;
        Ok(record_names(pod).iter().any(|name| pods.contains(name)))
    }

    /// Whether the pod's proxy runs, and whether a record says that we have loaded the pod's rules.
    async fn proxy(
        &self,
        pod: &PodRef,
        facts: &Facts,
        sandbox: &PodSandbox,
    ) -> Result<(Proxy, bool), NotRepaired> {
        let (netns, settings) = (sandbox.netns.clone(), sandbox.inputs.settings.clone());
        let (run_dir, origin) = (self.parts.run_dir.clone(), origin(&facts.pod, &netns));
        let look = move || -> Result<(bool, bool), RulesFailure> {
            let wanted = [settings.proxy_port, settings.capture_port];
            let listening = |inside: &Inside| Sockets::open(inside)?.listening(&wanted);
            // That the kernel cannot say so makes no proxy silent.
            let listens = netns.enter(listening)?.map_or(true, |found| found.len() == wanted.len());
            Ok((listens, recorded(&run_dir, &origin).is_some()))
        };
        let looked = self.slots.run(pod, Task::Verify, look).await;
        let looked = looked.map_err(|error| NotRepaired::Change(error.into()))?;
        let (listens, is_recorded) = looked.map_err(NotRepaired::Change)?;
        let runs = listens || facts.pod.proxy_runs();
        Ok((if runs { Proxy::Running } else { Proxy::Silent }, is_recorded))
    }

    /// Replaces the rules of a running pod. Where that fails those of before are in force.
    async fn apply_change(
        &self,
        pod: &PodRef,
        facts: &Facts,
        before: &PodSandbox,
        settings: Settings,
    ) -> Result<(), NotRepaired> {
        let began = Instant::now();
        let changes = setting_changes(&before.inputs.settings, &settings);
        let inputs = PlanInputs { settings, target: before.inputs.target };
        let after = PodSandbox {
            plan: Arc::new(inputs.plan()),
            inputs: Arc::new(inputs),
            netns: before.netns.clone(),
            rules: SandboxRules::Had,
        };
        let roots = self.roots().map_err(NotRepaired::Netns)?;
        // What the verifier sees meanwhile is compared with what is to come.
        let take = |sandbox: &PodSandbox| {
            let sandbox = sandbox.clone();
            self.pods.change(&pod.uid, &before.netns, |known| *known = sandbox);
        };
        take(&after);
        let loading = Loading {
            pod: pod.clone(),
            origin: origin(&facts.pod, &after.netns),
            sandbox: after,
            runs: true,
            replaces: Some(before.plan.clone()),
        };
        let loaded = self.load(loading, &roots).await.map_err(|failure| {
            take(before);
            NotRepaired::Change(failure)
        })?;
        loaded.warnings.iter().for_each(|text| self.parts.log.warn(text, &[("pod", pod)]));
        self.live.applied(pod, &changes, began.elapsed()).await;
        Ok(())
    }
}

/// What the pod's annotations ask for; the rest is the node's, and as it was when the rules were made.
fn of_the_pod(wanted: &Settings, in_force: &Settings) -> Settings {
    let Settings { owner_groups, loopback_v4, .. } = in_force.clone();
    Settings { owner_groups, loopback_v4, ..wanted.clone() }
}

/// By which name and uid a record may have a pod.
fn record_names(pod: &Object) -> [(String, String); 2] {
    let name = pod.pod_ref().to_string();
    [pod.runtime_uid(), ""].map(|uid| (name.clone(), uid.to_owned()))
}
