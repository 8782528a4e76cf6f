//! How far a pod is, and what was seen of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// How far a pod is. A pod of none of these is no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Something is missing still, or a look showed so: most often a ztunnel that takes it.
    Pending,
    /// An agent before this one had it in, and this one has not seen all of that yet: its rules, or that a ztunnel takes it.
    Unconfirmed,
    /// Rules, ztunnel and probes are all in place.
    Enrolled,
    /// It is to be out, and something of ours is left.
    Leaving,
    /// It is out for everything new; what went through ztunnel before still does.
    Draining,
}

/// What this agent knows of the rules in a pod's namespace, from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing: it has not looked, or could not.
    Unknown,
    /// They were as planned, or have been made so.
    AsPlanned,
    /// They are of another layout and are left so until the next verification (`AMBIENT_RECONCILE_POD_RULES_ON_STARTUP`).
    Left,
    /// An agent before this one applied them, and the turn to look comes within the first interval of verifications (the same option).
    Due,
}

/// What a ztunnel said to the pod. All copies of a member share it: ztunnels answer at any time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Acked(Arc<AtomicU8>);

/// No ztunnel has said anything, as far as is known.
const UNASKED: u8 = 0;
/// The last one took it.
const TAKEN: u8 = 1;
/// The last one did not.
const REFUSED: u8 = 2;

// === impl State ===

impl State {
    /// For metrics.
    pub(crate) const ALL: [Self; 5] =
        [Self::Pending, Self::Unconfirmed, Self::Enrolled, Self::Leaving, Self::Draining];

    /// In metrics and the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Unconfirmed => "unconfirmed",
            Self::Enrolled => "enrolled",
            Self::Leaving => "leaving",
            Self::Draining => "draining",
        }
    }
}

// === impl Acked ===

impl Acked {
    /// Whether a ztunnel has taken it.
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst) == TAKEN
    }

    /// It has, or nobody is known to have.
    pub(crate) fn set(&self, taken: bool) {
        self.0.store(if taken { TAKEN } else { UNASKED }, Ordering::SeqCst);
    }

    pub(super) fn refuse(&self) {
        self.0.store(REFUSED, Ordering::SeqCst);
    }

    pub(super) fn is_refused(&self) -> bool {
        self.0.load(Ordering::SeqCst) == REFUSED
    }
}
