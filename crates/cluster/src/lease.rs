//! A Lease of Kubernetes (`coordination.k8s.io/v1`), by which one of several processes is chosen.
//!
//! Whoever has it renews it. Another one takes it when it has seen the same renewal for as long as the Lease lasts, by its own clock: the times that are
//! written are of other machines. So two of them may believe for a moment that they have it, and what they do by it has to bear that.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::core::Request;
use kube::core::params::{GetParams, PostParams};
use serde_json::{Value, json};

use crate::error::{Error, place};
use crate::write::{LIMIT, MAX_ANSWER, Writer, segment};

/// How long a renewal holds.
pub const LEASE_DURATION: Duration = Duration::from_secs(9);

/// Who wants a Lease, and what it has seen of it.
#[derive(Debug)]
pub struct LeaseCandidate {
    namespace: String,
    name: &'static str,
    holder: String,
    /// The renewal that was seen last, and since when.
    seen: Option<(Value, Instant)>,
}

/// How it stands with a Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseHold {
    /// This one has it, until [`LEASE_DURATION`] after it asked.
    Own,
    /// Another one has it, and has renewed it in time as far as is known.
    Other,
    /// Another one has it, and does not seem to renew it: it is to be looked at again soon.
    Doubtful,
}

// === impl LeaseCandidate ===

impl LeaseCandidate {
    /// `holder` is told from all others by its name.
    pub fn new(namespace: impl Into<String>, name: &'static str, holder: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name, holder: holder.into(), seen: None }
    }

    /// Takes the Lease if it is free, renews it if this one has it.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn attempt(&mut self, writer: &Writer) -> Result<LeaseHold, Error> {
        let Some(lease) = self.get(writer).await? else { return self.create(writer).await };
        let spec = &lease["spec"];
        let is_own = spec["holderIdentity"] == self.holder.as_str();
        let is_free = spec["holderIdentity"].as_str().is_none_or(str::is_empty);
        let renewal = json!([spec["holderIdentity"], spec["renewTime"], spec["acquireTime"]]);
        let since = match &self.seen {
            Some((seen, since)) if *seen == renewal => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((renewal, now));
                now
            }
        };
        if is_own || is_free || since.elapsed() >= LEASE_DURATION {
            return self.update(writer, lease).await;
        }
        let age = spec["renewTime"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
        let age = age.map(|renewed| Timestamp::now().duration_since(renewed).as_secs());
        let is_late = age.is_none_or(|age| age.unsigned_abs() >= LEASE_DURATION.as_secs() * 2 / 3);
        Ok(if is_late { LeaseHold::Doubtful } else { LeaseHold::Other })
    }

    async fn get(&self, writer: &Writer) -> Result<Option<Value>, Error> {
        let operation = format!("get Lease {}/{}", self.namespace, self.name);
        let request = Request::new(self.path()).get(self.name, &GetParams::default());
        let body = match writer.connection().ask(&operation, request, LIMIT, MAX_ANSWER).await {
            Err(error) if error.says_absent_or_no_more("leases", self.name) => return Ok(None),
            answer => answer?,
        };
        let lease: Value = serde_json::from_slice(&body)
            .map_err(|error| Error::NotUnderstood { operation: operation.clone(), reason: place(&error) })?;
        if lease["kind"] != "Lease" {
            return Err(Error::NotUnderstood { operation, reason: "is not a Lease".to_owned() });
        }
        Ok(Some(lease))
    }

    async fn create(&self, writer: &Writer) -> Result<LeaseHold, Error> {
        let operation = format!("create Lease {}/{}", self.namespace, self.name);
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": self.spec(&Value::Null),
        });
        let request =
            Request::new(self.path()).create(&PostParams::default(), lease.to_string().into_bytes());
        held(writer.connection().ask(&operation, request, LIMIT, MAX_ANSWER).await.map(drop))
    }

    /// On the condition that it is what was read.
    async fn update(&self, writer: &Writer, mut lease: Value) -> Result<LeaseHold, Error> {
        let operation = format!("renew Lease {}/{}", self.namespace, self.name);
        lease["spec"] = self.spec(&lease["spec"]);
        let request = Request::new(self.path()).replace(
            self.name,
            &PostParams::default(),
            lease.to_string().into_bytes(),
        );
        held(writer.connection().ask(&operation, request, LIMIT, MAX_ANSWER).await.map(drop))
    }

    fn spec(&self, before: &Value) -> Value {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let is_own = before["holderIdentity"] == self.holder.as_str();
        let changes = before["leaseTransitions"].as_u64().unwrap_or_default();
        let is_taken = !before.is_null() && !is_own;
        json!({
            "holderIdentity": self.holder,
            "leaseDurationSeconds": LEASE_DURATION.as_secs(),
            "acquireTime": if is_own { before["acquireTime"].clone() } else { now.clone().into() },
            "renewTime": now,
            "leaseTransitions": changes + u64::from(is_taken),
        })
    }

    fn path(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", segment(&self.namespace))
    }
}

/// Another one that was quicker has it.
fn held(written: Result<(), Error>) -> Result<LeaseHold, Error> {
    match written {
        Ok(()) => Ok(LeaseHold::Own),
        Err(error) if error.status() == Some(409) => Ok(LeaseHold::Other),
        Err(error) => Err(error),
    }
}
