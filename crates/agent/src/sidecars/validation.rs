//! What is told of a pod whose validation fails, when its rules are there.

use facts::{Object, PodRef};

use super::Sidecars;
use super::pods::SandboxRules;
use super::repair::{RepairOptions, RepairTrigger};

/// `reason` of the Event about a pod that has its rules and is started again later.
const REPAIRED: &str = "CaptureRepaired";

const SUSPECTED: &str =
    "the rules of a pod are as planned, and its validation fails again: conflict suspected";

impl Sidecars {
    /// The rules are as planned, and the pod's validation fails all the same. A try that was begun before they came says nothing.
    pub(super) fn suspect(&self, pod: &PodRef, object: &Object, rules: SandboxRules) {
        let Some(started) = self.options().broken.failure(object) else { return };
        let started = cluster::time::seconds(started);
        let is_later = match (rules, started) {
            (SandboxRules::Repaired(at), Some(started)) => started > at,
            (SandboxRules::Repaired(_), None) => false,
            _ => true,
        };
        if is_later {
            let (verifier, log, pod) = (self.parts.verifier.clone(), self.parts.log.clone(), pod.clone());
            // No other pod's rules wait for a look at what others have there.
            tokio::spawn(async move {
                verifier.check_now(&pod.uid).await;
                let text = match verifier.known_conflicts().worst_in(&pod.uid) {
                    Some(words) => format!("{SUSPECTED}: {words}"),
                    None => format!(
                        "{SUSPECTED}, and none is known in its network namespace; the node's rules, or a network plugin, may keep its packets \
                         from them (see `cnictl conflicts`)"
                    ),
                };
                log.warn(&text, &[("pod", &pod)]);
                verifier.tell_suspected(&pod, text);
            });
        }
    }

    /// The rules of a pod have come after its validation had failed: kubelet pauses before it starts that again, which nobody can shorten, and the
    /// pod's Event says so. The original writes none.
    pub(super) fn tell_that_kubelet_waits(&self, pod: &PodRef, object: &Object) {
        let RepairOptions { trigger, broken, .. } = self.options();
        if *trigger == RepairTrigger::Crash || !broken.waits_for_kubelet(object) {
            return;
        }
        let container = if broken.container.is_empty() { "its validation" } else { &*broken.container };
        let text = format!(
            "the pod started without its rules and has them now; {container} had failed before, and kubelet starts it again after its back-off, up to \
             5 minutes, which the agent cannot shorten; delete the pod to have another one at once"
        );
        let (events, pod) = (self.parts.events.clone(), pod.clone());
        // No other pod's rules wait for the API server.
        tokio::spawn(async move { events.tell(&pod, REPAIRED, &text).await });
    }
}
