//! Events: what they say, and how they are written.
//!
//! They are objects of the core API with all that events.k8s.io has of one: time of the event, action, series, who reports. Both are the same object for
//! a server, so that no second right is needed.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use facts::PodRef;
use k8s_openapi::jiff::Timestamp;
use kube::core::Request;
use kube::core::params::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::event_book::{EventBook, EventDraft, EventWrite};
use super::{LIMIT, MAX_ANSWER, Writer, reasons, segment};
use crate::error::Error;

/// Longest name of an object (Kubernetes' DNS subdomain) and longest message of an Event (`validateV1EventSeries` and its neighbours in
/// Kubernetes' `pkg/apis/core/validation/events.go`).
const MAX_NAME: usize = 253;
pub(super) const MAX_MESSAGE: usize = 1024;

/// `reportingController`, a qualified name.
const CONTROLLER: &str = "istio-cni.io/agent";
/// How often it is looked whether what waits may be written.
const TURN: Duration = Duration::from_secs(1);

/// What a Kubernetes Event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventText<'a> {
    /// Whether it is a `Warning`, or else `Normal`.
    pub warning: bool,
    /// A word in upper camel case, such as `StartedWithoutCapture`.
    pub reason: &'a str,
    /// For people; cut after 1024 bytes.
    pub message: &'a str,
    /// `source.component`, such as `istio-cni-node`.
    pub component: &'a str,
}

// === impl Writer ===

impl Writer {
    /// Creates an Event about a pod, in its namespace.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn create_event(&self, pod: &PodRef, text: EventText<'_>) -> Result<(), Error> {
        let operation = format!("create an Event about pod {}/{}", pod.namespace, pod.name);
        let about = json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
        });
        self.event(&operation, (&pod.namespace, &pod.name), about, text).await
    }

    /// Creates an Event about the node, in namespace `default` and with its name as uid, where kubectl looks for it.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn create_node_event(&self, text: EventText<'_>) -> Result<(), Error> {
        let operation = format!("create an Event about node {}", self.node);
        let about = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node});
        self.event(&operation, ("default", &self.node), about, text).await
    }

    /// Creates an Event about a NetworkPolicy, in its namespace.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn create_policy_event(
        &self,
        namespace: &str,
        name: &str,
        text: EventText<'_>,
    ) -> Result<(), Error> {
        let operation = format!("create an Event about network policy {namespace}/{name}");
        let about = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": namespace, "name": name,
        });
        self.event(&operation, (namespace, name), about, text).await
    }

    /// Has an Event written about an object of a name: now, or within the limits later, as one of a series.
    pub(crate) async fn event(
        &self,
        operation: &str,
        (namespace, name): (&str, &str),
        about: Value,
        text: EventText<'_>,
    ) -> Result<(), Error> {
        debug_assert!(
            reasons::of(text.reason).is_some_and(|known| known.warning == text.warning
                && known.about.iter().any(|kind| about["kind"] == *kind)),
            "reasons.rs has no Event {text:?} about {about}"
        );
        let draft = EventDraft {
            about,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            warning: text.warning,
            reason: text.reason.to_owned(),
            message: text.message[..text.message.floor_char_boundary(MAX_MESSAGE)].to_owned(),
            component: text.component.to_owned(),
            count: 1,
        };
        let write = self.book().take(draft, Instant::now());
        self.serve();
        let Some(write) = write else { return Ok(()) };
        let written = self.write_event(operation, &write).await;
        if written.is_err() {
            match &write {
                EventWrite::Create(draft) => self.book().failed(draft),
                EventWrite::Update { .. } => self.book().again(&write),
            }
            self.serve();
        }
        written
    }

    /// Has what waits written, if there is anything and nobody writes it.
    fn serve(&self) {
        if self.book().begins() {
            tokio::spawn(self.clone().write_what_waits());
        }
    }

    /// Until nothing waits.
    async fn write_what_waits(self) {
        loop {
            if !self.book().goes_on() {
                return;
            }
            tokio::time::sleep(TURN).await;
            loop {
                let due = self.book().due(Instant::now());
                let Some(write) = due else { break };
                let written = self.write_event("write an Event that had to wait", &write).await;
                match (&written, &write) {
                    (Ok(()), _) => {}
                    (Err(error), _) if may_pass(error) => self.book().again(&write),
                    // What it says is in the log.
                    (Err(_), EventWrite::Create(draft)) => self.book().failed(draft),
                    (Err(_), EventWrite::Update { .. }) => {}
                }
            }
        }
    }

    async fn write_event(&self, operation: &str, write: &EventWrite) -> Result<(), Error> {
        match write {
            EventWrite::Create(draft) => {
                let name = self.make_event(operation, draft).await?;
                self.book().made(draft, name);
                Ok(())
            }
            EventWrite::Update { event, draft } => {
                let now = Timestamp::now();
                let patch = Patch::Merge(json!({
                    "message": draft.message,
                    "count": draft.count,
                    "lastTimestamp": whole_seconds(now),
                    "series": {"count": draft.count, "lastObservedTime": micros(now)},
                }));
                let request = Request::new(events_path(draft)).patch(event, &PatchParams::default(), &patch);
                let updated = self.connection.ask(operation, request, LIMIT, MAX_ANSWER).await.map(drop);
                // An API server forgets Events after an hour; one of before is gone.
                if updated.as_ref().is_err_and(|error| error.status() == Some(404)) {
                    let name = self.make_event(operation, draft).await?;
                    self.book().made(draft, name);
                    return Ok(());
                }
                updated
            }
        }
    }

    async fn make_event(&self, operation: &str, draft: &EventDraft) -> Result<String, Error> {
        let now = Timestamp::now();
        let EventDraft { about, namespace, name, warning, reason, message, component, count } = draft;
        let name = event_name(name, now);
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about,
            "type": if *warning { "Warning" } else { "Normal" },
            "reason": reason,
            "action": reasons::of(reason).map_or("Observe", |known| known.action),
            "message": message,
            "source": {"component": component, "host": self.node},
            "reportingComponent": CONTROLLER,
            "reportingInstance": self.instance,
            "eventTime": micros(now),
            "firstTimestamp": whole_seconds(now),
            "lastTimestamp": whole_seconds(now),
            "count": count,
        });
        let request =
            Request::new(events_path(draft)).create(&PostParams::default(), event.to_string().into_bytes());
        self.connection.ask(operation, request, LIMIT, MAX_ANSWER).await?;
        Ok(name)
    }

    fn book(&self) -> MutexGuard<'_, EventBook> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the server may take it later: it did not answer, was asked too much, or was at fault itself.
fn may_pass(error: &Error) -> bool {
    error.status().is_none_or(|status| matches!(status, 401 | 429 | 500..))
}

fn events_path(draft: &EventDraft) -> String {
    format!("/api/v1/namespaces/{}/events", segment(&draft.namespace))
}

/// Unique per pod and moment, as other components name theirs, and no longer than allowed.
fn event_name(pod: &str, now: Timestamp) -> String {
    let suffix = format!(".{:x}", now.as_nanosecond());
    let room = MAX_NAME.saturating_sub(suffix.len());
    let pod = &pod[..pod.floor_char_boundary(room)];
    format!("{}{suffix}", pod.trim_end_matches(['.', '-']))
}

/// RFC 3339 without fractions, which `metav1.Time` has not.
fn whole_seconds(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 with six digits of fractions, as `metav1.MicroTime` has.
fn micros(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_names_are_names() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        assert_eq!(event_name("web-0", now), "web-0.17979cfe362a0000");
        let long = event_name(&"a".repeat(253), now);
        assert_eq!(long.len(), 253);
        assert!(long.ends_with("a.17979cfe362a0000"), "{long}");
        assert!(event_name(&format!("{}-{}", "a".repeat(235), "b".repeat(17)), now).contains("a.17979"));
    }

    #[test]
    fn times_have_whole_seconds_or_six_digits_of_them() {
        let now = Timestamp::from_millisecond(1_700_000_000_750).unwrap();
        assert_eq!(whole_seconds(now), "2023-11-14T22:13:20Z");
        assert_eq!(micros(now), "2023-11-14T22:13:20.750000Z");
    }
}
