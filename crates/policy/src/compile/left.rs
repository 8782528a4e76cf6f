//! What does not get into the rules.

use crate::terms::{PolicyName, TrafficDirection};

/// A rule of a policy of which the kernel's rules have less than it says. If it allows, then what is left out is not allowed; if it does not, then
/// everything is denied where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{policy} {direction}[{rule}]: {reason}")]
pub struct LeftOut {
    /// The policy.
    pub policy: PolicyName,
    /// Where the rule stands in it.
    pub direction: TrafficDirection,
    /// Its position, from 0.
    pub rule: usize,
    /// Why.
    #[source]
    pub reason: LeftOutReason,
}

/// Why something is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum LeftOutReason {
    /// Of the whole rule.
    #[error(
        "with it a packet would meet more than {} rules of a pod's policies; write fewer peers and ports, or ranges of ports",
        super::MAX_CLASS_RULES
    )]
    Rules,
    /// Of blocks.
    #[error(
        "an ipBlock without its exceptions is more than what is left of the {} prefixes for a pod's policies; write fewer exceptions",
        super::MAX_CLASS_PREFIXES
    )]
    Prefixes,
    /// Of peers or ports.
    #[error(
        "the kernel has a set of the same name that means something else; change a label or a name in the rule"
    )]
    NameTaken,
}
