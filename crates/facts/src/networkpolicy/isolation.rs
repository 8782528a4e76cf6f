//! Directions in which policies isolate a pod.

use serde::{Deserialize, Serialize};

/// The directions in which a pod is isolated: only what a policy allows may pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Isolation {
    /// What comes to it.
    pub ingress: bool,
    /// What leaves it.
    pub egress: bool,
}

impl Isolation {
    /// Both directions.
    pub const BOTH: Self = Self { ingress: true, egress: true };

    /// Whether it is isolated in no direction.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// What this or the other isolates.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { ingress: self.ingress || other.ingress, egress: self.egress || other.egress }
    }
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match (self.ingress, self.egress) {
            (true, true) => "ingress and egress",
            (true, false) => "ingress",
            (false, true) => "egress",
            (false, false) => "no direction",
        })
    }
}
