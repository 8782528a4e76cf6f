//! Changes of rules in the node's network namespace, as the kernel tells of them: rules of ours that others took away, or put theirs before, are put right
//! at once, not only when their turn comes.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use ::verification::Culprit;
use kernel::watch::{KeptSockets, Noticed, RulesetCommit};
use ruleset::Backend;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use super::Ambient;
use super::host::{HostSide, NotReady};
use crate::verification::{NetnsWatch, node_writer};

/// After a change it is waited for so much quiet, and at most for so long: whoever reloads a firewall changes much.
const QUIET: Duration = Duration::from_millis(50);
const STORM: Duration = Duration::from_millis(500);
/// Others change rules on a node all the time, kube-proxy each second. A look takes a millisecond with nf_tables, and starts programs with iptables.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
const AT_MOST_EVERY_BY_PROGRAMS: Duration = Duration::from_secs(10);
/// Others who have committed since the last look and are named, at most.
const WRITERS: usize = 3;
/// The number by which the only sockets of this watch are told.
const NUMBER: u64 = 0;

/// `reason` of the Event about the node whose rules differed.
const RESTORED: &str = "HostRulesRestored";
/// The time between two of them.
const TELL_AGAIN: Duration = Duration::from_secs(3600);

/// Others who change rules in the node's namespace.
#[derive(Debug, Default)]
pub(super) struct HostWriters {
    /// Who has since the last look.
    since: Vec<Culprit>,
    told: Option<Instant>,
}

impl Ambient {
    /// Looks at the node's namespace whenever somebody else has changed rules there, until the task is aborted. Where that is not heard of, it is looked
    /// at by turns only.
    pub(super) async fn watch_host(self: Arc<Self>) {
        let text =
            "changes of rules in the node's network namespace are not heard of; it is looked at by turns";
        let (watch, mut events) = match NetnsWatch::start() {
            Ok(started) => started,
            Err(error) => return self.log.warn(text, &[("error", &error)]),
        };
        loop {
            if let Err(why) = self.hear_host(&watch, &mut events).await {
                self.log.warn(text, &[("error", &why)]);
            }
            tokio::time::sleep(self.pods.verifier.interval()).await;
        }
    }

    /// Ends when the sockets are of no use any more.
    async fn hear_host(
        self: &Arc<Self>,
        watch: &NetnsWatch,
        events: &mut Receiver<u64>,
    ) -> Result<(), String> {
        let ambient = self.clone();
        let open = move || ambient.host().ok().map(HostSide::keep_sockets);
        let kept = tokio::task::spawn_blocking(open).await.map_err(|error| error.to_string())?;
        let Some(kept) = kept else { return Ok(()) };
        let mut kept = kept.map_err(|error: NotReady| error.to_string())?;
        watch.add(&kept, NUMBER).map_err(|error| error.to_string())?;
        let mut last: Option<Instant> = None;
        // Something was committed while programs of ours worked, by these or by others.
        let mut is_unclear = false;
        while is_unclear || events.recv().await.is_some() {
            let first = Instant::now();
            if !self.is_changed(&mut kept)? && !is_unclear {
                continue;
            }
            is_unclear = false;
            while first.elapsed() < STORM && tokio::time::timeout(QUIET, events.recv()).await.is_ok() {}
            if let Some(last) = last {
                tokio::time::sleep_until(last + self.host_look_pause()).await;
            }
            // The look that comes now sees these, too.
            self.is_changed(&mut kept)?;
            if self.is_at_rest() {
                self.verify_host().await;
                if self.looks_at_host_by_programs() {
                    is_unclear = self.is_changed(&mut kept)?;
                    self.take_host_writers();
                }
            }
            last = Some(Instant::now());
        }
        Ok(())
    }

    fn host_look_pause(&self) -> Duration {
        if self.looks_at_host_by_programs() { AT_MOST_EVERY_BY_PROGRAMS } else { AT_MOST_EVERY }
    }

    /// Whether the node's rules are in iptables, so that programs of ours commit what is put right: the kernel names these as it names others.
    pub(super) fn looks_at_host_by_programs(&self) -> bool {
        !matches!(self.host().map(HostSide::backend), Ok(Backend::Nftables))
    }

    /// Whether somebody else has changed rules, or may have; who is noted. Of the routing each new pod changes something, and nothing that concerns us.
    fn is_changed(&self, kept: &mut KeptSockets) -> Result<bool, String> {
        let Noticed { commits, lost, .. } = kept.take_events().map_err(|error| fault::chain(&error))?;
        let others: Vec<&RulesetCommit> = commits.iter().filter(|commit| !commit.is_own()).collect();
        if !others.is_empty() {
            let (index, proc_root) = (self.cluster.index(), self.config.proc_root());
            let pod_of = |uid: &str| index.pods().find(|pod| pod.uid() == Some(uid));
            let names = |uid: &str| pod_of(uid).map(|pod| pod.pod_ref().to_string());
            let writers = &mut self.host_writers().since;
            for commit in &others {
                if writers.len() < WRITERS && !writers.iter().any(|known| known.pid == Some(commit.pid)) {
                    writers.push(node_writer(commit, &proc_root, &names));
                }
            }
        }
        Ok(lost || !others.is_empty())
    }

    fn host_writers(&self) -> MutexGuard<'_, HostWriters> {
        self.node.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who else has committed since this was asked last.
    pub(super) fn take_host_writers(&self) -> Vec<Culprit> {
        std::mem::take(&mut self.host_writers().since)
    }

    /// Writes an Event about the node, once in an hour.
    pub(super) fn tell_host_restored(&self, writers: &str) {
        let now = Instant::now();
        let mut known = self.host_writers();
        if known.told.is_some_and(|told| now < told + TELL_AGAIN) {
            return;
        }
        known.told = Some(now);
        drop(known);
        let text = format!(
            "The node's rules for probes differed from the planned ones, changed by {writers}. They are put right."
        );
        let events = self.telling.events.clone();
        // No look waits for the API server.
        tokio::spawn(async move { events.about_node(true, RESTORED, &text).await });
    }
}

/// Writers in words.
pub(super) fn told(writers: &[Culprit]) -> String {
    match writers.is_empty() {
        true => Culprit::unknown().to_string(),
        false => writers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
    }
}
