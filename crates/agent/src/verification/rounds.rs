//! The loop: who is looked at when.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ::verification::{Due, Layer, VerificationState};
use facts::PodRef;
use kernel::watch::{EventSupport, Noticed, RulesetCommit};
use netns::NetnsId;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::entry::{LastLook, Meanwhile, VerifiedSandbox};
use super::haste::ActInNetns;
use super::identity::{NetnsIdentity, identity};
use super::verifier::PodVerifier;
use super::watch::NetnsWatch;
use super::{ExpectedPod, culprit};
use metrics::Metrics;

/// The first change of pods is looked at without delay, and those that follow together: after so many times as long as that took, or this time at most.
const REST: u32 = 20;
const TOGETHER: Duration = Duration::from_millis(20);
/// So many new pods are looked at at once: until then nobody hears of changes there.
const FEW: usize = 4;
/// Descriptors that are left to the rest of the agent when namespaces are watched: connections, watches, and a namespace for each pod.
const RESERVED: u64 = 512;
/// Descriptors of a pod: its namespace, and at most three sockets.
const OF_A_POD: u64 = 4;

impl PodVerifier {
    /// Verifies until the task is aborted.
    pub(crate) async fn live(self: Arc<Self>) {
        let mut events = self.start_watch();
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().rounds());
        tasks.spawn(self.clone().probe_events());
        let mut looks = HashMap::new();
        let (mut sync, mut not_before) = (Some(self.now()), Duration::ZERO);
        loop {
            let due = self.sandboxes().agenda.next();
            let next = [due, sync].into_iter().flatten().min();
            let until = self.at(next.unwrap_or(self.now() + self.interval()));
            tokio::select! {
                Some(number) = next_event(&mut events) => {
                    self.guarded(number, Layer::Event, || self.take_events(number));
                }
                () = self.changed.notified() => {
                    sync = sync.or(Some(self.now().max(not_before)));
                }
                () = self.hurried.notified() => {}
                Some(done) = tasks.join_next_with_id() => {
                    let id = done.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
                    if let (Some((number, layer)), Err(_)) = (looks.remove(&id), done) {
                        self.panicked(number, layer);
                    }
                }
                () = tokio::time::sleep_until(until) => {}
            }
            if sync.is_some_and(|at| at <= self.now()) {
                let began = self.now();
                self.synchronize_guarded();
                let now = self.now();
                (sync, not_before) = (None, now + ((now - began) * REST).min(TOGETHER));
            }
            let due = self.sandboxes().agenda.take_due(self.now());
            for number in due {
                if let Some(layer) = self.guarded(number, Layer::Cheap, || self.begin(number)).flatten() {
                    let look = tasks.spawn(self.clone().look(number, layer));
                    looks.insert(look.id(), (number, layer));
                }
            }
        }
    }

    /// What each mode does once in an interval.
    async fn rounds(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.interval()) => {}
                () = self.followed.notified() => continue,
            }
            for mode in self.modes() {
                // A defect of one round ends neither the next nor the other mode's.
                let mut round = JoinSet::new();
                round.spawn(mode.clone().round());
                if let Some(Err(error)) = round.join_next().await {
                    let text = "the round of verification of a mode has panicked; this is a defect, please report it";
                    self.parts.log.error(text, &[("error", &error)]);
                }
            }
            self.sweep_settings().await;
            self.changed.notify_one();
        }
    }

    /// Forgets how settings were in the namespaces of pods that are gone.
    async fn sweep_settings(self: &Arc<Self>) {
        if !self.parts.cluster.state().synced {
            return;
        }
        let verifier = self.clone();
        let sweep = move || verifier.parts.conflicts.keep_settings(|| verifier.stays());
        match tokio::task::spawn_blocking(sweep).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.parts.log.warn(&error, &[]),
            Err(error) => self.parts.log.error(&error, &[]),
        }
    }

    /// Tells the pods of this node, and the namespaces that are verified, from those that are gone.
    fn stays(&self) -> impl Fn(&applied::Origin) -> bool + use<> {
        let pods: HashSet<String> =
            self.parts.cluster.index().pods().filter_map(|pod| pod.uid().map(str::to_owned)).collect();
        let sandboxes: HashSet<(String, NetnsId)> = self.sandboxes().numbers.keys().cloned().collect();
        move |origin| pods.contains(&origin.uid) || sandboxes.contains(&(origin.uid.clone(), origin.netns))
    }

    /// Finds out what this kernel tells, which says how soon changes are found and whether those who make them are named.
    async fn probe_events(self: Arc<Self>) {
        match tokio::task::spawn_blocking(self.parts.probe).await {
            Ok(Ok(EventSupport { generation, events, culprits })) => {
                self.parts.metrics.kernel_tells(generation, events, culprits);
                let lacks = match (generation, events, culprits) {
                    (false, ..) => "whether rules were changed; each look at a pod is a full comparison",
                    (_, false, _) => "of changed rules by itself; pods are looked at by turns",
                    (.., false) => "who changes rules",
                    (true, true, true) => return,
                };
                self.parts.log.warn(format!("this kernel does not tell {lacks}"), &[]);
            }
            // Without the rights, pods are counted as such.
            Ok(Err(error)) => {
                self.parts.log.debug(
                    "what this kernel tells of changed rules is not known",
                    &[("error", &fault::chain(&error))],
                );
            }
            Err(error) => {
                self.parts.log.error("the look at what this kernel tells has panicked", &[("error", &error)]);
            }
        }
    }

    fn start_watch(&self) -> Option<mpsc::Receiver<u64>> {
        match NetnsWatch::start() {
            Ok((watch, events)) => {
                let _ = self.watch.set(watch);
                Some(events)
            }
            Err(error) => {
                let text =
                    "changes in pods' network namespaces are not heard of; pods are looked at by turns";
                self.parts.log.error(text, &[("error", &error)]);
                None
            }
        }
    }

    /// Takes what the kernel tells of a namespace. What is ours asks for no look.
    pub(super) fn take_events(self: &Arc<Self>, number: u64) {
        let mut sandboxes = self.sandboxes();
        let now = self.now();
        let noticed = sandboxes.entries.get_mut(&number).and_then(|entry| {
            let mut kept = match entry.kept.try_lock() {
                Ok(kept) => kept,
                // Who compares takes them at the end. Until then nobody knows who has changed something.
                Err(_) => return Some(None),
            };
            let noticed = kept.as_mut()?.take_events();
            if noticed.is_err() {
                close(kept.take());
            }
            Some(Some(noticed.unwrap_or(Noticed { lost: true, ..Noticed::default() })))
        });
        let act = match noticed {
            None => return,
            Some(None) => sandboxes.change(number, |entry| {
                if entry.acts_meanwhile() {
                    tokio::spawn(self.clone().act_meanwhile(number));
                }
                None
            }),
            Some(Some(noticed)) => {
                if noticed.routing
                    && let Some(entry) = sandboxes.entries.get(&number)
                {
                    self.parts.conflicts.routing_changed(entry.target.netns.id());
                }
                if noticed.lost {
                    self.parts.metrics.verification_events_lost();
                }
                sandboxes.change(number, |entry| self.notice(entry, &noticed, now))
            }
        };
        drop(sandboxes);
        if let Some(act) = act.flatten() {
            // What it does not come to is done when it is quiet.
            tokio::spawn(act.run(self.parts.slots.clone()));
        }
    }

    /// Takes what was told of a namespace; gives what is to be done there at once.
    fn notice(&self, entry: &mut VerifiedSandbox, noticed: &Noticed, now: Duration) -> Option<ActInNetns> {
        let is_at_work = entry.mode.is_at_work(&entry.pod.uid);
        let is_certain = !is_at_work || entry.tells_ours();
        let is_foreign = noticed.commits.iter().any(|commit| !commit.is_own());
        if is_certain {
            self.note_writer(entry, &noticed.commits);
        }
        match is_foreign || noticed.routing {
            _ if noticed.lost => entry.notice(now),
            true if !is_at_work || (is_foreign && is_certain) => entry.notice(now),
            // Somebody else may have been at work there, too: the next turn tells.
            true => entry.full = None,
            false => {}
        }
        let act = if is_foreign { self.act_of(entry) } else { None };
        act.filter(|_| entry.haste.take(now))
    }

    /// Notes who of others committed last.
    pub(super) fn note_writer(&self, entry: &mut VerifiedSandbox, commits: &[RulesetCommit]) {
        let Some(commit) = commits.iter().rfind(|commit| !commit.is_own()) else { return };
        // One writer commits many times, and to look who it is costs more than to hear of it.
        let is_known =
            entry.writer.as_ref().is_some_and(|one| commit.pid != 0 && one.pid == Some(commit.pid));
        if !is_known {
            let index = self.parts.cluster.index();
            let pod_of = |uid: &str| index.pods().find(|pod| pod.uid() == Some(uid));
            let name = |uid: &str| pod_of(uid).map(|pod| pod.pod_ref().to_string());
            let own = (&*entry.pod.uid, entry.target.netns.id());
            entry.writer = Some(culprit::culprit(commit, &self.parts.proc_root, own, &name));
        }
    }

    /// What a sandbox's turn comes to: a full comparison, or nothing more.
    fn begin(self: &Arc<Self>, number: u64) -> Option<Layer> {
        let mut sandboxes = self.sandboxes();
        let now = self.now();
        sandboxes.change(number, |entry| {
            if entry.mode.is_at_work(&entry.pod.uid) {
                entry.put_off_for_work(now);
                if entry.is_deaf() {
                    tokio::spawn(self.clone().listen(number));
                }
                return None;
            }
            let is_tick = entry.tick <= now;
            if is_tick {
                entry.tick = self.policy.schedule().next(&entry.pod.uid, now);
            }
            let layer = match entry.take_noticed() {
                true => Some(Layer::Event),
                false if is_tick => self.confirm(entry, now),
                false => Some(Layer::Full),
            };
            entry.retry = None;
            entry.busy = layer.is_some();
            entry.meanwhile = Meanwhile::default();
            layer
        })?
    }

    /// Asks for the generation; gives what has to be compared in full.
    fn confirm(&self, entry: &mut VerifiedSandbox, now: Duration) -> Option<Layer> {
        let metrics: &Metrics = &self.parts.metrics;
        let since_full = entry.full.filter(|_| entry.watched && entry.known.seen == LastLook::Equal);
        let due = self.policy.schedule().due(since_full.map(|full| now.saturating_sub(full)));
        if due == Due::Full || entry.wants_listeners(now) {
            return Some(Layer::Full);
        }
        let began = std::time::Instant::now();
        if identity(&entry.target.netns, entry.target.found) != NetnsIdentity::Holds {
            return Some(Layer::Full);
        }
        let unchanged = entry.kept.try_lock().ok().and_then(|mut kept| {
            let unchanged = kept.as_mut()?.unchanged();
            if unchanged.is_err() {
                close(kept.take());
                metrics.verified(Layer::Cheap, "error", began.elapsed());
            }
            unchanged.ok()
        });
        if unchanged != Some(true) {
            return Some(Layer::Full);
        }
        metrics.verified(Layer::Cheap, "equal", began.elapsed());
        entry.is_equal(now);
        None
    }

    /// Takes up sandboxes that are new and lets go of those that are none any more.
    pub(super) fn synchronize(&self) {
        let expected = self.expected();
        let now = self.now();
        let mut sandboxes = self.sandboxes();
        let (mut stay, mut starting, mut new) = (HashSet::new(), HashSet::new(), Vec::new());
        for (mode, ExpectedPod { pod, target, .. }) in expected {
            match target {
                Ok(target) => {
                    stay.insert((pod.uid.clone(), target.netns.id()));
                    let number = sandboxes.numbers.get(&(pod.uid.clone(), target.netns.id())).copied();
                    match number {
                        Some(number) => {
                            sandboxes.change(number, |entry| entry.retarget(target, now));
                        }
                        None => new.push((pod, mode, target)),
                    }
                }
                Err(VerificationState::Starting) => {
                    sandboxes.starting.entry(pod.uid.clone()).or_insert(now);
                    starting.insert(pod.uid);
                }
                Err(_) => {}
            }
        }
        let is_burst = new.len() > FEW;
        for (pod, mode, target) in new {
            let tick = if is_burst { self.first(&pod, now) } else { now };
            let watched = self.may_watch(sandboxes.entries.len());
            sandboxes.insert(VerifiedSandbox::new(pod, mode, target, tick, watched));
        }
        sandboxes.starting.retain(|uid, _| starting.contains(uid));
        let gone = sandboxes.retain(&stay);
        let namespaces: HashSet<NetnsId> = stay.iter().map(|(_, netns)| *netns).collect();
        let unwatched = sandboxes.entries.values().filter(|entry| !entry.watched).count();
        drop(sandboxes);
        self.parts.metrics.unwatched(unwatched);
        self.parts.conflicts.keep(&namespaces);
        if !gone.is_empty() {
            close(gone);
        }
    }

    /// When one of many new sandboxes is looked at first: those that are there when the agent starts are spread, and later ones are looked at now.
    fn first(&self, pod: &PodRef, now: Duration) -> Duration {
        self.policy.schedule().first(&pod.uid).max(now)
    }

    /// Whether there are descriptors for one more namespace to be watched.
    fn may_watch(&self, pods: usize) -> bool {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let pods = u64::try_from(pods).unwrap_or(u64::MAX).saturating_add(1);
        self.watch.get().is_some()
            && limit.is_none_or(|limit| pods.saturating_mul(OF_A_POD).saturating_add(RESERVED) <= limit)
    }
}

/// Closes sockets of namespaces elsewhere: that waits for whatever keeps the kernel busy there, and no other pod is to wait with it.
fn close(sockets: impl Send + 'static) {
    tokio::task::spawn_blocking(move || drop(sockets));
}

/// Never, where nothing is heard.
async fn next_event(events: &mut Option<mpsc::Receiver<u64>>) -> Option<u64> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}
