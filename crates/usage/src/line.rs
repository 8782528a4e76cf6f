//! What is kept of an hour, as a line of JSON.

use serde::{Deserialize, Serialize};

use policy::TrafficDirection;

use crate::class::PeerClass;
use crate::hour::Hour;
use crate::reading::Amount;

/// What a sealed line says that it is.
pub const SCHEMA: &str = "istio-cni.usage/v1";

/// What a tenant's pods on a node have sent and received in an hour. A later line of the same node, tenant and hour takes the place of an earlier one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageLine {
    /// The node's name.
    pub node: Box<str>,
    /// Which hour.
    pub hour: Hour,
    /// The tenant.
    pub tenant: Box<str>,
    /// Where packets are counted: `pod`, in the pod's network namespace.
    pub measured_at: Box<str>,
    /// Seconds of which the tenant's pods were there, added up.
    pub pod_seconds: u64,
    /// Those of them in which their packets were counted.
    pub observed_pod_seconds: u64,
    /// Whether packets are known not to be in it: of pods that ended while nobody read, or whose counters somebody took away.
    pub incomplete: bool,
    /// How much, by direction and class.
    pub rows: Vec<LineRow>,
    /// The pods with most bytes, at most ten.
    pub top: Vec<PodShare>,
}

/// How much of a direction and a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineRow {
    /// Which way, as the tenant's pods see it.
    #[serde(with = "crate::direction")]
    pub direction: TrafficDirection,
    /// What the other end is.
    pub peer: PeerClass,
    /// How much.
    #[serde(flatten)]
    pub amount: Amount,
}

/// A pod's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodShare {
    /// Namespace and name.
    pub pod: Box<str>,
    /// Bytes of both directions that were not denied.
    pub bytes: u64,
}

// === impl UsageLine ===

impl UsageLine {
    /// Reads a line; nothing where it is of another schema.
    ///
    /// # Errors
    /// It is no JSON, or not of this shape.
    pub fn parse(line: &str) -> Result<Option<Self>, serde_json::Error> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            schema: Box<str>,
        }
        let head: Head = serde_json::from_str(line)?;
        if &*head.schema == SCHEMA { serde_json::from_str(line).map(Some) } else { Ok(None) }
    }

    /// The line before it is sealed, without its end.
    pub fn to_json(&self) -> String {
        // Nothing in it can fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}
