//! What people hear of pods that are not where they belong: the log, the pods' Events, and `/readyz?verbose`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use facts::PodRef;

use super::Ambient;
use super::config::AmbientConfig;
use super::desired::Desired;
use super::failure::AmbientFailure;
use super::members::{Member, MemberState};
use super::troubles::Troubles;
use super::waiting::{WaitCause, WaitLine, Waiting};
use crate::events::Events;
use crate::health::{Health, HealthPart, Notice, count_and_names};
use crate::live::LiveNews;

/// `reason` of the event about a pod that cannot be enrolled.
const NOT_IN: &str = "AmbientEnrollmentFailed";
/// The same about a pod that cannot be taken out.
const NOT_OUT: &str = "AmbientRemovalFailed";
/// The same about a pod of whose traffic one family passes by.
const PARTLY_IN: &str = "AmbientPartialCapture";
/// How often those that wait are looked at, while there are any.
const LOOK: Duration = Duration::from_millis(500);

/// What people hear.
pub(super) struct Telling {
    pub(super) health: Arc<Health>,
    /// Where people read what is left of a mode that is off.
    pub(super) notices: Arc<Health>,
    pub(super) events: Arc<Events>,
    /// Changes of running pods.
    pub(super) live: LiveNews,
    /// Pods that should be in and are not.
    pub(super) troubles: Troubles,
    /// Pods that wait for something of the node.
    pub(super) waiting: Waiting,
}

impl Telling {
    pub(super) fn new(
        config: &AmbientConfig,
        notices: Arc<Health>,
        events: Arc<Events>,
        live: LiveNews,
    ) -> Self {
        // A mode that is off makes no agent unready.
        let health =
            if config.is_off { Arc::new(Health::of(&[HealthPart::Ambient])) } else { notices.clone() };
        Self { health, notices, events, live, troubles: Troubles::default(), waiting: Waiting::default() }
    }
}

impl Ambient {
    /// Says what the kill switch leaves.
    pub(super) fn tell_capture(&self) {
        let inside: [telemetry::Label<'_>; 1] = [("pods", &self.pods.members.all().len())];
        if self.config.rules.now().captures() {
            self.log.info("capture is enabled: pods are taken into the mesh again", &inside);
        } else {
            let text = "capture is disabled: no pod is taken into the mesh; those that are in stay as they are until their sandbox ends or \
                        they are labelled out of it";
            self.log.warn(text, &inside);
        }
    }

    /// The log hears of each failure that is the pod's own, and of the number of pods where it is the node's. The pod's events hear of what
    /// somebody has to do something about.
    pub(super) async fn tell(&self, key: &PodRef, failure: &AmbientFailure, attempt: u32) {
        self.telling.troubles.note(&key.uid, failure.reason(), fault::message(failure));
        self.log.debug(failure, &[("pod", key)]);
        if failure.cause().is_some() {
            if let Some(message) = self.note_waiting(key, failure) {
                self.tell_that_it_waits(key, &message).await;
            }
            return;
        }
        self.telling.waiting.over(&key.uid);
        let text = fault::message(failure);
        self.log.warn(&text, &[("pod", key)]);
        if failure.is_for_events(attempt) {
            let reason = if failure.is_on_the_way_out() { NOT_OUT } else { NOT_IN };
            self.tell_pod(key, reason, &text).await;
        }
    }

    /// Counts a pod that waits for something of the node; gives what an Event is to say of it by now.
    pub(super) fn note_waiting(&self, key: &PodRef, failure: &AmbientFailure) -> Option<String> {
        let (cause, now) = (failure.cause()?, Instant::now());
        let message = fault::message(failure);
        self.telling.waiting.note(key, cause, &message, now);
        // Of what is missing otherwise its owner can do nothing, and an API server that is away takes no Events.
        let due = cause == WaitCause::Ztunnel && self.telling.waiting.wants_event(&key.uid, now);
        due.then(|| format!("{message}; the pod comes into the mesh when a ztunnel takes it"))
    }

    pub(super) async fn tell_that_it_waits(&self, key: &PodRef, message: &str) {
        if !self.telling.events.warn(key, NOT_IN, message).await {
            self.telling.waiting.missed_event(&key.uid);
        }
    }

    /// Writes an Event about a pod that cannot be taken out.
    pub(super) async fn tell_removal(&self, key: &PodRef, message: &str) {
        self.tell_pod(key, NOT_OUT, message).await;
    }

    /// Writes an Event about the pod, once for each text.
    async fn tell_pod(&self, key: &PodRef, reason: &str, message: &str) {
        let is_news = self.telling.troubles.is_news(&key.uid, message, Instant::now());
        if is_news && !self.telling.events.warn(key, reason, message).await {
            self.telling.troubles.unsay(&key.uid, message);
        }
    }

    /// A pod with addresses of both families is in with the one that is captured on this node. Nobody may think that it is in with both.
    pub(super) async fn tell_of_the_other_family(&self, member: &Member) {
        if self.node_options(member).ipv6 || member.told_partial || !member.ips().iter().any(IpAddr::is_ipv6)
        {
            return;
        }
        self.pods.members.change(&member.key.uid, |member| member.told_partial = true);
        let text = "the pod is in the mesh with IPv4 only: its IPv6 traffic bypasses ztunnel, because IPv6 is not captured on \
                    this node (AMBIENT_IPV6=false); set ambient.ipv6 of the chart";
        self.log.warn(text, &[("pod", &member.key)]);
        self.tell_pod(&member.key, PARTLY_IN, text).await;
    }

    /// A pod that was in before this agent came has its rules, and no ztunnel has said anything to it yet.
    pub(super) fn wait_for_ztunnel(&self, key: &PodRef) {
        if self.pods.ztunnels.connected() == 0 {
            let text = fault::message(&AmbientFailure::Ztunnel(zds::AddError::NoZtunnel));
            self.telling.waiting.note(key, WaitCause::Ztunnel, &text, Instant::now());
        }
    }

    /// Tells how many pods wait for something of the node, until the task is aborted.
    pub(super) async fn tell_waiting(self: Arc<Self>) {
        loop {
            self.telling.waiting.retain(|key| self.waits_for_ztunnel(key));
            self.show_waiting();
            for line in self.telling.waiting.lines(Instant::now()) {
                self.tell_line(&line);
            }
            if self.telling.waiting.is_quiet() {
                self.telling.waiting.changed().await;
            } else {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Whether a pod that did is still to be taken by a ztunnel.
    fn waits_for_ztunnel(&self, key: &PodRef) -> bool {
        let facts = self.cluster.index().facts(&key.namespace, &key.name);
        let facts = facts.filter(|facts| facts.pod.uid() == Some(&*key.uid));
        let wanted = facts.is_some_and(|facts| self.config.rules.now().desired(&facts) == Desired::In);
        wanted && self.pods.members.state(&key.uid) != Some(MemberState::Enrolled)
    }

    fn show_waiting(&self) {
        match self.telling.waiting.of(WaitCause::Ztunnel) {
            Some((pods, text)) => {
                self.telling
                    .health
                    .notice(Notice::Ztunnel, &format!("{}: {text}", waiters(pods, WaitCause::Ztunnel)));
            }
            None => {
                self.telling.health.settled(Notice::Ztunnel);
            }
        }
    }

    /// Lets people know of pods that are overdue from now on, and has those worked on that are not any more.
    pub(super) fn tell_overdue(self: &Arc<Self>) {
        let ambient = Arc::downgrade(self);
        self.pods.slots.on_overdue(move |key, overdue| {
            let Some(ambient) = ambient.upgrade() else { return };
            ambient.show_overdue();
            if !overdue {
                ambient.changed(std::slice::from_ref(key));
            }
        });
    }

    /// Shows the pods in whose namespaces something has not ended in time. Nothing is known of their rules until it has.
    fn show_overdue(&self) {
        let overdue = self.pods.slots.overdue();
        if overdue.is_empty() {
            if self.telling.notices.settled(Notice::Overdue) {
                self.log.info("no pod's network namespace is overdue any more", &[]);
            }
            return;
        }
        let names: Vec<String> = overdue.iter().map(|(key, act)| format!("{}: {act}", key)).collect();
        let text = format!(
            "the verification of pods is overdue, as the kernel is busy in their network namespaces: {}",
            count_and_names(&names)
        );
        if self.telling.notices.notice(Notice::Overdue, &text) {
            self.log.warn(&text, &[]);
        }
    }

    fn tell_line(&self, line: &WaitLine) {
        match line {
            WaitLine::Waits { cause, pods, text, waited } => {
                let labels: [telemetry::Label<'_>; 2] = [("error", text), ("waiting_s", &waited.as_secs())];
                self.log.sum_up(waiters(*pods, *cause), &labels);
            }
            WaitLine::Over { cause, waited } => {
                let text = format!("no pod waits for {} any more", cause.name());
                self.log.info(text, &[("waited_s", &waited.as_secs())]);
            }
        }
    }
}

fn waiters(pods: usize, cause: WaitCause) -> String {
    let cause = cause.name();
    if pods == 1 { format!("1 pod waits for {cause}") } else { format!("{pods} pods wait for {cause}") }
}
