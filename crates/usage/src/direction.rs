//! Directions in files and names.

use policy::TrafficDirection;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// Both.
pub(crate) const BOTH: [TrafficDirection; 2] = [TrafficDirection::Egress, TrafficDirection::Ingress];

/// As in names of counters.
pub(crate) fn short(direction: TrafficDirection) -> &'static str {
    match direction {
        TrafficDirection::Egress => "out",
        TrafficDirection::Ingress => "in",
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
pub(crate) fn serialize<S: Serializer>(direction: &TrafficDirection, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(direction)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<TrafficDirection, D::Error> {
    let text = Box::<str>::deserialize(from)?;
    let found = BOTH.into_iter().find(|direction| direction.to_string() == *text);
    found.ok_or_else(|| D::Error::custom(format!("{text:?} is no direction")))
}
