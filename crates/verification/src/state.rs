//! What is said of a pod that should be captured. The words are those of the metrics' labels.

use std::fmt;

/// By what a pod is captured: label `mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataPlaneMode {
    /// A proxy in the pod.
    Sidecar,
    /// The node's ztunnel.
    Ambient,
}

/// What is known of a pod that should be captured: label `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VerificationState {
    /// Its namespace is as planned, by a comparison that is not too old, and no conflict of severity error is known.
    Verified,
    /// Its rules are as planned; no connected ztunnel has acknowledged it.
    Unacknowledged,
    /// It is on its way out, and its open connections are kept.
    Draining,
    /// The last comparison found a difference that is not put right yet.
    Drifted,
    /// The same, and the repair waits, because somebody undoes it again and again.
    Contended,
    /// Nobody can tell.
    Unverifiable(UnverifiableReason),
    /// It has no sandbox yet, its ADD is under way, or this agent has not looked at it yet.
    Starting,
}

/// Why a pod cannot be verified: label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnverifiableReason {
    /// Its network namespace is not found.
    NoNamespace,
    /// It has no address, by which its namespace could be told from others.
    NoAddress,
    /// A static pod, whose processes were not found by the hash that its runtime knows it by.
    StaticPod,
    /// Its network stack is inside of a sandbox (gVisor, Kata Containers).
    Sandbox,
    /// It has a user namespace of its own, and the owner of its network namespace cannot be told.
    UserNamespace,
    /// The kernel did not let the agent look.
    Permission,
    /// The kernel did not answer, or not in time.
    Kernel,
    /// The namespace that was found is not the pod's.
    WrongNamespace,
    /// Its rules are as planned; rules of others change what they do.
    Conflict,
}

/// How it was looked: label `layer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layer {
    /// A full comparison, because the kernel said that something was changed.
    Event,
    /// The generation of the namespace's rules is the one of the last equal comparison.
    Cheap,
    /// A full comparison, because it was time.
    Full,
}

/// What differs: label `what`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Drifted {
    /// Tables, chains or rules; a table that is switched off is as good as none.
    Rules,
    /// Elements of a set.
    Set,
    /// Routes or routing rules.
    Routing,
    /// Rules of ours are in the other backend, too.
    OtherBackend,
    /// Rules in the node's namespace.
    HostRules,
    /// Sets in the node's namespace.
    HostSets,
    /// Rules or sets of network policies.
    Policy,
}

/// What became of a difference: label `action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DriftAction {
    /// It was put right.
    Repaired,
    /// It was left as it is, by configuration.
    Left,
    /// The repair failed.
    Failed,
    /// The repair waits.
    BackedOff,
}

// === impl DataPlaneMode ===

impl DataPlaneMode {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Sidecar, Self::Ambient];

    /// The label's value.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Ambient => "ambient",
        }
    }
}

// === impl VerificationState ===

impl VerificationState {
    /// All of them but [`Self::Verified`], with each reason.
    pub fn unverified() -> impl Iterator<Item = Self> {
        let plain = [Self::Unacknowledged, Self::Draining, Self::Drifted, Self::Contended, Self::Starting];
        plain.into_iter().chain(UnverifiableReason::ALL.into_iter().map(Self::Unverifiable))
    }

    /// The label's value.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Unacknowledged => "unacknowledged",
            Self::Draining => "draining",
            Self::Drifted => "drifted",
            Self::Contended => "contended",
            Self::Unverifiable(_) => "unverifiable",
            Self::Starting => "starting",
        }
    }

    /// Why it is unverifiable, if it is.
    #[must_use]
    pub fn reason(self) -> Option<UnverifiableReason> {
        match self {
            Self::Unverifiable(reason) => Some(reason),
            _ => None,
        }
    }
}

impl fmt::Display for VerificationState {
    /// As `unverifiable/no-namespace`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())?;
        self.reason().map_or(Ok(()), |reason| write!(f, "/{}", reason.label()))
    }
}

// === impl UnverifiableReason ===

impl UnverifiableReason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::NoNamespace,
        Self::NoAddress,
        Self::StaticPod,
        Self::Sandbox,
        Self::UserNamespace,
        Self::Permission,
        Self::Kernel,
        Self::WrongNamespace,
        Self::Conflict,
    ];

    /// The label's value.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NoNamespace => "no-namespace",
            Self::NoAddress => "no-address",
            Self::StaticPod => "static-pod",
            Self::Sandbox => "sandbox",
            Self::UserNamespace => "user-namespace",
            Self::Permission => "permission",
            Self::Kernel => "kernel",
            Self::WrongNamespace => "wrong-namespace",
            Self::Conflict => "conflict",
        }
    }
}

// === impl Layer ===

impl Layer {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Event, Self::Cheap, Self::Full];

    /// The label's value.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Cheap => "cheap",
            Self::Full => "full",
        }
    }
}

// === impl Drifted ===

impl Drifted {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Rules,
        Self::Set,
        Self::Routing,
        Self::OtherBackend,
        Self::HostRules,
        Self::HostSets,
        Self::Policy,
    ];

    /// The label's value.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Set => "set",
            Self::Routing => "routing",
            Self::OtherBackend => "other-backend",
            Self::HostRules => "host-rules",
            Self::HostSets => "host-sets",
            Self::Policy => "policy",
        }
    }
}

// === impl DriftAction ===

impl DriftAction {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Repaired, Self::Left, Self::Failed, Self::BackedOff];

    /// The label's value.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Repaired => "repaired",
            Self::Left => "left",
            Self::Failed => "failed",
            Self::BackedOff => "backed-off",
        }
    }
}
