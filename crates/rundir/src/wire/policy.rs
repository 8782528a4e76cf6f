//! What the plugin asks of the agent for the policies of a pod that starts or ends, and what it hears.

use std::collections::BTreeMap;
use std::net::IpAddr;

use facts::networkpolicy::Isolation;
use serde::{Deserialize, Serialize};

/// A pod that is about to start. Its network namespace goes along as a descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrepareRequest {
    /// `metadata.uid`, empty where the runtime does not pass it.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// CNI_CONTAINERID.
    pub container: String,
    /// `metadata.labels` as this ADD knows them; absent where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// What the plugins before this one gave it.
    pub addresses: Vec<IpAddr>,
    /// CNI_IFNAME.
    pub interface: String,
    /// The other end of that interface, in the node's namespace; empty where the plugins before did not tell it.
    pub host_interface: String,
    /// What the plugin isolates already, until it hears more.
    pub guarded: Isolation,
}

/// What policies come to for a pod that is about to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrepareAnswer {
    /// The directions in which policies isolate it.
    pub isolation: Isolation,
    /// What is judged in these directions is in force: the plugin's guard is in the way, or rules of the agent have taken its place.
    pub in_force: bool,
    /// Where.
    pub point: EnforcedAt,
    /// The class of what comes to it; empty where no policy selects it.
    pub ingress_class: String,
    /// The class of what leaves it.
    pub egress_class: String,
    /// Addresses of the own node, for a guard that has to stay; those of its bridges among them, from where kubelet's probes come.
    pub node: Vec<IpAddr>,
}

/// Where a pod's policies are enforced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnforcedAt {
    /// In the node's network namespace. The guard has to go.
    #[default]
    Node,
    /// In the pod's. The agent puts its rules in the guard's place.
    Pod,
    /// In both.
    Both,
}

/// Pods that are gone, so that nothing of theirs is left when their addresses are given to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReleaseRequest {
    /// Each of them.
    pub pods: Vec<ReleasedPod>,
}

/// A pod that is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReleasedPod {
    /// `metadata.uid`, empty where the runtime does not pass it.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The addresses that it had.
    pub addresses: Vec<IpAddr>,
}

/// What the agent knows of policies, for `cnictl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyStateReport {
    /// Version of the agent.
    pub version: String,
    /// When it was said, in seconds since 1970.
    pub at: f64,
    /// The agent's node.
    pub node: String,
    /// Whether policies are enforced.
    pub standing: StandingWord,
    /// Why not all of it is in force; empty otherwise.
    pub problem: String,
    /// When what is in force was known, in seconds since 1970; absent where it is known now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_at: Option<f64>,
    /// The pods of this node, with where their policies are enforced.
    pub points: Vec<PolicyPointReport>,
    /// Packets that rules have denied since the agent was started, by the number of a class as the kernel's log has it.
    pub denied: BTreeMap<String, u64>,
    /// Pods of other nodes that are not told of, because they are too many.
    pub pods_left_out: usize,
    /// Policies, namespaces, addresses of the own node and pods, as in a snapshot of policies.
    pub known: String,
    /// Tenants; absent where they are not enforced, or not listed yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenants: Option<Vec<TenantStateReport>>,
}

/// A tenant, and what its objects come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantStateReport {
    /// Its name.
    pub name: String,
    /// `metadata.generation`; 0 in a manifest.
    pub generation: u64,
    /// The generation that is in force on the node; absent where none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_force: Option<u64>,
    /// `enforce`, `audit` or `off`.
    pub enforcement: String,
    /// The namespaces that it claims.
    pub namespaces: Vec<TenantClaimReport>,
    /// Services of others that its pods are allowed.
    pub services: Vec<TenantServiceReport>,
    /// Its pods in the cluster.
    pub pods: usize,
    /// What of it is not understood.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
}

/// A namespace that a tenant claims.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantClaimReport {
    /// The namespace.
    pub name: String,
    /// `Member`, `Missing` or `Refused`, as in the tenant's status.
    pub state: String,
    /// The older tenant that has it, where it is refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
}

/// A Service of others that a tenant's pods are allowed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantServiceReport {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// A word for why it is not reached, as in the tenant's status; empty where it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// How enforcing stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StandingWord {
    /// Policies are not enforced.
    #[default]
    Off,
    /// Not everything that decides is listed yet; nothing is opened or closed.
    NotListed,
    /// The same, and what an earlier agent knew is in force.
    Remembered,
    /// Policies are in force as they are now.
    InForce,
    /// A kernel did not take all of it.
    Failing,
}

/// Where the policies of a pod of this node are enforced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyPointReport {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Where.
    pub point: EnforcedAt,
    /// A word for why the node's rules do not see its packets; empty where they do, and where that was not tested.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unseen: String,
    /// The same for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unseen_text: String,
    /// Its rules in its own network namespace are not loaded yet, or not known to be: it is isolated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_guarded: bool,
}

/// Largest report of what is known of policies, in bytes.
pub const MAX_POLICY_STATE: usize = 64 << 20;
/// Most pods that it tells of.
pub const MAX_POLICY_PODS: usize = 20_000;

impl StandingWord {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NotListed => "not-listed",
            Self::Remembered => "remembered",
            Self::InForce => "in-force",
            Self::Failing => "failing",
        }
    }
}

impl EnforcedAt {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Pod => "pod",
            Self::Both => "both",
        }
    }
}

/// What an ADD did about policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyOutcome {
    /// They are not enforced, or the pod is not one that they can select.
    #[default]
    Off,
    /// The agent has put them into force before the pod started.
    Prepared,
    /// The pod started isolated, until the agent does so.
    Guarded,
    /// There was no agent, and no policy that was known last selects the pod.
    Unselected,
    /// There was no agent, and the pod started without a policy that selects it, as the configuration allows.
    Open,
}

impl PolicyOutcome {
    /// Whether it is the usual one, which is not worth a word.
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// A stable name for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Prepared => "prepared",
            Self::Guarded => "guarded",
            Self::Unselected => "unselected",
            Self::Open => "open",
        }
    }
}
