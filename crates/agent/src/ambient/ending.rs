//! The end of ambient mode on this node: every pod is taken out.
//!
//! A pod that says that it is in the mesh and has no rules any more cannot be reached by the mesh. So its annotation goes first, and where the
//! API server does not take it back (an uninstallation may have removed our roles already) the pod stays as it is: captured, known to its
//! ztunnel, with its probes let through. It starts outside of the mesh when it is deleted.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use intent::Want;
use tokio::task::JoinSet;

use super::executor::Executor;
use super::failure::AmbientFailure;
use super::members::Member;
use super::{Ambient, drain};
use crate::drains::Wait;
use crate::health::HealthPart;

/// The longest that a cleanup takes, [`drain::AT_THE_END`] included; kubelet gives 30 s in all.
const CLEANUP_TIME: Duration = Duration::from_secs(20);
/// How much of it waits for what is under way: an iptables that hangs must not keep the other pods from being cleaned up.
const UNDER_WAY_TIME: Duration = Duration::from_secs(5);
/// How much of it an API server has to take an annotation back, and the pause between two tries.
const ANNOTATION_TIME: Duration = Duration::from_secs(3);
const ANNOTATION_PAUSE: Duration = Duration::from_millis(300);
/// Pods that are named in a line of the log.
const NAMED: usize = 10;

/// A pod that stays in the mesh.
struct Left {
    pod: String,
    why: cluster::Error,
}

impl Ambient {
    /// Takes everything of ours out of the pods, the node's namespace and the API server. `live` is the task of [`Self::live`], which serves
    /// ztunnels until they have heard of all that.
    pub(crate) async fn clean_up(self: Arc<Self>, live: tokio::task::JoinHandle<()>) {
        let began = *self.life.ending.get_or_init(Instant::now);
        if self.telling.health.is_ready(HealthPart::Ambient) {
            self.life.stop.notify_one();
            let _ = tokio::time::timeout(UNDER_WAY_TIME, self.life.stopped.notified()).await;
        } else {
            live.abort();
        }
        let mut left = Vec::new();
        let time = CLEANUP_TIME.saturating_sub(began.elapsed());
        let complete = tokio::time::timeout(time, self.clear_all(began, &mut left)).await;
        if complete.is_err() {
            let pods = self.pods.members.all().len();
            self.log.error("cleanup is not complete: the time is over", &[("pods", &pods)]);
        }
        self.kept.records.close();
        if !left.is_empty() {
            self.tell_left(&left);
        }
        // Probes of pods that keep their rules need those of the node.
        if !left.is_empty() || complete != Ok(true) {
            return;
        }
        if let Some(host) = self.node.host.get() {
            let errors = host.clean_up();
            errors.iter().for_each(|error| self.log.error("cleanup is not complete", &[("error", error)]));
            if errors.is_empty() {
                self.log.info("rules and sets for host probes are removed", &[]);
            }
        }
    }

    /// Takes all pods out, also those that came in at the last moment; whether none kept its rules for another reason than `left` tells.
    async fn clear_all(self: &Arc<Self>, began: Instant, left: &mut Vec<Left>) -> bool {
        let mut complete = true;
        // What is put in place after it was removed would stay.
        let settled = self.pods.slots.settle(UNDER_WAY_TIME);
        let _ = tokio::join!(tokio::time::timeout(UNDER_WAY_TIME, self.node.under_way.write()), settled);
        let mut seen = HashSet::new();
        loop {
            let mut tasks = JoinSet::new();
            for member in
                self.pods.members.all().into_iter().filter(|member| seen.insert(member.key.uid.clone()))
            {
                let ambient = self.clone();
                tasks.spawn(async move { ambient.clear(member, began).await });
            }
            if tasks.is_empty() {
                return complete;
            }
            while let Some(done) = tasks.join_next().await {
                match done {
                    Ok(Ok(())) => {}
                    Ok(Err((pod, AmbientFailure::Api(why)))) => left.push(Left { pod, why }),
                    Ok(Err((pod, error))) => {
                        complete = false;
                        self.log.error("cleanup is not complete", &[("pod", &pod), ("error", &error)]);
                    }
                    Err(error) => {
                        complete = false;
                        self.log.error("cleanup is not complete", &[("error", &error)]);
                    }
                }
            }
        }
    }

    /// Takes a pod out, or lets it drain first. A failure of the API server means that nothing was changed.
    async fn clear(&self, member: Member, began: Instant) -> Result<(), (String, AmbientFailure)> {
        let (key, pod) = (&member.key, member.key.to_string());
        let tries_end = began + ANNOTATION_TIME;
        let out = async || {
            let facts = self.cluster.index().facts(&key.namespace, &key.name);
            let _turn = self.pods.members.turn(&key.uid).await;
            if let Some(member) = self.pods.members.get(&key.uid).filter(|member| member.have.is_captured()) {
                let mut work = self.work_on(member);
                if let Some(facts) = &facts {
                    work.change(|member| member.see_annotation(&facts.pod, false));
                }
                Self::unmark(&mut work, tries_end).await?;
            }
            match self.leave(key, facts.as_ref(), &Want::Out, "everything is removed").await {
                // Its rules were gone before: a pod that drained when the end came.
                Err(AmbientFailure::Api(error)) => {
                    self.log.warn(&error, &[("pod", &pod)]);
                    Ok(())
                }
                result => result,
            }
        };
        let result = out().await;
        if result.is_err() || self.pods.drains.of(&key.uid) == Wait::None {
            return result.map_err(|failure| (pod.clone(), failure));
        }
        let drained = tokio::time::Instant::from_std(began + drain::AT_THE_END);
        self.pods.drains.end_by(&key.uid, drained).await;
        out().await.map_err(|failure| (pod.clone(), failure))
    }

    /// Lets the pod say no more that it is in the mesh. A refusal may be of an API server that has just started, so it is asked again for a while.
    async fn unmark(work: &mut Executor<'_, Self>, until: Instant) -> Result<(), AmbientFailure> {
        loop {
            match work.carry_out(&Want::Refused { for_good: true }, false).await {
                Err(_) if Instant::now() + ANNOTATION_PAUSE < until => {
                    tokio::time::sleep(ANNOTATION_PAUSE).await;
                }
                result => return result.map(drop).map_err(AmbientFailure::from),
            }
        }
    }

    fn tell_left(&self, left: &[Left]) {
        let names: Vec<&str> = left.iter().take(NAMED).map(|left| left.pod.as_str()).collect();
        let why = left.first().map(|left| left.why.to_string()).unwrap_or_default();
        let text = "pods stay in the mesh, captured and annotated as before, because the API server did not take their annotation back; delete them, \
                    and they start outside of the mesh";
        self.log.error(text, &[("pods", &left.len()), ("names", &names.join(", ")), ("error", &why)]);
    }
}
