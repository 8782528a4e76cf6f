//! Kubernetes Events that this agent writes. An API server that does not take them must cost neither time nor lines: what the log says once is
//! enough.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cluster::write::EventText;
use cluster::{OwnPod, Writer};
use facts::PodRef;
use telemetry::Scope;

use crate::verification::printable;

/// `source.component`: the agent's DaemonSet.
pub(crate) const COMPONENT: &str = "istio-cni-node";
/// How long no Event is tried after one that failed for want of an API server.
const PAUSE: Duration = Duration::from_secs(10);

/// How often an Event about this agent's own pod is tried while the API server is away.
const OWN_TRIES: u32 = 30;

/// Writes Events about pods.
#[derive(Debug)]
pub(crate) struct Events {
    /// Absent where pods are manifests: there is nobody to tell.
    writer: Option<Writer>,
    log: Scope,
    /// This agent's pod.
    own: OwnPod,
    /// Until when no Event is tried.
    quiet: Mutex<Option<Instant>>,
}

impl Events {
    pub(crate) fn new(writer: Option<Writer>, own: OwnPod, log: Scope) -> Self {
        Self { writer, log, own, quiet: Mutex::default() }
    }

    /// Writes a warning about this agent's own pod, as soon as the API server takes it. Nothing waits for it: see that it is a task of its own.
    pub(crate) async fn warn_own(&self, reason: &str, message: &str) {
        let (Some(writer), own) = (&self.writer, &self.own) else { return };
        if own.namespace.is_empty() || own.name.is_empty() {
            return;
        }
        for _ in 0..OWN_TRIES {
            match writer.pod_uid(own).await {
                Ok(uid) => {
                    let key = PodRef { namespace: own.namespace.clone(), name: own.name.clone(), uid };
                    if self.warn(&key, reason, message).await {
                        return;
                    }
                }
                // Without the right to look at it there is none for events either, and a name that leads nowhere has no pod.
                Err(error) if matches!(error.status(), Some(403 | 404)) => return,
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes a notice about a pod, which is no warning. Whether that is done with, as of [`Self::warn`]; what it says is in the log, too.
    pub(crate) async fn tell(&self, pod: &PodRef, reason: &str, message: &str) -> bool {
        self.write(pod, EventText { warning: false, reason, message, component: COMPONENT }).await
    }

    /// Writes a warning about a pod. Whether that is done with: a refusal (no right, no such namespace) is final, and false says that the API
    /// server could not be asked, so that it is worth another try later.
    pub(crate) async fn warn(&self, pod: &PodRef, reason: &str, message: &str) -> bool {
        self.write(pod, EventText { warning: true, reason, message, component: COMPONENT }).await
    }

    async fn write(&self, pod: &PodRef, event: EventText<'_>) -> bool {
        let Some(writer) = &self.writer else { return true };
        if self.is_quiet() {
            return false;
        }
        let Err(error) = writer.create_event(pod, event).await else {
            *self.quiet() = None;
            self.log.settled(&[("path", &"events")]);
            return true;
        };
        match error.status() {
            Some(404 | 409) => true,
            // Without the right for Events what they say is in the log all the same.
            Some(400..=499) if !matches!(error.status(), Some(401 | 429)) => {
                let text = "Events about pods cannot be written; their texts are in this log only";
                self.log.warn(text, &[("path", &"events"), ("status", &error.status().unwrap_or_default())]);
                true
            }
            _ => {
                *self.quiet() = Some(Instant::now() + PAUSE);
                false
            }
        }
    }

    /// Who was the last to write one of these labels or annotations of a pod; `unknown` where nobody says it.
    pub(crate) async fn last_manager(&self, pod: &PodRef, keys: &[&str]) -> String {
        let unknown = || "unknown".to_owned();
        let Some(writer) = self.writer.as_ref().filter(|_| !self.is_quiet()) else { return unknown() };
        match writer.last_manager(pod, keys).await {
            Ok(manager) => manager.map_or_else(unknown, |manager| printable(&manager)),
            Err(error) => {
                self.log.debug(&error, &[("pod", pod)]);
                unknown()
            }
        }
    }

    /// Writes an Event about the node, once: what it says is in the log, too.
    pub(crate) async fn about_node(&self, warning: bool, reason: &str, message: &str) {
        let Some(writer) = &self.writer else { return };
        let event = EventText { warning, reason, message, component: COMPONENT };
        if let Err(error) = writer.create_node_event(event).await {
            self.log.debug(&error, &[]);
        }
    }

    /// Writes a warning about a network policy, once: what it says is in the log, too.
    pub(crate) async fn about_policy(&self, namespace: &str, name: &str, reason: &str, message: &str) {
        let Some(writer) = &self.writer else { return };
        let event = EventText { warning: true, reason, message, component: COMPONENT };
        if let Err(error) = writer.create_policy_event(namespace, name, event).await {
            self.log.debug(&error, &[]);
        }
    }

    fn is_quiet(&self) -> bool {
        self.quiet().is_some_and(|until| Instant::now() < until)
    }

    fn quiet(&self) -> MutexGuard<'_, Option<Instant>> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
