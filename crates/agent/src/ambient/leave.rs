//! A pod is taken out of the mesh, from wherever an earlier try ended.
//!
//! The kernel translates packets of a redirected connection only while rules of a certain kind are there
//! ([`capture::ambient::plan_drain`]): without them neither side hears of the other any more, nor of an end. So a pod that runs on loses
//! the redirects first. Everything else goes when no connection through ztunnel is left, or when the time for that is over.

use facts::{Facts, PodRef};
use intent::Want;

use super::Ambient;
use super::desired::{self, REDIRECTION};
use super::executor::ActProgress;
use super::failure::AmbientFailure;
use super::members::Member;

impl Ambient {
    /// Takes a pod out of the mesh; each act that is done already does nothing. A pod that has nothing of ours is left alone, and one that drains
    /// is left to that. Whoever calls has the pod's turn.
    pub(super) async fn leave(
        &self,
        key: &PodRef,
        facts: Option<&Facts>,
        want: &Want,
        reason: &str,
    ) -> Result<(), AmbientFailure> {
        let member = match self.pods.members.get(&key.uid) {
            Some(member) => member,
            None => {
                let Some(member) = Self::left_over(facts) else { return Ok(()) };
                self.pods.members.insert(member.clone());
                member
            }
        };
        let is_gone = Self::is_gone(&member);
        let mut work = self.work_on(member);
        if let Some(facts) = facts {
            work.change(|member| {
                if member.ips().is_empty() {
                    // Nothing but an address shows which namespace is the pod's.
                    member.set_ips(facts.pod.ips());
                }
                // Somebody may have put the annotation back.
                member.see_annotation(&facts.pod, false);
            });
        }
        work.begin_leaving(is_gone).await;
        // Rules do not stay in a pod because the API server is away. It is asked again until it answers.
        if work.carry_out(want, !self.is_patient()).await? == ActProgress::Done {
            let labels: [telemetry::Label<'_>; 3] = [("pod", key), ("uid", &key.uid), ("reason", &reason)];
            self.log.info("pod is out of the mesh", &labels);
        }
        Ok(())
    }

    /// Whether a pod may keep its rules for as long as its annotation cannot be changed: where ambient mode is off nobody waits for its end.
    fn is_patient(&self) -> bool {
        self.config.is_off && self.life.ending.get().is_none()
    }

    /// A pod that this process did not enrol and that carries the mark of one that did.
    fn left_over(facts: Option<&Facts>) -> Option<Member> {
        let pod = &facts?.pod;
        pod.annotation(REDIRECTION).filter(|value| desired::claims(value))?;
        Some(Member::left_by_another(pod, pod.ips()))
    }
}
