//! A sidecar pod that is not to be captured any more while it runs.
//!
//! The kernel translates what was redirected only while rules of a certain kind are there ([`capture::plan::plan_drain`]). So the redirects go first, in one
//! transaction, and everything else when no connection through the proxy is left, or when the time for that is over. What was loaded is in the
//! pod's record, and when in the time of that file: the next agent goes on from there.

use std::time::{Duration, SystemTime};

use capture::PlanInputs;
use capture::settings::Mode;
use facts::{Facts, PodRef};
use kernel::iptables::Iptables;
use kernel::{Choice, conntrack};
use netns::Inside;

use super::Sidecars;
use super::pods::{PodSandbox, SandboxRules};
use super::repair::NotRepaired;
use super::rules::{RulesFailure, drained_since, forget, keep, origin};
use crate::backends::Backends;
use crate::conflicts;
use crate::drains::{Draining, Through, Wait, end_connections};
use crate::finder;
use crate::slots::Task;

impl Sidecars {
    /// Goes on with the end of a pod's capture, from wherever it is.
    pub(super) async fn end_capture(
        &self,
        pod: &PodRef,
        facts: &Facts,
        sandbox: &PodSandbox,
        reason: &str,
    ) -> Result<(), NotRepaired> {
        match self.drains.of(&pod.uid) {
            Wait::Open => Ok(()),
            Wait::Over => self.remove_rules(pod, facts, sandbox).await,
            Wait::None => {
                let since = self.load_drain(pod, facts, sandbox).await?;
                if sandbox.rules != SandboxRules::Draining {
                    let draining = |known: &mut PodSandbox| known.rules = SandboxRules::Draining;
                    self.pods.change(&pod.uid, &sandbox.netns, draining);
                    self.live.drains(pod, reason).await;
                }
                self.wait_for_connections(pod, sandbox, since);
                Ok(())
            }
        }
    }

    /// Leaves only the rules that let open connections go on; gives since when there are no others.
    async fn load_drain(
        &self,
        pod: &PodRef,
        facts: &Facts,
        sandbox: &PodSandbox,
    ) -> Result<SystemTime, NotRepaired> {
        let roots = self.roots().map_err(NotRepaired::Netns)?;
        let (host, run_dir) = (roots.host, self.parts.run_dir.clone());
        let origin = origin(&facts.pod, &sandbox.netns);
        let PodSandbox { netns, inputs, plan, .. } = sandbox.clone();
        let load = move || -> Result<SystemTime, RulesFailure> {
            netns::find::belongs_to(&netns, host, &origin.addresses, &finder::addresses)?;
            let backends = Backends::new(|| Iptables::new().replacing(plan.layers.clone()), &run_dir);
            netns.enter(|inside| {
                let (drain, kernel) = (inputs.plan_drain(), backends.kernel());
                kernel.apply(inside, Choice::Only(drain.backend), |_| drain.clone())?;
                // Without a record the time begins anew with the next agent.
                let _ = keep(&run_dir, kernel, &drain, &inputs, &origin);
                Ok(drained_since(&run_dir, inside.id()))
            })?
        };
        let loaded = self.slots.run(pod, Task::Clear, load).await;
        loaded.map_err(|error| NotRepaired::Change(error.into()))?.map_err(NotRepaired::Change)
    }

    /// Waits, without keeping the caller, until nothing goes through the proxy any more; then the pod is worked on again.
    fn wait_for_connections(&self, pod: &PodRef, sandbox: &PodSandbox, since: SystemTime) {
        let past = since.elapsed().unwrap_or(Duration::ZERO);
        let left = self.parts.drain_timeout.saturating_sub(past);
        let draining = Draining {
            pod: pod.clone(),
            netns: sandbox.netns.clone(),
            through: through(&sandbox.inputs),
            slots: self.slots.clone(),
            log: self.parts.log.clone(),
        };
        let (looks, pod) = (self.looks.clone(), pod.clone());
        self.drains.start(&pod.uid.clone(), draining.wait(left), move || looks.push(pod));
    }

    /// Removes everything of ours from a pod that has drained.
    async fn remove_rules(
        &self,
        pod: &PodRef,
        facts: &Facts,
        sandbox: &PodSandbox,
    ) -> Result<(), NotRepaired> {
        let roots = self.roots().map_err(NotRepaired::Netns)?;
        let (host, run_dir) = (roots.host, self.parts.run_dir.clone());
        let (origin, backends) = (origin(&facts.pod, &sandbox.netns), self.backends.clone());
        let PodSandbox { netns, inputs, plan, .. } = sandbox.clone();
        let uid = pod.uid.clone();
        let remove = move || -> Result<(usize, Vec<String>), RulesFailure> {
            netns::find::belongs_to(&netns, host, &origin.addresses, &finder::addresses)?;
            let clear = |inside: &Inside| -> Result<(usize, Vec<String>), RulesFailure> {
                let through = through(&inputs);
                // What cannot be ended ends by itself, without an answer.
                let ended = end_connections(inside, &through).unwrap_or(0);
                backends.kernel().cleanup(inside, &plan)?;
                // An entry that stays is older than any rule that comes.
                let _ = conntrack::forget(inside, &through.ports, |_| false);
                Ok((ended, conflicts::restore(inside, &run_dir, &uid)))
            };
            let cleared = netns.enter(clear)??;
            forget(&run_dir, &origin);
            Ok(cleared)
        };
        let removed = self.slots.run(pod, Task::Clear, remove).await;
        let removed = removed.map_err(|error| NotRepaired::Change(error.into()))?;
        let (ended, warnings) = removed.map_err(NotRepaired::Change)?;
        for warning in warnings {
            self.parts.log.warn(&warning, &[("pod", pod)]);
        }
        self.drains.stop(&pod.uid);
        self.pods.forget(&pod.uid);
        let labels: [telemetry::Label<'_>; 2] = [("pod", pod), ("connections_ended", &ended)];
        self.parts.log.info("nothing of ours is left in a pod that is not captured any more", &labels);
        Ok(())
    }
}

/// What goes through a pod's proxy.
fn through(inputs: &PlanInputs) -> Through {
    let settings = &inputs.settings;
    let is_transparent = settings.mode == Mode::Tproxy;
    Through {
        ports: vec![settings.proxy_port, settings.capture_port],
        // What it takes transparently keeps its addresses, and what it makes of it has the mark.
        mark: is_transparent.then_some((settings.tproxy_mark, u32::MAX)),
        is_transparent,
    }
}
