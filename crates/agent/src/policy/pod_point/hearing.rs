//! What others commit in the network namespaces of pods that are judged there: it is heard, and the pod is compared at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ::verification::{Culprit, Haste};
use facts::PodRef;
use kernel::watch::{KeptSockets, Noticed, RulesetCommit};
use netns::NetnsId;
use policy::index::LocalName;
use tokio::sync::mpsc;

use super::super::told::{BETWEEN_EVENTS, REPAIRED};
use super::{PodPointKeeper, pod_of};
use crate::verification::{NetnsWatch, node_writer, printable};

/// When a pod is looked at in which somebody commits without end.
const LATER: Duration = Duration::from_millis(100);

/// The namespaces in which it is heard.
pub(super) struct PodHearing {
    began: Instant,
    watch: OnceLock<NetnsWatch>,
    pods: Mutex<HeardPods>,
}

#[derive(Default)]
struct HeardPods {
    last: u64,
    numbers: BTreeMap<LocalName, u64>,
    entries: HashMap<u64, HeardPod>,
}

struct HeardPod {
    name: LocalName,
    netns: NetnsId,
    /// Absent where the kernel does not tell.
    kept: Option<KeptSockets>,
    haste: Haste,
    /// It is going to be looked at.
    is_due: bool,
    /// Who has committed last, and whether that was since it was told.
    writer: Option<Culprit>,
    is_news: bool,
    /// When an Event was written last.
    told: Option<Instant>,
}

// === impl PodHearing ===

impl PodHearing {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), watch: OnceLock::new(), pods: Mutex::default() }
    }

    /// Whether a pod has rules in this namespace.
    pub(super) fn is_in(&self, name: &LocalName, netns: NetnsId) -> bool {
        let pods = self.pods();
        let entry = pods.numbers.get(name).and_then(|number| pods.entries.get(number));
        entry.is_some_and(|entry| entry.netns == netns)
    }

    /// A pod has rules in this namespace; it is heard by these sockets what comes there from now on.
    pub(super) fn add(&self, name: &LocalName, netns: NetnsId, kept: Option<KeptSockets>) {
        let mut pods = self.pods();
        pods.last += 1;
        let number = pods.last;
        let kept = kept.filter(|kept| self.watch.get().is_some_and(|watch| watch.add(kept, number).is_ok()));
        let entry = HeardPod {
            name: name.clone(),
            netns,
            kept,
            haste: Haste::default(),
            is_due: false,
            writer: None,
            is_news: false,
            told: None,
        };
        let before = pods.numbers.insert(name.clone(), number);
        pods.entries.insert(number, entry);
        let gone = before.and_then(|before| pods.entries.remove(&before));
        drop(pods);
        // To close a socket may take milliseconds.
        drop(gone);
    }

    /// Whether an Event about a pod may be written. That counts.
    fn may_tell(&self, name: &LocalName) -> bool {
        let mut pods = self.pods();
        let number = pods.numbers.get(name).copied();
        let Some(entry) = number.and_then(|number| pods.entries.get_mut(&number)) else { return false };
        let may = entry.told.is_none_or(|at| at.elapsed() >= BETWEEN_EVENTS);
        if may {
            entry.told = Some(Instant::now());
        }
        may
    }

    /// A pod is not judged in its namespace any more, or is gone.
    pub(super) fn forget(&self, name: &LocalName) {
        let mut pods = self.pods();
        let gone = pods.numbers.remove(name).and_then(|number| pods.entries.remove(&number));
        drop(pods);
        drop(gone);
    }

    /// Who has committed last in a pod's namespace. It is told once, and to be asked before anything is put right: what programs of ours commit is heard of
    /// as anybody's.
    pub(super) fn writer(&self, name: &LocalName) -> Option<Culprit> {
        let mut pods = self.pods();
        let number = *pods.numbers.get(name)?;
        let entry = pods.entries.get_mut(&number)?;
        std::mem::take(&mut entry.is_news).then(|| entry.writer.clone())?
    }

    /// Programs of ours have loaded rules in a pod's namespace: nobody is named for what was committed until now. Whether something was.
    pub(super) fn loaded_by_programs(&self, name: &LocalName) -> bool {
        let mut pods = self.pods();
        let Some(number) = pods.numbers.get(name).copied() else { return false };
        let Some(entry) = pods.entries.get_mut(&number) else { return false };
        entry.is_news = false;
        let heard = entry.kept.as_mut().map(KeptSockets::take_events);
        heard.is_some_and(|heard| heard.map_or(true, |heard| heard.lost || !heard.commits.is_empty()))
    }

    /// Takes what the kernel tells of a namespace; `culprit` names who makes a commit. The pod that is to be looked at, and when.
    fn take(
        &self,
        number: u64,
        culprit: impl Fn(&RulesetCommit) -> Culprit,
    ) -> Option<(LocalName, Duration)> {
        let mut pods = self.pods();
        let entry = pods.entries.get_mut(&number)?;
        let heard = entry.kept.as_mut()?.take_events();
        let is_broken = heard.is_err();
        let noticed = heard.unwrap_or(Noticed { lost: true, ..Noticed::default() });
        let foreign = noticed.commits.iter().rfind(|commit| !commit.is_own());
        if foreign.is_none() && !noticed.lost {
            return None;
        }
        if let Some(commit) = foreign {
            entry.is_news = true;
            // Who is known is not looked up again: somebody may commit without end.
            if !entry.writer.as_ref().is_some_and(|known| is_of(known, commit)) {
                entry.writer = Some(culprit(commit));
            }
        }
        let now = self.began.elapsed();
        let name = entry.name.clone();
        let wait = match (entry.is_due, entry.haste.take(now)) {
            (true, _) => None,
            (false, true) => Some(Duration::ZERO),
            (false, false) => {
                entry.is_due = true;
                Some(LATER)
            }
        };
        let gone = if is_broken {
            pods.numbers.remove(&name);
            pods.entries.remove(&number)
        } else {
            None
        };
        drop(pods);
        drop(gone);
        Some((name, wait?))
    }

    fn looks(&self, name: &LocalName) {
        let mut pods = self.pods();
        if let Some(number) = pods.numbers.get(name).copied()
            && let Some(entry) = pods.entries.get_mut(&number)
        {
            entry.is_due = false;
        }
    }

    fn pods(&self) -> MutexGuard<'_, HeardPods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl PodPointKeeper ===

impl PodPointKeeper {
    /// Begins to hear; nothing where the system does not let it, and pods are looked at by turns.
    pub(super) fn start_hearing(&self) -> Option<mpsc::Receiver<u64>> {
        match NetnsWatch::start() {
            Ok((watch, events)) => {
                let _ = self.hearing.watch.set(watch);
                Some(events)
            }
            Err(error) => {
                let text = "what others change in pods' network namespaces is not heard of; rules of policies there are looked at by turns";
                self.parts.log.error(text, &[("error", &error)]);
                None
            }
        }
    }

    /// Looks at pods in whose namespaces somebody else commits, until it is aborted.
    pub(super) async fn hear(self: Arc<Self>, events: Option<mpsc::Receiver<u64>>) {
        let Some(mut events) = events else { return };
        while let Some(number) = events.recv().await {
            let names = |uid: &str| {
                let index = self.parts.cluster.index();
                index.pods().find(|pod| pod.uid() == Some(uid)).map(|pod| pod.pod_ref().to_string())
            };
            let culprit = |commit: &_| node_writer(commit, &self.parts.proc_root, &names);
            match self.hearing.take(number, culprit) {
                None => {}
                Some((name, Duration::ZERO)) => self.look_again(&name),
                Some((name, later)) => {
                    let keeper = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(later).await;
                        keeper.hearing.looks(&name);
                        keeper.look_again(&name);
                    });
                }
            }
        }
    }

    pub(super) fn look_again(&self, name: &LocalName) {
        if self.book().disturbed(name) {
            self.queue.push(pod_of(name));
        }
    }

    /// Rules in a pod's namespace were not as they should be, and are again.
    pub(super) fn tell_repair(&self, name: &LocalName, pod: &PodRef, writer: Option<Culprit>) {
        self.parts.metrics.policy_repaired("pod");
        let by = writer.map_or_else(|| "unknown".to_owned(), |writer| writer.to_string());
        let text = "the rules of a pod's policies differed from what is wanted; they are put right";
        self.parts.log.warn(text, &[("pod", pod), ("by", &by)]);
        if !self.hearing.may_tell(name) {
            return;
        }
        let (events, pod) = (self.parts.events.clone(), pod.clone());
        let text = format!(
            "rules of network policies in this pod's network namespace were changed by others ({by}) and are put right; until then it was not isolated \
             as its policies say"
        );
        tokio::spawn(async move { events.warn(&pod, REPAIRED, &text).await });
    }
}

/// Whether a commit is of a writer that is known.
fn is_of(known: &Culprit, commit: &RulesetCommit) -> bool {
    commit.pid != 0 && known.pid == Some(commit.pid) && known.command == printable(&commit.command)
}
