//! How far a pod is.

/// How far a pod is. A pod of none of these is no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum MemberState {
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

// === impl MemberState ===

impl MemberState {
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
