//! Conflicts: what others have that changes what rules of ours mean.

use std::fmt;

/// What others have in a namespace that changes what rules of ours mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Which kind.
    pub id: ConflictId,
    /// How bad it is.
    pub severity: Severity,
    /// Where it is.
    pub place: ConflictPlace,
    /// The foreign rule or setting in its own notation.
    pub foreign: String,
    /// Which packets of ours it concerns, and what becomes of them.
    pub affects: String,
    /// Who has put it there, where that is known: the kernel names who commits while somebody listens.
    pub culprit: Option<String>,
    /// What the agent may do about it by changing what is ours.
    pub resolution: Resolution,
    /// What a person can do.
    pub advice: String,
}

/// How bad a conflict is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing of ours is changed.
    Info,
    /// Something may be changed.
    Warning,
    /// Capture or policy is bypassed, or traffic is broken.
    Error,
}

/// Where a foreign rule is. What is empty or absent does not apply.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConflictPlace {
    /// `ip`, `ip6`, `inet`.
    pub family: String,
    /// Table; that of iptables' legacy variant ends with ` (legacy)`.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// Handle of the rule.
    pub handle: Option<u64>,
    /// Priority of the base chain from which it is reached.
    pub priority: Option<i32>,
}

/// What the agent may do about a conflict by changing what is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Resolution {
    /// Nothing.
    #[default]
    None,
    /// Delete and add our tables in one transaction: of chains with one priority the last that came is the first that runs.
    Reregister,
    /// Move our jump to the head of the shared chain.
    MoveToHead,
    /// Set a sysctl of the namespace.
    Sysctl {
        /// Below `/proc/sys`.
        name: &'static str,
        /// The value.
        value: &'static str,
    },
}

impl Resolution {
    /// What does not leave by the interface that it came in by is let in all the same. The kernel takes the greater of an interface's value and that
    /// of all, so that this one is enough.
    pub const LOOSE_REVERSE_PATH: Self = Self::Sysctl { name: "net/ipv4/conf/all/rp_filter", value: "2" };
}

/// Which kind of conflict. In a pod's namespace: P, in the node's: H.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConflictId {
    /// Address translation of others before ours takes captured packets.
    P1,
    /// Address translation of others after ours; ours wins.
    P2,
    /// What ours redirected is dropped.
    P3,
    /// Packets are dropped before rules of ours see them.
    P4,
    /// Connection tracking leaves captured packets alone, so that nothing translates them.
    P5,
    /// A mark that ours take for the proxy's.
    P6,
    /// Rules of istio-init beside ours.
    P7,
    /// Rules of another mesh.
    P8,
    /// Rules of containers inside of the pod.
    P9,
    /// A second set of rules with our names.
    P10,
    /// Both variants of iptables, or iptables and nf_tables, hold rules.
    P11,
    /// Policy routing.
    P12,
    /// Sysctls.
    P13,
    /// Zones of connection tracking.
    P14,
    /// A process of the pod may change the network.
    P15,
    /// The application listens on a port of the proxy.
    P16,
    /// The application runs as the proxy's user or group.
    P17,
    /// The pod forwards, or translates to an address that came later.
    P18,
    /// The node's firewall drops probes.
    H1,
    /// Probes get another source address than ours.
    H2,
    /// Masquerading of the cluster's network takes link-local addresses.
    H3,
    /// A NetworkPolicy drops probes.
    H4,
    /// Services are translated in connect(2).
    H5,
    /// Somebody else writes the CNI configuration.
    H6,
    /// A DNS cache on the node.
    H7,
    /// Bridged packets pass the node's chains, or skip them.
    H8,
    /// Reverse path filter on the node's interfaces.
    H9,
    /// Chains of kube-proxy at our priority.
    H10,
    /// Sets with our names.
    H11,
    /// A preference of policy routing that ours wants is taken.
    H12,
    /// The node's firewall was loaded anew.
    H13,
    /// Two agents.
    H14,
}

impl fmt::Display for ConflictId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CF-{self:?}")
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}
