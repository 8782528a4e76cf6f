//! The path of a packet through everything that is there, ours and that of others.

use ruleset::Hook;
use ruleset::eval::Packet;
use ruleset::listed::ListedAct;

use crate::{ConflictPlace, ObservedNetns};

/// A packet's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivePath {
    /// Hooks in the order in which it passes them.
    pub stops: Vec<LiveStop>,
    /// What becomes of it.
    pub end: LiveEnd,
}

/// A hook that the packet passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveStop {
    /// Hook.
    pub hook: Hook,
    /// The packet as it comes to the hook.
    pub packet: Packet,
    /// Every rule that matches it, in order. A policy that drops is the last.
    pub rules: Vec<LiveRule>,
}

/// A rule on the way, a chain's policy, or a decision of the kernel's routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveRule {
    /// Where it is; without a table it is the kernel's routing.
    pub place: ConflictPlace,
    /// In its own notation, or in words.
    pub text: String,
    /// The reason that the plan gives, which may be empty; absent of what is foreign.
    pub why: Option<String>,
    /// What it does with the packet; absent where that is unknown from here, and where it goes on.
    pub verdict: Option<ListedAct>,
    /// Whether the rule could be read wholly. What one does that could not is not known.
    pub read: bool,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveEnd {
    /// A rule of ours leads it to the proxy.
    Captured {
        /// The proxy's port.
        port: u16,
    },
    /// A rule, ours or foreign, keeps it from rules that would capture it, or takes it elsewhere.
    Bypass {
        /// The rule.
        by: LiveRule,
    },
    /// It is gone.
    Dropped {
        /// By this.
        by: LiveRule,
    },
    /// It goes where it was going, and no rule was for it.
    Delivered,
    /// It cannot be told.
    Unknown {
        /// Because of this.
        by: LiveRule,
    },
}

/// Takes a packet through everything that is there. Without an incoming interface it is sent here.
#[must_use]
pub fn follow(observed: &ObservedNetns, packet: &Packet) -> LivePath {
    let _ = (observed, packet);
    let by = LiveRule {
        place: ConflictPlace::default(),
        text: "nothing is followed yet".to_owned(),
        why: None,
        verdict: None,
        read: false,
    };
    LivePath { stops: Vec::new(), end: LiveEnd::Unknown { by } }
}
