//! The taint that keeps new pods off the node while they could not be captured on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::Writer;
use fault::Backoff;
use tokio::sync::Mutex;

use crate::run::Agent;

/// How often it is looked whether the agent is ready.
const PERIOD: Duration = Duration::from_secs(1);
/// How long the agent may be unready before new pods are kept off: an update takes less.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pauses after the API server did not take a change.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
/// How long the end waits for the taint to be taken away.
const END_LIMIT: Duration = Duration::from_secs(3);

/// `reason` of the Events about the node.
const READY: &str = "NodeReady";
const NOT_READY: &str = "NodeNotReadyForMesh";

/// What the agent does about the taint of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaintMode {
    /// Nothing.
    Off,
    /// Takes it away when the agent is ready.
    Remove,
    /// Sets it, too: after a restart of the machine, and while the agent is not ready.
    Manage,
}

/// The taint of this agent's node.
#[derive(Debug)]
pub(crate) struct NodeTaint {
    mode: TaintMode,
    key: String,
    /// The plugin is being removed.
    is_over: AtomicBool,
    /// Who has it writes: a write that was begun before the end has ended before the last one begins.
    turn: Mutex<()>,
}

/// Why new pods are kept off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum NotReady {
    #[error("the machine has started again, and istio-cni is not ready on this node yet")]
    Rebooted,
    #[error("istio-cni has not been ready on this node for {} s", PATIENCE.as_secs())]
    Lost,
}

/// What the taint is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TaintAim {
    Absent,
    There(NotReady),
}

// === impl NodeTaint ===

impl NodeTaint {
    pub(crate) fn new((mode, key): &(TaintMode, String)) -> Self {
        Self { mode: *mode, key: key.clone(), is_over: AtomicBool::new(false), turn: Mutex::default() }
    }

    /// Sets the taint and takes it away until the task is aborted, or the plugin goes.
    pub(crate) async fn live(agent: Arc<Agent>) {
        let taint = &agent.taint;
        let Some(writer) = agent.writer.as_ref().filter(|_| taint.mode != TaintMode::Off) else { return };
        let mut rebooted = agent.kept_facts.boot.has_rebooted();
        let (mut ready_at, mut settled, mut failures) = (Instant::now(), None, 0);
        while !taint.is_over.load(Ordering::Relaxed) {
            let is_ready = agent.health.missing().is_empty();
            if is_ready {
                (ready_at, rebooted) = (Instant::now(), false);
            }
            let aim = aim(taint.mode, is_ready, rebooted, ready_at.elapsed());
            if let Some(aim) = aim.filter(|aim| settled != Some(*aim) || taint.differs(&agent, *aim)) {
                match taint.bring_about(&agent, writer, aim).await {
                    Ok(()) => (settled, failures) = (Some(aim), 0),
                    Err(error) => {
                        agent.log.warn(&error, &[("node", &agent.config.node)]);
                        tokio::time::sleep(PAUSES.pause(failures)).await;
                        failures += 1;
                    }
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Whether the watch of the node says otherwise, as after somebody's change.
    fn differs(&self, agent: &Agent, aim: TaintAim) -> bool {
        let node = agent.cluster.seen().node;
        node.is_some_and(|node| node.has_taint(&self.key) == (aim == TaintAim::Absent))
    }

    async fn bring_about(&self, agent: &Agent, writer: &Writer, aim: TaintAim) -> Result<(), cluster::Error> {
        let write = writer.set_taint(&self.key, aim != TaintAim::Absent);
        if !self.unless_over(write).await.transpose()?.unwrap_or(false) {
            return Ok(());
        }
        let (reason, text) = match aim {
            TaintAim::Absent => {
                (READY, format!("istio-cni is ready on this node; the taint {} is taken away", self.key))
            }
            TaintAim::There(why) => {
                (NOT_READY, format!("{why}; the taint {}:NoSchedule keeps new pods off", self.key))
            }
        };
        agent.log.info(&text, &[("node", &agent.config.node)]);
        agent.events.about_node(reason == NOT_READY, reason, &text).await;
        Ok(())
    }

    /// Writes in its turn, and not any more when the plugin goes.
    async fn unless_over<T>(&self, write: impl Future<Output = T>) -> Option<T> {
        let _turn = self.turn.lock().await;
        if self.is_over.load(Ordering::Relaxed) { None } else { Some(write.await) }
    }

    /// Writes for the last time, after what was begun before.
    async fn at_the_end<T>(&self, write: impl Future<Output = T>) -> T {
        self.is_over.store(true, Ordering::Relaxed);
        let _turn = self.turn.lock().await;
        write.await
    }

    /// Takes the taint away for good, since no agent will.
    pub(crate) async fn end(&self, agent: &Agent) {
        self.is_over.store(true, Ordering::Relaxed);
        let Some(writer) = agent.writer.as_ref().filter(|_| self.mode != TaintMode::Off) else { return };
        let text = "the node keeps its taint; take it away with kubectl taint node";
        let write = self.at_the_end(writer.set_taint(&self.key, false));
        match tokio::time::timeout(END_LIMIT, write).await {
            Ok(Ok(true)) => agent.log.info("the node's taint is taken away", &[("taint", &self.key)]),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => agent.log.error(text, &[("taint", &self.key), ("error", &error)]),
            Err(late) => agent.log.error(text, &[("taint", &self.key), ("error", &late)]),
        }
    }
}

/// What the taint is to be; nothing where it stays as it is.
fn aim(mode: TaintMode, is_ready: bool, rebooted: bool, unready_for: Duration) -> Option<TaintAim> {
    match mode {
        TaintMode::Remove | TaintMode::Manage if is_ready => Some(TaintAim::Absent),
        TaintMode::Manage if rebooted => Some(TaintAim::There(NotReady::Rebooted)),
        TaintMode::Manage if unready_for > PATIENCE => Some(TaintAim::There(NotReady::Lost)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn the_last_write_comes_after_one_that_was_begun_and_no_other_comes_after_it() {
        let taint = NodeTaint::new(&(TaintMode::Manage, "k".to_owned()));
        let written = StdMutex::new(Vec::new());
        let note = |what: &'static str| written.lock().unwrap().push(what);
        let (go, wait) = oneshot::channel::<()>();
        let begun = taint.unless_over(async {
            let _ = wait.await;
            note("there");
        });
        let last = taint.at_the_end(async { note("absent") });
        let release = async {
            tokio::task::yield_now().await;
            assert!(written.lock().unwrap().is_empty(), "the last write waits");
            go.send(()).unwrap();
        };
        // In this order: the one has its turn when the other asks for it.
        let (begun, (), ()) = tokio::join!(biased; begun, last, release);
        assert_eq!(begun, Some(()));
        assert_eq!(taint.unless_over(async { note("there") }).await, None);
        assert_eq!(*written.lock().unwrap(), ["there", "absent"]);
    }

    #[test]
    fn the_taint_is_set_only_where_it_is_managed_and_taken_away_when_ready() {
        let (short, long) = (PATIENCE, PATIENCE + PERIOD);
        for mode in [TaintMode::Off, TaintMode::Remove, TaintMode::Manage] {
            let if_managed = |why| (mode == TaintMode::Manage).then_some(TaintAim::There(why));
            assert_eq!(aim(mode, false, true, Duration::ZERO), if_managed(NotReady::Rebooted), "at once");
            assert_eq!(aim(mode, false, false, long), if_managed(NotReady::Lost));
            assert_eq!(aim(mode, false, false, short), None, "an update takes less");
            for rebooted in [false, true] {
                let absent = (mode != TaintMode::Off).then_some(TaintAim::Absent);
                assert_eq!(aim(mode, true, rebooted, Duration::ZERO), absent, "{mode:?}");
            }
        }
    }
}
